"""YAML files without aliases: nine lines of them can stand for more values than memory holds."""

from typing import Any

import omegaconf._utils
from yaml import YAMLError
from yaml.events import AliasEvent


class AliasError(YAMLError):
    """A file refers to a part of itself."""


def install() -> None:
    """Every file that OmegaConf loads in this process, for Hydra too, is refused where it holds an alias."""
    original = omegaconf._utils.get_yaml_loader
    if getattr(original, "guarded", False):
        return

    def get_yaml_loader() -> Any:
        class Loader(original()):  # type: ignore[misc]
            def compose_node(self, parent: Any, index: Any) -> Any:
                if self.check_event(AliasEvent):
                    event = self.peek_event()
                    raise AliasError(
                        f"YAML aliases are not accepted: *{event.anchor} in line {event.start_mark.line + 1} of "
                        f"{event.start_mark.name}; refer to another key with ${{...}}"
                    )
                return super().compose_node(parent, index)

        return Loader

    get_yaml_loader.guarded = True  # type: ignore[attr-defined]
    omegaconf._utils.get_yaml_loader = get_yaml_loader
