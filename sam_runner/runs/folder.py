"""A run's folder: its name, what is in it, and whether it can be used."""

import fcntl
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from sam_runner.config.validation import LOCAL
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, write_atomically, write_json

SETTINGS = "config.yaml"
RUNS = Path("outputs") / "runs"
NOT_STARTED = "not_started"  # in a sweep's folder: cells of which there is no run
LONGEST_NAME = 120
MAY_CHANGE = {  # keys that a run can go on with another value of, and what follows
    "epochs": "the learning rate follows the new number of epochs",
    "max_steps": "the learning rate follows the new number of steps",
    "device": "the bits of the numbers may differ", "compile": "the bits of the numbers may differ",
    "channels_last": "the bits of the numbers may differ", "deterministic": "the bits of the numbers may differ",
    "eval_every": "other epochs are evaluated from here on, the weights are the same",
    "on_nonfinite": "", "data.root": "", "data.num_workers": "", "data.download": "",
}  # fmt: skip


def new_run_folder() -> Path:
    """Folder for a single run without a name of its own."""
    return RUNS / this_call()


def this_call() -> str:
    """The name of this call of the command, unique, also in the processes that it starts; "" where there is none."""
    return os.environ.get("SAM_RUNNER_STARTED", "")


def cell_folder(sweep_folder: Path, overrides: Sequence[str]) -> Path:
    """Folder of a sweep's cell, named after what was typed for it; the same cell has the same folder each time."""
    named = sorted(entry for entry in overrides if re.split(r"[.=]", entry.lstrip("+"))[0] not in LOCAL - {"rho"})
    whole = ",".join(named) or "default"
    name = re.sub(r"[^\w.=,+-]", "_", whole, flags=re.ASCII)
    if name != whole or len(name) > LONGEST_NAME:  # two cells must not share a name
        name = f"{name[: LONGEST_NAME - 13]}-{sha256(whole.encode()).hexdigest()[:12]}"
    return sweep_folder / name


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """``old -> new`` by key, for each setting that may make another run."""
    flat_before, flat_now = dict(_flat(before)), dict(_flat(now))
    return {
        key: f"{flat_before.get(key)} -> {flat_now.get(key)}"
        for key in sorted(flat_before.keys() | flat_now.keys())
        if key.split(".")[0] not in LOCAL and flat_before.get(key) != flat_now.get(key)
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys."""
    return dict(_flat(settings))


def require_usable(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Refuse a folder that holds something else than this run.

    Returns:
        Settings that differ and with which the run can go on, see `MAY_CHANGE`.

    Raises:
        InputError: It is a file, holds files that no run made, or a run with other settings.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise InputError(f"run_dir={folder} is a file\n  give a folder")
    config = folder / SETTINGS
    if not config.is_file():
        if any(path.name != ".lock" and ".tmp." not in path.name for path in folder.iterdir()):
            raise InputError(f"run_dir={folder} holds files that are not of a run\n  give an empty or new folder")
        return {}
    differences = differing_keys(read_settings(folder), settings)
    other = [f"{key}: {change}" for key, change in differences.items() if key not in MAY_CHANGE]
    if other:
        more = [f"  (and {len(other) - 12} more)"] if len(other) > 12 else []
        lines = "\n".join([f"  {line}" for line in other[:12]] + more)
        raise InputError(
            f"{folder} holds a run with other settings:\n{lines}\n  give another run_dir, or the old settings"
        )
    return differences


HELD: set[IO[str]] = set()  # locks of this process
os.register_at_fork(after_in_child=lambda: [handle.close() for handle in HELD])


@contextmanager
def _closed_in_forks(handle: IO[str]) -> Iterator[None]:
    """Processes that load data do not hold the lock: they may outlive a run that was killed by some seconds."""
    HELD.add(handle)
    try:
        yield
    finally:
        HELD.discard(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, as long as the process lives; a crash leaves nothing to clean up.

    Raises:
        InputError: Where another process holds it.
    """
    try:
        handle = (folder / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be written to: {error.strerror}") from error
    with handle, _closed_in_forks(handle):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read(200).strip() or "another process"
            raise InputError(f"{folder} is in use by {owner}\n  wait for it, or give another run_dir") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        for left in [*folder.glob("*.tmp.*"), *(folder / "checkpoints").glob("*.tmp.*")]:
            left.unlink()  # by a process that died while it wrote: it holds the lock no more
        yield


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        InputError: Where there is none, or its config.yaml does not parse.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(
            f"{folder} holds no run: there is no config.yaml in it\n  give the folder that sam-train printed"
        )
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a configuration")
    return {str(key): value for key, value in settings.items()}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write config.yaml."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(settings)))
    write_atomically(folder / SETTINGS, lambda handle: handle.write(text.encode()))


def finished_result(folder: Path) -> dict[str, Any] | None:
    """result.json of a finished run, or None."""
    result = read_json(folder / "result.json")
    return result if isinstance(result, dict) and result.get("status") == "finished" else None


def finished_duplicate(sweep_folder: Path, fingerprint: str) -> Path | None:
    """A finished run in the sweep with the same fingerprint, or None."""
    for path in sorted(sweep_folder.glob("*/result.json")):
        result = finished_result(path.parent)
        if result is not None and result.get("fingerprint") == fingerprint:
            return path.parent
    return None


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Write status.json: running, finished, failed, interrupted or preempted."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(
        folder / "status.json",
        {
            "status": state, "time": now, "pid": os.getpid(), "host": socket.gethostname(), "call": this_call(),
            **details,
        },
    )  # fmt: skip


def still_running(folder: Path, host: str) -> bool | None:
    """Whether a process holds a run's folder; None where only another machine could say.

    Args:
        folder: Of a run that is said to be running.
        host: On which it is said to be.
    """
    if host != socket.gethostname():
        return None
    try:
        with (folder / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or a file system without any
        return None
    return False


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
