"""Take the jobs of a sweep from Hydra's sweeper before a launcher gets them.

Hydra has no hook between sweeper and launcher, so `Plugins.instantiate_launcher` is replaced: it returns a launcher
that composes the jobs and calls a function of this program. The function may hand jobs over to Hydra's own launcher.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, open_dict

from sam_runner.config.hydra.job_composer import JobComposer


class ComposedJob(NamedTuple):
    """A job as Hydra's sweeper has chosen it.

    Attributes:
        number: Number of the job in its sweep, from 0.
        overrides: Settings as the user typed them.
        settings: The composed configuration.
    """

    number: int
    overrides: list[str]
    settings: DictConfig


HandOver = Callable[[Sequence[int]], object]  # takes the positions of the jobs that Hydra's own launcher runs
RunJobs = Callable[[Iterator[ComposedJob], HandOver], Sequence[float | None]]  # returns the objective of each job


class _PlanningLauncher:
    """A launcher that composes the jobs and passes them on to a function."""

    def __init__(self, launcher: Any, context: Any, config: DictConfig, run_jobs: RunJobs) -> None:
        self._launcher, self._context, self._config, self._run_jobs = launcher, context, config, run_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; see `hydra.plugins.launcher.Launcher.launch`."""
        jobs = [list(words) for words in job_overrides]

        def hand_over(chosen: Sequence[int]) -> None:
            self._launcher.launch([jobs[position] for position in chosen], initial_job_idx)

        values = self._run_jobs(self._compose(jobs, initial_job_idx), hand_over)
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=value)
            for words, value in zip(jobs, values, strict=True)
        ]

    def _compose(self, jobs: Sequence[list[str]], first: int) -> Iterator[ComposedJob]:
        setup_globals()
        composer = JobComposer(self._context.config_loader, self._config)
        for number, words in enumerate(jobs, first):
            settings = composer.compose(words)
            with open_dict(settings):
                settings.hydra.job.id = settings.hydra.job.num = number
            HydraConfig.instance().set_config(settings)  # for ${hydra:job.num}
            yield ComposedJob(number, list(settings.hydra.overrides.task), settings)


@contextmanager
def take_jobs(run_jobs: RunJobs) -> Iterator[None]:
    """Pass the jobs of Hydra's sweepers to a function, inside the body.

    Args:
        run_jobs: Takes the composed jobs of a batch and a function that lets Hydra's own launcher run some of them.
    """
    original, validate = Plugins.instantiate_launcher, Sweeper.validate_batch_is_legal

    def instantiate(self: Plugins, hydra_context: Any, task_function: Any, config: DictConfig) -> Any:
        launcher = original(self, hydra_context, task_function, config)
        return _PlanningLauncher(launcher, hydra_context, config, run_jobs)

    Plugins.instantiate_launcher = instantiate  # type: ignore[method-assign]
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]  # composing once is enough
    try:
        yield
    finally:
        Plugins.instantiate_launcher = original  # type: ignore[method-assign]
        Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]
