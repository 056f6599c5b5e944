"""The command line of sam-train: flags, and arguments in the form in which Hydra reads them."""

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from sam_runner.config.allowed_targets import trust_typed_targets
from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.help import list_options
from sam_runner.config.hydra.own_options import complete_own_options, list_typed_targets
from sam_runner.config.validation import find_close
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF, SETTINGS_FILE, explain_missing_run

FLAGS = frozenset(
    [
        "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
        "--shell-completion", "--config-dir",
        "-h", "-c", "-p", "-r", "-m", "-i", "-sc", "-cd",
    ]
)  # fmt: skip
_FOLDER, _COMPLETION = "give the folder of your own groups", 'for bash: eval "$(sam-train -sc install=bash)"'
WITH_VALUE = {  # flags that a value must follow, and what it is
    "--cfg": "give --cfg job", "-c": "give --cfg job", "--config-dir": _FOLDER, "-cd": _FOLDER,
    "--shell-completion": _COMPLETION, "-sc": _COMPLETION, "--package": "give --package optimizer, for example",
    "-p": "give -p optimizer, for example",
}  # fmt: skip
_PATH = "for a folder of your own groups: --config-dir FOLDER"
_NAME = "for a file of your own settings: config=FILE.yaml"
REFUSED = {  # flags of Hydra that would replace the settings of this program, and what to give instead
    "--config-path": _PATH, "-cp": _PATH, "--config-name": _NAME, "-cn": _NAME,
}  # fmt: skip
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
CHOICES = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"), "--info": _INFO, "-i": _INFO}
HYDRA_COMMANDS = {  # flags that Hydra's own main answers
    "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--hydra-help", "--resolve", "--package", "-p",
    "--run", "-r",
}  # fmt: skip


class CommandLine(NamedTuple):
    """A command line, flags apart from settings.

    Attributes:
        flags: Flags with their values, before the settings as Hydra wants them.
        overrides: Settings, ``key=value`` and ``group=option``.
        config_file: A run whose settings are used again (``config=RUN``, ``resume=RUN``), a file of the user's
            settings (``config=FILE``), or None.
    """

    flags: list[str]
    overrides: list[str]
    config_file: str | None = None

    def trust_targets(self) -> None:
        """Trust the modules of the typed targets. Only for what the user types, not for a command read from a file."""
        trust_typed_targets([target for word in self.overrides for target in list_typed_targets(word)])

    @property
    def words(self) -> list[str]:
        """The settings as they were typed, with ``config=``."""
        return [*([] if self.config_file is None else [f"config={self.config_file}"]), *self.overrides]

    @property
    def names(self) -> set[str]:
        """The flags without ``=value``."""
        return {flag.partition("=")[0] for flag in self.flags}

    @property
    def is_sweep(self) -> bool:
        """Whether every combination of values is run."""
        return bool({"-m", "--multirun"} & self.names) and not {"-c", "--cfg"} & self.names

    @property
    def config_dir(self) -> str | None:
        """The folder of the user's own groups and options."""
        for number, flag in enumerate(self.flags):
            if flag in ("--config-dir", "-cd"):
                return self.flags[number + 1]
            if flag.startswith(("--config-dir=", "-cd=")):
                return flag.partition("=")[2]
        return None


def parse_command_line(arguments: list[str]) -> CommandLine:
    """Part flags from settings, and replace ``~`` in ``key=~/folder``, which shells leave there.

    Raises:
        InputError: For an argument that is refused or is no flag.
    """
    for argument in arguments:
        _require_accepted(argument)
    flags, overrides, waiting, config_file, resumed = [], [], list(arguments), None, list[str]()
    while waiting:
        word = waiting.pop(0)
        if word in WITH_VALUE:
            if not waiting:
                raise InputError(f"{word} needs a value\n  {WITH_VALUE[word]}")
            flags += [word, _require_choice(word, waiting.pop(0))]
        elif word in ("--info", "-i"):  # its value may be missing
            flags += [word, waiting.pop(0) if waiting and waiting[0] in _INFO else "all"]
        elif word.startswith("-"):
            flag, equals, value = word.partition("=")
            flags.append(f"{flag}={_require_choice(flag, value)}" if equals else flag)
        elif word.startswith(("config=", "resume=")):
            if config_file is not None:
                raise InputError(f"{word} names a second run or file\n  give one of config= and resume=, once")
            config_file = word.partition("=")[2].strip("'\"")
            resumed += [config_file] if word.startswith("resume=") else []
        else:
            overrides.append(_expand_home(word))
    if resumed:
        overrides.append(_continue_run(resumed[0], flags, overrides))
    return CommandLine(flags, overrides if config_file else complete_own_options(overrides), config_file)


def _require_choice(flag: str, value: str) -> str:
    """Return the value of a flag; Hydra would print its usage after one that it does not know."""
    if value not in CHOICES.get(flag, (value,)):
        raise InputError(f"{flag} {value[:200]} is not accepted\n  accepted: {', '.join(CHOICES[flag])}")
    return value


def _continue_run(name: str, flags: list[str], overrides: list[str]) -> str:
    """Return the override with which a run continues in its own folder."""
    folder = os.path.expanduser(name).rstrip("/") or "/"
    if os.path.basename(folder) == "config.yaml":
        folder = os.path.dirname(folder) or "."
    if not os.path.isfile(os.path.join(folder, SETTINGS_FILE)):
        raise InputError(f"resume={name} is not a run folder: {explain_missing_run(Path(folder))}")
    if {"-m", "--multirun"} & {*flags}:
        raise InputError(
            "resume continues a single run, and -m makes several\n"
            "  a sweep continues by its own command, with its sweep_name"
        )
    for word in overrides:
        if word.lstrip("+~").startswith("run_dir="):
            raise InputError(
                f"{word}: resume={name} continues the run in its own folder\n"
                f"  for a new run with the same settings: config={name} {word}"
            )
    _require_no_options(name, overrides)
    quoted = folder.replace("'", "\\'")
    return f"run_dir='{quoted}'"


def _require_no_options(name: str, overrides: list[str]) -> None:
    """Refuse options of groups with ``resume=``: the run has its options, and they cannot change."""
    groups = list_options(CONF)
    options = [word for word in overrides if word.lstrip("+~").partition("=")[0] in groups]
    if options:
        others = [word for word in overrides if word not in options]
        raise InputError(
            f"resume={name} continues with the options that the run has: leave out {shlex.join(options)}\n"
            f"  sam-train {shlex.join([f'resume={name}', *others])}\n"
            "  for a run with other options give the whole command without resume="
        )


def _require_accepted(argument: str) -> None:
    key = argument.partition("=")[0]
    if key.startswith("--e") and "--experimental-rerun".startswith(key):
        raise InputError("--experimental-rerun reads a pickle: refused\n  give the settings themselves")
    if key.lstrip("+~") == "hydra.mode":
        raise InputError("hydra.mode has no effect\n  for all combinations of values: sam-train -m ...")
    if key.lstrip("+") == "search" and "," in argument:
        raise InputError(f"{argument[:200]} names two searches\n  run one after the other, each as a sweep of its own")
    if key in REFUSED:
        raise InputError(f"{key} would replace the settings of sam-train\n  {REFUSED[key]}")
    if argument.startswith("-") and key not in FLAGS:
        raise InputError(f"{argument[:200]} is not a flag\n  {_suggest(argument)}")
    _require_no_value(argument)


def _require_no_value(argument: str) -> None:
    """Refuse ``--flag=value`` of a flag without a value."""
    flag, equals, _ = argument.partition("=")
    if equals and flag in FLAGS and (flag not in {*WITH_VALUE, *CHOICES} or flag in ("--shell-completion", "-sc")):
        raise InputError(f"{argument[:200]}: {flag} takes no value after =\n  give {flag} alone")


def _suggest(argument: str) -> str:
    """Return what to type instead of a word that begins with a dash and is no flag."""
    name, _, value = argument.lstrip("-").partition("=")
    settings = ExperimentConfig().flat()
    name = name.replace("-", "_") if name not in settings and name.replace("-", "_") in settings else name
    close = find_close(argument.partition("=")[0], [flag for flag in FLAGS if len(flag) > 3])
    if name not in settings and close and name not in ("config", *GROUPS):
        return f"did you mean {close[0]}?"
    value = value or ("true" if isinstance(settings.get(name), bool) else "...")
    return f"settings have no dashes: {name[:200]}={value[:200]}"


def _expand_home(argument: str) -> str:
    key, _, value = argument.partition("=")
    if not value.startswith("~") or "," in value or "'" in value:
        return argument
    path = os.path.expanduser(value)  # unchanged where there is no such user
    return f"{key}={path}" if key.startswith("-") else f"{key}='{path}'"
