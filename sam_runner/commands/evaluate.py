"""`sam-eval`: metrics of checkpoints."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam_runner.commands.arguments import Parser, add_run_options, path, require_runs
from sam_runner.commands.exit_codes import DONE, LESS_MEMORY_FOR_MODELS, run_command
from sam_runner.utils.errors import InputError


def main() -> int:
    """Run `sam-eval RUN... [--split S | --data FOLDER | --relabel FILE.npy]`. Returns the exit code."""
    return run_command(evaluate, LESS_MEMORY_FOR_MODELS)


def evaluate(arguments: list[str]) -> int:
    """Print the metrics of checkpoints, or write the predictions of one for the training images."""
    parser = Parser(
        "sam-eval",
        "Evaluate checkpoints on the run's own data or on other images. Several runs give a table with a line for each"
        " run, and the line ensemble for the mean of their probabilities.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--split",
        choices=("test", "train", "validation"),
        help="evaluate on this set of the run only; train: without augmentation, on the labels of training, wrong ones"
        " included (default: test and validation)",
    )
    parser.add_argument(
        "--data",
        type=path,
        metavar="FOLDER",
        help="evaluate on the images below FOLDER/<class>/ instead of the images of the run",
    )
    parser.add_argument(
        "--relabel",
        type=path,
        metavar="FILE.npy",
        help="instead of metrics, write the predicted class of each training image, for noise=relabelled"
        " noise.file=FILE.npy; an existing file is replaced",
    )
    given = parser.parse(arguments)
    if given.relabel is not None and given.relabel.suffix != ".npy":
        raise InputError(f"--relabel {given.relabel} is not the name of a .npy file\n  give --relabel labels.npy")
    if given.split is not None:
        for name in ("data", "relabel"):
            if getattr(given, name) is not None:
                raise InputError(f"--split {given.split} has no effect with --{name}\n  leave one of them out")
    folders = require_runs(given)
    if given.relabel is not None:
        _relabel(folders, given)
        return DONE
    from sam_runner.inference.evaluation import evaluate_on_folder, evaluate_runs, evaluate_split, metrics_table

    note = ""
    if given.data is not None:
        rows = evaluate_on_folder(folders, given.data, given.checkpoint, given.device)
    elif given.split is not None:
        rows, note = evaluate_split(folders, given.split, given.checkpoint, given.device)
    else:
        rows, note = evaluate_runs(folders, given.checkpoint, given.device)
    if len(folders) > 1:
        print("\n".join(filter(None, [metrics_table(rows), note])))
        return DONE
    for tag, value in rows[str(folders[0])].items():
        print(f"{tag} {value:.6f}")
    return DONE


def _relabel(folders: Sequence[Path], given: argparse.Namespace) -> None:
    """Write the predictions of one run for its training images."""
    if len(folders) > 1 or given.data is not None:
        reason = f"{len(folders)} runs" if len(folders) > 1 else "--data"
        raise InputError(
            f"--relabel labels the training images of one run, with {reason} it has no effect\n"
            "  give one run, without --data"
        )
    from sam_runner.runs.load import restore_run, write_predictions

    run = restore_run(folders[0], given.checkpoint, given.device, plain_training_set=True)
    changed = write_predictions(run, given.relabel)
    print(f"{given.relabel}: {changed:,} of {run.train.num_examples:,} training labels changed")
