"""`sam-predict`: the class of each image, with probabilities, as CSV."""

from pathlib import Path

from sam_runner.commands.arguments import (
    Parser,
    add_model_options,
    add_output_options,
    require_output,
    run_folder,
)
from sam_runner.commands.exit_codes import BAD_INPUT, DONE, LESS_MEMORY_FOR_MODELS, run_command
from sam_runner.utils.console import print_error
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import SETTINGS_FILE

USAGE = "sam-predict RUN... [FOLDER | FILES]"


def main() -> int:
    """Run `sam-predict RUN... [FOLDER | FILES] [--split S] [--out FILE.csv]`. Returns the exit code."""
    return run_command(predict, LESS_MEMORY_FOR_MODELS)


def predict(arguments: list[str]) -> int:
    """Write a row for each image, and print a line about them."""
    parser = Parser(
        "sam-predict",
        "Predict image files, or a set of the run. The CSV file has the predicted class and the probability of each"
        " class for every image. With several runs the probabilities are their mean.",
    )
    parser.add_argument(
        "paths", type=run_folder, nargs="+", metavar="PATH", help="run folders or folders of runs, then folders of"
        " image files or image files; without images a set of the run is predicted"
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "train", "validation"), help="set of the run to predict (default: test)"
    )
    add_model_options(parser)
    add_output_options(parser, "predictions.csv", "FILE.csv")
    given = parser.parse(arguments)
    runs, images = split_runs_and_images(given.paths)
    if images and given.split:
        raise InputError(f"--split {given.split} has no effect with image files\n  leave one of them out")
    out = require_output(given.out or Path("predictions.csv"), [".csv"], overwrite=given.overwrite)
    from sam_runner.inference import predictions as work
    from sam_runner.inference.image_files import find_files

    faults: list[str] = []
    if images:
        files = find_files(images, work.require_same_classes(runs))
        found, faults = work.predict_files(runs, files, given.checkpoint, given.device)
    else:
        found = work.predict_split(runs, given.split or "test", given.checkpoint, given.device)
    if found.examples.names:
        work.write_table(out, work.predictions_table(found))
        print(f"{out}: {work.summarise(found)}")
    if faults:
        rest = f"\n  the other images are in {out}" if found.examples.names else ""
        print_error(f"{work.describe_unreadable(faults)}{rest}")
        return BAD_INPUT
    return DONE


def split_runs_and_images(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the run folders among some paths, and the other paths.

    Raises:
        InputError: If there is no run, or a path does not exist.
    """
    from sam_runner.runs.folder import find_runs

    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist\n  {USAGE}")
    runs = [path for path in paths if (path / SETTINGS_FILE).is_file() or next(path.glob(f"*/{SETTINGS_FILE}"), None)]
    if not runs:
        raise InputError(f"{paths[0]} holds no run: there is no {SETTINGS_FILE} in it\n  {USAGE}")
    return find_runs(runs), [path for path in paths if path not in runs]
