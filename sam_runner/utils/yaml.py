"""Read untrusted YAML files: plain values only, and no aliases, since a few lines of them can exhaust the memory."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent

from sam_runner.utils.errors import InputError, first_line

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file.

    Raises:
        InputError: If the file cannot be read, is no YAML, or has an alias.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, AliasEvent) for event in yaml.parse(text, LOADER)):
            raise InputError(f"{path} has YAML aliases, which are not accepted\n  write the values themselves")
        # libyaml refuses the escaped surrogates that stand for bytes of a path that are not UTF-8.
        return yaml.load(text, yaml.SafeLoader if re.search(r"\\u[dD][89a-fA-F]", text) else LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read: {first_line(error)}\n  use the config.yaml that sam-train wrote"
        ) from error
