"""Hydra's and OmegaConf's errors in words that say what was given, what is accepted and how to go on."""

import re
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_runner.config.help import keys_of, options
from sam_runner.config.launchers import EXTRAS
from sam_runner.config.validation import unknown_key


def explain(error: Exception, conf: Path, arguments: list[str]) -> str:
    """The message for an error that Hydra raised while it read `arguments`.

    Args:
        error: A HydraException or OmegaConfBaseException.
        conf: The configuration folder.
        arguments: The command line.
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
    reason = str(cause).splitlines()[0]
    key = str(getattr(cause, "full_key", "") or "")
    if key and any(words in reason for words in TYPE_ERRORS):
        return _wrong_type(key, reason)
    if re.search(r"not in struct|not in '|Could not override|not found", f"{text}\n{cause}"):
        name = _overridden(text) or key
        if name:
            return _unknown(name, conf, arguments, getattr(error, "composed", None))
    return "\n  ".join(line.strip() for line in text.splitlines()[:8] if line.strip())


TYPE_ERRORS = ("could not be converted", "Invalid value", "not a valid", "not Optional")
KINDS = {"Integer": "a whole number, like 20", "Float": "a number, like 0.05", "bool": "true or false"}


def _wrong_type(key: str, reason: str) -> str:
    given = re.search(r"[Vv]alue '(.*?)'", reason)
    for kind, meaning in KINDS.items():
        if given and kind in reason:
            return f"{key}={given[1]} has the wrong type\n  accepted: {meaning}"
    accepted = re.search(r"expected one of \[(.*)\]", reason)
    if given and accepted:
        close = get_close_matches(given[1], accepted[1].split(", "), 1)
        return f"{key}={given[1]} is not known\n  accepted: {accepted[1]}" + (
            f"; did you mean {close[0]}?" if close else ""
        )
    if "not Optional" in reason:
        return f"{key} needs a value, not null"
    return f"{key}: {reason}"


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
    known = sorted(error.options or options(conf).get(group, []))  # Hydra's list has those of --config-dir too
    if not known:
        return f"there is no group {group or missing}\n  groups: {', '.join(options(conf))}"
    if missing in EXTRAS:
        return f"{group}={name} needs a package that is not installed\n  pip install 'sam-runner[{EXTRAS[missing]}]'"
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {group}={close[0]}?" if close else f"options: {', '.join(known)}"
    return f"{group}={name}: there is no such option\n  {hint}" + (f"\n  options: {', '.join(known)}" if close else "")


def _unknown(key: str, conf: Path, arguments: list[str], composed: DictConfig | None) -> str:
    """An unknown key, against the keys of the groups that were chosen, and those of the options that were not."""
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
    return unknown_key(key, [*sorted(_known_keys(conf, arguments, composed)), *groups])


def _known_keys(conf: Path, arguments: list[str], composed: DictConfig | None) -> set[str]:
    """All dotted keys under the options that `arguments` choose, which is `composed` where Hydra has come so far."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if composed is None:
        groups = options(conf)
        choices = [entry for entry in arguments if entry.partition("=")[0] in groups and "," not in entry]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf), version_base="1.3"):
            try:
                composed = compose("config", choices)
            except (HydraException, OmegaConfBaseException):
                composed = compose("config")
    return {key for key in _leaves(composed, "") if not f"{key}.".startswith("hydra.")}


def _leaves(node: DictConfig, prefix: str) -> list[str]:
    keys = []
    for key in map(str, node):
        child = node._get_node(key)
        keys.append(f"{prefix}{key}")
        if isinstance(child, DictConfig) and not child._is_missing() and not OmegaConf.is_missing(node, key):
            keys += _leaves(child, f"{prefix}{key}.")
    return keys
