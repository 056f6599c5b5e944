"""Declaration of a setting: `key` stores its meaning, range and effect on a run (`Key`) in the dataclass field."""

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

REQUIRED = "???"  # Hydra's mark of a value that the user must give
ROUNDING = "the last digits of the numbers may differ"
Effect = Literal["result", "rounding", "none"]


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low: Lower end.
        high: Upper end.
        low_open: Whether `low` itself is excluded.
        high_open: Whether `high` itself is excluded.
    """

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)
AT_LEAST_ONE = Range(1)
CLOSED_UNIT = Range(0, 1, high_open=False)  # [0, 1]
BELOW_ONE = Range(0, 1)  # [0, 1)
OPEN_UNIT = Range(0, 1, low_open=True)  # (0, 1)
UP_TO_ONE = Range(0, 1, low_open=True, high_open=False)  # (0, 1]


@dataclass(frozen=True)
class Key:
    """Facts about one setting.

    Attributes:
        meaning: What the setting does, with its unit and the source of its default.
        range: Accepted numbers; for a list, of each entry. None accepts every value of the type.
        effect: What another value changes: "result": the numbers of a run; "rounding": only their rounding; "none": no
            numbers. Settings with the effect "none" are not part of the fingerprint.
        on_resume: Whether a run can be continued with another value. None: refused. A text: accepted, and the run logs
            the change with this text. A setting with the effect "none" and no alias may always change.
        sets_length: Whether the setting determines the number of steps.
        in_reports: Whether reports show the setting if its value differs between runs.
        short: Name in reports; "" for the dotted name.
        argument: Whether the setting is passed to the function that the option's ``_target_`` names.
        path: Whether the value is a path. A run stores it as an absolute path.
        alias: Dotted name of a group's setting that has this setting's value by default: ``optimizer.rho`` for ``rho``.
        added_later: Whether runs were made before the setting existed. A stored run may lack it, and its default is not
            part of the fingerprint, so that these runs can be continued.
    """

    meaning: str
    range: Range | None = None
    effect: Effect = "result"
    on_resume: str | None = None
    sets_length: bool = False
    in_reports: bool = True
    short: str = ""
    argument: bool = True
    path: bool = False
    alias: str = ""
    added_later: bool = False

    @property
    def changes_run(self) -> bool:
        """Whether another value, also of an alias, changes the numbers of a run."""
        return bool(self.alias) or self.effect != "none"

    @property
    def may_change(self) -> bool:
        """Whether a run can be continued with another value of the setting."""
        return not self.alias and (self.effect == "none" or self.on_resume is not None)


def key(meaning: str, default: Any = MISSING, /, **facts: Any) -> Any:
    """Declare a setting in a dataclass.

    Args:
        meaning: See `Key`.
        default: Default value of the setting. Without one the setting is required.
        facts: Further attributes of `Key`.
    """
    return field(default=REQUIRED if default is MISSING else default, metadata={"key": Key(meaning, **facts)})


def walk(settings: Any, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Yield (dotted name, facts, value) of every setting of a dataclass instance, including those of nested groups.

    Arguments of a user's own ``_target_`` have the facts of an ordinary setting.
    """
    for name, facts in _declared_settings(type(settings)):  # type: ignore[arg-type]
        value = getattr(settings, name)
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{name}.")
        elif name == "own_arguments":
            yield from ((f"{prefix}{own}", Key(""), given) for own, given in value.items())
        elif facts is not None:
            yield f"{prefix}{name}", facts, value


@cache
def _declared_settings(kind: type[Any]) -> tuple[tuple[str, Key | None], ...]:
    """Return names and facts of the fields of a settings class: reports walk through those of thousands of runs."""
    return tuple((entry.name, entry.metadata.get("key")) for entry in fields(kind))
