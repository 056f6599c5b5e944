"""Render report.html, a single file that loads nothing from elsewhere."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sam_runner.reports.plots import Plot
from sam_runner.reports.report import Report

TEMPLATES = Path(__file__).with_name("templates")


def render_page(report: Report, title: str, plots: Sequence[Plot]) -> str:
    """Return the page as HTML; the template escapes all text.

    Args:
        report: Table, notes and unfinished runs.
        title: Heading of the page.
        plots: Pictures, embedded in the page.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    return environment.get_template("report.html").render(
        title=title,
        report=report,
        num_finished=int((report.results["status"] == "finished").sum()),
        rows=[(group == report.best, cells) for group, cells in enumerate(report.table.to_numpy().tolist())],
        numeric={report.metric, "95% interval", "n"},
        plots=plots,
    )
