"""Write docs/settings.md from the settings classes: python scripts/pages/settings_page.py."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sam_runner.config.experiment import GROUPS, ExperimentConfig, find_annotation
from sam_runner.config.keys import REQUIRED, Key, walk
from sam_runner.config.optimizer.method import NAME

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Made from the settings classes in `sam_runner/config/` by `python scripts/pages/settings_page.py`; do not edit.

On the command line `key=value` changes a setting, and `group=option` chooses an option of a group. With `-m` a setting
can have several values, separated by commas (a sweep). `sam-train --cfg job` prints all settings of a command.
`sam-train config=RUN run_dir=NEW key=value` starts a new run with the settings of the run RUN, except those typed.

The column *resume* says whether a run can be continued with another value. In the column *meaning*, g is the gradient
at the weights w, eps the perturbation, and g_SAM the gradient at w + eps.
"""


def type_name(annotation: Any) -> str:
    """Return a type as users write its values."""
    if get_origin(annotation) is Literal:
        words = [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(annotation)]
        return ", ".join(f"`{word}`" for word in words)
    if get_origin(annotation) is tuple:
        return f"list of {type_name(get_args(annotation)[0])}"
    options = [entry for entry in get_args(annotation) if entry is not type(None)]
    if options:
        others = [type_name(entry) for entry in options[1:]] or ["`null`"]
        return " or ".join([type_name(options[0]), *others])
    return {int: "integer", float: "number", bool: "true, false", str: "text"}[annotation]


def default_text(value: Any) -> str:
    """Return a default as it is typed."""
    if value is None:
        return "`null`"
    if value == REQUIRED:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def row(name: str, facts: Key, annotation: Any, default: Any) -> str:
    """Return the line of a setting."""
    accepted = f" in {facts.range}" if facts.range else ""
    resume = "yes" if facts.may_change else ""
    cells = [f"`{name}`", f"{type_name(annotation)}{accepted}", default_text(default), facts.meaning, resume]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def table(rows: list[str]) -> list[str]:
    """Return a table of settings."""
    return ["| setting | values | default | meaning | resume |", "| --- | --- | --- | --- | --- |", *rows, ""]


def with_parents(classes: Sequence[type[Any]]) -> list[type[Any]]:
    """Return the classes of a group, each after the classes between it and the first one."""
    shown: list[type[Any]] = []
    for found in classes:
        for parent in reversed(found.__mro__):
            if (issubclass(parent, classes[0]) or parent in classes) and parent not in shown:
                shown.append(parent)
    return shown


def page() -> str:
    """Return the whole page."""
    lines = [HEAD, "## Top level", ""]
    rows = []
    for name, facts, value in walk(ExperimentConfig()):
        if name.partition(".")[0] not in GROUPS:
            rows.append(row(name, facts, find_annotation(name), value))
    lines += table(rows)
    for group, classes in GROUPS.items():
        lines += [f"## {group.replace('.', '/')}", ""]
        shown = with_parents(classes)
        for number, found in enumerate(shown):
            doc = (found.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
            parents = {
                entry.name for parent in found.__mro__[1:] if parent in shown[:number] for entry in fields(parent)
            }
            hints = get_type_hints(found)
            own = [
                row(f"{group}.{entry.name}", entry.metadata["key"], hints[entry.name], entry.default)
                for entry in fields(found)
                if "key" in entry.metadata
                and (entry.name not in parents or entry.name in vars(found))
                and not (number > 0 and entry.metadata["key"].meaning == NAME)  # one row for all methods
            ]
            if own:
                lines += [doc, "", *table(own)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
