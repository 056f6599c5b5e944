"""Messages for the errors of Hydra and OmegaConf: the given value, the accepted values and a suggestion."""

import re
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sam_runner.config.convert import unknown_key
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.help import default_options, keys_of, options
from sam_runner.config.hydra.launchers import EXTRAS


def explain(error: Exception, conf: Path, arguments: list[str]) -> str:
    """Return the message for an error that Hydra raised while it read the command line.

    Args:
        error: A HydraException or OmegaConfBaseException.
        conf: The configuration folder.
        arguments: The arguments of the command line.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return _no_option(error, conf)
    several = re.match(r"Ambiguous value for argument '(.+)'", text)
    if several:
        return f"{several[1]} gives several values\n  to run each of them: sam-train -m {several[1]}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if re.search(r"not in struct|not in '|Could not override|not found", f"{text}\n{cause}"):
        name = _overridden(text) or str(getattr(cause, "full_key", "") or "")
        if name:
            return _unknown(name, conf, arguments)
    return "\n  ".join(line.strip() for line in text.splitlines()[:8] if line.strip())


def _overridden(text: str) -> str:
    match = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", text)
    return match.group(1).lstrip("+~") if match else ""


def _unreadable(override: str) -> str:
    message = f"cannot read the argument {override!r}\n  arguments are key=value, group=option or flags"
    if "==" in override:
        return f"{message}\n  did you mean {override.replace('==', '=')}?"
    key, equals, value = override.partition("=")
    if not equals:
        return f"{message}\n  a value is missing: {override}=..."
    return f"{message}\n  quote a value with spaces or special characters: \"{key}='{value}'\""


def _no_option(error: MissingConfigException, conf: Path) -> str:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.rpartition("/")
    known = sorted(error.options or options(conf).get(group, []))  # Hydra's list also has the options in --config-dir
    if not known:
        return f"there is no group {group or missing}\n  groups: {', '.join(options(conf))}"
    if missing in EXTRAS:
        return f"{group}={name} needs a package that is not installed\n  pip install 'sam-runner[{EXTRAS[missing]}]'"
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {group}={close[0]}?" if close else f"options: {', '.join(known)}"
    return f"{group}={name}: there is no such option\n  {hint}" + (f"\n  options: {', '.join(known)}" if close else "")


def _unknown(key: str, conf: Path, arguments: list[str]) -> str:
    """Return the message for an unknown key.

    If another option of the group has the key, the message names that option. Otherwise it suggests a similar key.
    """
    groups = options(conf)
    parent, _, name = key.rpartition(".")
    if parent in groups:
        others = [f"{parent}={option}" for option in groups[parent] if name in keys_of(conf / parent, option)]
        if others:
            chosen = [entry for entry in arguments if entry.startswith(f"{parent}=")] or [f"the default {parent}"]
            swept = chosen[0].partition("=")[2].split(",")
            if len(swept) > 1 and {f"{parent}={option}" for option in swept} <= set(others):
                value = next(entry for entry in arguments if entry.startswith(f"{key}=")).partition("=")[2]
                return f"Hydra reads {key} before it knows {parent}, which is swept\n  write '{key}=choice({value})'"
            return f"{key} has no effect with {chosen[0]}\n  it goes with {', '.join(others)}"
    return unknown_key(key, [*sorted(_known_keys(conf, arguments)), *groups])


def _known_keys(conf: Path, arguments: list[str]) -> set[str]:
    """Return all dotted keys of the options that `arguments` choose."""
    groups, chosen = options(conf), default_options(conf)
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option in groups.get(group, []):
            chosen[group] = option
    keys = set(ExperimentConfig().flat())
    for group, option in chosen.items():
        keys |= {f"{group.replace('/', '.')}.{name}" for name in keys_of(conf / group, option)}
    return {key for key in keys if key.partition(".")[0] not in groups or key.partition(".")[0] in chosen}
