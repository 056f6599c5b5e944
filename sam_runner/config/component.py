"""Groups whose options name a function or class to call: its dotted name and its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sam_runner.config.keys import key


@dataclass(frozen=True)
class Component:
    """Settings of an option with a ``_target_``.

    Subclasses declare the arguments of the targets that they know. A subclass with the field ``own_arguments`` also
    takes the arguments of a user's own target, whose names and types are not known here.

    Attributes:
        schema: Name below Hydra's group ``schema``, which files in conf/ refer to; "" for a class without such files.
        targets: Values of ``_target_`` that the class is for.
    """

    schema: ClassVar[str] = ""
    targets: ClassVar[tuple[str, ...]] = ()
    _target_: str = key("function or class that is called", in_reports=True, argument=False)

    @property
    def target(self) -> str:
        """The dotted name of the function or class."""
        return self._target_

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the target is called with, by name."""
        own = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if "key" in entry.metadata and entry.metadata["key"].argument
        }
        own_arguments: Mapping[str, Any] = getattr(self, "own_arguments", {})
        return {**own, **own_arguments}
