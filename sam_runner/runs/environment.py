"""environment.json: what the numbers of a run may depend on beside its settings."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam_runner.utils.files import read_json, write_json


def changed_environment(folder: Path, device: str) -> list[str]:
    """What the bits of a run depend on and is not as it was when environment.json was written."""
    before, now = read_json(folder / "environment.json"), _environment(device)
    if not isinstance(before, dict):
        return []
    packages = before.get("packages")
    old_torch = packages.get("torch") if isinstance(packages, dict) else None
    pairs = {key: (before.get(key), now[key]) for key in ("threads", "cpu_capability", "device")}
    pairs["torch"] = (old_torch, now["packages"]["torch"])
    return [f"{key} {old} -> {new}" for key, (old, new) in pairs.items() if old != new]


def write_environment(folder: Path, device: str) -> None:
    """Write environment.json: what the numbers may depend on beside the settings."""
    write_json(folder / "environment.json", _environment(device))


def _environment(device: str) -> dict[str, Any]:
    import torch

    packages = ("sam-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "tensorboard")
    return {
        "command": sys.argv,
        "folder": os.getcwd(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the program's own checkout, or None where it is not one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
