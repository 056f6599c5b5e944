"""Write a report: the page, the tables as Markdown, LaTeX and CSV, and the plots beside them."""

import shlex
from pathlib import Path

from sam_runner.reports.output.latex import write_full_tables, write_narrow_table
from sam_runner.reports.output.page import render_page
from sam_runner.reports.output.plots import draw_plots
from sam_runner.reports.report import Report
from sam_runner.reports.results import read_distinct_runs
from sam_runner.reports.sentences import at_equal_cost
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_bytes


def write_report(report: Report, folder: Path, title: str) -> Path:
    """Write the report into a folder.

    The files are report.html, report.md, report.tex (for a paper), report-full.tex (all columns), report.csv (one row a
    run), report-table.csv (one row a group), and each plot as ``report-<name>.png``, ``.svg`` and ``.pdf``. The files
    of a comparison at equal cost or time begin with ``report-cost`` or ``report-seconds``, so that they do not replace
    the other files.

    Returns:
        The path of the page.
    """
    plots = [] if report.runs.empty else draw_plots(report)
    stem = f"report-{report.against}" if report.against else "report"
    files = {
        f"{stem}.csv": report.to_csv(),
        f"{stem}-table.csv": report.to_table_csv(),
        f"{stem}.md": report.to_markdown(),
        f"{stem}.tex": write_narrow_table(report),
        f"{stem}-full.tex": write_full_tables(report),
        f"{stem}.html": render_page(report, title + at_equal_cost(report), plots, folder),
    }
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in files.items()}
    contents |= {f"{stem}-{plot.name}.{kind}": content for plot in plots for kind, content in plot.files.items()}
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return folder / f"{stem}.html"


def write_sweep_report(folder: Path) -> None:
    """Print the table of a sweep and write its report; do nothing where the sweep has no job."""
    records, repeats = read_distinct_runs([folder]) if folder.is_dir() else ([], [])
    if not records:
        return
    report = Report(records, given=[folder], repeats=repeats)
    print(f"\n{report.to_text()}")
    try:
        print(f"report: {write_report(report, folder, folder.name)}")
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {folder}: {error.strerror}\n"
            f"  mend this, then: sam-report {shlex.quote(str(folder))}"
        ) from error
