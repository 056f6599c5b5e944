"""`sam-suspects`: images whose labels the runs doubt."""

from pathlib import Path

from sam_runner.commands.arguments import (
    Parser,
    add_output_options,
    add_run_options,
    require_output,
    require_runs,
)
from sam_runner.commands.exit_codes import DONE, LESS_MEMORY_FOR_MODELS, run_command

SETS = {"train": "training", "test": "test", "validation": "held-out"}


def main() -> int:
    """Run `sam-suspects RUN... [--split S] [--checkpoint last|best] [--out FILE.csv]`. Returns the exit code."""
    return run_command(suspects, LESS_MEMORY_FOR_MODELS)


def suspects(arguments: list[str]) -> int:
    """Write the ranking as CSV and its first images as a page, and print a line about them."""
    parser = Parser(
        "sam-suspects",
        "Write the training images, or another set of the runs, as CSV, ranked by the probability that the runs give to"
        " their labels, the smallest first. Use runs that have not memorised their labels: SAM with a large rho, or few"
        " epochs. An HTML page of the same name shows the first 50 images.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--split",
        choices=("train", "test", "validation"),
        default="train",
        help="set of the run to rank (default: train)",
    )
    add_output_options(parser, "suspects.csv", "FILE.csv")
    given = parser.parse(arguments)
    folders = require_runs(given)
    out = require_output(given.out or Path("suspects.csv"), [".csv"], overwrite=given.overwrite)
    page = require_output(out.with_suffix(".html"), [".html"], overwrite=given.overwrite)
    from sam_runner.inference.contact_sheet import NUM_IMAGES, render_contact_sheet
    from sam_runner.inference.predictions import predict_split, read_split, write_file, write_table
    from sam_runner.inference.suspects import describe_ranking, find_memorising_runs, rank_examples, suspects_table

    found = rank_examples(predict_split(folders, given.split, given.checkpoint, given.device))
    quality = describe_ranking(found)
    memorised = [
        f"warning: {folder} predicts {accuracy:.1%} of its training labels; it does not doubt wrong labels that it has"
        " memorised. Train with fewer epochs, or SAM with a larger rho"
        for folder, accuracy in (find_memorising_runs(found.predictions) if given.split == "train" else {}).items()
    ]
    ranked = f"{len(found.order):,} {SETS[given.split]} images"
    note = f"First {NUM_IMAGES} of {ranked}, by the probability of the label (in brackets)."
    known = f"Clean labels are known: {quality}." if quality else ""
    title = "Suspicious labels: " + ", ".join(folder.resolve().name for folder in folders)
    write_table(out, suspects_table(found))
    content = render_contact_sheet(found, read_split(folders[0], given.split), title, f"{note} {known}".strip())
    write_file(page, content.encode())
    for line in filter(None, [*memorised, quality]):
        print(line)
    print(f"{out}: {ranked}; the first {NUM_IMAGES}: {page}")
    return DONE
