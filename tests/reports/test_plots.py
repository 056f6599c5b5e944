"""Plots: labels and legends that hide nothing, one style for each arm, intervals inside the frame."""

import itertools
import xml.etree.ElementTree as ET

import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

from sam_runner.reports.output import plots
from sam_runner.reports.output.plots import arm_styles, draw_plots, plot_against, plotted_settings
from sam_runner.reports.report import make_report
from tests import plotting
from tests.run_folders import lay


@pytest.fixture(scope="module", autouse=True)
def really_drawn():
    with plotting.draw_plots():
        yield


@pytest.fixture(scope="module")
def drawn(sweep):
    """Report of the sweep, its plots, and their axes by name."""
    report, axes = make_report([sweep[0]]), {}
    original = plots._draw

    def draw(name, title, caption, plot):
        return original(name, title, caption, lambda drawn_axes: plot(axes.setdefault(name, drawn_axes)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_draw", draw)
        patch.setattr(plt, "close", lambda figure: None)
        found = draw_plots(report)
    yield report, found, axes
    plt.close("all")


def test_the_plots_have_captions_with_n(drawn):
    _, found, _ = drawn
    assert [plot.name for plot in found] == ["rho", "differences", "curves", "gap"]
    for plot in found:
        assert "n = 3" in plot.caption
        assert ET.fromstring(plot.files["svg"]).tag.endswith("svg")
        assert {name: len(content) > 3000 for name, content in plot.files.items()} == dict.fromkeys(
            ("png", "svg", "pdf"), True
        )


def test_an_arm_has_one_colour_and_marker_on_all_plots(drawn):
    report, _, axes = drawn
    for group, label in report.labels.items():
        style = arm_styles(list(report.labels))[group]
        colour = colors.to_rgba(style.colour)
        (curve,) = [line for line in axes["curves"].lines if line.get_label() == label]
        assert (colors.to_rgba(curve.get_color()), curve.get_marker()) == (colour, style.marker)
        if group in report.differences:
            for name in ("rho", "differences"):
                bars = [bar[0] for bar in axes[name].containers]
                assert {bar.get_marker() for bar in bars if colors.to_rgba(bar.get_color()) == colour} == {style.marker}
        else:
            (level,) = [line for line in axes["rho"].lines if line.get_label() == label]
            assert colors.to_rgba(level.get_color()) == colour
    assert len(set(arm_styles(range(35)).values())) == 35


def test_intervals_are_inside_the_frame(tmp_path):
    for rho, (seed, accuracy) in itertools.product((0.1, 0.2), enumerate((0.7, 0.999))):
        lay(tmp_path / f"{rho}-{seed}", rho=rho, seed=seed, accuracy=accuracy - rho / 10)
    report = make_report([tmp_path])
    _, axes = plt.subplots()
    plot_against(axes, report, "rho")
    low, high = axes.get_ylim()
    plt.close("all")
    ends = report.groups["mean"] + report.groups["half_width"], report.groups["mean"] - report.groups["half_width"]
    assert ends[0].max() > 1
    assert low < ends[1].min() and ends[0].max() < high


def test_a_plot_without_numbers_is_not_drawn(tmp_path):
    for rho in (0.1, 0.2):
        (lay(tmp_path / str(rho), rho=rho) / "metrics.jsonl").unlink()
    assert [plot.name for plot in draw_plots(make_report([tmp_path]))] == ["rho"]


def test_the_metric_is_plotted_against_searched_settings_of_groups_that_have_it(tmp_path):
    lay(tmp_path / "without", rho=0.3)
    for rho, size in ((0.1, 16), (0.2, 16)):
        lay(tmp_path / str(rho), rho=rho, batch_size=size, final={"validation/accuracy": 0.5})
    report = make_report([tmp_path], "validation/accuracy", select=["batch_size", "rho"])
    assert sorted(report.table["validation/accuracy"]) == ["-", "0.5000", "0.5000*"]
    assert plotted_settings(report) == ["rho"]
    assert plotted_settings(make_report([tmp_path], select=["batch_size"], by=["rho"])) == ["batch_size", "rho"]


@pytest.mark.parametrize(("radii", "sizes", "span"), [(5, 1, 50), (20, 1, 50), (24, 8, 50), (30, 30, 50), (20, 1, 1e5)])
def test_labels_hide_neither_each_other_nor_lines(radii, sizes, span, tmp_path):
    for number in range(radii):
        rho = 0.5 / span * span ** (number / (radii - 1))
        lay(tmp_path / str(number), rho=rho, accuracy=0.5 + number / 100, batch_size=100 + number % sizes)
    lay(tmp_path / "sgd", optimizer="sgd", batch_size=100)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.7), layout="constrained")
        plot_against(axes, make_report([tmp_path]), "rho")
        figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 4
    assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))
    legend = figure.legends[0].get_window_extent() if figure.legends else None
    assert legend is None or (not legend.overlaps(axes.get_window_extent()) and 0 <= legend.x1 <= figure.bbox.width)
    assert len(figure.legends[0].get_texts() if figure.legends else ()) == (sizes + 1 if sizes < 30 else 0)
    plt.close(figure)
