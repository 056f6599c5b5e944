"""Validate settings: check names, types and ranges, and convert plain values to the settings dataclasses."""

import contextlib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from itertools import takewhile
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sam_runner.config.keys import REQUIRED, Key
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF

WORDS = {int: "a whole number, like 20", float: "a number, like 0.05", bool: "true or false", str: "a text"}
LARGEST = {int: 2**63 - 1, float: 3.4e38}  # torch computes in int64 and float32, and fails with larger numbers


class UnknownKeyError(InputError):
    """A key that its group does not have.

    Attributes:
        key: Dotted name of the key.
        value: Its value.
        accepted: Dotted names of the keys of its group.
    """

    def __init__(self, key: str, value: Any, accepted: Sequence[str]) -> None:
        super().__init__(describe_unknown_key(key, accepted))
        self.key, self.value, self.accepted = key, value, accepted


Groups = Mapping[str, Sequence[type[Any]]]


def build(kind: type[Any], values: Any, path: str, groups: Groups, *, missing_paths: bool = False) -> Any:
    """Build a settings dataclass from plain values.

    Args:
        kind: The dataclass; ignored for a group in `groups`.
        values: Values by name; absent settings get their defaults.
        path: Dotted name of the group, "" for the top level.
        groups: Settings classes of the groups with options, by dotted name. The values choose one of the classes.
        missing_paths: Accept that a required path was not given; its value is then `REQUIRED`.

    Raises:
        InputError: If a name is unknown, a required value is missing, or a value has the wrong type or range.
    """
    if not isinstance(values, Mapping):
        if path in groups:
            raise InputError(describe_missing_option(path, values))
        keys = ", ".join(f"{path}.{entry.name}" for entry in fields(kind) if entry.name != "own_arguments")
        raise InputError(
            f"{path}={_format_value(values)} is not accepted: {path} is a group of settings\n  give them: {keys}"
        )
    if path in groups:
        kind = _settings_class(groups[path], values, path)
    prefix = f"{path}." if path else ""
    hints = _read_hints(kind)  # type: ignore[arg-type]
    known = {entry.name: entry for entry in fields(kind) if entry.name != "own_arguments"}
    unknown = {str(name): value for name, value in values.items() if str(name) not in known}
    takes_any = "own_arguments" in hints and str(values.get("_target_")) not in kind.targets
    if unknown and not takes_any:
        name, value = next(iter(unknown.items()))
        raise UnknownKeyError(f"{prefix}{name}", value, [f"{prefix}{entry}" for entry in sorted(known)])
    arguments: dict[str, Any] = {}
    for name, entry in known.items():
        if is_dataclass(hints[name]):
            if name in values:
                arguments[name] = build(
                    hints[name], values[name], f"{prefix}{name}", groups, missing_paths=missing_paths
                )
            continue
        value = values.get(name, entry.default)
        if isinstance(value, str) and value == REQUIRED:
            if missing_paths and entry.metadata["key"].path:
                arguments[name] = REQUIRED
                continue
            raise InputError(f"{prefix}{name} has to be given: {prefix}{name}=...")
        arguments[name] = convert(value, hints[name], f"{prefix}{name}")
        require_in_range(arguments[name], entry.metadata["key"], f"{prefix}{name}")
    if unknown:
        arguments["own_arguments"] = {name: _make_immutable(value) for name, value in unknown.items()}
    return kind(**arguments)


@cache
def _read_hints(kind: type[Any]) -> Mapping[str, Any]:
    """Return the annotations of a settings class; resolving their text takes half the time of `build`."""
    return get_type_hints(kind)


def _settings_class(classes: Sequence[type[Any]], values: Mapping[str, Any], path: str) -> type[Any]:
    """Return the class of an option: by its method's name, by its target, otherwise the general one.

    Among classes that are chosen by name, one with the field ``_target_`` is that of all options with a target.
    """
    if len(classes) == 1:
        return classes[0]
    if "name" in {entry.name for entry in fields(classes[0])} and not hasattr(classes[0], "targets"):
        own = [found for found in classes if "_target_" in {entry.name for entry in fields(found)}]
        if own and "_target_" in values:
            return own[0]
        names = {found.name: found for found in classes if found not in own}
        given = values.get("name", next(iter(names)))
        if not isinstance(given, str) or given not in names:
            raise InputError(f"{path}.name={_format_value(given)} is not known\n  accepted: {', '.join(names)}")
        return names[given]
    return next((found for found in classes if str(values.get("_target_")) in found.targets), classes[0])


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Return `value` in the annotated type.

    Accepted annotations: bool, int, float, str, Literal, an optional one of them, one of them or a Literal, and
    tuple[X, ...].

    Raises:
        InputError: If the value has another type.
    """
    words: list[Any] = []
    if get_origin(annotation) in (Union, types.UnionType):
        options = get_args(annotation)
        if value is None and type(None) in options:
            return None
        words = [word for entry in options if get_origin(entry) is Literal for word in get_args(entry)]
        if any(value == word and isinstance(value, bool) == isinstance(word, bool) for word in words):
            return value
        (annotation,) = (entry for entry in options if entry is not type(None) and get_origin(entry) is not Literal)
    if value is None:
        raise InputError(f"{name} needs a value, not null\n  accepted: {_list_accepted(annotation, words)}")
    if get_origin(annotation) is Literal:
        return _convert_choice(value, get_args(annotation), name)
    if get_origin(annotation) is tuple:
        if isinstance(value, str) and get_origin(get_args(annotation)[0]) is Literal:
            value = [word.strip() for word in value.split(",")]
        if not isinstance(value, list | tuple):
            raise InputError(
                f"{name}={_format_value(value)} has the wrong type\n"
                f"  accepted: a list, like {name}=[{_give_example(annotation)}]"
            )
        return tuple(convert(entry, get_args(annotation)[0], name) for entry in value)
    if annotation is str and isinstance(value, str):
        return value
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is float and (value == "inf" or (isinstance(value, int | float) and not isinstance(value, bool))):
        with contextlib.suppress(OverflowError):  # of a whole number with hundreds of digits
            return float(value)  # YAML's own infinity is .inf
    if annotation is int and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    accepted = _list_accepted(annotation, words) + _suggest(value, annotation, name)
    raise InputError(f"{name}={_format_value(value)} has the wrong type\n  accepted: {accepted}")


def _list_accepted(annotation: Any, words: Sequence[Any] = ()) -> str:
    """Return the values of a type in words: the choices of a Literal, otherwise the kind of value, or some words."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(_format_value, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"a list of: {_list_accepted(get_args(annotation)[0])}"
    return ", or ".join([WORDS[annotation], *map(_format_value, words)])


def _give_example(annotation: Any) -> str:
    """Return the entries of a list of the annotated type, for an example."""
    entry = get_args(annotation)[0]
    return {int: "1,2", float: "0.1,0.2"}.get(entry) or ",".join(map(_format_value, get_args(entry)[:2]))


def _suggest(value: Any, annotation: type, name: str) -> str:
    """Return a further line of the message for a value of the wrong type, "" if there is nothing to say."""
    if annotation is str:
        lines = [f"in a file, write it in quotes: {name.rpartition('.')[2]}: '...'"]
        lines += [f"to name it after another setting, add a text: '{name}=text-${{...}}'"]
        return "".join(f"\n  {line}" for line in lines)
    several = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    if len(several) > 1 and all(isinstance(entry, str | int | float) for entry in several):
        return f"\n  for a run of each: sam-train -m {name}={','.join(str(entry).strip() for entry in several)}"
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            float(value)
            return f"\n  in a file, write it without quotes: {name.rpartition('.')[2]}: {value}"
    return ""


def _convert_choice(value: Any, accepted: tuple[Any, ...], name: str) -> Any:
    given = "off" if value is False and False not in accepted and "off" in accepted else value  # YAML's off is false
    for entry in accepted:
        if given == entry and isinstance(given, bool) == isinstance(entry, bool):
            return entry
    words = list(map(_format_value, accepted))
    close = find_close(str(value), words)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{name}={_format_value(value)} is not known\n  accepted: {', '.join(words)}{hint}")


def require_in_range(value: Any, facts: Key, name: str) -> None:
    """Raise InputError, with the accepted range, for a number or an entry of a list outside it."""
    if facts.range is None or value is None or isinstance(value, str):
        return
    if isinstance(value, tuple):
        for entry in value:
            if entry not in facts.range:
                raise InputError(f"{name} holds {entry}, out of range\n  accepted: {facts.range}")
    elif value not in facts.range:
        is_percent = 1 < value <= 100 and facts.range.high <= 1 and value / 100 in facts.range
        hint = f"; did you mean {value / 100:g}?" if is_percent else ""
        raise InputError(f"{name}={value} is out of range\n  accepted: {facts.range}{hint}")
    for entry in value if isinstance(value, tuple) else (value,):
        if LARGEST.get(type(entry), math.inf) < entry < math.inf:
            raise InputError(f"{name}={entry} is too large\n  accepted: at most {LARGEST[type(entry)]:g}")


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{...}"  # a group, to which an interpolation refers
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)[:200]


def _make_immutable(value: Any) -> Any:
    return tuple(_make_immutable(entry) for entry in value) if isinstance(value, list) else value


def find_close(word: str, accepted: Sequence[str]) -> list[str]:
    """Return the most similar of some words, empty if none is similar.

    Of equally similar words, one with a longer common beginning and then a closer number is chosen: resnet20 for
    resnet21. A word that differs in upper and lower case only is the most similar one.
    """
    same = [entry for entry in accepted if entry.lower() == word.lower()]
    if same:
        return same[:1]

    def distance(other: str) -> tuple[float, int, int, str]:
        ratio = SequenceMatcher(None, word, other).ratio()
        common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(word, other, strict=False))))
        return -round(ratio, 2), -common, abs(_number(word) - _number(other)), other

    return sorted(get_close_matches(word, accepted, len(accepted) or 1), key=distance)[:1]


def _number(word: str) -> int:
    digits = re.search(r"\d+", word)
    return int(digits[0][:9]) if digits else 0


def describe_unknown_key(key: str, accepted: Sequence[str], value: Any = "...") -> str:
    """Return the message for a key that does not exist.

    It suggests a key with the same name in another group, otherwise a key with a similar name, otherwise all keys.

    Args:
        key: Dotted name of the key.
        accepted: Dotted names of the keys that exist.
        value: The key's value, for the lines of a file.
    """
    parent, _, name = key.rpartition(".")
    if name.strip("_") == "target" and f"{parent}._target_" in accepted:
        return f"unknown key {key}\n  did you mean {parent}._target_?"
    names = [entry for entry in accepted if not entry.endswith("_target_") and entry != key]
    same = [entry for entry in names if entry.rpartition(".")[2] == name]
    if same:
        found = min(same, key=len)
        return f"unknown key {key}\n  did you mean {found}?\n  in a file:\n{format_nested(found, value)}"
    siblings = [entry for entry in names if entry.rpartition(".")[0] == parent]
    for candidates in (siblings, names):
        by_name = {entry.rpartition(".")[2]: entry for entry in candidates}
        close = find_close(name, list(by_name))
        if close:
            return f"unknown key {key}\n  did you mean {by_name[close[0]]}?"
    return f"unknown key {key}\n  keys: {', '.join(sorted(set(siblings or names)))}"


def describe_missing_option(group: str, value: Any) -> str:
    """Return the message for a group, by its dotted name, whose value is not one of its options."""
    from sam_runner.config.help import list_options  # imports this module

    slashed = group.replace(".", "/")
    is_name = isinstance(value, str) and re.fullmatch(r"[\w.-]+", value)
    option, options = (value, "") if is_name else ("NAME", f": {', '.join(list_options(CONF)[slashed])}")
    lines = [f"{group}={_format_value(value)} is not an option of a group"]
    if is_name:  # it may be the name of an option
        lines = [f"the line {group}: {value} does not choose an option of the group {group}"]
    lines += [f"  {'on the command line:' if is_name else 'choose one with'} {slashed}={option}{options}"]
    lines += ["  in a file:", "  defaults:", f"    - override /{slashed}: {option}"]
    lines += [f"  and indent the settings of {group} below it"] if value is None else []
    return "\n".join(lines)


def format_nested(key: str, value: Any) -> str:
    """Return the lines of a file that set a dotted key, indented by two spaces."""
    parts = key.split(".")
    lines = [f"{'  ' * (depth + 1)}{part}:" for depth, part in enumerate(parts)]
    return "\n".join([*lines[:-1], f"{lines[-1]} {_format_value(value)}"])


def list_names(settings: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all values of nested settings."""
    if not isinstance(settings, Mapping):
        return [prefix]
    return [
        entry
        for name, value in settings.items()
        for entry in list_names(value, f"{prefix}.{name}" if prefix else str(name))
    ]
