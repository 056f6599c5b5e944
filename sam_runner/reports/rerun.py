"""Find the command that trains a run's settings again on all training images, without held-out ones."""

import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sam_runner.config.allowed_targets import ALLOWED, VARIABLE
from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.config.keys import walk
from sam_runner.reports.results import RunRecord
from sam_runner.reports.tables import printable
from sam_runner.utils.errors import InputError

ALL_IMAGES = "data.val_fraction=0"
NOT_REPEATED = {"seed", "sweep_name", "run_dir", "search", "dry_run", "data.val_fraction", "data.val_labels"}
CONFIG_DIR_FLAGS = {"--config-dir", "-cd"}
MAX_CANDIDATES = 16  # compositions that are tried


def typed_command(record: RunRecord) -> str:
    """Return the command that started a run, as it is typed in a shell; "" where it is not known."""
    command = record.environment.get("command")
    if not isinstance(command, list) or not command:
        return ""
    program = str(command[0]).rpartition("/")[2]
    program = {"__main__.py": "python -m sam_runner"}.get(program, shlex.quote(program))
    return printable(" ".join([program, *(shlex.quote(str(word)) for word in command[1:])]))


def find_config_dir(record: RunRecord) -> str:
    """Return the folder of the user's own options that a run was started with, as it can be typed here; "" without."""
    words = list(map(str, record.environment.get("command") or []))
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag in CONFIG_DIR_FLAGS:
            folder = Path(value if equals else following)
            started_in = str(record.environment.get("folder", ""))
            return str(folder if started_in in ("", os.getcwd()) else Path(started_in) / folder)
    return ""


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
    own = find_config_dir(record)
    words = next((words for words in _candidates(record) if _composes(words, record.config, own)), None)
    if words is None:  # jobs of one sweep are named by what was typed, so the settings have a sweep of their own
        words = [f"config={record.folder}", ALL_IMAGES]
        sweep_name = f"{sweep_name}-{record.fingerprint[:6]}"
    words = [
        *(["--config-dir", own] if own else []),
        *words,
        f"seed={','.join(map(str, seeds))}",
        f"sweep_name={sweep_name}",
    ]
    return printable(" ".join([*_trust(record.config), "sam-train -m", *map(shlex.quote, words)]))


def _trust(config: ExperimentConfig) -> list[str]:
    """Return the setting of SAM_RUNNER_TRUSTED that a run with code of the user's own needs."""
    targets = [str(value) for name, value in config.flat().items() if name.rpartition(".")[2] == "_target_"]
    is_own = any(not f"{target}.".startswith(("sam_runner.", *ALLOWED)) for target in targets if target != "None")
    return [f"{VARIABLE}={shlex.quote(os.environ.get(VARIABLE, ''))}"] if is_own else []


def _candidates(record: RunRecord) -> Iterator[list[str]]:
    """Yield the typed words with the values of the run, without and with `ALL_IMAGES`."""
    assert record.config is not None
    values = record.config.flat()
    aliases = {name: facts.alias for name, facts, _ in walk(record.config) if facts.alias}
    choices: list[list[str]] = []
    for word in map(str, (record.environment.get("command") or [])[1:]):
        key, equals, value = word.lstrip("+").partition("=")
        if word.startswith("-") or not equals or key in NOT_REPEATED or key.startswith("hydra"):
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


def _composes(words: Sequence[str], config: ExperimentConfig, config_dir: str) -> bool:
    """Return whether words of a command line give the settings of a run, apart from the held-out images."""
    try:
        composed = compose_experiment([*words, f"seed={config.seed}"], config_dir=config_dir or None)
        composed = composed.with_absolute_paths()
    except InputError:
        return False
    data = replace(config.data, val_fraction=0.0, val_labels="clean")
    return composed.fingerprint() == replace(config, data=data).fingerprint()
