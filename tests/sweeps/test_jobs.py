"""The plan of a sweep: equal jobs, names of folders, and what a second call adds."""

import json
import threading
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_runner.config.help import list_options
from sam_runner.runs.folder import NAME_LENGTH, job_name, settings_of_run
from sam_runner.runs.plan import agree_on_precision, extend_plan, read_plan
from sam_runner.sam.methods import Plain
from sam_runner.sweeps.jobs import hash_words, job_cost, plan_jobs
from sam_runner.training.builders.method import build_method
from sam_runner.utils.files import CONF
from tests.helpers import TINY, config_of, job_config


def compose(*jobs):
    return [(job.split(), job_config(*job.split())) for job in jobs]


def names(jobs):
    return [job.folder.name.rpartition("-")[0] for job in jobs]


def test_equal_jobs_are_one_and_are_named_by_what_they_share(tmp_path):
    jobs, job_of = plan_jobs(
        tmp_path,
        compose(
            "optimizer=sgd rho=0.1 seed=0",
            "optimizer=sgd rho=0.2 seed=0",
            "optimizer=sam rho=0.1 seed=0",
            "optimizer=sam rho=0.2 seed=0",
        ),
    )
    assert job_of == [0, 0, 1, 2]
    assert names(jobs) == ["optimizer=sgd,seed=0", "optimizer=sam,rho=0.1,seed=0", "optimizer=sam,rho=0.2,seed=0"]
    assert [job.folder.name.rpartition("-")[2] for job in jobs] == [job.config.fingerprint() for job in jobs]
    assert [job.number for job in jobs] == [1, 2, 3]


def test_a_name_has_what_varies_then_the_rest_as_far_as_60_characters_go(tmp_path):
    rest = "epochs=3 lr=0.123 label_smoothing=0.1 weight_decay=0.001 sweep_name=x sweep.jobs=1 log_every=3"
    jobs, _ = plan_jobs(tmp_path, compose(f"{rest} optimizer=sam seed=1", f"{rest} optimizer=sam seed=2"))
    expected = "seed=1,epochs=3,lr=0.123,label_smoothing=0.1"  # weight_decay=0.001 would end at 63
    assert names(jobs) == [expected, expected.replace("seed=1", "seed=2")]
    assert len(f"{expected},weight_decay=0.001") == 63 > NAME_LENGTH


def test_a_later_call_finds_the_job_under_the_name_that_it_has(tmp_path):
    (first,), _ = plan_jobs(tmp_path, compose("optimizer=sam seed=0 epochs=3"))
    jobs, _ = plan_jobs(tmp_path, compose("seed=0 epochs=3 optimizer=sam", "seed=1 epochs=3 optimizer=sam"))
    assert jobs[0].folder == first.folder
    assert names(jobs) == ["optimizer=sam,seed=0,epochs=3", "seed=1,epochs=3,optimizer=sam"]
    assert [entry.folder for entry in read_plan(tmp_path)] == [job.folder.name for job in jobs]


def test_a_job_is_found_by_its_folder_where_the_plan_is_lost(tmp_path):
    (first,), _ = plan_jobs(tmp_path, compose("optimizer=sam seed=0"))
    first.folder.mkdir()
    (tmp_path / "plan.json").unlink()
    jobs, _ = plan_jobs(tmp_path, compose("seed=0 optimizer=sam", "seed=1 optimizer=sam"))
    assert jobs[0].folder == first.folder


def test_a_plan_that_is_not_written_leaves_no_file(tmp_path):
    (job,), _ = plan_jobs(tmp_path / "x", compose("optimizer=sam seed=0"), first=5, write=False)
    assert (job.number, list(tmp_path.iterdir())) == (5, [])


WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=90).map("data.root={}".format), max_size=3)


@given(WORDS, WORDS)
def test_a_name_is_a_folder_name_of_plain_characters(varying, others):
    name = job_name(varying, others, "0123456789ab")
    assert len(name.encode()) == len(name) <= 180
    assert "/" not in name and name.endswith("-0123456789ab") and not name.startswith((".", "-"))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (["seed=1", "rho=0.1", "sweep_name=a"], ["rho=0.1", "seed=1", "sweep.on_error=stop"], True),
        (["seed=1"], ["+seed=1", "sweep.jobs=2", "checkpoint.keep=3", "dry_run=true"], True),
        (["seed=1"], ["seed=11"], False),
        (["data.root=a/b"], ["data.root=a_b"], False),
        (["rho=0.1"], ["optimizer.rho=0.1"], False),
    ],
)
def test_typed_settings_are_identified_in_any_order_without_those_that_change_no_run(first, second, same):
    assert (hash_words(first) == hash_words(second)) is same
    assert settings_of_run(["+rho=0.1", "sweep_name=x", "optimizer/base=adamw"]) == ["rho=0.1", "optimizer/base=adamw"]


@pytest.mark.parametrize(
    ("words", "cost"),
    [
        (["optimizer=sgd", "epochs=3"], 3),
        (["optimizer=sam", "epochs=3"], 6),
        (["optimizer=sam", "rho=0", "epochs=3"], 3),
        (["optimizer=sam", "epochs=3", "optimizer.ascent_steps=2"], 9),
    ],
)
def test_the_cost_of_a_job_is_its_number_of_passes(words, cost):
    assert job_cost(config_of(*TINY, *words)) == cost


STEPS = 1000
METHODS = [
    *((name, []) for name in list_options(CONF)["optimizer"] if name != "own"),
    ("sam", ["optimizer.second_order=true"]),
    ("sam", ["optimizer.direction=random"]),
    ("esam", ["optimizer.gamma=0.3"]),
    ("esam", ["optimizer.gamma=1"]),
    ("looksam", ["optimizer.interval=4"]),
    ("random_sam", ["optimizer.start=0", "optimizer.end=0.6"]),
    ("late", ["optimizer.fraction=0.7", "optimizer.part=first"]),
    ("wsam", ["optimizer/around=asam"]),
    ("interval", ["rho=0"]),
]


@pytest.mark.parametrize(("name", "words"), METHODS)
def test_the_cost_of_a_job_is_that_of_its_method(name, words):
    config = config_of(*TINY, f"optimizer={name}", *words)
    method = build_method(config, STEPS) if config.flat().get("optimizer.rho", 0) > 0 else Plain()
    gradients = fmean((forward + 2 * backward) / 3 for forward, backward in map(method.cost, range(STEPS)))
    if method.data_decide:  # the method knows the largest cost only; the paper says about half of the steps
        assert (name, gradients, job_cost(config)) == ("ae_sam", 2, 1.5 * config.epochs)
    else:
        tolerance = 4 * (0.25 / STEPS) ** 0.5 if name == "random_sam" else 1e-10
        assert job_cost(config) / config.epochs == pytest.approx(gradients, abs=tolerance)


def test_esam_costs_what_it_computes():
    assert job_cost(config_of(*TINY, "optimizer=esam", "optimizer.gamma=0.5", "epochs=6")) == pytest.approx(11)


def test_calls_that_extend_the_plan_at_the_same_time_lose_no_job(tmp_path):
    def plan(seed):
        plan_jobs(tmp_path, [([f"seed={seed}"], configs[seed])])

    configs = [job_config(f"seed={seed}") for seed in range(8)]
    threads = [threading.Thread(target=plan, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    planned = read_plan(tmp_path)
    assert sorted(entry.fingerprint for entry in planned) == sorted(config.fingerprint() for config in configs)
    extend_plan(tmp_path, lambda entries: [])
    assert read_plan(tmp_path) == planned


def test_the_first_job_of_a_sweep_decides_the_precision_for_its_kind_of_device(tmp_path):
    assert agree_on_precision(tmp_path, "cpu", "bf16") == "bf16"
    assert agree_on_precision(tmp_path, "cpu", "fp32") == "bf16"
    assert agree_on_precision(tmp_path, "cuda", "fp16") == "fp16"
    plan_jobs(tmp_path, compose("seed=0"))
    assert json.loads((tmp_path / "plan.json").read_text())["precision"] == {"cpu": "bf16", "cuda": "fp16"}
