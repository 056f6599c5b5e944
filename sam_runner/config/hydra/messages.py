"""Rewrite errors of Hydra and OmegaConf: what was given, what is accepted and how to correct it."""

import contextlib
import os
import re
import shlex
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from sam_runner.config.allowed_targets import is_in_working_folder, target_of_file
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.help import list_default_options, list_keys, list_options, read_choices
from sam_runner.config.hydra.guard import OF_WHOLE_SWEEP
from sam_runner.config.hydra.launchers import EXTRAS, JOBLIB
from sam_runner.config.hydra.own_options import OPTIONS
from sam_runner.config.validation import describe_unknown_key, find_close
from sam_runner.utils.errors import InputError, first_line


def explain(error: Exception, conf: Path, arguments: list[str], config_dir: str | None = None) -> str:
    """Return the message for an error that Hydra raised while it read `arguments`.

    Args:
        error: An exception of Hydra, OmegaConf or YAML.
        conf: The configuration folder.
        arguments: The command line.
        config_dir: Folder of the user's own groups and options.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _describe_unreadable(error.override)
    if isinstance(error, YAMLError):
        return _describe_yaml_error(text)
    in_defaults = _describe_wrong_defaults(text, conf, config_dir)
    if in_defaults:
        return in_defaults
    if isinstance(error, MissingConfigException):
        return _suggest_target(arguments) or _describe_missing_option(error, conf)
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text)
    if several:
        return _describe_several_values(several[1], arguments, config_dir)
    if "Config group override must be a string" in text:
        return _describe_missing_name(arguments, conf)
    existing = re.match(r"Could not append to config. An item is already at '(.+)'", text)
    if existing:
        return f"+{existing[1]} adds a key, but {existing[1]} exists\n  leave out the +: {existing[1]}=..."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, InterpolationResolutionError):
        return describe_interpolation(cause, str(getattr(cause, "full_key", "") or ""))
    if re.search(r"not in struct|not in '|Could not override|not found", f"{text}\n{cause}"):
        name = _find_overridden(text) or str(getattr(cause, "full_key", "") or "")
        if name:
            return _describe_unknown_key(name, conf, arguments, config_dir)
    lines = [line.strip() for line in text.splitlines()[:8] if line.strip()] or ["a value with ${ cannot be read"]
    return "\n  ".join([*lines, f"given: {' '.join(arguments)[:300]}"])


def _describe_several_values(override: str, arguments: list[str], config_dir: str | None) -> str:
    key, _, value = override.partition("=")
    message = f"{override} gives several values\n  "
    if key in ("run_dir", "sweep_name"):
        return f"{message}a name with a comma is quoted twice: '{key}=\"{value}\"'"
    if key in OF_WHOLE_SWEEP:
        return f"{message}give one value"
    flags = ["-m"] if config_dir is None else ["-m", "--config-dir", config_dir]
    words = [word for word in arguments if not word.startswith("run_dir=")]  # each job has its own folder
    return f"{message}to run each of them: {shlex.join(['sam-train', *flags, *words])}"


def _describe_missing_name(arguments: list[str], conf: Path) -> str:
    """Return the message for an argument without a name before its ``=``, or a group whose option is no name."""
    groups = list_options(conf)
    for argument in arguments:
        group, equals, value = argument.lstrip("+").partition("=")
        if equals and not group:
            return f"{argument} has no key\n  arguments are key=value, group=option or flags"
        if group in groups and value.lower() in ("null", "true", "false", ""):
            return f"{argument} is not an option of a group\n  choose one with {group}=NAME: {', '.join(groups[group])}"
    return f"an option of a group must be a name\n  given: {' '.join(arguments)[:300]}"


def _describe_yaml_error(text: str) -> str:
    """Return the message for a file that is no YAML: the parser's words and what to do."""
    hints = {
        r"'\\t'": "indent with spaces, not with tabs",
        r"duplicate key": "write each key once",
        r"'@'": "the line that begins with @package is a comment: # @package _global_",
        r"mapping values are not allowed": "give keys of a group the same indentation; quote a text that holds ': '",
        r"expected <block end>": "give all keys of a group the same indentation",
        r"expected ':'": "write lines as key: value, with a space after the colon",
        r"'[%`]'": "quote a text that begins with this character",
    }
    hint = [found for pattern, found in hints.items() if re.search(pattern, text)]
    return "\n  ".join(["a configuration file is no YAML", *text.splitlines()[:6], *hint[:1]])


def _describe_wrong_defaults(text: str, conf: Path, config_dir: str | None) -> str:
    """Return the message for a mistake in the defaults list of a file, "" if the error is another."""
    groups = list_options(conf)
    by_file = re.search(
        r"(Multiple values for |Could not override '(experiment/)?)(search|debug|experiment)['@.]", text
    )
    if by_file:
        return f"a file cannot choose {by_file[3]}\n  choose it on the command line: {by_file[3]}=NAME"
    several = re.search(r"Multiple values for ([^.@]+)\S*\. To override .* 'override [^:]+: (.+)'", text)
    if several:
        return _suggest_defaults(f"the file chooses {several[1]} without override", several[1], several[2])
    relative = re.search(r"In '([^']*)': Could not override '([^'@]+)", text)
    if relative:
        name = relative[2].rpartition("/")[2] if relative[2] not in groups else relative[2]
        group = next((found for found in groups if relative[2].endswith(f"/{found}")), name)
        if group in groups and group != relative[2]:
            option = _read_chosen_option(relative[1], group, config_dir)
            return _suggest_defaults(f"{group} lacks its slash in the defaults of {relative[1]}", group, option)
        if group not in groups:
            close = find_close(group, list(groups))
            hint = f"did you mean {close[0]}?" if close else f"groups: {', '.join(groups)}"
            return f"there is no group {group}\n  {hint}"
    if "defaults must be a list" in text:
        return f"{text.splitlines()[0]}\n  begin each line below defaults with a dash: - override /model: NAME"
    if number := re.search(r"Unsupported item value in defaults : (\w+)", text):
        return (
            f"the option of a group in a configuration file is no name but a {number[1]}\n"
            "  write - override /GROUP: NAME, and a name such as 1 or off in quotes"
        )
    if "Overrides must be at the end" in text:
        return f"{' '.join(text.split())}\n  move the lines with override to the end of defaults"
    if "Cannot merge DictConfig with ListConfig" in text:
        return (
            "a file holds a list where keys are expected\n"
            "  write options below the line defaults: and settings as key: value"
        )
    return ""


def _suggest_defaults(fault: str, group: str, option: str) -> str:
    return f"{fault}\n  write below defaults:\n    - override /{group}: {option}"


def _read_chosen_option(file: str, group: str, config_dir: str | None) -> str:
    """Return the option that the defaults of a user's file choose for a group, NAME if it cannot be read."""
    path = Path(config_dir or ".") / f"{file}.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(rf"override +{re.escape(group)} *: *([\w./-]+)", text)
    return found[1] if found else "NAME"


def describe_interpolation(error: OmegaConfBaseException, key: str) -> str:
    """Return the message for a value with ``${...}`` that cannot be resolved.

    Args:
        error: The error of OmegaConf.
        key: Dotted name of the setting, "" if it is not known.
    """
    return (
        f"{key or 'a setting'} cannot be resolved: {first_line(error)}\n"
        "  ${key} stands for the value of another key, ${group.key} for one of a group"
    )


def _find_overridden(text: str) -> str:
    match = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", text)
    return match.group(1).lstrip("+~") if match else ""


def _describe_unreadable(override: str) -> str:
    message = f"cannot read the argument {override!r}\n  arguments are key=value, group=option or flags"
    if "==" in override:
        return f"{message}\n  did you mean {override.replace('==', '=')}?"
    key, equals, value = override.partition("=")
    if not equals:
        with_colon = re.fullmatch(r"([\w./@]+):(.+)", override)
        if with_colon:
            return f"{message}\n  did you mean {with_colon[1]}={with_colon[2]}?"
        if override.endswith((".yaml", ".yml")):
            return f"{message}\n  for a file of settings: config={override}"
        is_key = re.fullmatch(r"[+~]*[A-Za-z_][\w./@]*", override)
        way = f"\n  a value is missing: {override}=..." if is_key else ""
        return f"{message}{way}\n  a value with spaces is quoted, 'data.root=my photos'; = stands between no spaces"
    if key != key.strip() or value != value.strip():
        return f"{message}\n  leave out the spaces: {key.strip()}={value.strip()}"
    return f"{message}\n  quote a value with spaces or special characters: \"{key}='{value}'\""


def _suggest_target(arguments: list[str]) -> str:
    """Return the message for an option that is a file of code, or a name in one, "" if none is."""
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        key = group.replace("/", ".")
        is_name = re.fullmatch(r"\w+(\.\w+)+", value) is not None and is_in_working_folder(value.partition(".")[0])
        target = target_of_file(value) or (value if is_name else "")
        if key in OPTIONS and target:
            return f"{argument}: an option is not a file of code\n  for code of your own: {key}._target_={target}"
    return ""


def _describe_missing_option(error: MissingConfigException, conf: Path) -> str:
    missing, groups = error.missing_cfg_file or "", list_options(conf)
    group, _, name = missing.rpartition("/")
    without_option = re.fullmatch(r".*override +/?([\w/]+?) *", missing)
    if without_option:
        return _suggest_defaults(f"{missing} does not name an option", without_option[1], "NAME")
    own_group = group.partition("/")[2]
    if group not in groups and own_group in groups:  # in a file of the first group, without slash
        return _suggest_defaults(
            f"{own_group} lacks its slash and override in a file of {missing.split('/')[0]}", own_group, name
        )
    known = sorted(error.options or groups.get(group, []))  # Hydra's list has those of --config-dir too
    if not known:
        close = find_close(group or missing, list(groups))
        hint = f"did you mean {close[0]}?\n  " if close else ""
        return f"there is no group {group or missing}\n  {hint}groups: {', '.join(groups)}"
    if missing == "hydra/launcher/joblib":
        return JOBLIB
    if missing in EXTRAS:
        return f"{group}={name} needs a package that is not installed\n  pip install 'sam-runner[{EXTRAS[missing]}]'"
    lines = [f"{group}={name}: there is no such option"]
    path = Path(os.path.expanduser(name))
    lines += [f"for this path: {_option_for(path)}={name}"] if group == "data" and path.exists() else []
    close = find_close(name, known)
    lines += [f"did you mean {group}={close[0]}?"] if close else []
    chosen_by_files = group in ("experiment", "search", "debug")
    elsewhere = [other for other, names in groups.items() if name in names and other != group and chosen_by_files]
    lines += [f"in a file, below defaults: - override /{other}: {name}" for other in elsewhere[:1]]
    lines += [f"options: {', '.join(known)}"]
    lines += [f"another network of timm or torchvision: model=timm model.name={name}"] if group == "model" else []
    key = group.replace("/", ".")
    is_code = key in OPTIONS and is_in_working_folder(name)
    lines += [f"for code of your own: {key}._target_={name}.NAME"] if is_code else []
    lines += [f"for a file of your own: --config-dir DIR, with DIR/{group}/NAME.yaml"] if not close else []
    return "\n  ".join(lines)


def _option_for(path: Path) -> str:
    """Return the option of ``data`` and the setting that read a file or folder."""
    if path.is_file():
        return "data=image_list data.file"
    is_saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    return "data=hugging_face data.root" if is_saved else "data=image_folder data.root"


def _describe_unknown_key(key: str, conf: Path, arguments: list[str], config_dir: str | None) -> str:
    """Return the message for a key that the chosen options do not have, with the options that have it."""
    key = key.replace("/", ".")
    parent, _, name = key.rpartition(".")
    group = parent.replace(".", "/")
    options = list_options(conf).get(group, [])
    others = [f"{group}={option}" for option in options if name in _list_keys(group, option, conf, config_dir)]
    if others:
        typed = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in arguments}
        chosen = f"{group}={typed[group]}" if group in typed else f"the default {group}"
        swept = typed.get(group, "").split(",")
        having = [option for option in swept if name in _list_keys(group, option, conf, config_dir)]
        if key in typed and len(swept) > 1 and having:
            return _describe_swept_group(key, group, having, swept, arguments, config_dir)
        shown = key if name not in _list_inner_groups(group, conf) else key.replace(".", "/")
        return f"{shown} has no effect with {chosen}\n  it goes with {', '.join(others)}"
    return describe_unknown_key(key, [*sorted(_list_known_keys(conf, arguments, config_dir)), *list_options(conf)])


def _describe_swept_group(
    key: str, group: str, having: list[str], swept: list[str], arguments: list[str], config_dir: str | None
) -> str:
    """Return the message for a key that some or all of a group's swept options have.

    Args:
        key: The dotted key.
        group: The group.
        having: Options of the sweep that have the key.
        swept: All options of the sweep.
        arguments: The command line.
        config_dir: Folder of the user's own groups and options.
    """
    value = next(word.partition("=")[2] for word in arguments if word.lstrip("+").partition("=")[0] == key)
    word = f"{key}={value}" if len(having) == 1 or "," in value else f"{key}=choice({value})"
    others = [option for option in swept if option not in having]
    if not others:
        return f"Hydra reads {key} before it knows {group}, which is swept\n  write {shlex.quote(word)}"
    rest = [found for found in arguments if found.lstrip("+").partition("=")[0] not in (group, key)]
    rest += [] if any(found.startswith("sweep_name=") for found in rest) else ["sweep_name=NAME"]
    start = ["sam-train", "-m", *(["--config-dir", config_dir] if config_dir else [])]
    lines = [
        f"{key} goes with {group}={','.join(having)}, and has no effect with {group}={','.join(others)}",
        "give each its command; the same sweep_name makes one sweep of them:",
        shlex.join([*start, f"{group}={','.join(having)}", word, *rest]),
        shlex.join([*start, f"{group}={','.join(others)}", *rest]),
    ]
    return "\n  ".join(lines)


def _list_keys(group: str, option: str, conf: Path, config_dir: str | None) -> set[str]:
    """Return the keys and inner groups of an option of conf/ or of the user's own folder, none if it does not exist."""
    folders = [folder / group for folder in (Path(config_dir or conf), conf)]
    folder = next((found for found in folders if (found / f"{option}.yaml").is_file()), None)
    if folder is None:
        return set()
    with contextlib.suppress(InputError, AttributeError, TypeError):  # the file of a stranger
        return list_keys(folder, option, conf / group) | read_choices(folder / f"{option}.yaml").keys()
    return set()


def _list_inner_groups(group: str, conf: Path) -> set[str]:
    return {name.rpartition("/")[2] for name in list_options(conf) if name.rpartition("/")[0] == group}


def _list_known_keys(conf: Path, arguments: list[str], config_dir: str | None) -> set[str]:
    """Return all dotted keys of the options that `arguments` choose."""
    groups, chosen = list_options(conf), list_default_options(conf)
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        if group in groups and _list_keys(group, option, conf, config_dir):
            chosen[group] = option
    keys = set(ExperimentConfig().flat())
    for group, option in chosen.items():
        keys |= {f"{group.replace('/', '.')}.{name}" for name in _list_keys(group, option, conf, config_dir)}
    return {key for key in keys if key.partition(".")[0] not in groups or key.partition(".")[0] in chosen}
