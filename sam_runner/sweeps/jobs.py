"""The jobs of a call of the command: equal jobs are found by their fingerprint, and every job gets a folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.runs.folder import find_job_folders, job_name, settings_of_run
from sam_runner.runs.plan import PlanEntry, extend_plan, read_plan

Typed = Sequence[str]  # settings as the user typed them, ``key=value``


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        number: Number of the job in its call of the command, from 1.
        overrides: Settings as the user typed them.
        config: The settings.
        folder: Run folder.
        digests: Fingerprint of the settings, then a hash of what was typed for this job and for each equal one.
    """

    number: int
    overrides: tuple[str, ...]
    config: ExperimentConfig
    folder: Path
    digests: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the settings."""
        return self.digests[0]

    @property
    def overrides_text(self) -> str:
        """What the user typed, as one text."""
        return " ".join(self.overrides)


def hash_words(overrides: Typed) -> str:
    """Return 12 hex digits that identify the typed settings which change a run, in any order."""
    return sha256("\n".join(sorted(settings_of_run(overrides))).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def plan_jobs(
    sweep_folder: Path, composed: Sequence[tuple[Typed, ExperimentConfig]], *, first: int = 1, write: bool = True
) -> tuple[list[Job], list[int]]:
    """Find the distinct jobs of a call and add them to the plan of the sweep.

    Args:
        sweep_folder: Folder of the sweep.
        composed: What was typed for each job, and its settings with absolute paths.
        first: Number of the first job.
        write: Whether the plan is written; otherwise the jobs only get their folders.

    Returns:
        The distinct jobs, and for each composed job the position of its job among them.
    """
    twins: dict[str, list[int]] = {}
    fingerprints = [config.fingerprint() for _, config in composed]
    for number, fingerprint in enumerate(fingerprints):
        twins.setdefault(fingerprint, []).append(number)
    words = {found: _shared_words([composed[number][0] for number in equal]) for found, equal in twins.items()}
    configs = {found: composed[equal[0]][1] for found, equal in twins.items()}
    folders: dict[str, str] = {}

    def name_folders(planned: Sequence[PlanEntry]) -> list[PlanEntry]:
        varying = _varying_keys([*(entry.settings for entry in planned), *words.values()])
        folders.update({entry.fingerprint: entry.folder for entry in planned})
        new = [found for found in twins if found not in folders]
        on_disk = find_job_folders(sweep_folder) if new else {}
        for found in new:
            existing = on_disk.get(found)
            swept = [word for word in words[found] if _key(word) in varying]
            others = [word for word in words[found] if _key(word) not in varying]
            folders[found] = existing.name if existing else job_name(swept, others, found)
        return [
            PlanEntry(found, folders[found], words[found], configs[found].epochs, job_cost(configs[found]))
            for found in new
        ]

    if write:
        extend_plan(sweep_folder, name_folders)
    else:
        name_folders(read_plan(sweep_folder))
    jobs = [
        Job(
            number,
            tuple(composed[equal[0]][0]),
            configs[found],
            sweep_folder / folders[found],
            (found, *(hash_words(composed[twin][0]) for twin in equal)),
        )
        for number, (found, equal) in enumerate(twins.items(), first)
    ]
    positions = {found: position for position, found in enumerate(twins)}
    return jobs, [positions[found] for found in fingerprints]


def group_seeds(jobs: Sequence[Job], size: int) -> list[tuple[Job, ...]]:
    """Return the jobs in groups of at most `size`, each of jobs that differ only in the seed, by their first jobs."""
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        key = replace(job.config, seed=0).fingerprint() if size > 1 else job.fingerprint
        alike.setdefault(key, []).append(job)
    groups = [tuple(found[start : start + size]) for found in alike.values() for start in range(0, len(found), size)]
    return sorted(groups, key=lambda group: group[0].number)


def job_cost(config: ExperimentConfig) -> float:
    """Return epochs times the mean cost of a step, a measure of the duration of a job beside others of its sweep."""
    return config.epochs * config.optimizer.mean_cost


def _shared_words(overrides: Sequence[Typed]) -> tuple[str, ...]:
    """Return the settings that were typed for all of several equal jobs; the others have no effect on the job."""
    first, *others = (settings_of_run(words) for words in overrides)
    return tuple(word for word in first if all(word in words for words in others))


def _varying_keys(words: Sequence[Typed]) -> set[str]:
    """Return the keys of settings that not all jobs share."""
    common = set.intersection(*map(set, words)) if words else set()
    return {_key(word) for typed in words for word in typed if word not in common}


def _key(word: str) -> str:
    return word.partition("=")[0]
