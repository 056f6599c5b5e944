"""status.json: the state of a run, which process writes it, and which call of the command it belongs to."""

import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sam_runner.utils.files import read_json_object, write_json

TYPES: dict[str, type] = {
    **dict.fromkeys(("status", "time", "host", "call", "signal", "error", "job"), str),
    **dict.fromkeys(("pid", "exit_code", "from_epoch"), int),
    "seconds": float,
}


def new_call_name() -> str:
    """Return a unique name for a call of the command: time and process."""
    now = datetime.now()
    return f"{now:%Y-%m-%d_%H-%M-%S}_{now.microsecond:06d}-{os.getpid()}"


def call_name() -> str:
    """Return the unique name of this call of the command; the processes that it starts have the same name."""
    return os.environ.get("SAM_RUNNER_STARTED", "")


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Write status.json.

    Args:
        folder: The run folder.
        state: "running", "finished", "failed", "interrupted" or "preempted"; for a job of a sweep that has no run
            "refused", "failed" or "not run".
        details: Further entries, of JSON types.
    """
    status = {
        "status": state,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "call": call_name(),
    }
    write_json(folder / "status.json", status | details)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json, {} if the file is missing or damaged; entries of a wrong type are left out."""
    return read_json_object(folder / "status.json", TYPES)
