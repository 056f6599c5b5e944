"""A sweep in one call of the command: plans its jobs, trains them or hands them to a launcher."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.config.hydra.handover import ComposedJob, HandOver
from sam_runner.config.rules.files import require_files
from sam_runner.runs.plan import PlanEntry
from sam_runner.runs.result import read_finished_result, summarise_result
from sam_runner.sweeps.claims import hold_call
from sam_runner.sweeps.job_runner import Call, train_jobs
from sam_runner.sweeps.jobs import Job, Typed, group_seeds, job_cost, plan_jobs
from sam_runner.sweeps.outcomes import (
    JobOutcome,
    now,
    read_objective,
    read_outcomes,
    read_refusals,
    record_deaths,
    record_failure,
    record_refusal,
)
from sam_runner.sweeps.pool import train_at_once
from sam_runner.sweeps.progress import SweepProgress, show_progress
from sam_runner.sweeps.stop_flag import read_stop_flag, set_stop_flag
from sam_runner.utils.console import format_count, is_distributed, is_main_process, report_exception
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_gpus, count_usable_cores

log = logging.getLogger("sam_runner")


class Sweep:
    """The jobs of one call of the command.

    Args:
        config: The first configuration that Hydra has composed, with Hydra's own settings.

    Attributes:
        folder: Folder of the sweep.
        jobs: The distinct jobs so far; a search adds to them.
        num_failed_plans: Number of jobs of a dry run that failed.

    Raises:
        InputError: If ``sweep.jobs`` or ``sweep.batch_seeds`` does not fit the launcher.
    """

    def __init__(self, config: Any) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.jobs: list[Job] = []
        self.num_failed_plans = 0
        self._is_dry, self._is_search = bool(config.dry_run), launchers.is_search(config.hydra)
        self._has_launcher = launchers.in_subprocesses(config.hydra) and not self._is_dry
        batch_seeds = _choose_batch_seeds(config, has_launcher=self._has_launcher)
        stops, verbose = config.sweep.on_error == "stop", bool(config.sweep.verbose)
        self._call = Call(self.folder, now(), stops, batch_seeds=batch_seeds, verbose=verbose)
        self._jobs_at_once = 1 if self._is_dry else _choose_jobs_at_once(config, has_launcher=self._has_launcher)

    @property
    def in_this_process(self) -> bool:
        """Whether the jobs are trained one after the other in this process."""
        return not self._has_launcher and self._jobs_at_once == 1

    def run(self, composed: Iterable[ComposedJob], hand_over: HandOver) -> list[float | None]:
        """Run a batch of jobs.

        Args:
            composed: The jobs as Hydra's sweeper has chosen them.
            hand_over: Runs the jobs at some positions of `composed` by Hydra's own launcher.

        Returns:
            The objective of each job in a search, else None.

        Raises:
            InputError: If the first jobs are all refused for the same reason, a setting that they share; nothing has
                been written then.
        """
        valid: list[tuple[Typed, ExperimentConfig]] = []
        positions: list[int] = []
        refusals: list[tuple[Typed, InputError]] = []
        num_composed = 0
        for position, job in enumerate(composed):
            num_composed += 1
            try:
                valid.append((job.overrides, _validate(job)))
                positions.append(position)
            except InputError as error:
                refusals.append((job.overrides, error))
        if not valid and not self.jobs and not self._is_search and len({str(error) for _, error in refusals}) == 1:
            raise refusals[0][1]
        self._tell_refusals(refusals)
        if len(valid) < num_composed and self._call.stop_on_error and not self._is_dry and is_main_process():
            set_stop_flag(self.folder, "failure")
        if not valid:
            return [None] * num_composed
        if self._call.batch_seeds > 1:
            configs = [config for _, config in valid]
            if not self.jobs:  # a later batch of hydra.sweeper.max_batch_size may be the rest of the seeds
                _require_several_seeds(configs, self._call.batch_seeds)
            if not self._is_dry:
                _require_joint_passes(configs)
        if self._is_search and not self.jobs:
            metric = valid[0][1].early_stopping.metric
            best = "lowest" if metric.endswith("/nll") else "highest"
            log.info("searching the settings with the %s %s at the end (early_stopping.metric)", best, metric)
        write = is_main_process() and not self._is_dry
        jobs, job_of = plan_jobs(self.folder, valid, first=len(self.jobs) + 1, write=write)
        self.jobs += jobs
        if len(jobs) < len(valid):
            log.info("%d jobs, %d of them distinct: equal jobs run once", len(valid), len(jobs))
        if self._is_dry:
            self._describe(jobs)
            return [None] * num_composed
        with hold_call(self.folder), nullcontext() if is_distributed() else self._show_progress():
            first_of = {number: position for position, number in reversed(list(zip(positions, job_of, strict=True)))}
            self._train(jobs, lambda chosen: hand_over([first_of[number] for number in chosen]))
        if read_stop_flag(self.folder) == "failure" and is_main_process():
            self._record_jobs_not_run(jobs)
        objectives: list[float | None] = [None] * num_composed
        if self._is_search:
            for position, number in zip(positions, job_of, strict=True):
                objectives[position] = read_objective(jobs[number])
        return objectives

    def _tell_refusals(self, refusals: Sequence[tuple[Typed, InputError]]) -> None:
        """Print and record the jobs whose settings are refused."""
        for overrides, error in refusals:
            message, _ = report_exception(error)
            self.num_failed_plans += self._is_dry
            if not self._is_dry and is_main_process():
                record_refusal(self.folder, overrides, message)

    def _describe(self, jobs: Sequence[Job]) -> None:
        """Print the different plans of the jobs, and their total. Jobs that differ in the seed alone have one plan."""
        from sam_runner.runs.dry_run import Plan, describe_total
        from sam_runner.runs.start import make_plan

        made: dict[str, Plan] = {}
        plans: list[Plan] = []
        shown: dict[tuple[str, ...], int] = {}
        for job in jobs:
            apart_from_seed = replace(job.config, seed=0).fingerprint()
            try:
                if apart_from_seed not in made:
                    made[apart_from_seed] = make_plan(job.config, job.overrides, job.folder)
            except Exception as error:
                log.info("job %d: %s", job.number, job.folder.name)
                report_exception(error)
                self.num_failed_plans += 1
                continue
            plan = made[apart_from_seed]
            plans.append(plan)
            first = shown.setdefault(plan.facts, job.number)
            log.info("job %d: %s%s", job.number, job.folder.name, "" if first == job.number else f": as job {first}")
            if first == job.number and is_main_process():
                print(plan)
        log.info("%s", describe_total(plans))

    def _train(self, jobs: Sequence[Job], hand_over: Callable[[Sequence[int]], object]) -> None:
        """Train the jobs that have not finished."""
        if is_distributed():
            train_jobs(jobs, self._call)
            return
        unfinished = []
        for number, job in enumerate(jobs):
            result = read_finished_result(job.folder)
            if result is None:
                unfinished.append(number)
            else:
                log.info("already finished: %s  %s", job.folder, summarise_result(result))
        if not unfinished or read_stop_flag(self.folder):
            return
        if self._has_launcher:
            try:
                hand_over(unfinished)
            finally:
                record_deaths(self.folder, jobs)
            return
        chosen = [jobs[number] for number in unfinished]
        size = self._call.batch_seeds
        hint = "" if self._call.verbose else "epochs are in run.log of each job (sweep.verbose=true prints them)"
        if self.in_this_process:
            if hint and size > 1:
                log.info("%s", hint)
            train_jobs(chosen, replace(self._call, numbered_lines=size > 1))
            return
        share = min(self._jobs_at_once, len(group_seeds(jobs, size)))
        call = replace(self._call, numbered_lines=True)
        num_workers = min(share, len(group_seeds(chosen, size)))
        cores = count_usable_cores()
        at_once = format_count(num_workers, "job") if size == 1 else f"{format_count(num_workers, 'group')} of seeds"
        log.info("%s at once (sweep.jobs), %d of %d cores each", at_once, max(1, cores // share), cores)
        if hint:
            log.info("%s", hint)
        train_at_once(chosen, call, num_workers, share)

    def _show_progress(self) -> Any:
        entries = [
            PlanEntry(job.fingerprint, job.folder.name, job.overrides, job.config.epochs, job_cost(job.config))
            for job in self.jobs
        ]
        return show_progress(SweepProgress(self.folder, lambda: entries), lambda line: log.info("%s", line))

    def _record_jobs_not_run(self, jobs: Sequence[Job]) -> None:
        error = "an earlier job failed, and sweep.on_error=stop"
        outcomes = read_outcomes(self.folder, jobs, self._call.since)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome is None:
                record_failure(self.folder, job, "not run", error, error)

    def outcomes(self) -> list[JobOutcome]:
        """Return how the jobs of this call ended, those with refused settings last."""
        found = read_outcomes(self.folder, self.jobs, self._call.since)
        outcomes = [
            outcome or JobOutcome(job.overrides_text, "", "") for job, outcome in zip(self.jobs, found, strict=True)
        ]
        return [*outcomes, *read_refusals(self.folder)]


def _validate(job: ComposedJob) -> ExperimentConfig:
    """Return the settings of a job.

    Raises:
        InputError: If they are refused.
    """
    config = load_experiment(plain_settings(job.settings), job.overrides, multirun=True)
    require_files(config)
    return config.with_absolute_paths()


def _require_several_seeds(configs: Sequence[ExperimentConfig], batch_seeds: int) -> None:
    """Raise InputError if no two jobs differ only in the seed: every process would train one job at a time."""
    if len({replace(config, seed=0).fingerprint() for config in configs}) == len({c.fingerprint() for c in configs}):
        raise InputError(
            f"sweep.batch_seeds={batch_seeds} has no effect: no two jobs differ only in the seed\n"
            "  give several seeds, such as seed=0,1,2, or leave sweep.batch_seeds out"
        )


def _require_joint_passes(configs: Sequence[ExperimentConfig]) -> None:
    """Raise InputError if runs with these settings cannot make joint passes; their seeds do not matter."""
    from sam_runner.training.builders.run import require_joint_passes

    for config in {replace(config, seed=0).fingerprint(): config for config in configs}.values():
        require_joint_passes(config)


def _choose_batch_seeds(config: Any, *, has_launcher: bool) -> int:
    """Return how many jobs a process trains at once.

    Raises:
        InputError: If a number is given where it has no effect.
    """
    given = int(config.sweep.batch_seeds)
    if given > 1 and (has_launcher or is_distributed() or launchers.is_search(config.hydra)):
        reason = "a search chooses the jobs" if launchers.is_search(config.hydra) else "each job has its own processes"
        raise InputError(f"sweep.batch_seeds={given} has no effect: {reason}\n  leave sweep.batch_seeds out")
    return given


def _choose_jobs_at_once(config: Any, *, has_launcher: bool) -> int:
    """Return how many jobs run at once on this machine.

    Raises:
        InputError: If a number is given where it has no effect.
    """
    given = config.sweep.jobs
    if launchers.is_search(config.hydra):  # the sweeper hands over as many jobs as it can run at once
        at_once = int(config.hydra.sweeper.n_jobs)
        if given not in ("auto", at_once):
            raise InputError(
                f"sweep.jobs={given} has no effect with hydra/sweeper=optuna: it starts {at_once} at once\n"
                f"  use hydra.sweeper.n_jobs={given}, or leave sweep.jobs out"
            )
    if is_distributed() or has_launcher:
        if given not in ("auto", 1 if is_distributed() else "auto"):
            reason = "torchrun runs one job at a time" if is_distributed() else "a launcher decides how many jobs run"
            raise InputError(f"sweep.jobs={given} has no effect: {reason}\n  leave sweep.jobs out")
        return 1
    if given != "auto":
        jobs = int(given)
    elif str(config.device).startswith("cuda"):  # one GPU for all jobs
        jobs = 1
    else:
        num_gpus = count_gpus() if config.device == "auto" else 0
        jobs = num_gpus or count_usable_cores()
    return min(jobs, int(config.hydra.sweeper.n_jobs)) if launchers.is_search(config.hydra) else jobs
