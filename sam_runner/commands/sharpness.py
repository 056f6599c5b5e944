"""`sam-sharpness`: how much the loss rises around checkpoints, and whether that predicts generalisation."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_runner.analysis.options import Measurement, SharpnessOptions
from sam_runner.commands.arguments import (
    Parser,
    add_measurement_options,
    integer,
    positive_integers,
    positive_numbers,
    require_runs,
)
from sam_runner.commands.exit_codes import DONE, LESS_MEMORY_FOR_MEASURES, run_command
from sam_runner.utils.errors import InputError, TrainingError

MAX_PANELS = 4


def main() -> int:
    """Run `sam-sharpness RUN... [--rho R,R] [--adaptive-rho R,R] [--m M,M] ...`. Returns the exit code."""
    return run_command(sharpness, LESS_MEMORY_FOR_MEASURES)


def sharpness(arguments: list[str]) -> int:
    """Print the sharpness of every checkpoint, its generalisation gap and their rank correlation over the runs."""
    given = _parse(arguments)
    folders = require_runs(given)
    from sam_runner.analysis.answers import require_folder
    from sam_runner.analysis.correlation import MIN_SETTINGS, conclusion, correlate
    from sam_runner.analysis.curvature import write_csv
    from sam_runner.analysis.sharpness import GAPS, measures, sharpness_table
    from sam_runner.analysis.subject import FOLDER, find_subjects
    from sam_runner.reports.results import report_settings
    from sam_runner.runs.folder import read_config

    how = Measurement(given.examples, given.batchnorm, given.dtype)
    options = SharpnessOptions(
        given.rho, given.adaptive_rho, given.m, given.steps, given.restarts, given.directions, given.groups, given.seed
    )
    subjects = find_subjects(folders, given.checkpoint, given.device)
    out = given.out or folders[0] / FOLDER
    require_folder(out)
    names = list(measures(options))
    table = sharpness_table(_measure(subjects, how, options), names)
    write_csv(out / "sharpness.csv", table)
    runs = table.drop_duplicates("folder", keep="last")
    settings = [report_settings(read_config(Path(folder))) for folder in runs["folder"]]
    correlations = correlate(runs, names, list(GAPS), [*map(str, settings)])
    files = [out / "sharpness.csv", *_draw(table, names, options, out / "sharpness")]
    print(_text(table, names))
    if len({*map(str, settings)}) >= MIN_SETTINGS:
        print(_correlation_text(correlations))
    print(f"files: {', '.join(map(str, files))}")
    for gap in GAPS if len(folders) > 1 else ():
        print(conclusion(correlations, gap))
    if len({str({name: one[name] for name in one if name.startswith(("data", "noise"))}) for one in settings}) > 1:
        print("the runs differ in data or label noise, which changes the gaps by itself: compare runs with equal data")
    return DONE


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options; default values of `m` that are larger than the number of images are left out.

    Raises:
        InputError: For the first mistake.
    """
    parser = Parser(
        "sam-sharpness",
        "Rise of the training loss in a ball around the weights: worst case, average, adaptive and m-sharpness, with "
        "the gap between test and training. Results are stored in the folder analysis of each run. A stopped "
        "command continues when it is typed again; a finished command prints the stored results.",
    )
    default = SharpnessOptions()
    lists = {key: ",".join(map(str, getattr(default, key))) for key in ("radii", "adaptive_radii", "group_sizes")}
    add_measurement_options(parser)
    parser.add_argument("--rho", type=positive_numbers, default=default.radii, metavar="R,R", help="radii of worst "
                        f"case, average and m-sharpness (default: {lists['radii']})")  # fmt: skip
    parser.add_argument("--adaptive-rho", type=positive_numbers, default=default.adaptive_radii, metavar="R,R",
                        help=f"radii of the adaptive measures (default: {lists['adaptive_radii']})")  # fmt: skip
    parser.add_argument("--m", type=positive_integers, metavar="M,M", help="images of a group of m-sharpness "
                        f"(default: {lists['group_sizes']}, or those that are not above --examples)")  # fmt: skip
    parser.add_argument("--steps", type=integer(1), default=default.num_steps, help="gradients of each ascent "
                        f"(default: {default.num_steps})")  # fmt: skip
    parser.add_argument("--restarts", type=integer(0), default=default.num_restarts, help="further ascents of the "
                        f"worst case from random starts (default: {default.num_restarts})")  # fmt: skip
    parser.add_argument("--directions", type=integer(1), default=default.num_directions, help="pairs of random "
                        f"directions of an average (default: {default.num_directions})")  # fmt: skip
    parser.add_argument("--groups", type=integer(1), default=default.max_groups, help="largest number of groups of "
                        f"m-sharpness (default: {default.max_groups})")  # fmt: skip
    given = parser.parse(arguments)
    if given.m is None:
        given.m = tuple(m for m in default.group_sizes if m <= given.examples)
    elif max(given.m) > given.examples:
        raise InputError(
            f"--m {max(given.m)} is larger than --examples {given.examples}\n"
            f"  give --m of at most {given.examples}, or more --examples"
        )
    return given


def _measure(subjects: Sequence[Any], how: Measurement, options: SharpnessOptions) -> list[Any]:
    """Return the sharpness of every checkpoint."""
    from sam_runner.analysis.sharpness import measure_sharpness

    found = []
    for subject in subjects:
        try:
            found.append(measure_sharpness(subject, how, options))
        except TrainingError as error:
            raise TrainingError(f"{subject.folder} {subject.checkpoint}: {error}") from error
        subject.release()
    return found


def _text(table: Any, names: Sequence[str]) -> str:
    """Return the table of one column for each checkpoint, or of one row where there are many."""
    from sam_runner.reports.tables import text_table

    shown = table[["run", "step", *names, "loss gap", "accuracy gap", "test_accuracy"]]
    shown = shown.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))
    turned = shown.T.reset_index()
    turned.columns = [str(cell) for cell in turned.iloc[0]]
    return text_table(turned.iloc[1:] if len(table) <= MAX_PANELS else shown)


def _correlation_text(correlations: Sequence[Any]) -> str:
    """Return a table of Spearman's correlations, one row for each measure."""
    import pandas as pd

    from sam_runner.reports.tables import text_table

    rows: dict[str, dict[str, str]] = {}
    for entry in correlations:
        row = rows.setdefault(entry.measure, {"rank correlation of": entry.measure})
        row[f"with {entry.gap}"] = f"{entry.rho:+.2f} (p {entry.p:.2g})"
    return text_table(pd.DataFrame(list(rows.values())))


def _draw(table: Any, names: Sequence[str], options: Any, file: Path) -> list[Path]:
    """Draw m-sharpness against m, and with several checkpoints some measures against the loss gap."""
    from sam_runner.analysis import plots

    sizes = [m for m in options.group_sizes if f"m-sharpness, m {m}, rho {options.radii[0]:g}" in names]
    curves = []
    for _, row in table.head(7).iterrows():
        for rho in options.radii if len(table) == 1 else options.radii[:1]:
            keys = [f"m-sharpness, m {m}, rho {rho:g}" for m in sizes]
            label = f"{row['run']}, rho {rho:g}" if len(table) == 1 else f"{row['run']}, step {row['step']}"
            curves.append((label, sizes, [row[key] for key in keys], [row[f"{key} error"] for key in keys]))
    chosen = [name for name in names if "worst" in name][:2] + [name for name in names if "adaptive worst" in name][:1]
    panels = list(dict.fromkeys(chosen)) if len(table) > 1 else []

    def draw(figure: Any, *axes: Any) -> None:
        plots.draw_m_sharpness(axes[0], curves)
        for measure, other in zip(panels, axes[1:], strict=True):
            plots.draw_against_gap(other, table[measure], table["loss gap"], measure, "loss gap (test - training)")
        plots.add_legend(figure, axes[0])

    return plots.save_figure(file, (3.6 * (1 + len(panels)), 3.2), 1 + len(panels), draw)
