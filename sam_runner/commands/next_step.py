"""The last line that sam-train prints: what to type next."""

import shlex
from pathlib import Path

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.utils.console import is_main_process


def print_next_step(text: str) -> None:
    """Print the line in the main process."""
    if text and is_main_process():
        print(f"next: {text}", flush=True)


def after_run(folder: Path, config: ExperimentConfig) -> str:
    """Return the commands for a finished run.

    Args:
        folder: The run folder.
        config: Its settings.
    """
    name, trust = shlex.quote(str(folder)), trust_prefix(config.to_dict())
    longer = f"epochs={2 * config.epochs}" if config.max_steps is None else f"max_steps={2 * config.max_steps}"
    commands = [
        f"{trust}sam-eval {name}",
        f"tensorboard --logdir {name}",
        f"{trust}sam-train config={name} seed={config.seed + 1} (another seed)",
        f"{trust}sam-train resume={name} {longer} (longer)",
    ]
    return ", ".join(commands)


def after_sweep(folder: Path, code: int, is_named: bool) -> str:
    """Return the commands for a sweep.

    Args:
        folder: Folder of the sweep.
        code: Exit code of the command.
        is_named: Whether the user has given the name of the sweep.
    """
    name = shlex.quote(str(folder))
    again = "the same command" if is_named else f"the same command with sweep_name={shlex.quote(folder.name)}"
    if code:
        return f"{again} runs what is missing, sam-status {name} tells how far the sweep is"
    return f"open {name}/report.html, tensorboard --logdir {name}, {again} with more values runs only the new jobs"
