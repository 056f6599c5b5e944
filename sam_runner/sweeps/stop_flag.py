"""The stop flag of a call of the command: a file in the sweep's folder, which every process of the call reads.

While it exists, no further job of this call starts. Other calls on the same sweep have flags of their own.
"""

from pathlib import Path
from typing import Literal

from sam_runner.runs.status import call_name
from sam_runner.utils.files import read_json, write_json


def stop_file(sweep_folder: Path) -> Path:
    """Return the path of the flag of this call."""
    return sweep_folder / f".stop-{call_name()}"


def set_stop_flag(sweep_folder: Path, reason: Literal["failure", "signal"]) -> None:
    """Keep further jobs of this call from starting."""
    sweep_folder.mkdir(parents=True, exist_ok=True)
    write_json(stop_file(sweep_folder), {"reason": reason})


def read_stop_flag(sweep_folder: Path) -> str:
    """Return "failure" or "signal" if no further job of this call starts, else ""."""
    flag = read_json(stop_file(sweep_folder))
    return str(flag.get("reason")) if isinstance(flag, dict) else ""
