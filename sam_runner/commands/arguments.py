"""The command-line parser of all commands but sam-train: runs are positional, options are ``--name value``."""

import argparse
import os
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from sam_runner.utils.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `InputError`, with the nearest option as a suggestion."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing it.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{message}\n  {self.format_usage().strip()}")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments.

        Raises:
            InputError: For the first mistake.
        """
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for argument in arguments:
            name = argument.partition("=")[0]
            if argument.startswith("--") and name not in known:
                close = get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"accepted: {', '.join(known)}"
                raise InputError(f"unknown option {name}\n  {hint}")
        return self.parse_args(arguments)


def path(text: str) -> Path:
    """Return the path that an argument names, with the home folder for ``~``."""
    return Path(os.path.expanduser(text))


def names(text: str) -> list[str]:
    """Return the names in a list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
