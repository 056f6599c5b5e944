"""Conversion of plain values to settings dataclasses; it checks names, types and ranges."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sam_runner.config.keys import REQUIRED, Key
from sam_runner.utils.errors import InputError

WORDS = {int: "a whole number, like 20", float: "a number, like 0.05", bool: "true or false", str: "a text"}
Groups = Mapping[str, Sequence[type[Any]]]


def build(kind: type[Any], values: Any, path: str, groups: Groups) -> Any:
    """Build a settings dataclass from plain values.

    Args:
        kind: The dataclass; for a group with options, its general class.
        values: Plain values by name; absent settings get their defaults.
        path: Dotted name of the group, "" for the whole configuration.
        groups: Settings classes of the groups with options, by dotted name.

    Raises:
        InputError: If a name is unknown, a required value is missing, or a value has the wrong type or range.
    """
    if not isinstance(values, Mapping):
        given = "null" if values is None else values
        slashed = path.replace(".", "/")
        hint = f"\n  choose one with {slashed}=NAME" if path in groups else f"\n  give its settings: {path}.<key>=..."
        raise InputError(f"{path}={given} is no option of a group{hint}")
    if path in groups:
        kind = _settings_class(groups[path], values)
    prefix = f"{path}." if path else ""
    hints = get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind) if entry.name != "own_arguments"}
    unknown = {str(name): value for name, value in values.items() if str(name) not in known}
    takes_any = "own_arguments" in hints and str(values.get("_target_")) not in kind.targets
    if unknown and not takes_any:
        raise InputError(unknown_key(f"{prefix}{next(iter(unknown))}", [f"{prefix}{name}" for name in sorted(known)]))
    arguments: dict[str, Any] = {}
    for name, entry in known.items():
        if is_dataclass(hints[name]):
            if name in values:
                arguments[name] = build(hints[name], values[name], f"{prefix}{name}", groups)
            continue
        value = values.get(name, entry.default)
        if isinstance(value, str) and value == REQUIRED:
            raise InputError(f"{prefix}{name} has to be given: {prefix}{name}=...")
        arguments[name] = convert(value, hints[name], f"{prefix}{name}")
        require_in_range(arguments[name], entry.metadata["key"], f"{prefix}{name}")
    if unknown:
        arguments["own_arguments"] = {name: _plain(value) for name, value in unknown.items()}
    return kind(**arguments)


def _settings_class(classes: Sequence[type[Any]], values: Mapping[str, Any]) -> type[Any]:
    """Return the settings class of an option, by the name of its method or by its target, else the general class."""
    if len(classes) == 1:
        return classes[0]
    if "name" in {entry.name for entry in fields(classes[0])} and not hasattr(classes[0], "targets"):
        names = {_default(found, "name"): found for found in classes}
        given = values.get("name", next(iter(names)))
        if given not in names:
            raise InputError(f"optimizer.name={given} is not known\n  accepted: {', '.join(names)}")
        return names[given]
    return next((found for found in classes if str(values.get("_target_")) in found.targets), classes[0])


def _default(kind: type[Any], name: str) -> Any:
    return next(entry.default for entry in fields(kind) if entry.name == name)


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Return `value` in the annotated type.

    Supported annotations: bool, int, float, str, Literal, ``X | None`` of these, and tuple[X, ...].

    Raises:
        InputError: If the value has another type.
    """
    if get_origin(annotation) in (Union, types.UnionType):
        if value is None:
            return None
        (annotation,) = (entry for entry in get_args(annotation) if entry is not type(None))
    if value is None:
        raise InputError(f"{name} needs a value, not null")
    if get_origin(annotation) is Literal:
        return _choice(value, get_args(annotation), name)
    if get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{name}={value} has the wrong type\n  accepted: a list, like {name}=[1,2]")
        return tuple(convert(entry, get_args(annotation)[0], name) for entry in value)
    if annotation is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    raise InputError(f"{name}={_shown(value)} has the wrong type\n  accepted: {WORDS[annotation]}")


def _choice(value: Any, accepted: tuple[Any, ...], name: str) -> Any:
    given = (
        "off" if value is False and False not in accepted and "off" in accepted else value
    )  # YAML reads off as false
    for entry in accepted:
        if given == entry and isinstance(given, bool) == isinstance(entry, bool):
            return entry
    words = [str(entry).lower() if isinstance(entry, bool) else str(entry) for entry in accepted]
    close = get_close_matches(str(value), words, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{name}={_shown(value)} is not known\n  accepted: {', '.join(words)}{hint}")


def require_in_range(value: Any, facts: Key, name: str) -> None:
    """Refuse a number, or a list with an entry, outside the accepted range.

    Raises:
        InputError: If a number is outside; the message names the range.
    """
    if facts.range is None or value is None:
        return
    if isinstance(value, tuple):
        for entry in value:
            if entry not in facts.range:
                raise InputError(f"{name} holds {entry}, out of range\n  accepted: {facts.range}")
    elif value not in facts.range:
        raise InputError(f"{name}={value} is out of range\n  accepted: {facts.range}")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:200]


def _plain(value: Any) -> Any:
    return tuple(_plain(entry) for entry in value) if isinstance(value, list) else value


def unknown_key(key: str, accepted: Sequence[str]) -> str:
    """Return the message for a key that does not exist.

    It suggests the most similar key of the group, or else of all groups. If no key is similar, it lists the keys.
    """
    parent, _, name = key.rpartition(".")
    names = [entry for entry in accepted if not entry.endswith("_target_")]
    siblings = [entry for entry in names if entry.rpartition(".")[0] == parent]
    for candidates in (siblings, names):
        by_name = {entry.rpartition(".")[2]: entry for entry in candidates}
        close = get_close_matches(name, list(by_name), 1)
        if close:
            return f"unknown key {key}\n  did you mean {by_name[close[0]]}?"
    return f"unknown key {key}\n  keys: {', '.join(sorted(siblings or names))}"
