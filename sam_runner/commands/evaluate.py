"""`sam-eval`: metrics of a run's checkpoint."""

from sam_runner.commands.arguments import Parser, path, run_folder
from sam_runner.commands.exit_codes import DONE, run_command
from sam_runner.utils.errors import InputError


def main() -> int:
    """Run `sam-eval RUN [--checkpoint last|best] [--device D] [--relabel FILE.npy]`. Returns the exit code."""
    return run_command(evaluate)


def evaluate(arguments: list[str]) -> int:
    """Print the metrics of a checkpoint, or write its predictions for the training images."""
    parser = Parser("sam-eval", "Evaluate a checkpoint of a run on the run's own data.")
    parser.add_argument("run", type=run_folder, help="run folder, also as run_dir=FOLDER")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="default: last")
    parser.add_argument("--device", help="device in place of the run's: cpu, cuda, cuda:N, auto")
    parser.add_argument(
        "--relabel",
        type=path,
        metavar="FILE.npy",
        help="write the predicted class of each training image, for noise=relabelled noise.file=FILE.npy, instead",
    )
    given = parser.parse(arguments)
    if given.relabel is not None and given.relabel.suffix != ".npy":
        raise InputError(f"--relabel {given.relabel} is no name of a .npy file\n  give --relabel labels.npy")
    from sam_runner.runs.folder import read_config

    read_config(given.run)  # refuse a folder without a run before torch is imported, which takes seconds
    from sam_runner.runs.load import evaluate_folder, restore_run, write_predictions

    if given.relabel is not None:
        run = restore_run(given.run, given.checkpoint, given.device, plain_training_set=True)
        changed = write_predictions(run, given.relabel)
        print(f"{given.relabel}: {changed:,} of {run.train.num_examples:,} training labels changed")
        return DONE
    for tag, value in evaluate_folder(given.run, given.checkpoint, given.device).items():
        print(f"{tag} {value:.6f}")
    return DONE
