"""`sam-train -m`: run the jobs of a sweep, then print how they ended and write the report."""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sam_runner.commands.exit_codes import DONE, FAILED
from sam_runner.commands.next_step import after_sweep, print_next_step
from sam_runner.config.experiment import check_setting
from sam_runner.config.hydra import guard as hydra_guard
from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.command_line import CommandLine
from sam_runner.config.hydra.compose import select_value
from sam_runner.config.hydra.handover import take_jobs
from sam_runner.sweeps import outcomes, signals
from sam_runner.sweeps.outcomes import JobOutcome
from sam_runner.sweeps.sweep import Sweep
from sam_runner.utils.console import format_count, is_distributed, is_main_process, print_error
from sam_runner.utils.errors import PREEMPTED, InputError
from sam_runner.utils.files import require_writable


class SweepCall:
    """A call of the command with ``-m``. Hydra composes the jobs, and a `Sweep` runs them.

    Args:
        line: The command line.

    Raises:
        InputError: If a swept setting has no values, or a setting of the whole sweep has several.
    """

    def __init__(self, line: CommandLine) -> None:
        words = [word for word in line.overrides if "=" in word]
        hydra_guard.require_values(words)
        hydra_guard.require_single_values(words)
        self._typed = {word.lstrip("+").partition("=")[0] for word in line.overrides}
        self._sweep: Sweep | None = None
        self._is_dry = False
        self._stop = signals.SweepStop()
        self._stack = ExitStack()

    def run(self, run_hydra: Callable[[], int]) -> int:
        """Run all jobs, then print how they ended and write the report.

        Args:
            run_hydra: Lets Hydra's own main run the command line. Returns its exit code.

        Returns:
            The exit code.
        """
        with self._stack as stack:
            hydra_guard.install(self._prepare)
            stack.enter_context(take_jobs(self._run_jobs))
            jobs: list[JobOutcome] = []
            try:
                code = self._call_hydra(run_hydra)
            finally:
                hydra_guard.install()  # configurations that are composed later are not part of this sweep
                jobs = self._tell_failures()
        return self._finish(jobs, code)

    def _prepare(self, config: Any) -> None:
        """Prepare the sweep when its first configuration is composed; Hydra composes one more for each job."""
        if self._sweep is not None:
            self._stop.install_handlers()  # Ray has replaced the handler of SIGTERM when it started
            return
        if is_distributed() and launchers.in_subprocesses(config.hydra):
            raise InputError("torchrun and hydra/launcher both start processes\n  use one of them")
        if "run_dir" in self._typed and select_value(config, "run_dir") is not None:
            raise InputError(
                "run_dir is for a single run\n  name a sweep with sweep_name=NAME; its folder is outputs/sweeps/NAME"
            )
        for name in sorted({*self._typed, *hydra_guard.OF_WHOLE_SWEEP}):  # swept settings are checked in their jobs
            if name in config or "." in name:
                check_setting(name, select_value(config, name))
        hydra_guard.check_search(config)
        launchers.prepare(config.hydra)
        if not config.dry_run:
            require_writable(Path(config.hydra.sweep.dir))
        self._sweep, self._is_dry = Sweep(config), config.dry_run
        if self._sweep.in_this_process:
            self._stack.enter_context(signals.stop_between_jobs())
        elif launchers.on_this_machine(config.hydra):
            self._stop = self._stack.enter_context(signals.forward_signals(self._sweep.folder))

    def _run_jobs(self, jobs: Any, hand_over: Any) -> Any:
        assert self._sweep is not None
        return self._sweep.run(jobs, hand_over)

    def _call_hydra(self, run_hydra: Callable[[], int]) -> int:
        """Let Hydra run the jobs. Returns its exit code, or that of the error which ended the sweep.

        Raises:
            InputError: If the settings are not valid; no job has begun.
        """
        try:
            code = run_hydra()
        except InputError as error:
            if self._sweep is None or not self._sweep.jobs:
                raise
            print_error(str(error))
            return FAILED
        except Exception as error:  # of a launcher: a process that was killed, a job that was lost
            if not self._stop.code:  # otherwise the launcher complains about jobs that the signal has ended
                print_error(f"{type(error).__name__}: {error}".splitlines()[0])
            return FAILED
        if code == signal.SIGTERM:  # Ray leaves with this number where the signal comes before a job
            self._stop.code = PREEMPTED
        return code

    def _tell_failures(self) -> list[JobOutcome]:
        """Print the jobs that failed, and remove what the call leaves in the folder. Returns how all jobs ended."""
        if self._sweep is None or not is_main_process():
            return []
        jobs = [] if self._is_dry else self._sweep.outcomes()
        for job in jobs:
            if job.state in outcomes.FAILED_STATES:
                print_error(f"{job.state}: {job.name}\n  {job.error.splitlines()[0] if job.error else ''}")
        outcomes.remove_leftovers(self._sweep.folder)
        return jobs

    def _finish(self, jobs: list[JobOutcome], code: int) -> int:
        """Write the report and print what to type next. Returns the exit code."""
        sweep, stop_code = self._sweep, self._stop.code
        if sweep is None:
            return stop_code or code
        if self._is_dry or not is_main_process():
            return stop_code or max(code, FAILED if sweep.num_failed_plans else DONE)
        from sam_runner.reports.output.files import write_sweep_report

        num_left = sum(not job.state for job in jobs)
        if num_left and not stop_code:
            print_error(f"{format_count(num_left, 'job')} not run: the processes of the sweep have ended before")
        write_sweep_report(sweep.folder)
        code = stop_code or max(code, outcomes.choose_exit_code(jobs))
        can_repeat = not jobs or any(job.state not in ("finished", "refused") for job in jobs)
        print_next_step(after_sweep(sweep.folder, code, is_named="sweep_name" in self._typed, can_repeat=can_repeat))
        return code
