"""Part lines: sam-train answers every command line, with a run or with one message and nothing written."""

import random
import shutil
from pathlib import Path

from sam_runner.commands import train as train_command
from scripts.reliability.fuzzing.command_lines import Drawer
from scripts.reliability.fuzzing.processes import Answer, call

SECONDS = 60.0  # a run that takes longer is stopped


class Lines:
    """Trials of command lines."""

    title = "command lines"

    def __init__(self, work: Path) -> None:
        self._work, self._drawer = work, Drawer()

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Call sam-train with a random command line.

        Returns:
            What happened, the rules that were broken, and what a person needs to see for them.
        """
        words = self._drawer.draw(draws)
        folder = self._work / "line"
        folder.mkdir()
        answer = call(train_command.main, words, folder, self._work / "log", seconds=SECONDS)
        faults = answer.find_faults(num_errors=range(1, 20) if "-m" in words else (1,))
        left = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        if answer.code == 2 and left:
            faults.append(f"refused, and left {', '.join(left[:3])}")
        shutil.rmtree(folder)
        return describe(answer), faults, f"sam-train {words!r}\n{answer.stdout[-600:]}{answer.stderr[-2500:]}"


def describe(answer: Answer) -> str:
    """Return in words how a call ended."""
    if answer.was_stopped:
        if answer.code is None:
            return "ran longer than the limit, and did not end after SIGTERM"
        return f"ran longer than the limit, ended by SIGTERM with {answer.code}"
    return f"exit code {answer.code}"
