"""Find the command that trains a run's settings again on all training images, without held-out ones."""

import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.hydra.command_line import CommandLine, parse_command_line
from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.config.keys import walk
from sam_runner.reports.results import RunRecord
from sam_runner.reports.tables import printable
from sam_runner.runs.environment import format_command
from sam_runner.utils.errors import InputError

ALL_IMAGES = "data.val_fraction=0"
NOT_REPEATED = {"seed", "sweep_name", "run_dir", "search", "dry_run", "data.val_fraction", "data.val_labels"}
MAX_CANDIDATES = 16  # compositions that are tried


def typed_command(record: RunRecord) -> str:
    """Return the command that started a run, as it is typed in a shell; "" where it is not known."""
    command = record.environment.get("command")
    return printable(format_command(command)) if isinstance(command, list) and command else ""


def final_command(record: RunRecord, seeds: Sequence[int], sweep_name: str) -> str:
    """Return the command that trains the settings of a run on all training images, once for each seed.

    The words that the user typed are kept where they give the same settings, which is checked by composing them.
    Otherwise the command reads the settings from the run's config.yaml.

    Args:
        record: A run.
        seeds: Seeds of the new runs.
        sweep_name: Name of the new sweep.
    """
    assert record.config is not None
    line = _read_command_line(record)
    config_dir = None if line.config_dir is None else _find_folder(line.config_dir, record)
    candidates = _candidates(record.config, line.overrides) if line.config_file is None else ()
    words = next((words for words in candidates if _composes(words, record.config, config_dir)), None)
    if words is None:  # jobs of one sweep are named by what was typed, so the settings have a sweep of their own
        words = [f"config={record.folder}", ALL_IMAGES]
        sweep_name = f"{sweep_name}-{record.fingerprint[:6]}"
    elif config_dir is not None:
        words = ["--config-dir", config_dir, *words]
    words = [*words, f"seed={','.join(map(str, seeds))}", f"sweep_name={sweep_name}"]
    trust = trust_prefix(record.config.to_dict())
    return printable(f"{trust}sam-train -m {shlex.join(words)}")


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
    """Yield the typed words with the values of the run, without and with `ALL_IMAGES`."""
    values = config.flat()
    aliases = {name: facts.alias for name, facts, _ in walk(config) if facts.alias}
    choices: list[list[str]] = []
    for word in typed:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals or key in NOT_REPEATED or key.startswith("hydra"):
            continue
        name = aliases.get(key, key)
        if key.replace("/", ".") in GROUPS or key not in {**values, **aliases}:
            choices.append([f"{word.partition('=')[0]}={option}" for option in value.split(",")])
        elif name in values:  # otherwise the method has no such setting, as optimizer=sgd has no rho
            swept = "," in value and not isinstance(values[name], list)
            choices.append([f"{key}={values[name]}" if swept else word])
    for words in itertools.islice(itertools.product(*choices), MAX_CANDIDATES):
        yield list(words)
        yield [*words, ALL_IMAGES]


def _composes(words: Sequence[str], config: ExperimentConfig, config_dir: str | None) -> bool:
    """Return whether words of a command line give the settings of a run, apart from the held-out images."""
    try:
        composed = compose_experiment([*words, f"seed={config.seed}"], config_dir=config_dir).with_absolute_paths()
    except InputError:  # for example a folder that has been removed
        return False
    data = replace(config.data, val_fraction=0.0, val_labels="clean")
    return composed.fingerprint() == replace(config, data=data).fingerprint()
