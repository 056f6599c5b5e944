"""`sam-curvature`: Hessian eigenvalues, trace and spectral density of checkpoints."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_runner.analysis.options import CurvatureOptions, Measurement
from sam_runner.commands.arguments import Parser, add_measurement_options, integer, require_runs
from sam_runner.commands.exit_codes import DONE, FAILED, LESS_MEMORY_FOR_MEASURES, run_command
from sam_runner.utils.console import print_error
from sam_runner.utils.errors import InputError, TrainingError


def main() -> int:
    """Run `sam-curvature RUN... [--checkpoint last|best|all] [--k K] ...`. Returns the exit code."""
    return run_command(curvature, LESS_MEMORY_FOR_MEASURES)


def curvature(arguments: list[str]) -> int:
    """Print the curvature of every checkpoint; write a table, densities and a plot."""
    given = _parse(arguments)
    folders = require_runs(given)
    from sam_runner.analysis.answers import require_folder
    from sam_runner.analysis.curvature import curvature_table, write_csv
    from sam_runner.analysis.subject import FOLDER, find_subjects

    how = Measurement(given.examples, given.batchnorm, given.dtype)
    options = CurvatureOptions(given.k, given.trace, given.density, given.density_steps, given.seed)
    subjects = find_subjects(folders, given.checkpoint, given.device)
    out = given.out or folders[0] / FOLDER
    require_folder(out)
    found = _measure(subjects, how, options)
    if not found:
        return FAILED
    table = curvature_table(found)
    write_csv(out / "curvature.csv", table)
    files = [out / "curvature.csv", *_draw(found, out / "curvature")]
    if len(found) > 1:
        print(_text(table))
    print(f"files: {', '.join(map(str, files))}")
    print(found[-1].summary())
    return DONE if len(found) == len(subjects) else FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options.

    Raises:
        InputError: For the first mistake.
    """
    parser = Parser(
        "sam-curvature",
        "Largest Hessian eigenvalues, trace and spectral density of the training loss. Results are stored in the "
        "folder analysis of each run. A stopped command continues when it is typed again; a finished "
        "command prints the stored results.",
    )
    default = CurvatureOptions()
    add_measurement_options(parser)
    parser.add_argument("--k", type=integer(1), default=default.k, help="number of largest eigenvalues (default: "
                        f"{default.k})")  # fmt: skip
    parser.add_argument("--trace", type=integer(0), default=default.trace_products, metavar="PRODUCTS", help="Hessian-"
                        "vector products for the trace, at least 6; rounded down to a multiple of 3; 0: no trace "
                        "(default: "
                        f"{default.trace_products})")  # fmt: skip
    parser.add_argument("--density", type=integer(0), default=default.density_probes, metavar="PROBES", help="random "
                        "vectors for the spectral density; 0: no density (default: "
                        f"{default.density_probes})")  # fmt: skip
    parser.add_argument("--density-steps", type=integer(2), default=default.density_steps, metavar="PRODUCTS",
                        help="Hessian-vector products for each random vector (default: "
                        f"{default.density_steps})")  # fmt: skip
    given = parser.parse(arguments)
    if 0 < given.trace < 6:
        raise InputError(f"--trace {given.trace} products give no standard error\n  accepted: 0, or at least 6")
    return given


def _measure(subjects: Sequence[Any], how: Measurement, options: CurvatureOptions) -> list[Any]:
    """Return the curvature of every checkpoint that has one; the reason is printed for the others."""
    from sam_runner.analysis.curvature import measure_curvature, write_density

    found = []
    for subject in subjects:
        try:
            found.append(measure_curvature(subject, how, options))
        except TrainingError as error:
            print_error(f"{subject.folder} {subject.checkpoint}: {error}")
            continue
        finally:
            subject.release()
        write_density(found[-1])
        if len(subjects) > 1:
            print(f"{subject.label} step {subject.step}: {found[-1].summary()}")
    return found


def _text(table: Any) -> str:
    from sam_runner.reports.tables import text_table

    shown = table.drop(columns=["folder", "checkpoint", "gradient_norm", "converged"])
    return text_table(shown.map(lambda value: f"{value:.5g}" if isinstance(value, float) else str(value)))


def _draw(found: list[Any], file: Path) -> list[Path]:
    from sam_runner.analysis import plots

    last = {entry.subject.folder: entry for entry in found}
    densities = [
        (entry.subject.label, *(part.numpy() for part in entry.density.smooth()))
        for entry in last.values()
        if entry.density
    ]
    curves = []
    for folder, entry in last.items():
        own = [other for other in found if other.subject.folder == folder]
        curves.append((entry.subject.label, [one.subject.step for one in own], [one.lambda_max for one in own]))

    def draw(figure: Any, *axes: Any) -> None:
        if densities:
            plots.draw_densities(axes[0], densities)
        plots.draw_lambda_max(axes[-1], curves)
        plots.add_legend(figure, axes[0])

    return plots.save_figure(file, (8.4 if densities else 4.2, 3.4), 2 if densities else 1, draw)
