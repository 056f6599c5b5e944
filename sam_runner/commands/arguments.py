"""The command-line parser of all commands but sam-train: runs are positional, options are ``--name value``."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from sam_runner.analysis.options import Measurement
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import require_writable


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `InputError`, with the nearest option as a suggestion."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing it.

        Raises:
            InputError: Always.
        """
        positional = [action for action in self._actions if not action.option_strings]
        if message.startswith("unrecognized arguments") and [action.nargs for action in positional] == [None]:
            raise InputError(f"{message}\n  {self.prog} takes one {positional[0].metavar}: call it once for each")
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
                close = get_close_matches(name[2:], [option[2:] for option in known], 1)
                hint = f"did you mean --{close[0]}?" if close else f"accepted: {', '.join(known)}"
                raise InputError(f"unknown option {name}\n  {hint}")
        return self.parse_args(arguments)


def path(text: str) -> Path:
    """Return the path that an argument names, with the home folder for ``~``."""
    found = Path(os.path.expanduser(text))
    try:
        found.exists()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise argparse.ArgumentTypeError(f"{text[:200]} is not accepted: {error.strerror}") from error
    return found


def names(text: str) -> list[str]:
    """Return the names in a list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run_folder(text: str) -> Path:
    """Return the folder of a run, or of runs; it may be written as sam-train reads it, ``run_dir='a=b'``."""
    if text.startswith("run_dir=") and not os.path.exists(text):
        text = text.partition("=")[2]
        text = text[1:-1] if text[:1] in ("'", '"') and text[:1] == text[-1:] else text
    return path(text)


def integer(low: int) -> Callable[[str], int]:
    """Return a parser of integers of at least `low`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not accepted: give an integer of at least {low}")
        return int(text)

    return parse


def positive_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list, all finite and greater than 0."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: give positive numbers such as 0.05,0.1")
    return values


def positive_integers(text: str) -> tuple[int, ...]:
    """Return the integers of a comma-separated list, all of at least 1."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: give integers of at least 1 such as 16,128")
    return tuple(int(word) for word in words)


def add_measurement_options(
    parser: argparse.ArgumentParser,
    *,
    checkpoints: Sequence[str] = ("last", "best", "all"),
    batchnorm: Sequence[str] = ("train", "eval"),
    images: str = "training images",
) -> None:
    """Add the options that the commands of the analysis share; the first of several words is the default.

    Args:
        parser: The parser.
        checkpoints: Accepted words of ``--checkpoint``.
        batchnorm: Accepted words of ``--batchnorm``.
        images: What ``--examples`` counts.
    """
    meanings = {
        "train": "train: by the statistics of chunks of at most as many images as a pass of training",
        "eval": "eval: by the running statistics",
        "reestimate": "reestimate: by statistics of the training images at each point",
    }
    parser.add_argument("runs", type=run_folder, nargs="+", metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument(
        "--checkpoint",
        choices=checkpoints,
        default="last",
        help="checkpoint of each run; best: that of the best epoch on held-out images (default: last)",
    )
    parser.add_argument(
        "--examples",
        type=integer(2),
        default=Measurement.examples,
        help=f"number of {images}, without augmentation (default: {Measurement.examples})",
    )
    words = "; ".join(meanings[word] for word in batchnorm)
    parser.add_argument(
        "--batchnorm",
        choices=batchnorm,
        default=batchnorm[0],
        help=f"how batch norm normalises. {words} (default: {batchnorm[0]})",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default=Measurement.dtype,
        help=f"number format of weights and images (default: {Measurement.dtype})",
    )
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the random vectors (default: 0)")
    parser.add_argument("--device", help="device in place of the run's: cpu, cuda, cuda:N, auto")
    parser.add_argument(
        "--out",
        type=path,
        help="folder of the table and the plots (default: the folder analysis of the first run)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that apply the models of some runs."""
    parser.add_argument("runs", type=run_folder, nargs="+", metavar="RUN", help="run folders, or folders of runs")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """Add the options that choose a checkpoint and, if the command uses one, a device."""
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="checkpoint to use; best: of the epoch that was best on held-out images, or of the last evaluated epoch if"
        " there are no such images (default: last)",
    )
    if device:
        parser.add_argument("--device", help="device in place of the run's: cpu, cuda, cuda:N, auto")


def add_output_options(parser: argparse.ArgumentParser, default: str, suffix: str) -> None:
    """Add the options that name the file to write.

    Args:
        parser: The parser.
        default: The file without ``--out``, in words or as a name.
        suffix: Placeholder of the name in the usage, e.g. ``FILE.csv``.
    """
    parser.add_argument("--out", type=path, metavar=suffix, help=f"file to write (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def require_output(file: Path, suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """Return the file to write, before any work is done.

    Args:
        file: The file.
        suffixes: Accepted suffixes, such as ``.csv``.
        overwrite: Whether an existing file is replaced.

    Raises:
        InputError: If the file exists and is not to be replaced, has another suffix, or its folder cannot be written
            to.
    """
    if file.suffix not in suffixes:
        example = file.with_suffix(suffixes[0])
        raise InputError(f"--out {file} is not the name of a {' or '.join(suffixes)} file\n  give --out {example}")
    if file.is_dir():
        raise InputError(f"--out {file} is a folder\n  give the name of a file")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists already\n  give --out FILE, or --overwrite to replace it")
    require_writable(file.parent)
    return file


def require_runs(given: argparse.Namespace) -> list[Path]:
    """Return the run folders that were given, before torch is imported.

    Raises:
        InputError: If one of them is no run.
    """
    from sam_runner.runs.folder import find_runs

    return find_runs(given.runs)
