"""Where SAM begins to help: the numbers of the answer, the table and the figures, from runs of a made-up study."""

import json
import math

import pandas as pd
import pytest

from scripts.pages import results_begin
from scripts.pages.results_begin import Comparison, choose_marks, compare, conclude, describe_run, find_start
from scripts.pages.results_tables import Block

# By hand, Student's t for three seeds: gains of mean +- 1 point have half a width of 4.303 / sqrt(3) = 2.484 points.
# The mean is above 0 from epoch 2 on, the interval at epoch 2 (+3), not at 3 (+2), and from 4 on (+4, +6).
MEANS = {1: -0.05, 2: 0.03, 3: 0.02, 4: 0.04, 5: 0.06}
LEVELS = (0.1, 0.3, 0.5)  # of SGD's accuracy by seed: differences are tiny beside them
MEMORISED = {1: 0.10, 2: 0.30, 3: 0.35, 4: 0.60, 5: 0.95}
HALF_WIDTH = 0.02484


def by_epoch(accuracy, memorised, fitted):
    """The lines of a run's metrics."""
    return [
        {"epoch": epoch, "test/accuracy": value, "train/accuracy": fitted[epoch]}
        | ({"train/memorised": memorised[epoch]} if memorised else {})
        for epoch, value in accuracy.items()
    ]


class Made:
    """A study of made-up runs in a folder.

    Args:
        kept: The folder.
        title: Of the study.
    """

    def __init__(self, kept, title="Made"):
        self.name, self.kept, self.rows = "made", kept, []
        arms = {"sgd": {}, "sgd-2x": {}, "sam": {}, "sam-adamw": {"baseline": "adamw"}, "sam-long": {}, "sam_on": {}}
        self.content = {
            "title": title, "arms": arms, "block_titles": {"only": "Only", "other": "Other"},
            "network": "ResNet-20 of width 16", "networks": {"other": "ResNet-20 of width 8"},
        }  # fmt: skip
        kept.mkdir(exist_ok=True)

    def add(self, block, arm, seed, lines, steps=50, value=""):
        last = lines[-1]
        self.rows.append({
            "block": block, "arm": arm, "role": "final", "status": "finished", "seed": seed, "value": value,
            "steps": steps, "final/test/accuracy": last["test/accuracy"],
        })  # fmt: skip
        name = f"{block}-{arm}{'-' + value.replace('=', '') if value else ''}-final-seed{seed}"
        (self.kept / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        settings = "rho: 0.1\nbatch_size: 64\nepochs: 5\ndata:\n  root: {cifar10}/x\noptimizer:\n  m: null\n"
        (self.kept / f"{name}.yaml").write_text(settings)

    def add_pair(self, block="only", means=MEANS, memorised=MEMORISED):
        """Add three runs of SGD and of SAM; SAM has memorised a tenth of what SGD has."""
        fitted = {epoch: 0.2 * epoch - 0.05 for epoch in means}
        for seed, (level, offset) in enumerate(zip(LEVELS, (-0.01, 0.0, 0.01), strict=True)):
            sgd = {epoch: level + 0.01 * epoch for epoch in means}
            sam = {epoch: sgd[epoch] + mean + offset for epoch, mean in means.items()}
            less = memorised and {epoch: value / 10 for epoch, value in memorised.items()}
            self.add(block, "sgd", seed, by_epoch(sgd, memorised, fitted))
            self.add(block, "sam", seed, by_epoch(sam, less, dict.fromkeys(means, 0.0)), value="rho=0.1")

    def block(self, name="only"):
        rows = pd.DataFrame(self.rows)
        return Block(self, name, rows[rows["block"] == name])


@pytest.fixture
def study(tmp_path):
    made = Made(tmp_path / "made")
    made.add_pair()
    return made


def test_gains_are_paired_by_seed_and_epoch(study):
    entry = Comparison(study.block(), "sam")
    assert [point.epoch for point in entry.points] == [1, 2, 3, 4, 5]
    assert [point.gain.mean for point in entry.points] == pytest.approx(list(MEANS.values()))
    assert [point.gain.half_width for point in entry.points] == pytest.approx([HALF_WIDTH] * 5, abs=1e-5)
    assert [point.memorised for point in entry.points] == pytest.approx(list(MEMORISED.values()))  # SGD's
    assert [point.fitted for point in entry.points] == pytest.approx([0.15, 0.35, 0.55, 0.75, 0.95])


def test_the_start_is_where_the_interval_stays_above_0_and_not_where_it_first_is(study):
    entry = Comparison(study.block(), "sam")
    assert [point.is_ahead for point in entry.points] == [False, True, False, True, True]
    assert [point.is_behind for point in entry.points] == [True, False, False, False, False]
    assert (entry.lead.epoch, entry.start.epoch) == (2, 4)
    assert entry.describe(entry.start) == "4 (60% memorised)"
    assert entry.describe(entry.lead) == "2 (30% memorised)"


def test_find_start():
    assert find_start("abcd", [True, False, True, True]) == "c"
    assert find_start("abcd", [True] * 4) == "a"
    assert find_start("abcd", [True, True, True, False]) is None


def test_a_gain_that_is_lost_at_the_end_has_no_start(tmp_path):
    made = Made(tmp_path)
    made.add_pair(means={1: 0.05, 2: 0.05, 3: 0.01}, memorised={1: 0.1, 2: 0.2, 3: 0.3})
    entry = Comparison(made.block(), "sam")
    assert entry.start is None and entry.lead.epoch == 1
    assert entry.describe(entry.start) == "-" and entry.describe(entry.lead) == "1 (the first evaluated, 10% memorised)"


def test_seeds_and_epochs_that_only_one_side_has_do_not_count(study):
    extra = by_epoch(dict.fromkeys(MEANS, 0.9), dict.fromkeys(MEANS, 0.0), dict.fromkeys(MEANS, 0.0))
    study.add("only", "sgd", 3, extra)
    path = study.kept / "only-sgd-final-seed0.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))  # without epoch 1
    entry = Comparison(study.block(), "sam")
    assert entry.seeds == [0, 1, 2] and [point.epoch for point in entry.points] == [2, 3, 4, 5]
    assert [point.memorised for point in entry.points] == pytest.approx([0.30, 0.35, 0.60, 0.95])


def test_one_seed_has_no_interval_and_is_never_ahead(study):
    study.rows = [row for row in study.rows if row["seed"] == 0]
    entry = Comparison(study.block(), "sam")
    assert entry.last.gain.mean > 0 and entry.start is None


def test_only_arms_as_long_as_their_baseline_are_compared(study):
    lines = by_epoch(MEANS, MEMORISED, MEMORISED)
    study.add("only", "sam-long", 0, lines, steps=100)
    study.add("only", "sam_on", 0, lines)  # another method, not an arm of SAM
    study.add("other", "sam", 0, lines, value="rho=0.1")  # no baseline yet
    assert [entry.name for entry in compare([study.block(), study.block("other")])] == ["Made: only, sam"]


def test_a_run_without_evaluations_is_no_comparison(study):
    for path in study.kept.glob("only-sam-*.jsonl"):
        path.write_text("")
    assert compare([study.block()]) == []


def test_the_gain_at_equal_cost_is_over_sgd_with_twice_the_epochs(study):
    """By hand: SAM ends 6 points (and 1 less, 0, 1 more by seed) above SGD, and SGD 2x ends 2 above SGD."""
    assert Comparison(study.block(), "sam").gain_at_cost is None  # no run of SGD 2x yet
    for seed, level in enumerate(LEVELS):
        study.add("only", "sgd-2x", seed, by_epoch({10: level + 0.05 + 0.02}, None, {10: 1.0}), steps=100)
    gain = Comparison(study.block(), "sam").gain_at_cost
    assert (gain.n, gain.mean, gain.half_width) == pytest.approx((3, 0.04, HALF_WIDTH), abs=1e-5)
    assert study.block().gain_at_cost("sam-adamw") is None  # SGD is not its baseline


def test_without_wrong_labels_the_fit_says_how_far_the_baseline_is(tmp_path):
    made = Made(tmp_path)
    made.add_pair(memorised=None)
    entry = Comparison(made.block(), "sam")
    assert not entry.has_wrong_labels and math.isnan(entry.last.memorised)
    assert entry.describe(entry.start) == "4 (75% fitted)"
    text = conclude([entry])
    assert "With true labels SAM begins to help in 1 of 1 comparison." in text
    assert "In epoch E the baseline fits 75% of its training labels." in text and "memorised" not in text


def test_the_answer_has_the_least_and_the_largest_fraction(study, tmp_path):
    late = Made(tmp_path / "late", "Late")
    late.add_pair(means=MEANS | {4: 0.0}, memorised=MEMORISED | {5: 0.967})
    never = Made(tmp_path / "never", "Never")
    never.add_pair(means=MEANS | {1: 0.0, 5: -0.04}, memorised=MEMORISED | {5: 0.96})
    study_text, late_text = (conclude(compare([made.block()])) for made in (study, late))
    assert "has memorised 60% of the wrong labels." in study_text
    assert "has memorised 97% of the wrong labels." in late_text
    text = conclude(compare([made.block() for made in (never, late, study)]))
    assert "With wrong labels SAM begins to help in 2 of 3 comparisons." in text
    assert "has memorised 60% to 97% of the wrong labels." in text
    assert "In the first evaluated epoch SAM's mean gain is below 0 in 2 of 3 comparisons." in text
    assert text.endswith("In the last epoch the interval of the gain lies below 0 in 1.")


def test_an_answer_without_a_start(tmp_path):
    made = Made(tmp_path)
    made.add_pair(means=dict.fromkeys(MEANS, 0.01))  # the intervals contain 0
    text = conclude(compare([made.block()]))
    assert "With wrong labels SAM begins to help in no comparison." in text


def test_a_start_at_the_first_evaluated_epoch_is_an_upper_bound(tmp_path):
    made = Made(tmp_path)
    made.add_pair(means=dict.fromkeys(MEANS, 0.05))
    assert "has memorised at most 10% of the wrong labels." in conclude(compare([made.block()]))


def test_marks_close_to_the_one_before_are_left_out_but_not_the_last(tmp_path):
    made = Made(tmp_path)
    made.add_pair(memorised={1: 0.10, 2: 0.05, 3: 0.055, 4: 0.065, 5: 0.07})
    assert [point.epoch for point in choose_marks(Comparison(made.block(), "sam").points)] == [1, 2, 4, 5]


def test_a_frame_is_no_wider_than_its_means_need(study, monkeypatch):
    monkeypatch.setattr(results_begin, "MARGIN", 1)  # the band reaches 2.5 points beyond the mean
    _, axes = results_begin.plt.subplots()
    results_begin.plot_frame(axes, "Made", compare([study.block()]))
    assert axes.get_ylim()[1] == pytest.approx(7)  # the largest mean is 6


def test_rho_m_length_and_network_are_those_of_the_runs(study):
    study.add_pair("other")
    texts = [describe_run(Comparison(study.block(name), "sam")).splitlines()[1] for name in ("only", "other")]
    assert texts == [f"rho 0.1, m 64, 5 epochs, ResNet-20 of width {width}" for width in (16, 8)]


def test_figures_are_drawn_and_without_comparisons_there_is_none(study, tmp_path):
    clean = Made(tmp_path / "clean", "Clean")
    clean.add_pair(memorised=None)
    for found in (compare([study.block()]), compare([study.block(), clean.block()]), compare([clean.block()])):
        for draw in (results_begin.draw_begin, results_begin.draw_benefit):
            assert (tmp_path / "img" / draw(found, tmp_path / "img")).is_file()
    assert results_begin.draw_begin([], tmp_path) is results_begin.draw_benefit([], tmp_path) is None
