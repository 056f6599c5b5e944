"""The stop flag of a sweep: the file ``.stop`` in the sweep's folder, which every process of the sweep reads.

While the file names the current call of the command, no further job of this call starts.
"""

from pathlib import Path
from typing import Literal

from sam_runner.runs.status import call_name
from sam_runner.utils.files import read_json, write_json

STOP_FILE = ".stop"


def set_stop_flag(sweep_folder: Path, reason: Literal["failure", "signal"]) -> None:
    """Keep further jobs of this call from starting."""
    sweep_folder.mkdir(parents=True, exist_ok=True)
    write_json(sweep_folder / STOP_FILE, {"call": call_name(), "reason": reason})


def read_stop_flag(sweep_folder: Path) -> str:
    """Return "failure" or "signal" if no further job of this call starts, else ""."""
    flag = read_json(sweep_folder / STOP_FILE)
    return str(flag.get("reason")) if isinstance(flag, dict) and flag.get("call") == call_name() else ""
