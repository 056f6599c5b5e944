"""Keep what is typed for a text setting as it is typed: Hydra reads 2026_11_25 as a number and 1e3 as 1000.0."""

import re
from collections.abc import Sequence
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.help import list_options
from sam_runner.config.validation import describe_missing_option
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF


def quote_text_values(words: Sequence[str], *, is_sweep: bool = False) -> list[str]:
    """Quote the values of text settings, and names of options, that Hydra would read as anything but a text.

    A value that is quoted already, null, an interpolation, and several values of a sweep that are texts stay unchanged.

    Args:
        words: Arguments ``key=value`` and ``group=option``.
        is_sweep: Whether values separated by commas are several values.

    Raises:
        InputError: If a group is given a list or a dictionary.
    """
    return [_quote_word(word, is_sweep) for word in words]


def _quote_word(word: str, is_sweep: bool) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+").partition("@")[0]
    if not equals or "${" in value or value[:1] in ("", "'", '"') or key.startswith("~"):
        return word
    if name in _word_lists():
        return word if value[0] == "[" else f"{key}={_quote(value)}"  # also with -m: they are not several values
    if name not in _text_settings() and name not in list_options(CONF) and not (name in GROUPS and value[0] == "["):
        return word
    override = _parse(word)
    if override is None:
        return word if name in list_options(CONF) else f"{key}={_quote(value)}"
    if override.is_sweep_override():
        parts = value.split(",")
        if not is_sweep or re.search(r"[\"'\[\]{}()\\]", value) or all(_is_text(f"{key}={part}") for part in parts):
            return word
        return f"{key}={','.join(part if _is_text(f'{key}={part}') else _quote(part) for part in parts)}"
    group, is_list = name.replace("/", "."), isinstance(override.value(), list | dict)
    if group in GROUPS and is_list:  # one option each; Hydra would compose several, or end in an error of its own
        raise InputError(describe_missing_option(group, value))
    if _is_text(word) or (name in list_options(CONF) and is_list):
        return word
    return f"{key}={_quote(value)}"


def _is_text(word: str) -> bool:
    """Whether Hydra reads the value as a text, or as null."""
    override = _parse(word)
    return override is not None and isinstance(override.value(), str | NoneType)


def _parse(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _quote(value: str) -> str:
    """Return the value as a quoted text of Hydra, in which backslashes before a quote are doubled."""
    escaped = re.sub(r"(\\*)'", lambda match: f"{match[1] * 2}\\'", value)
    return "'" + re.sub(r"\\+$", lambda match: match[0] * 2, escaped) + "'"


@cache
def _text_settings() -> frozenset[str]:
    """Return the dotted names of all settings that are texts in every option of their group."""
    is_text: dict[str, bool] = {}
    for path, classes in {"": (ExperimentConfig,), **GROUPS}.items():
        for found in classes:
            for entry, hint in get_type_hints(found).items():
                name = f"{path}.{entry}".lstrip(".")
                is_text[name] = _is_text_type(hint) and is_text.get(name, True)
    return frozenset(name for name, text in is_text.items() if text)


@cache
def _word_lists() -> frozenset[str]:
    """Return the names of the top-level settings that are lists of fixed words, such as `logger`."""
    hints = get_type_hints(ExperimentConfig)
    return frozenset(
        name for name, hint in hints.items() if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal
    )


def _is_text_type(hint: Any) -> bool:
    return hint is str or {entry for entry in get_args(hint) if entry is not NoneType} == {str}
