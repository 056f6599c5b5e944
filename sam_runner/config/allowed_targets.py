"""The functions and classes that a configuration may name in ``_target_``.

A configuration can come from an untrusted source, so it must not be able to call arbitrary functions. The user decides
which further modules may be run: by the environment variable SAM_RUNNER_TRUSTED, or by typing a ``_target_`` in a
module of the working folder.
"""

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
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


def require_trusted_name(target: str, others: Sequence[str] = ()) -> None:
    """Raise UntrustedError for a dotted name outside the trusted modules.

    Args:
        target: The name.
        others: Further modules in the working folder that the command has to trust.
    """
    hidden = any(part.startswith("_") for part in target.split("."))
    if hidden or not f"{target}.".startswith(list_trusted_prefixes()):
        raise UntrustedError(
            f"_target_={target} is not in a trusted module\n"
            f"  trusted: {', '.join(name + '*' for name in list_trusted_prefixes())}\n"
            f"  {_describe_trust(target, others)}"
        )


def _describe_trust(target: str, others: Sequence[str]) -> str:
    """Return the way to run a user's own code: the command itself if the module is found."""
    name, _, rest = target.partition(".")
    key = next((word.partition("=")[0] for word in sys.argv if word.endswith(f"_target_={target}")), "_target_")
    if from_file := target_of_file(target):
        return f"write it as a module: {key}={from_file}"
    if any(part.startswith("_") for part in target.split(".")):
        return "a name that begins with _ is never called: give it another name"
    if not rest and is_in_working_folder(name):
        return f"name a function or class of the module: _target_={target}.NAME"
    if is_in_working_folder(name):
        names = list(dict.fromkeys([name, *others]))
        verb = "is" if len(names) == 1 else "are"
        return f"if {' and '.join(names)} {verb} your own code: {trusting_command(names, sys.argv)}"
    if name in sys.stdlib_module_names or name in {prefix.partition(".")[0] for prefix in ALLOWED}:
        return f"for your own code: {VARIABLE}=your_module sam-train ..."
    if name.isidentifier() and (found := importlib.util.find_spec(name)) is not None:
        command = f"{_repeat_python_path(found)}{trusting_command([name], sys.argv)}"
        return f"if {name} is your own code: {command}"
    place = f"there is no {name}.py in {os.getcwd()}"
    if not name.isidentifier():
        return f"for your own code: {VARIABLE}=your_module sam-train ...; {place}"
    if not rest:
        return f"{place}; a function or class {name} of a file FILE.py is FILE.{name}"
    return f"{place}; if it is your own code elsewhere: PYTHONPATH=FOLDER_OF_IT {trusting_command([name], sys.argv)}"


def _repeat_python_path(module: ModuleSpec) -> str:
    """Return ``PYTHONPATH=FOLDERS `` for a command that needs it to find a module, else ""."""
    value = os.environ.get("PYTHONPATH", "")
    places = [module.origin, *(module.submodule_search_locations or [])]
    folders = [f"{os.path.abspath(folder)}/" for folder in value.split(os.pathsep) if folder]
    is_there = any(str(place).startswith(tuple(folders)) for place in places)
    return f"PYTHONPATH={shlex.quote(value)} " if is_there else ""


def target_of_file(text: str) -> str:
    """Return the target that a user means by a file: ``models.mine.Net`` for models/mine.py:Net, "" for other texts.

    Args:
        text: Path of a file in the working folder, with or without its suffix, and perhaps the name of a function or
            class in it after a colon or a point.
    """
    found = re.fullmatch(r"(?:\./)?(\w+(?:/\w+)*)(?:\.py(?:::?|\.)?|::?|\.)(\w*)", text)
    is_dotted = re.fullmatch(r"\w+(\.\w+)*", text) is not None and not text.endswith(".py")
    if found is None or is_dotted or not os.path.isfile(f"{found[1]}.py"):
        return ""
    return f"{found[1].replace('/', '.')}.{found[2] or 'NAME'}"


def trusting_command(names: Sequence[str], command: Sequence[str]) -> str:
    """Return a command line with the variable that trusts modules, as it is typed into a shell.

    Args:
        names: Modules to trust, besides those that are trusted.
        command: The command, in the form of ``sys.argv``.
    """
    program = os.path.basename(command[0])
    words = [program]
    if program.endswith(".py"):
        words = ["python", "-m", "sam_runner"] if program == "__main__.py" else ["python", command[0]]
    trusted = ",".join(dict.fromkeys([*_list_own_modules(), *names]))
    return f"{VARIABLE}={trusted} {shlex.join([*words, *command[1:]])}"


def trust_prefix(settings: Any) -> str:
    """Return ``SAM_RUNNER_TRUSTED=MODULES `` for a command about a run with the user's own code, "" for another run."""
    own = find_own_modules(settings)
    return f"{VARIABLE}={','.join(dict.fromkeys([*_list_own_modules(), *own]))} " if own else ""


def find_own_modules(settings: Any) -> list[str]:
    """Return the top-level modules of all targets in nested settings that only SAM_RUNNER_TRUSTED lets run."""
    if isinstance(settings, dict):
        target = str(settings.get("_target_", REQUIRED))
        own = [] if target in ("None", REQUIRED) or f"{target}.".startswith(ALLOWED) else [target.partition(".")[0]]
        below = [name for value in settings.values() for name in find_own_modules(value)]
        return list(dict.fromkeys([*own, *below]))
    return []


def require_allowed_targets(node: Any, others: Sequence[str] | None = None) -> None:
    """Refuse every ``_target_`` outside the trusted modules, before anything is imported.

    `sam_runner.config.instantiate` also checks the object that the name refers to.

    Args:
        node: Settings as plain types.
        others: Modules in the working folder that the message names too; by default those of `node`.

    Raises:
        InputError: If a target is not trusted, or for another key of the form ``_key_``, which Hydra would interpret.
    """
    if others is None:
        others = [name for name in find_own_modules(node) if is_in_working_folder(name)]
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                if value is None or value == REQUIRED:
                    continue  # refused with the name of its group when the settings are built
                require_trusted_name(str(value), others)
            elif str(key).startswith("_") and str(key).endswith("_"):
                raise InputError(f"{key} is not supported in a configuration\n  leave it out")
            else:
                require_allowed_targets(value, others)
    elif isinstance(node, list | tuple):
        for entry in node:
            require_allowed_targets(entry, others)
