"""The functions and classes that a configuration may name in ``_target_``.

A configuration can come from an untrusted source, so it must not be able to call arbitrary functions.
"""

import os
from typing import Any

from sam_runner.config.keys import REQUIRED
from sam_runner.utils.errors import InputError

ALLOWED = (
    "sam_runner.data.",
    "sam_runner.models.",
    "sam_runner.training.schedules.",
    "torch.optim.",
    "torchvision.models.",
)
VARIABLE = "SAM_RUNNER_TRUSTED"


def list_trusted_prefixes() -> tuple[str, ...]:
    """Return the module prefixes that a ``_target_`` may start with: this program's and those in SAM_RUNNER_TRUSTED."""
    extra = (name.strip().rstrip(".") for name in os.environ.get(VARIABLE, "").split(","))
    return (*ALLOWED, *(f"{name}." for name in extra if name))


def require_trusted_name(target: str) -> None:
    """Raise InputError for a dotted name outside the trusted modules."""
    hidden = any(part.startswith("_") for part in target.split("."))
    if hidden or not f"{target}.".startswith(list_trusted_prefixes()):
        raise InputError(
            f"_target_={target} is not in a trusted module\n"
            f"  trusted: {', '.join(name + '*' for name in list_trusted_prefixes())}\n"
            f"  for your own code: {VARIABLE}=your_module sam-train ..."
        )


def require_allowed_targets(node: Any) -> None:
    """Refuse every ``_target_`` outside the trusted modules, before anything is imported.

    `sam_runner.config.instantiate` also checks the object that the name refers to.

    Args:
        node: Settings as plain types.

    Raises:
        InputError: If a target is not trusted, or for another key of the form ``_key_``, which Hydra would interpret.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                if value == REQUIRED:
                    continue  # refused with the name of its group when the settings are built
                require_trusted_name(str(value))
            elif str(key).startswith("_") and str(key).endswith("_"):
                raise InputError(f"{key} is not supported in a configuration")
            else:
                require_allowed_targets(value)
    elif isinstance(node, list | tuple):
        for entry in node:
            require_allowed_targets(entry)
