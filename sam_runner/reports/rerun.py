"""Find the command that trains a run's settings again, on all training images or for longer."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.config.experiment import GROUPS, EarlyStoppingConfig, ExperimentConfig
from sam_runner.config.hydra.command_line import CommandLine, parse_command_line
from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.config.keys import walk
from sam_runner.reports.results import RunRecord
from sam_runner.reports.tables import printable
from sam_runner.runs.environment import format_command
from sam_runner.runs.plan import PLAN
from sam_runner.utils.errors import InputError

NOT_REPEATED = {
    "seed", "sweep_name", "run_dir", "search", "dry_run", "data.val_fraction", "data.val_labels",
    "early_stopping.metric",
}  # fmt: skip
SEARCHED = {"rho": "rho", "mixup": "augment.mixup"}  # the setting that search=NAME varies
MAX_CANDIDATES = 16  # compositions that are tried
MAX_ADDED = 6  # settings that are added to the typed words
SWEPT = re.compile(r",|^(choice|range|interval|tag|shuffle|sort)\(")  # in a value: several values of a sweep


def typed_command(record: RunRecord) -> str:
    """Return the command that started a run, as it is typed in a shell; "" where it is not known."""
    command = record.environment.get("command")
    return printable(format_command(command)) if isinstance(command, list) and command else ""


def final_command(record: RunRecord, seeds: Sequence[int], sweep_name: str) -> str:
    """Return the command of the final runs with the settings of a run, once for each seed.

    Args:
        record: A run.
        seeds: Seeds of the new runs.
        sweep_name: Name of the new sweep; characters that a sweep's name cannot have are replaced.
    """
    assert record.config is not None
    return train_command(record, final_settings(record.config), seeds, _name_sweep(sweep_name))


def final_settings(config: ExperimentConfig) -> ExperimentConfig:
    """Return the settings of final runs: on all training images, unless a patience needs the held-out ones."""
    if config.early_stopping.patience is not None or config.data.val_fraction == 0:
        return config
    data = replace(config.data, val_fraction=0.0, val_labels="clean")
    return replace(config, data=data, early_stopping=EarlyStoppingConfig())


def same_sweep(record: RunRecord) -> str:
    """Return the setting that puts further runs into the sweep of a run, for `train_command`."""
    folder = record.folder.resolve().parent
    is_elsewhere = folder.parent.parts[-2:] != ("outputs", "sweeps") and (folder / PLAN).is_file()
    if is_elsewhere and re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):  # other characters mean something to Hydra
        return f"hydra.sweep.dir={folder}"
    return _name_sweep(folder.name)


def _name_sweep(name: str) -> str:
    return "sweep_name=" + re.sub(r"[^\w.=+ -]", "_", name, flags=re.ASCII)[-100:]


def train_command(record: RunRecord, config: ExperimentConfig, seeds: Sequence[int], sweep: str) -> str:
    """Return the command that trains `config`, some of whose values differ from those of a run, once for each seed.

    The command keeps the words that the user typed and adds settings, if composing these words gives exactly `config`.
    Otherwise it reads the settings from the run's config.yaml.

    Args:
        record: A run.
        config: The settings, of the same groups as those of the run.
        seeds: Seeds of the new runs.
        sweep: Setting of the folder: ``sweep_name=NAME`` or ``hydra.sweep.dir=FOLDER``.
    """
    assert record.config is not None
    line = _read_command_line(record)
    config_dir = None if line.config_dir is None else _find_folder(line.config_dir, record)
    candidates = _candidates(record.config, line.overrides) if line.config_file is None else ()
    completed = [_complete(words, config, config_dir) for words in candidates]
    found = [(kept, added) for kept, added in filter(None, completed) if _composes([*kept, *added], config, config_dir)]
    if found:
        kept, added = min(found, key=lambda words: len(words[1]))
        words = [*([] if config_dir is None else ["--config-dir", config_dir]), *_join(kept, added)]
    else:
        words = [f"config={record.folder}", *(_list_changes(record.config, config) or ())]
    words = [*words, f"seed={','.join(map(str, seeds))}", sweep]
    return printable(f"{trust_prefix(config.to_dict())}sam-train -m {shlex.join(words)}")


def change_setting(config: ExperimentConfig, name: str, value: float) -> ExperimentConfig:
    """Return the settings with another value of one of them.

    Args:
        config: The settings.
        name: Name as in a report, e.g. ``rho``, ``lr`` or ``augment.mixup``.
        value: The value.

    Raises:
        ValueError: If the setting does not accept the value, or is an argument of a function of the user's.
    """
    name = next((facts.alias for key, facts, _ in walk(config) if key == name and facts.alias), name)
    found = next(((facts, old) for key, facts, old in walk(config) if key == name), None)
    if found is None or (found[0].range is not None and value not in found[0].range):
        raise ValueError(f"{name}={value} is not accepted")
    changed: Any = int(value) if isinstance(found[1], int) else value
    *groups, key = name.split(".")
    owners = list(itertools.accumulate(groups, getattr, initial=config))
    for owner, part in zip(reversed(owners), reversed([*groups, key]), strict=True):
        changed = replace(owner, **{part: changed})
    return cast("ExperimentConfig", changed)


def _read_command_line(record: RunRecord) -> CommandLine:
    """Return the command line that started a run; an empty one where it is not known."""
    command = record.environment.get("command")
    try:
        return parse_command_line([str(word) for word in command[1:]] if isinstance(command, list) else [])
    except InputError:
        return CommandLine([], [])


def _find_folder(typed: str, record: RunRecord) -> str:
    """Return a folder of the command as it is typed here: relative paths began in the folder of that command."""
    typed = os.path.expanduser(typed)
    began_in = str(record.environment.get("folder", os.curdir))
    return typed if os.path.abspath(began_in) == os.getcwd() else os.path.join(began_in, typed)


def _candidates(config: ExperimentConfig, typed: Sequence[str]) -> Iterator[list[str]]:
    """Yield the typed words with the values of the run, once for each choice of the typed options."""
    values = config.flat()
    aliases = {name: facts.alias for name, facts, _ in walk(config) if facts.alias}
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    names = {aliases.get(key, key) for key in keys}
    choices: list[list[str]] = []
    for word in typed:
        key, equals, value = word.lstrip("+").partition("=")
        searched = SEARCHED.get(value) if key == "search" else None
        if searched in values and aliases.get(searched, searched) not in names:
            # show the chosen value, also a default; "" where it has no effect, as for SGD
            choices.append([f"{searched}={_format_value(values[searched])}", ""])
        if not equals or key in NOT_REPEATED or key.startswith("hydra"):
            continue
        name = aliases.get(key, key)
        if key.replace("/", ".") in GROUPS or key not in {**values, **aliases}:
            plain = word.partition("=")[0].removeprefix("++")  # sam-train adds these to keys that an option lacks
            choices.append([f"{plain}={option}" for option in value.split(",")])
        elif name in values:  # otherwise the method has no such setting, as optimizer=sgd has no rho
            swept = SWEPT.search(value) and not isinstance(values[name], list)
            choices.append([f"{key}={_format_value(values[name])}" if swept else word.removeprefix("++")])
    for words in itertools.islice(itertools.product(*choices), MAX_CANDIDATES):
        yield [word for word in words if word]


def _complete(
    words: Sequence[str], config: ExperimentConfig, config_dir: str | None
) -> tuple[list[str], list[str]] | None:
    """Return the words to keep and those to add, so that they give some settings; None where they cannot."""
    composed = _compose(words, config.seed, config_dir)
    added = None if composed is None else _list_changes(composed, config)
    if added is None or len(added) > MAX_ADDED:
        return None
    keys = {word.partition("=")[0] for word in added}
    return [word for word in words if word.lstrip("+").partition("=")[0] not in keys], added


def _join(kept: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return all words; those of the method stand beside its name."""
    after = next((number for number, word in enumerate(kept, 1) if word.startswith("optimizer=")), len(kept))
    method = [word for word in added if word.startswith(("rho=", "optimizer."))]
    return [*kept[:after], *method, *kept[after:], *(word for word in added if word not in method)]


def _list_changes(before: ExperimentConfig, after: ExperimentConfig) -> list[str] | None:
    """Return the words that change settings into others; None where the groups have other options."""
    old, new = ({name: value for name, facts, value in walk(config) if facts.effect != "none"}
                for config in (before, after))  # fmt: skip
    changed = [name for name in new if name != "seed" and old.get(name) != new[name]]
    if old.keys() != new.keys() or any(name.endswith((".name", "._target_")) for name in changed):
        return None
    short = {facts.alias: name for name, facts, _ in walk(after) if facts.alias}
    return [f"{short.get(name, name)}={_format_value(new[name])}" for name in changed]


def _format_value(value: Any) -> str:
    """Return a value as it is typed."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | float) else json.dumps(value)


def _composes(words: Sequence[str], config: ExperimentConfig, config_dir: str | None) -> bool:
    composed = _compose(words, config.seed, config_dir)
    return composed is not None and composed.fingerprint() == config.fingerprint()


def _compose(words: Sequence[str], seed: int, config_dir: str | None) -> ExperimentConfig | None:
    """Return the settings that words of a command line give; None where they are refused."""
    words = [word for word in words if not word.startswith("sweep.")]  # of the whole sweep, not of a run
    try:
        overrides = parse_command_line([*words, f"seed={seed}"]).overrides
        return compose_experiment(overrides, config_dir=config_dir).with_absolute_paths()
    except InputError:  # for example a folder that has been removed
        return None
