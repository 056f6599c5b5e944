"""Refuse YAML aliases: a file of nine lines with nested aliases can expand to more values than fit into memory."""

from typing import Any

import omegaconf._utils
from yaml import YAMLError
from yaml.events import AliasEvent


class AliasError(YAMLError):
    """A YAML file contains an alias."""


def install() -> None:
    """Refuse aliases in every file that OmegaConf loads in this process, including the files that Hydra reads."""
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
