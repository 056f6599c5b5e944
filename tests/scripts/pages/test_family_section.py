"""The section "Comparison" of docs/family.md is what the tables of the two studies say."""

import re
import sys
from functools import cache

import pandas as pd
import pytest

from scripts.pages import family_section
from scripts.pages.family_section import Side, name_all
from scripts.pages.results_tables import Block

SECTION = family_section.make_section
PLAN = {"sgd": 1.0, "sgd-2x": 2.0, "sam": 2.0, "cheap": 1.2, "dear": 1.9, "late": 1.0, "unsure": 1.5}  # cost by arm
ACCURACY = {  # by arm, one value for each seed
    "sgd": (0.30, 0.31, 0.32),
    "sgd-2x": (0.29, 0.31, 0.31),
    "sam": (0.50, 0.52, 0.51),
    "cheap": (0.50, 0.53, 0.52),
    "dear": (0.55, 0.56, 0.58),
    "late": (0.40, 0.41, 0.43),
    "unsure": (0.20, 0.90, 0.35),
}
RIGHT = {"cheap": (0.9, 0.9, 0.9), "unsure": (0.1, 0.9, 0.1)}


@pytest.fixture
def side(monkeypatch):
    """A study of made-up runs, of which one is missing."""
    rows = [
        {
            "block": "only", "arm": arm, "role": "final", "status": "finished", "seed": seed,
            "value": {"sam": "rho=0.2", "dear": "rho=0.1"}.get(arm, "rho=0.15"), "gradient_evaluations": 10 * cost,
            "final/test/accuracy": ACCURACY[arm][seed], "best/test/accuracy": ACCURACY[arm][seed] + 0.01,
            "final/train/accuracy_clean": RIGHT.get(arm, (1.0,) * 3)[seed],
        }
        for arm, cost in PLAN.items() for seed in range(3) if (arm, seed) != ("cheap", 2)
    ]  # fmt: skip
    search = {"search": {"rho": [0.2, 0.1, 0.15]}}
    arms = {arm: {"seeds": 3} | ({} if arm.startswith("sgd") else search) for arm in PLAN}
    content = {"block_titles": {"only": "x"}, "arms": arms}
    study = type("Study", (), {"content": content, "name": "x"})()
    block = Block(study, "only", pd.DataFrame(rows))
    monkeypatch.setattr(family_section, "Study", lambda name, results: study)
    monkeypatch.setattr(family_section, "read_blocks", lambda study: [block])
    return Side("x")


def test_methods_are_in_the_order_of_their_cost(side):
    assert side.methods == ["late", "cheap", "unsure", "dear", "sam"]
    assert side.free() == ["late"]


def test_only_an_interval_without_zero_counts_as_a_difference(side):
    assert side.above("sgd") == side.above("sgd-2x") == side.worth() == ["late", "cheap", "dear", "sam"]
    assert side.above("sam") == ["dear"] and side.below("sam") == ["late"]
    assert side.above("sgd", "best") == side.above("sgd")


def test_worth_needs_both_comparisons(side, monkeypatch):
    monkeypatch.setattr(side, "above", lambda other: {"sgd": ["late", "sam"], "sgd-2x": ["sam", "cheap"]}[other])
    assert side.worth() == ["sam"]


def test_a_bargain_is_clearly_cheaper_than_sam_and_not_below_it(side):
    assert side.bargains() == ["cheap"]  # late is below SAM, dear costs nearly as much


def test_fit_edges_of_the_search_and_open_runs(side):
    assert side.list_unfitted(0.95) == ["cheap", "unsure"] and side.list_unfitted(0.5) == ["unsure"]
    assert side.least_right() == pytest.approx(1.1 / 3)
    assert side.at_edge("largest") == ["sam"] and side.at_edge("smallest") == ["dear"]
    assert side.open_runs() == ["cheap"] and side.count("cheap") == 2


def test_the_fit_is_compared_as_the_table_prints_it(side, monkeypatch):
    monkeypatch.setattr(side, "mean", lambda arm, metric: 0.4998 if arm == "dear" else 0.494)
    assert side.list_unfitted(0.5) == ["late", "cheap", "unsure", "sam"]  # the table has 50 for dear, 49 for the others


def test_lists_of_methods_are_written_out():
    assert [name_all(arms) for arms in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none", "`a`", "`a` and `b`", "`a`, `b` and `c`"
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def section_is_made_once():
    """Making the section takes two seconds, and its text depends on the tables alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_section, "read_sides", cache(family_section.read_sides))
        text = cache(lambda: SECTION(family_section.read_sides()))
        patch.setattr(family_section, "make_section", lambda sides: text())
        yield


def test_the_section_is_what_the_tables_say(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["family_section.py", "--check"])
    assert family_section.main() == 0, capsys.readouterr().out


def test_values_that_another_search_chose_are_listed(side, monkeypatch):
    again = Side.__new__(Side)
    again.__dict__ |= side.__dict__
    assert side.list_other_values(again) == []
    other = side.block.finals.replace({"value": {"rho=0.2": "rho=0.1"}})  # the value of sam only
    monkeypatch.setattr(again, "block", Block(side.study, "only", other.assign(role="final", status="finished")))
    assert side.list_other_values(again) == ["sam"]


def test_a_number_that_was_changed_by_hand_is_found_and_written_again(monkeypatch, tmp_path):
    page = tmp_path / "family.md"
    whole = family_section.PAGE.read_text()
    page.write_text(re.sub(r"(## Comparison.*?± )\d\.\d", r"\g<1>99.9", whole, count=1, flags=re.S))
    monkeypatch.setattr(family_section, "PAGE", page)
    monkeypatch.setattr(family_section, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["family_section.py", "--check"])
    assert family_section.main() == 1
    monkeypatch.setattr(sys, "argv", ["family_section.py"])
    assert family_section.main() == 0
    assert page.read_text() == whole
    assert (tmp_path / "img" / "family.png").is_file()
