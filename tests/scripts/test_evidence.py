"""The studies: their plans, the choice of a value, and the numbers of docs/results.md."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import evidence  # noqa: E402
import results_page  # noqa: E402

STUDIES = sorted(path.stem for path in evidence.STUDIES.glob("*.yaml"))


def finish(study, job, tmp_path, accuracy, status="finished"):
    """Add a made-up run to a study."""
    folder = tmp_path / "runs" / job.name
    folder.mkdir(parents=True, exist_ok=True)
    tags = dict.fromkeys(evidence.METRICS, accuracy)
    result = {"status": "finished", "step": 10, "final": tags, "best": tags, "best_epoch": 3, "images_per_second": 9.99}
    if status == "finished":
        (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text(json.dumps({"status": status, "time": "2026-01-01"}))
    (folder / "environment.json").write_text(json.dumps({"git_commit": "abc", "processor": "x"}))
    (folder / "config.yaml").write_text("data:\n  root: /somewhere/images\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    study.add(job, folder, {"cifar10": "/somewhere/images"})


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_study_is_in_its_plan(name):
    study = evidence.Study(name)
    planned = study.planned()
    for block in study.content["blocks"]:
        for arm, entry in study.content["arms"].items():
            seeds = {seed for found, role, value, seed in planned if (found, role) == (block, arm) and not value}
            assert seeds == set(range(entry["seeds"])), (block, arm)
    commands = [job.command for part in study.parts() for job in part.searches]
    assert len(set(commands)) == sum(value != "" for _, _, value, _ in planned)


def test_the_value_with_the_best_validation_metric_is_used_and_kept_for_the_next_call(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    jobs = study.search_jobs("worst", "sam")
    for job, accuracy in zip(jobs[:-1], (0.3, 0.5, 0.4, 0.45), strict=True):
        finish(study, job, tmp_path, accuracy)
    finish(study, jobs[-1], tmp_path, 0.0, status="failed")
    assert not study.is_chosen("worst", "sam")
    again = evidence.Study("human_noise", results=tmp_path)
    assert [again.is_finished(job) for job in jobs] == [True] * 4 + [False]
    finish(again, jobs[-1], tmp_path, 0.2)
    assert again.choice("worst", "sam") == "rho=0.2"
    assert again.final_job("worst", "sam", 3).words[-2:] == ("seed=3", "rho=0.2")
    with (tmp_path / "human_noise.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["value"] for row in rows] == ["rho=0.1", "rho=0.2", "rho=0.3", "rho=0.4", "rho=0.5"]
    assert rows[0]["gradient_evaluations"] == "20"
    kept = tmp_path / "human_noise" / "worst-sam-rho0.1-search-seed100.yaml"
    assert kept.read_text() == "data:\n  root: {cifar10}\n"


def test_estimates_are_those_of_scipy():
    values = pd.Series(np.random.default_rng(0).normal(size=5))
    found = results_page.estimate(pd.concat([values, pd.Series([np.nan])]))
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    assert found.n == 5
    assert found.mean - found.half_width == pytest.approx(low)
    assert found.mean + found.half_width == pytest.approx(high)
    assert np.isnan(results_page.estimate(values[:1]).half_width)


def test_differences_are_paired_and_only_the_chosen_value_counts(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    for job, accuracy in zip(study.search_jobs("worst", "sam"), (0.3, 0.5, 0.4, 0.45, 0.2), strict=True):
        finish(study, job, tmp_path, accuracy)
    for seed, (sgd, sam) in enumerate([(0.1, 0.4), (0.3, 0.5), (0.2, 0.45)]):
        finish(study, study.final_job("worst", "sgd", seed), tmp_path, sgd)
        finish(study, study.final_job("worst", "sam", seed), tmp_path, sam)
    other = study._job("worst", "sam", "final", "rho=0.1", 0)  # of an earlier choice
    finish(study, other, tmp_path, 0.99)
    (block,) = results_page.read_blocks(study)
    difference = block.difference("sam", "sgd", "final/test/accuracy")
    expected = scipy.stats.ttest_rel([0.4, 0.5, 0.45], [0.1, 0.3, 0.2]).confidence_interval()
    assert difference.mean - difference.half_width == pytest.approx(expected.low)
    assert difference.mean + difference.half_width == pytest.approx(expected.high)
    assert block.cost("sam") == 2
    assert results_page.count_runs(study)["finished"] == 12


def test_the_page_is_what_the_tables_say(tmp_path):
    results_page.make_pages(tmp_path)
    for page in tmp_path.rglob("*.md"):
        assert page.read_text() == (ROOT / "docs" / page.relative_to(tmp_path)).read_text(), page.name
