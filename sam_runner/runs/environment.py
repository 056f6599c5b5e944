"""The file environment.json of a run folder: versions, hardware and source that the numbers of a run may depend on."""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.utils.files import read_json_object, write_json

log = logging.getLogger("sam_runner")
GIT_TIMEOUT = 5  # seconds
COMMAND = "SAM_RUNNER_COMMAND"  # environment variable, which the processes that train the jobs of a sweep inherit
TYPES: dict[str, type] = {
    **dict.fromkeys(("folder", "git_commit", "python", "platform", "processor", "device", "resolved_precision"), str),
    "image_decoders": str,
    "command": list,
    "packages": dict,
}


def record_command(command: Sequence[str]) -> None:
    """Remember the command that was typed; the command line is rearranged later, and other processes have another."""
    os.environ[COMMAND] = json.dumps([*command])


def read_command() -> list[str]:
    """Return the words of the command that was typed, first of them the program."""
    return [str(word) for word in json.loads(os.environ.get(COMMAND, "null")) or sys.argv]


def format_command(command: Sequence[str]) -> str:
    """Return a command as it is typed in a shell."""
    program = str(command[0]).rpartition("/")[2]
    program = {"__main__.py": "python -m sam_runner"}.get(program, shlex.quote(program))
    return " ".join([program, *(shlex.quote(str(word)) for word in command[1:])])


def train_command(world_size: int) -> str:
    """Return the program that trains a run with a number of processes, as it is typed."""
    return "sam-train" if world_size == 1 else f"torchrun --nproc-per-node {world_size} -m sam_runner"


def resume_command(folder: Path, config: ExperimentConfig) -> str:
    """Return the command that continues a run with as many processes as before."""
    return f"{trust_prefix(config.to_dict())}{train_command(config.world_size)} resume={shlex.quote(str(folder))}"


def read_environment(folder: Path) -> dict[str, Any]:
    """Return the content of environment.json, {} if it is missing or damaged; entries of a wrong type are left out."""
    return read_json_object(folder / "environment.json", TYPES)


def compare_environment(folder: Path, device: str, precision: str, decoders: str | None = None) -> list[str]:
    """Compare this process with environment.json.

    Args:
        folder: The run folder.
        device: Device of the run: cpu, cuda or cuda:N.
        precision: Number format of the passes, which ``precision=auto`` has chosen.
        decoders: See `write_environment`.

    Returns:
        ``name old -> new`` for each difference that may change the last digits of the numbers.
    """
    before, now = read_environment(folder), _describe_environment(device, precision, decoders)
    if not before:
        return []
    pairs = {key: (before.get(key), now[key]) for key in ("threads", "cpu_capability", "device", "resolved_precision")}
    pairs["torch"] = (before.get("packages", {}).get("torch"), now["packages"]["torch"])
    if "image_decoders" in before:  # not in runs of earlier versions, and not without image files
        pairs["image_decoders"] = before["image_decoders"], decoders
    return [f"{key} {old} -> {new}" for key, (old, new) in pairs.items() if old != new]


def write_environment(folder: Path, device: str, precision: str, decoders: str | None = None) -> None:
    """Write environment.json.

    Args:
        folder: The run folder.
        device: Device of the run: cpu, cuda or cuda:N.
        precision: Number format of the passes, which ``precision=auto`` has chosen.
        decoders: What decodes the images, from `jpeg.describe_decoders`; None for a run without image files.
    """
    write_json(folder / "environment.json", _describe_environment(device, precision, decoders))


def _describe_environment(device: str, precision: str, decoders: str | None) -> dict[str, Any]:
    import torch

    packages = ("sam-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "tensorboard")
    return {
        "command": read_command(),
        "folder": os.getcwd(),
        "git_commit": _run_git("rev-parse", "HEAD"),
        "git_changes": _has_changes(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _find_version(name) for name in packages},
        "processor": read_processor(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "resolved_precision": precision,
        "image_decoders": decoders,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def read_processor() -> str:
    """Return the name of the processor from /proc/cpuinfo; on other systems what `platform` knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _has_changes() -> bool | None:
    """Whether files that a run depends on have uncommitted changes; None if it is not known."""
    changes = _run_git("status", "--porcelain", "--", ":/sam_runner", ":/conf")
    return None if changes is None else bool(changes)


def _run_git(*arguments: str) -> str | None:
    """Return the output of git in the program's own checkout, or None if git gives none, as outside a checkout.

    Without optional locks git does not write the index: a git that is killed would leave ``index.lock``, and the user
    could commit no more.
    """
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.warning(
            "git %s did not end within %d s: environment.json does not have its answer\n"
            "  to know the source of this run, note the commit yourself",
            arguments[0],
            GIT_TIMEOUT,
        )
        return None
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
