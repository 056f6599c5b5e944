"""Render report.html, a single file that loads nothing from elsewhere."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sam_runner.reports.group_tables import LEFT_ALIGNED
from sam_runner.reports.output.plots import INK, Plot
from sam_runner.reports.report import Report
from sam_runner.reports.results import RunRecord
from sam_runner.reports.tables import printable

TEMPLATES = Path(__file__).with_name("templates")


def render_page(report: Report, title: str, plots: Sequence[Plot], folder: Path) -> str:
    """Return the page as HTML; the template escapes all text.

    Args:
        report: The comparison.
        title: Heading of the page.
        plots: Pictures, embedded in the page.
        folder: Folder of the page; links to runs are relative to it.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["inline_svg"] = _inline_svg
    environment.filters["breakable"] = _breakable
    environment.filters["estimate"] = _estimate
    environment.filters["whole_options"] = _whole_options
    return environment.get_template("report.html").render(
        title=printable(title),
        report=report,
        num_finished=int((report.results["status"] == "finished").sum()),
        rows=[(group in report.best, cells) for group, cells in enumerate(report.table.to_numpy().tolist())],
        choice_rows=report.choice_table.to_numpy().tolist(),
        left_aligned=LEFT_ALIGNED | report.text_columns,
        runs=[_describe_run(record, folder) for record in report.records],
        plots=plots,
    )


def _breakable(text: str) -> Markup:
    """Return a text that may break after each slash."""
    return Markup("/<wbr>").join(text.split("/"))


def _estimate(text: str) -> Markup:
    """Return a cell that may break before ±, where the page is too narrow for the table, but not behind it."""
    parts = re.split(r" (?=± )", text)
    return Markup(" ").join(Markup("<span>{}</span>").format(_breakable(part)) for part in parts)


def _whole_options(text: str) -> Markup:
    """Return a text whose options, such as --against, do not break behind a hyphen."""
    parts = re.split(r"(?<= )(--\w+)", text)  # every second part is an option
    return Markup("").join(
        Markup('<span class="whole">{}</span>').format(part) if number % 2 else part
        for number, part in enumerate(parts)
    )


def _inline_svg(plot: Plot) -> Markup:
    """Return a plot as an element of the page, in its font and colour of text; matplotlib has escaped the labels."""
    svg = plot.files["svg"].decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{quote(plot.name)}-", svg)  # ids are unique in the page
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(plot.title), 1))


def _describe_run(record: RunRecord, folder: Path) -> dict[str, str]:
    """Return name, link, status, seed and commit of a run."""
    link = os.path.relpath(os.path.abspath(record.folder), os.path.abspath(folder))
    return {
        "name": printable(record.folder.name),
        "link": "./" + quote(link.encode("utf-8", "surrogateescape")),
        "status": printable(record.status),
        "seed": "" if record.config is None else str(record.config.seed),
        "commit": record.commit or "-",
    }
