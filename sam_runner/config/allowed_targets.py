"""Which code a configuration may name. A configuration can come from a stranger; a `_target_` is a call."""

import os

from sam_runner.utils.errors import InputError

ALLOWED = (
    "sam_runner.data.",
    "sam_runner.models.",
    "sam_runner.training.schedules.",
    "torch.optim.",
    "torchvision.models.",
)
VARIABLE = "SAM_RUNNER_TRUSTED"


def prefixes() -> tuple[str, ...]:
    """Module prefixes that `_target_` may start with: those that build things, and those in SAM_RUNNER_TRUSTED."""
    extra = (name.strip().rstrip(".") for name in os.environ.get(VARIABLE, "").split(","))
    return (*ALLOWED, *(f"{name}." for name in extra if name))


def require_trusted_name(target: str) -> None:
    """Refuse a dotted name outside the trusted modules.

    Raises:
        InputError: With the way to trust one's own module.
    """
    hidden = any(part.startswith("_") for part in target.split("."))
    if hidden or not f"{target}.".startswith(prefixes()):
        raise InputError(
            f"_target_={target} is not in a trusted module\n"
            f"  trusted: {', '.join(name + '*' for name in prefixes())}\n"
            f"  for your own code: {VARIABLE}=your_module sam-train ..."
        )
