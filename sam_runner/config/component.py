"""Base class for the settings of options that name a function or class to call (``_target_``) and its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sam_runner.config.keys import key


@dataclass(frozen=True)
class Component:
    """Settings of an option with a ``_target_``. Subclasses declare the arguments of this program's targets.

    A subclass with the field ``own_arguments`` also accepts a user's own target, whose arguments are not checked.

    Attributes:
        schema: Name by which files in conf/ refer to the class, below ``hydra/settings/``; "" if no file does.
        targets: Values of ``_target_`` whose arguments the class declares.
    """

    schema: ClassVar[str] = ""
    targets: ClassVar[tuple[str, ...]] = ()
    _target_: str = key("dotted name of the function or class to call", in_reports=True, argument=False)

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
