"""The functions and classes that a configuration may name in ``_target_``.

A configuration can come from an untrusted source, so it must not be able to call arbitrary functions. The user decides
which further modules may be run: by the environment variable SAM_RUNNER_TRUSTED, or by typing a ``_target_`` in a
module of the working folder.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
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
    return (*ALLOWED, *(f"{name}." for name in _list_own_modules()))


def _list_own_modules() -> list[str]:
    names = (name.strip().rstrip(".") for name in os.environ.get(VARIABLE, "").split(","))
    return [name for name in names if name]


def trust_typed_targets(targets: Sequence[str]) -> None:
    """Trust the modules of targets that the user has typed, if they are files or packages of the working folder.

    They are added to SAM_RUNNER_TRUSTED of this process, which the processes of a sweep inherit.

    Args:
        targets: Values of ``_target_`` on the command line.
    """
    for target in targets:
        name = target.partition(".")[0]
        if not f"{target}.".startswith(list_trusted_prefixes()) and is_in_working_folder(name):
            os.environ[VARIABLE] = ",".join([*_list_own_modules(), name])


def is_in_working_folder(name: str) -> bool:
    """Whether importing a top-level module runs a file of the working folder, and no installed module."""
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return False
    here = PathFinder.find_spec(name, [os.getcwd()])
    if here is None or (here.origin is None and not here.submodule_search_locations):
        return False
    installed = importlib.util.find_spec(name)
    return installed is None or installed.origin == here.origin


def add_working_folder() -> None:
    """Let modules of the working folder be imported, after all installed ones."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


class UntrustedError(InputError):
    """A target that is in no trusted module."""


def require_trusted_name(target: str) -> None:
    """Raise UntrustedError for a dotted name outside the trusted modules."""
    hidden = any(part.startswith("_") for part in target.split("."))
    if hidden or not f"{target}.".startswith(list_trusted_prefixes()):
        raise UntrustedError(
            f"_target_={target} is not in a trusted module\n"
            f"  trusted: {', '.join(name + '*' for name in list_trusted_prefixes())}\n"
            f"  {_describe_trust(target)}"
        )


def _describe_trust(target: str) -> str:
    """Return the way to run a user's own code: the command itself if the module is in the working folder."""
    name, _, rest = target.partition(".")
    if not rest and is_in_working_folder(name):
        return f"name a function or class of the module: _target_={target}.NAME"
    if is_in_working_folder(name):
        return f"if {name} is your own code: {trusting_command([name], sys.argv)}"
    own = "" if name in sys.stdlib_module_names else f"; there is no {name}.py in {os.getcwd()}"
    return f"for your own code: {VARIABLE}=your_module sam-train ...{own}"


def trusting_command(names: Sequence[str], command: Sequence[str]) -> str:
    """Return a command line with the variable that trusts modules, as it is typed into a shell.

    Args:
        names: Modules to trust, besides those that are trusted.
        command: The command, in the form of ``sys.argv``.
    """
    program = os.path.basename(command[0])
    words = ["python", "-m", "sam_runner"] if program == "__main__.py" else [program]
    trusted = ",".join(dict.fromkeys([*_list_own_modules(), *names]))
    return f"{VARIABLE}={trusted} {shlex.join([*words, *command[1:]])}"


def trust_prefix(settings: Any) -> str:
    """Return ``SAM_RUNNER_TRUSTED=MODULES `` for a command about a run with the user's own code, "" for another run."""
    return f"{VARIABLE}={','.join(_list_own_modules())} " if find_own_modules(settings) else ""


def find_own_modules(settings: Any) -> list[str]:
    """Return the top-level modules of all targets in nested settings that only SAM_RUNNER_TRUSTED lets run."""
    if isinstance(settings, dict):
        target = str(settings.get("_target_", REQUIRED))
        own = [] if target == REQUIRED or f"{target}.".startswith(ALLOWED) else [target.partition(".")[0]]
        below = [name for value in settings.values() for name in find_own_modules(value)]
        return list(dict.fromkeys([*own, *below]))
    return []


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
