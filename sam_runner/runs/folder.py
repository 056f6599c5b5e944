"""The run folder: its name, its config.yaml, and whether a run may use it."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import yaml

from sam_runner.config.allowed_targets import UntrustedError
from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.config.keys import walk
from sam_runner.runs.status import call_name
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import SETTINGS_FILE, explain_missing_run, write_bytes
from sam_runner.utils.yaml import read_yaml

RUNS_FOLDER = Path("outputs") / "runs"
NOT_STARTED = "not_started"  # folder in a sweep's folder with the jobs that have no run
NAME_LENGTH, MAX_NAME_LENGTH = 60, 160  # characters of a job's name: with shared settings, with those that vary


def new_run_folder() -> Path:
    """Return the folder of a single run without ``run_dir``."""
    return RUNS_FOLDER / call_name()


def settings_of_run(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, ``key=value``, whose settings change a run, without a leading ``+``."""
    words = [word.lstrip("+") for word in words]
    return [word for word in words if re.split(r"[.=]", word)[0] not in _ignored_words()]


@cache
def _ignored_words() -> frozenset[str]:
    """Return the settings, and the groups of settings, that do not change a run."""
    ignored = {name for name, facts, _ in walk(ExperimentConfig()) if not facts.changes_run}
    return frozenset(ignored | {name.split(".")[0] for name in ignored if "." in name})


def job_name(varying: Sequence[str], others: Sequence[str], digest: str) -> str:
    """Return the name of a job's folder: the settings that vary, other typed settings if there is room, and a hash.

    Args:
        varying: Settings of the job that differ between jobs of the sweep, ``key=value``.
        others: Settings that all jobs share. They are added as long as the settings have at most `NAME_LENGTH`
            characters together.
        digest: Hexadecimal digits that identify the settings of the job.
    """
    text = ",".join(varying)
    for word in others:
        longer = f"{text},{word}" if text else word
        if len(longer) > NAME_LENGTH:
            break
        text = longer
    return f"{re.sub(r'[^a-zA-Z0-9_.=,+-]', '_', text[:MAX_NAME_LENGTH]) or 'job'}-{digest}"


def find_job_folder(sweep_folder: Path, digest: str) -> Path | None:
    """Return the folder of a sweep's job by the hash at the end of its name, None if there is none."""
    return find_job_folders(sweep_folder).get(digest)


def find_job_folders(sweep_folder: Path) -> dict[str, Path]:
    """Return the folders of a sweep's jobs by the hash at the end of their names, from one look at the folder."""
    try:
        names = sorted(os.listdir(sweep_folder), reverse=True)  # of several with one hash the first stays
    except OSError:
        return {}
    return {name.rpartition("-")[2]: sweep_folder / name for name in names if "-" in name}


def compare_settings(before: ExperimentConfig, now: ExperimentConfig) -> dict[str, str]:
    """Return ``old -> new`` by key for every setting that differs and has an effect on the numbers."""
    facts = {name: entry for config in (before, now) for name, entry, _ in walk(config)}
    old, new = before.flat(), now.flat()
    return {
        name: f"{old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if (name not in facts or facts[name].effect != "none") and old.get(name) != new.get(name)
    }


def require_usable(folder: Path, config: ExperimentConfig) -> dict[str, str]:
    """Require that a folder is new, empty, or holds a run that can be continued with the given settings.

    Args:
        folder: The run folder.
        config: The settings.

    Returns:
        The settings that differ from those of the run in the folder, as ``old -> new`` by key.

    Raises:
        InputError: If it is a file, holds files that no run wrote, or holds a run with other settings.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise InputError(f"run_dir={folder} is a file\n  give a folder")
    if not (folder / SETTINGS_FILE).is_file():
        if any(path.name != ".lock" and ".tmp." not in path.name for path in folder.iterdir()):
            raise InputError(f"run_dir={folder} holds files that no run wrote\n  give an empty or new folder")
        return {}
    changes = compare_settings(read_config(folder), config)
    facts = {name: entry for name, entry, _ in walk(config)}
    refused = [
        f"{name}: {change}" for name, change in changes.items() if not (name in facts and facts[name].may_change)
    ]
    if refused:
        more = [f"  (and {len(refused) - 12} more)"] if len(refused) > 12 else []
        lines = "\n".join([f"  {line}" for line in refused[:12]] + more)
        raise InputError(
            f"{folder} holds a run with other settings:\n{lines}\n  to continue it, give the old settings\n"
            f"  for a new run: another run_dir, or sam-train config={shlex.quote(str(folder))} KEY=VALUE"
        )
    return changes


def read_config(folder: Path) -> ExperimentConfig:
    """Return the settings of the run in a folder.

    Raises:
        InputError: If there is no run, or its config.yaml cannot be read or is not valid.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no run: {explain_missing_run(folder)}")
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a configuration\n  use the config.yaml that sam-train wrote")
    missing = [entry.name for entry in fields(ExperimentConfig) if entry.name in _needed_settings() - settings.keys()]
    if missing:
        names = ", ".join(missing[:8])
        raise InputError(f"{path} is incomplete: it lacks {names}\n  use the config.yaml that sam-train wrote")
    try:
        return load_experiment(settings)
    except UntrustedError:
        raise
    except InputError as error:
        raise InputError(f"{path} does not fit this version: {error}") from error


@cache
def _needed_settings() -> frozenset[str]:
    """Return the settings and groups that the config.yaml of a run must have."""
    return frozenset(
        name.partition(".")[0]
        for name, facts, _ in walk(ExperimentConfig())
        if facts.changes_run and not facts.added_later
    )


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among some folders and below them, each once, in the order given and by name.

    Raises:
        InputError: If a path is no folder, or there is no run in it or below.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is not a folder\n  give the folder that sam-train printed, or a sweep's folder")
        folders = (
            [path] if (path / SETTINGS_FILE).is_file() else sorted(file.parent for file in path.rglob(SETTINGS_FILE))
        )
        if not folders:
            raise InputError(f"{path} holds no run: {explain_missing_run(path)}")
        for folder in folders:
            read_config(folder)
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def write_config(folder: Path, config: ExperimentConfig) -> None:
    """Write config.yaml."""
    text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    write_bytes(folder / SETTINGS_FILE, text.encode())
