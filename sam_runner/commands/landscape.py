"""`sam-landscape`: slices of the loss around a checkpoint, between two, and through three."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_runner.analysis.options import GridOptions, Measurement
from sam_runner.commands.arguments import Parser, add_measurement_options, integer, positive_numbers, require_runs
from sam_runner.commands.exit_codes import DONE, LESS_MEMORY_FOR_MEASURES, run_command
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_bytes


def main() -> int:
    """Run `sam-landscape RUN [RUN [RUN]] [--points N] [--extent E] ...`. Returns the exit code."""
    return run_command(landscape, LESS_MEMORY_FOR_MEASURES)


def landscape(arguments: list[str]) -> int:
    """Evaluate the slices; write CSV, PNG, SVG and a page, and print a line for each slice."""
    given = _parse(arguments)
    folders = require_runs(given)
    if len(folders) > 3:
        raise InputError(f"{len(folders)} runs do not fit in a plane\n  accepted: one, two or three runs")
    _require_effect(given, len(folders))
    from sam_runner.analysis import landscape as slices
    from sam_runner.analysis.answers import require_folder
    from sam_runner.analysis.curvature import describe, write_csv
    from sam_runner.analysis.subject import FOLDER, find_subjects

    how = Measurement(given.examples, given.batchnorm, given.dtype)
    options = _grid_options(given)
    subjects = find_subjects(folders, given.checkpoint, given.device)
    out = given.out or folders[0] / FOLDER
    require_folder(out)
    losses = [subject.loss(how) for subject in subjects]
    parts = slices.make_slices(subjects, losses, options)
    print(describe(subjects[0], losses[0], how))
    test = subjects[0].examples(subjects[0].test, how)
    threads = given.jobs or slices.default_threads(losses[0].weights.device)
    for part in parts:
        path = slices.points_path(part, subjects, how, options)
        table = slices.evaluate_slice(part, losses[0], test, path, num_threads=threads)
        name = out / f"landscape-{part.kind}"
        write_csv(name.with_suffix(".csv"), table)
        files = [name.with_suffix(".csv"), *_draw(part, table, name)]
        print(f"{part.kind}: {_summary(part, table)}")
        print(f"files: {', '.join(map(str, files))}")
    return DONE


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options; sizes that were not given are None.

    Raises:
        InputError: For the first mistake.
    """
    parser = Parser(
        "sam-landscape",
        "Slices of the loss. One run: a line and a surface along filter-normalised random directions. Two runs: the "
        "path between them. Three runs: the plane through them. Finished points are stored in the folder analysis of "
        "the first run, so a stopped command continues when it is typed again.",
    )
    default = GridOptions()
    add_measurement_options(
        parser,
        checkpoints=("last", "best"),
        batchnorm=("reestimate", "train", "eval"),
        images="training images, and of test images",
    )
    parser.add_argument("--points", type=integer(3), help="points of each side of a surface or a plane, odd for a "
                        f"surface (default: {default.points})")  # fmt: skip
    parser.add_argument("--line-points", type=integer(3), help="points of a line or a path, odd for a line (default: "
                        f"{default.line_points})")  # fmt: skip
    parser.add_argument("--extent", type=positive_numbers, help="largest step along a random direction, in norms of "
                        f"the filters (default: {default.extent:g})")  # fmt: skip
    parser.add_argument("--jobs", type=integer(1), help="points evaluated at once (default: one for each core; 1 on "
                        "a GPU)")  # fmt: skip
    return parser.parse(arguments)


def _grid_options(given: argparse.Namespace) -> GridOptions:
    sizes = {"points": given.points, "line_points": given.line_points, "extent": given.extent and given.extent[0]}
    return GridOptions(**{name: value for name, value in sizes.items() if value is not None}, seed=given.seed)


def _require_effect(given: Any, num_runs: int) -> None:
    """Refuse options that have no effect with this number of runs.

    Raises:
        InputError: For the first of them.
    """
    unused = {1: (), 2: ("points", "extent", "seed"), 3: ("line_points", "extent", "seed")}[num_runs]
    for name in unused:
        if getattr(given, name):  # None if it was not given; 0 is the default of the seed
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} has no effect with {num_runs} runs\n  leave it out")
    if given.extent is not None and len(given.extent) > 1:
        raise InputError("--extent takes one number\n  give --extent 1")
    for name in ("points", "line_points") if num_runs == 1 else ():
        size = getattr(given, name)
        if size is not None and size % 2 == 0:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {size} has no point at the checkpoint itself\n  give {option} {size + 1}")


def _summary(part: Any, table: Any) -> str:
    """Say how the losses on the slice compare with those of the checkpoints."""
    column = table["train_loss"]
    if part.kind != "path":
        return f"training loss from {column.min():.4g} to {column.max():.4g}"
    inside = table[(table["a"] >= 0) & (table["a"] <= 1)]
    ends = table[table["a"].isin([0, 1])]["train_loss"].max()
    top = inside["train_loss"].max()
    where = inside.loc[inside["train_loss"].idxmax(), "a"]
    place = f"at a={where:.2f} (0: first run, 1: second)"
    return f"highest training loss between the checkpoints {top:.4g} {place}, at the worse end {ends:.4g}"


def _draw(part: Any, table: Any, name: Path) -> list[Path]:
    """Draw a slice, and write the page of a surface."""
    from sam_runner.analysis import plots

    if part.kind in ("line", "path"):

        def draw(figure: Any, axes: Any) -> None:
            plots.draw_line(axes, table, part.marks, part.kind)
            plots.add_legend(figure, axes)

        return plots.save_figure(name, (5.6, 3.4), 1, draw)
    files = plots.save_figure(name, (9.2, 3.8), 2, lambda figure, *axes: _draw_both(figure, axes, part, table))
    from sam_runner.analysis.surface_page import render_surface

    titles = {
        "surface": "Loss around " + part.marks[0][0],
        "plane": "Loss in the plane through " + "; ".join(label for label, _, _ in part.marks),
    }
    notes = {
        "surface": "Along two random directions whose filters have the norms of the network's filters "
        "(Li et al. 2018); the checkpoint is at (0, 0).",
        "plane": "a and b are distances in weight space.",
    }
    page = name.with_suffix(".html")
    write_bytes(page, render_surface(table, part.marks, titles[part.kind], notes[part.kind]).encode())
    return [*files, page]


def _draw_both(figure: Any, axes: Sequence[Any], part: Any, table: Any) -> None:
    from sam_runner.analysis import plots

    plots.draw_surface(figure, axes[0], table, part.marks, "train_loss", "training loss")
    plots.draw_surface(figure, axes[1], table, part.marks, "test_loss", "test loss")
