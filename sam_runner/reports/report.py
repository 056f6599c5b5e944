"""What a sweep found: a table as text, CSV and Markdown, plots as PNG, and one page of HTML that holds all of it."""

import base64
import csv
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sam_runner.reports.results import Group, Record, column_title, format_value, groups, interval, records
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically

plt.switch_backend("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MOST_LINES = 8  # in a plot of curves: those with the best metric
LOWER_IS_BETTER = ("nll", "loss", "error", "gap")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #d8dee4 }
td.number, th.number { text-align: right }
tr.best td { background: #e7f3ec; font-weight: 600 }
img { max-width: 100%; height: auto }
"""


@dataclass(frozen=True)
class Report:
    """The tables and plots of some runs.

    Attributes:
        runs: All of them.
        groups: The finished ones.
        metric: That is compared, such as ``test/accuracy``.
    """

    runs: Sequence[Record]
    groups: Sequence[Group]
    metric: str

    @property
    def chosen_by(self) -> str:
        """The metric that decides: accuracy on the held-out set where every run has one."""
        held_out = all(group.values("validation/accuracy") for group in self.groups)
        return "validation/accuracy" if held_out and self.metric.endswith("accuracy") else self.metric

    @property
    def best(self) -> Group | None:
        """The group with the best mean of `chosen_by`."""
        sign = -1 if self.chosen_by.endswith(LOWER_IS_BETTER) else 1
        tag = self.chosen_by
        scored = [(sign * interval(group.values(tag))[0], group) for group in self.groups if group.values(tag)]
        return max(scored, key=lambda entry: entry[0])[1] if len(scored) > 1 else None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows as text; the best is marked by a star."""
        keys = list(self.groups[0].settings) if self.groups else []
        rows = []
        for group in self.groups:
            values = group.values(self.metric)
            middle, half = interval(values) if values else (math.nan, math.nan)
            cells = ["-" if group.settings[key] is None else format_value(group.settings[key], key) for key in keys]
            mark = "*" if group is self.best else ""
            rows.append([
                *cells, f"{middle:.4f}{mark}", "-" if math.isnan(half) else f"± {half:.4f}", str(len(values)),
                " ".join(str(run.seed) for run in group.runs),
            ])  # fmt: skip
        return [*map(column_title, keys), self.metric, "95% interval", "n", "seeds"], rows

    def unfinished(self) -> list[str]:
        """A line for each run without a result."""
        return [
            f"{run.status}: {run.cell or run.folder.name}"
            + (f": {run.error.splitlines()[0][:160]}" if run.error else "")
            for run in self.runs
            if run.status != "finished"
        ]

    def notes(self) -> list[str]:
        """How to read the table."""
        notes = ["mean over seeds, 95% interval by Student's t"]
        if self.best is not None:
            notes.append(f"* best by {self.chosen_by}")
            if self.chosen_by.startswith("test/"):
                notes.append(
                    "chosen by test metrics a setting looks better than it is: data.val_fraction holds out a part"
                )
        return notes


def report_of(folders: Sequence[Path], metric: str = "test/accuracy") -> Report:
    """Read the runs below some folders.

    Raises:
        InputError: Where there is no run, or none has the metric.
    """
    runs = records(folders)
    if not runs:
        raise InputError(f"no runs in {', '.join(map(str, folders))}\n  give a sweep's folder, or a folder of runs")
    found = groups(runs)
    known = sorted({tag for group in found for run in group.runs for tag in run.final})
    if found and metric not in known:
        raise InputError(f"metric={metric} is in none of these runs\n  they have: {', '.join(known)}")
    return Report(runs, found, metric)


def as_text(report: Report) -> str:
    """Columns of equal width."""
    columns, rows = report.table()
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]]
    lines += [f"({'; '.join(report.notes())})"] if rows else []
    return "\n".join(line.rstrip() for line in [*(lines if rows else []), *report.unfinished()])


def as_markdown(report: Report) -> str:
    """A table of Markdown, with what is missing."""
    columns, rows = report.table()
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]] if rows else []
    return "\n".join([*lines, "", *report.notes(), "", *(f"- {line}" for line in report.unfinished())]).strip() + "\n"


def as_csv(report: Report) -> str:
    """One row a run, numbers in full: everything else can be made of it."""
    stream = io.StringIO()
    keys = list(report.groups[0].settings) if report.groups else []
    tags = sorted({tag for run in report.runs for tag in run.final} - {*keys})
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*keys, "seed", "status", *tags, "folder"])
    for run in report.runs:
        values = [run.settings.get(key, "") for key in keys]
        writer.writerow([*values, run.seed, run.status, *(run.final.get(tag, "") for tag in tags), run.folder])
    return stream.getvalue()


def plots(report: Report) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files: the metric against rho where it varies, learning curves, the loss gap."""
    present = [group for group in report.groups if group.values(report.metric)]
    if len({group.settings.get("rho") for group in present} - {None, 0}) > 1:
        yield "rho", _drawn(lambda axes: _against_rho(axes, report))
    chosen, gap = _best_first(report)[:MOST_LINES], "train/loss_gap"
    yield "curves", _drawn(lambda axes: _curves(axes, chosen, report.metric))
    if any(run.curve(gap) for group in report.groups for run in group.runs[:1]):
        yield "gap", _drawn(lambda axes: _curves(axes, chosen, gap))


def _best_first(report: Report) -> list[Group]:
    sign = 1 if report.metric.endswith(LOWER_IS_BETTER) else -1
    with_values = [group for group in report.groups if group.values(report.metric)]
    return sorted(with_values, key=lambda group: sign * interval(group.values(report.metric))[0])


def _drawn(draw) -> bytes:  # type: ignore[no-untyped-def]
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    return stream.getvalue()


def _against_rho(axes: Axes, report: Report) -> None:
    """One line for each combination of the other settings; plain training as a level with its interval."""
    lines: dict[str, list[Group]] = {}
    present = [group for group in report.groups if group.values(report.metric)]
    for group in present:
        rest = {key: value for key, value in group.settings.items() if key not in ("rho", "optimizer")}
        lines.setdefault(Group(rest).name, []).append(group)
    searched = len(lines) > 2 * MOST_LINES  # hardly two runs with the same settings: points, whatever else differs
    lines = {"": present} if searched else lines
    for number, (name, members) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(group.settings["rho"], *interval(group.values(report.metric)), group) for group in members
                  if group.settings.get("rho")]  # fmt: skip
        if points:
            x, y, half, _ = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            errors = [0.0 if math.isnan(value) else value for value in half]
            axes.errorbar(
                x, y, errors, marker="os^D"[number // len(COLOURS) % 4], linestyle="" if searched else "-", capsize=3,
                color=colour, label=f"SAM{', ' * bool(name)}{name}",
            )  # fmt: skip
        colour = "#000000" if len(lines) == 1 else colour
        for group in members:
            if not group.settings.get("rho"):
                level, half_width = interval(group.values(report.metric))
                axes.axhline(level, color=colour, linestyle="--", label=f"SGD{', ' * bool(name)}{name}")
                if not math.isnan(half_width):
                    axes.axhspan(level - half_width, level + half_width, color=colour, alpha=0.12, linewidth=0)
    radii = sorted({group.settings["rho"] for group in present if group.settings.get("rho")})
    if radii[-1] / radii[0] >= 8:
        axes.set_xscale("log")
    digits = (1, 2, 5) if radii[-1] < 300 * radii[0] else (1,)  # labels must not overlap
    round_numbers = [digit * 10.0**power for power in range(-9, 4) for digit in digits]
    ticks = radii if len(radii) <= MOST_LINES else [tick for tick in round_numbers if radii[0] <= tick <= radii[-1]]
    axes.set_xticks(ticks, [f"{radius:g}" for radius in ticks])
    axes.minorticks_off()
    if "accuracy" in report.metric:
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))  # an interval may say more
    axes.set(xlabel="rho", ylabel=report.metric)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides no line."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, 112 // (max(map(len, labels)) + 8)))
    figure = plt.gcf()
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def _curves(axes: Axes, chosen: Sequence[Group], tag: str) -> None:
    """Mean over seeds by epoch, with the range from the lowest to the highest."""
    for number, group in enumerate(chosen):
        by_seed = [run.curve(tag) for run in group.runs]
        epochs = sorted(set.intersection(*(set(curve) for curve in by_seed)))
        if not epochs:
            continue
        columns = [[curve[epoch] for curve in by_seed] for epoch in epochs]
        colour, style = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        middle = [sum(column) / len(column) for column in columns]
        axes.plot(epochs, middle, style, color=colour, label=group.name or "all", linewidth=1.6)
        lowest, highest = list(map(min, columns)), list(map(max, columns))
        axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=tag)
    if axes.lines:
        _legend(axes)


def as_html(report: Report, title: str, pictures: Sequence[tuple[str, bytes]]) -> str:
    """One page without anything from outside."""
    columns, rows = report.table()
    settings = len(columns) - 4
    kinds = [
        "" if index < settings or index == len(columns) - 1 else ' class="number"' for index in range(len(columns))
    ]
    lines = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>']
    lines += ['<link rel="icon" href="data:,">', f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"]
    counts = f"{sum(run.status == 'finished' for run in report.runs)} of {len(report.runs)} runs have finished"
    lines += [f"<p>{html.escape('; '.join([counts, *report.notes()]))}.</p>"]
    if rows:
        cells = "".join(f"<th{kind}>{html.escape(name)}" for name, kind in zip(columns, kinds, strict=True))
        lines += [f"<table><tr>{cells}"]
        for group, row in zip(report.groups, rows, strict=True):
            cells = "".join(f"<td{kind}>{html.escape(cell)}" for cell, kind in zip(row, kinds, strict=True))
            lines += [f"<tr{' class=best' if group is report.best else ''}>{cells}"]
        lines += ["</table>"]
    if report.unfinished():
        lines += ["<h2>Not finished</h2><ul>", *(f"<li>{html.escape(line)}" for line in report.unfinished()), "</ul>"]
    headings = {"rho": f"{report.metric} against rho", "curves": f"{report.metric} by epoch",
                "gap": "Loss at w + eps less loss at w"}  # fmt: skip
    for name, picture in pictures:
        source = base64.b64encode(picture).decode()
        heading = html.escape(headings[name])
        lines += [f'<h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{source}">']
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path, title: str) -> Path:
    """report.html, .md, .csv and the plots as ``report-<name>.png``; returns the path of the page."""
    pictures = list(plots(report)) if report.groups else []
    files = {
        "report.csv": as_csv(report).encode(), "report.md": as_markdown(report).encode(),
        "report.html": as_html(report, title, pictures).encode(),
    }  # fmt: skip
    files |= {f"report-{name}.png": picture for name, picture in pictures}
    for name, content in files.items():
        write_atomically(folder / name, lambda handle, content=content: handle.write(content))  # type: ignore[misc]
    return folder / "report.html"


def write_sweep_report(folder: Path) -> None:
    """Print the table of a sweep and write its report; do nothing where the sweep has no job."""
    if not folder.is_dir() or not records([folder]):
        return
    found = report_of([folder])
    print(f"\n{as_text(found)}")
    try:
        print(f"report: {write(found, folder, folder.name)}")
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
