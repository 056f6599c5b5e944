"""What grows with its work and not faster: operations are counted, since seconds depend on the machine."""

import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from sam_runner.config.data import AugmentConfig
from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.data.datasets import folder_index, folder_layout
from sam_runner.data.datasets.folder_layout import LeftOut
from sam_runner.data.datasets.image_folder import _split_each_class
from sam_runner.data.image_sets import ImageFiles, group_by_class
from sam_runner.data.loader import ImageLoader
from sam_runner.data.noise import pair
from sam_runner.data.normalisation import IMAGENET_NORMALISATION
from sam_runner.distributed.context import DistributedContext
from sam_runner.reports.comparison import Baseline, compare, find_missing_baselines
from sam_runner.reports.report import Report
from sam_runner.reports.results import read_runs
from sam_runner.reports.selection import choose
from sam_runner.runs.plan import read_plan
from sam_runner.sweeps import progress as progress_module
from sam_runner.sweeps.jobs import plan_jobs
from sam_runner.sweeps.outcomes import now, read_outcomes, record_refusal
from sam_runner.sweeps.progress import SweepProgress, show_progress
from sam_runner.training import metrics as metrics_module
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics import confusion_matrix, count_pairs, evaluation_metrics
from sam_runner.training.pictures import MAX_SQUARES, count_classes_per_square, draw_confusion_matrix
from tests.counting import CountElements, count_events
from tests.helpers import config_of
from tests.run_folders import lay

CPU = torch.device("cpu")


class Name(str):
    """A text that counts how often it is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.comparisons += 1
        return str.__eq__(self, other)


def groups_of(count, kind=str):
    """Settings of `count` groups of SAM and as many of SGD, one of each for each value."""
    values = [kind(f"v{number % count}") for number in range(2 * count)]
    return pd.DataFrame({"optimizer": ["sgd"] * count + ["sam"] * count, "model": values})


def runs_of(groups, seeds=2):
    """A table of runs of some groups, as `group_over_seeds` returns it."""
    rows = groups.loc[groups.index.repeat(seeds)].assign(seed=list(range(seeds)) * len(groups))
    numbers = np.arange(len(rows), dtype=float)
    costs = {"gradient_evaluations": 1.0, "training_seconds": 1.0, "epochs": 3, "max_steps": None}
    return rows.assign(group=rows.index, **costs, **{"test/accuracy": numbers}).reset_index(drop=True)


@pytest.mark.parametrize("search", [compare, find_missing_baselines])
def test_groups_are_not_compared_with_every_baseline(search):
    counts = []
    for count in (20, 80):
        groups, Name.comparisons = groups_of(count, Name), 0
        if search is compare:
            found = compare(runs_of(groups), "test/accuracy", groups, Baseline({"optimizer": "sgd"}))
            assert {group: base for group, (base, _) in found.items()} == {count + n: n for n in range(count)}
        else:
            assert search(runs_of(groups), groups, Baseline({"optimizer": "sgd"}, "cost")) == []
        counts.append(Name.comparisons)
    assert counts[1] <= 6 * max(counts[0], 10)  # four times the groups


def count_rows(monkeypatch, work):
    """The number of rows that pandas groups or looks up while a function runs."""
    rows = []
    original, is_in = pd.DataFrame.groupby, pd.Series.isin
    monkeypatch.setattr(pd.Series, "isin", lambda self, values: rows.append(len(self)) or is_in(self, values))
    monkeypatch.setattr(
        pd.DataFrame, "groupby", lambda self, *a, **k: rows.append(len(self)) or original(self, *a, **k)
    )
    work()
    return sum(rows)


def test_the_runs_are_not_gone_through_for_each_difference_or_choice(monkeypatch):
    differences, choices = [], []
    for count in (10, 40):
        groups = groups_of(count)
        runs = runs_of(groups)
        baseline = Baseline({"optimizer": "sgd"})
        differences.append(count_rows(monkeypatch, lambda: compare(runs, "test/accuracy", groups, baseline)))  # noqa: B023
        choices.append(count_rows(monkeypatch, lambda: choose(runs, "test/accuracy", ["optimizer"], ["model"])))  # noqa: B023
    assert differences[1] <= 5 * differences[0]
    assert choices[1] <= 5 * choices[0]


def test_settings_of_a_run_are_hashed_once_for_a_report(tmp_path, monkeypatch):
    for seed in range(3):
        lay(tmp_path / str(seed), seed=seed)
    calls = []
    original = ExperimentConfig.fingerprint
    monkeypatch.setattr(ExperimentConfig, "fingerprint", lambda self: calls.append(1) or original(self))
    report = Report([run for run in read_runs([tmp_path]) if run.fingerprint])
    assert len(report.results["fingerprint"].unique()) == len(calls) == 3


def compose_jobs(count):
    values = config_of("optimizer=sam").to_dict()
    return [([f"seed={seed}"], load_experiment({**values, "seed": seed})) for seed in range(count)]


def test_the_plan_of_a_sweep_lists_its_folder_once(tmp_path):
    jobs = compose_jobs(30)
    for job in plan_jobs(tmp_path, jobs[:10])[0]:
        job.folder.mkdir()
    (tmp_path / "plan.json").unlink()  # the folders alone tell the names
    with count_events() as events:
        again, _ = plan_jobs(tmp_path, jobs)
    assert events["os.listdir"] + events["os.scandir"] <= 3
    assert sum(job.folder.is_dir() for job in again) == 10
    assert len(read_plan(tmp_path)) == 30


def test_the_state_of_a_sweep_lists_the_refused_jobs_once(tmp_path):
    jobs, _ = plan_jobs(tmp_path, compose_jobs(30))
    for number in range(5):
        record_refusal(tmp_path, [f"rho=-{number}"], "no")
    progress = SweepProgress(tmp_path)
    with count_events() as events:
        progress.update()
    assert progress.count("waiting") == 30
    assert progress.count("refused") == 5
    assert events["os.listdir"] + events["os.scandir"] < 15
    assert events["open"] < 30  # no file of a job that waits
    with count_events() as events:
        assert read_outcomes(tmp_path, jobs, now()) == [None] * 30
    assert events["os.listdir"] + events["os.scandir"] <= 1


def test_looking_at_many_jobs_takes_a_small_part_of_the_time(monkeypatch):
    looks = []

    class Slow(SweepProgress):
        def update(self):
            looks.append(1)
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass

    monkeypatch.setattr(progress_module, "INTERVAL", 0.001)
    with show_progress(Slow("nowhere"), lambda line: None):
        threading.Event().wait(1.0)
    assert 1 <= len(looks) <= 4  # 0.02 s are a twentieth of 0.4 s


def test_a_manifest_is_read_once_however_many_checkpoints_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, every_epochs=1)
    state = {"model": {}, "optimizer": {}}
    for step in range(1, 21):
        checkpoints.save(step, state, epoch=step)
    with count_events() as events:
        checkpoints.save(21, state, epoch=21)
    assert events["open"] < 15
    assert len(list(tmp_path.glob("*.pt"))) == 21
    reopened = CheckpointFolder(tmp_path)
    reopened.save(22, state, epoch=None)
    reopened.save(23, state, epoch=None)
    reopened.save(24, state, epoch=None)
    assert len(list(tmp_path.glob("*.pt"))) == 23  # the flags of an earlier process are known: step 22 alone is deleted


@pytest.mark.parametrize(
    "work",
    [
        lambda labels, count: pair(labels, count, 0, rate=0.4),
        lambda labels, count: _split_each_class(labels, 0.5),
    ],
    ids=["pair", "split"],
)
def test_every_class_looks_at_its_own_examples_only(work):
    counts = []
    for count in (10, 500):
        labels = torch.arange(5000) % count
        with CountElements() as counter:
            work(labels, count)
        counts.append(counter.total)
    assert counts[1] < 3 * counts[0]


def test_groups_by_class_are_the_indices_of_each_class():
    labels = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = 4
    groups = group_by_class(labels, 9)
    assert [group.tolist() for group in groups] == [
        (labels == label).nonzero().flatten().tolist() for label in range(9)
    ]


def test_classes_of_a_folder_are_not_searched_one_by_one(tmp_path):
    class Classes(tuple):
        searched = 0

        def index(self, *arguments):
            Classes.searched += 1
            return tuple.index(self, *arguments)

        def __contains__(self, name):
            Classes.searched += 1
            return tuple.__contains__(self, name)

    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"")
    part = folder_layout._list_part(str(tmp_path), str(tmp_path), Classes("abc"), LeftOut())
    assert part.labels == [0, 1, 2]
    assert Classes.searched == 0


def test_the_metrics_of_parts_are_those_of_the_whole(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(101, 12, generator=draws), torch.randint(0, 12, (101,), generator=draws)
    whole = evaluation_metrics(logits, labels)
    monkeypatch.setattr(metrics_module, "MAX_LOGITS", 12 * 10)
    assert evaluation_metrics(logits, labels) == pytest.approx(whole, abs=1e-14)
    with CountElements() as counter:
        evaluation_metrics(logits, labels)
    assert counter.largest < logits.numel() / 4


def test_a_confusion_matrix_of_many_classes_fits_a_picture():
    num_classes = 21_841
    merged = count_classes_per_square(num_classes)
    counts = count_pairs(torch.tensor([0, num_classes - 1, 1]), torch.tensor([1, 0, 1]), num_classes, merged)
    assert counts.shape == (-(-num_classes // merged),) * 2
    assert max(counts.shape) <= MAX_SQUARES
    assert (counts[0, 0], counts[-1, 0], counts.sum()) == (2, 1, 3)
    picture = draw_confusion_matrix(counts, [str(label) for label in range(num_classes)])
    assert max(picture.shape) < 2000
    assert count_classes_per_square(100) == 1
    logits = torch.eye(6)[[5, 0]]
    assert confusion_matrix(logits, torch.tensor([5, 4]), 4).tolist() == [[0, 0], [1, 1]]


def test_a_kept_list_is_not_gone_through_name_by_name(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "set" / name / f"{number}.jpg").write_bytes(b"")
    monkeypatch.setattr(folder_index, "MIN_AGE_NS", 0)
    calls = []
    original = folder_layout.suffix_of
    monkeypatch.setattr(folder_layout, "suffix_of", lambda name: calls.append(1) or original(name))
    read = [folder_index.find_layout_once(str(tmp_path / "set"), str(tmp_path / "cache"))]
    assert len(calls) >= 40
    calls.clear()
    read.append(folder_index.find_layout_once(str(tmp_path / "set"), str(tmp_path / "cache")))
    assert not calls
    assert read[0] == read[1]
    assert read[1].suffixes == {".jpg": 40}


def test_the_first_batch_of_an_epoch_does_not_wait_for_the_others(tmp_path, monkeypatch):
    count = 4000
    labels = torch.arange(count) % 2
    files = ImageFiles(tmp_path, ("missing.jpg",) * count, labels, ("a", "b"), labels, 8)
    loader = ImageLoader(
        files, batch_size=2, normalisation=IMAGENET_NORMALISATION, device=CPU, augmentation=AugmentConfig()
    )
    monkeypatch.setattr(loader._stream._loader.dataset, "__getitems__", lambda keys: torch.zeros(len(keys), 3, 8, 8))
    parts = []
    original = DistributedContext.local_part
    monkeypatch.setattr(DistributedContext, "local_part", lambda self, part: parts.append(1) or original(self, part))
    assert next(loader.epoch(0)).images.shape == (2, 3, 8, 8)
    assert len(parts) < 20
    assert sum(1 for _ in loader.epoch(0, start=1900)) == 100
