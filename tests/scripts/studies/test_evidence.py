"""The studies: their plans, the choice of a value, and the numbers of docs/results.md."""

import csv
import dataclasses
import json
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
import scipy.stats

import sam_runner
from sam_runner.inference.evaluation import evaluate_split
from sam_runner.reports.aggregate import estimate
from scripts.pages import results_answers, results_page
from scripts.studies import evidence

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted(path.stem for path in evidence.STUDIES.glob("*.yaml"))


def finish(study, job, tmp_path, accuracy, status="finished", code=None, machine="x", **result):
    """Add a made-up run to a study."""
    folder = tmp_path / "runs" / job.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    tags = dict.fromkeys(evidence.METRICS, accuracy)
    gradients = 20.0 if "optimizer=sam" in job.words else 10.0
    result = {
        "status": "finished", "step": 10, "final": tags, "best": tags, "best_epoch": 3, "images_per_second": 9.99,
        "gradient_evaluations": gradients, "training_seconds": 5.04, **result,
    }  # fmt: skip
    if status == "finished":
        (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text(json.dumps({"status": status, "time": "2026-01-01"}))
    (folder / "environment.json").write_text(json.dumps({"git_commit": "abc", "processor": machine}))
    augment = "augment:\n  pad: 4\n" if "augment=basic" in job.words else ""
    (folder / "config.yaml").write_text(f"data:\n  root: /somewhere/images\n{augment}")
    (folder / "metrics.jsonl").write_text("{}\n")
    code = code if code is not None else int(status != "finished")
    study.add(job, folder, {"cifar10": "/somewhere/images"}, code)


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_study_is_in_its_plan(name):
    study = evidence.Study(name)
    planned = study.list_planned()
    for block in study.content["blocks"]:
        for arm, entry in study.content["arms"].items():
            seeds = {seed for found, role, value, seed in planned if (found, role) == (block, arm) and not value}
            assert seeds == set(range(entry["seeds"])), (block, arm)
    commands = [job.command for part in study.parts() for job in part.searches]
    assert len(set(commands)) == sum(value != "" for _, _, value, _ in planned)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_no_two_arms_of_a_study_have_the_same_command(name, smoke):
    study = evidence.Study(name, smoke=smoke)
    commands = [
        job.command
        for block in study.content["blocks"]
        for arm in study.content["arms"]
        for job in study.search_jobs(block, arm) or [study.final_job(block, arm, 0)]
    ]
    assert len(set(commands)) == len(commands)


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
    assert (rows[0]["gradient_evaluations"], rows[0]["training_seconds"]) == ("20.0", "5.0")
    kept = tmp_path / "human_noise" / "worst-sam-rho0.1-search-seed100.yaml"
    assert kept.read_text() == "data:\n  root: {cifar10}\n"


def test_a_value_whose_run_diverged_is_not_chosen(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    jobs = study.search_jobs("worst", "sam")
    for job in jobs:
        finish(study, job, tmp_path, float("nan"))
    assert not study.is_chosen("worst", "sam")
    finish(study, jobs[2], tmp_path, 0.1)
    assert study.choice("worst", "sam") == "rho=0.3"


def test_the_plain_fit_of_a_final_run_is_added_once_and_only_where_the_run_is(tmp_path, capsys):
    study = evidence.Study("human_noise", results=tmp_path)
    study.content["order"] = [{"block": "worst", "arms": ["sgd"], "seeds": 2}]
    here, elsewhere = (study.final_job("worst", "sgd", seed) for seed in (0, 1))
    folder = tmp_path / here.folder_name
    sam_runner.train(["augment=basic", "model.width=4", "epochs=1", "device=cpu", f"run_dir={folder}"])
    study.add(here, folder, {})
    finish(study, elsewhere, tmp_path, 0.5)

    class Pool:
        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    (part,) = study.parts()
    runner = evidence.Runner(study, tmp_path, {}, Pool())
    assert runner.evaluate_train(part) == 0
    assert "run folders that are not here: 1; their plain fit stays open" in capsys.readouterr().out
    study = evidence.Study("human_noise", results=tmp_path)
    rows, _ = evaluate_split([folder], "train", "last")
    known = {job: study.rows[job.command][evidence.PLAIN_FIT] for job in (here, elsewhere)}
    assert known == {here: f"{rows[str(folder)]['train/accuracy']:.6f}", elsewhere: ""}
    assert evidence.Runner(study, tmp_path, {}, pool=None).evaluate_train(part) == 0


def test_costs_are_those_of_the_result_only(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    job = study.search_jobs("worst", "sam")[0]
    folder = tmp_path / "runs" / job.folder_name
    finish(study, job, tmp_path, 0.5)
    result = json.loads((folder / "result.json").read_text())
    del result["gradient_evaluations"], result["training_seconds"]
    (folder / "result.json").write_text(json.dumps(result))
    study.add(job, folder, {}, 0)
    row = study.rows[job.command]
    assert (row["steps"], row["gradient_evaluations"], row["training_seconds"]) == (10, "", "")


def test_the_count_is_that_of_the_plan_and_failed_and_died_runs_are_listed(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    first, second, third, fourth, fifth = study.search_jobs("worst", "sam")
    finish(study, first, tmp_path, 0.5)
    finish(study, second, tmp_path, 0.5, status="running", code=-9)  # killed
    finish(study, third, tmp_path, 0.5, status="preempted", code=75)
    study.add(fourth, tmp_path / "nothing", {}, 2)  # refused before it had a folder
    other_scale = evidence.Study("human_noise", smoke=True, results=tmp_path)
    finish(other_scale, other_scale.search_jobs("worst", "sam")[0], tmp_path, 0.9)
    old = study._job("worst", "sgd", "final", "", 0)
    old = dataclasses.replace(old, words=(*old.words, "epochs=1"))  # of an earlier plan
    study = evidence.Study("human_noise", results=tmp_path)
    finish(study, old, tmp_path, 0.9)
    assert [study.rows[job.command]["status"] for job in (first, second, third, fourth)] == [
        "finished", "died", "preempted", "failed"
    ]  # fmt: skip
    planned = len(study.list_planned())
    assert study.count_runs() == {"planned": planned, "finished": 1, "failed": 2, "open": planned - 3}
    assert len(study.rows) == 6
    (block,) = results_page.read_blocks(study)
    assert block.arms == [] and list(block.searches["value"]) == ["rho=0.1"]
    listed = {(run["status"], run["is_planned"]) for run in results_page.list_runs(study)}
    assert {("finished", False), ("died", True), ("failed", True)} <= listed
    assert not study.is_finished(fifth)


def test_a_run_of_another_plan_or_scale_has_another_folder():
    full, smoke = (evidence.Study("human_noise", smoke=smoke).search_jobs("worst", "sam")[0] for smoke in (False, True))
    assert full.name == smoke.name
    assert full.folder_name != smoke.folder_name


def test_the_whole_plan_finished_leaves_nothing_open(tmp_path):
    study = evidence.Study("gpu_resnet18", results=tmp_path)
    for part in study.parts():
        for job in part.searches:
            finish(study, job, tmp_path, 0.5)
        for arm, seed in part.finals:
            finish(study, study.final_job(part.block, arm, seed), tmp_path, 0.5)
    counts = study.count_runs()
    assert counts["finished"] == counts["planned"] == len(study.rows)
    assert (counts["failed"], counts["open"]) == (0, 0)
    assert study.open_arms() == []


def test_open_arms_have_the_number_of_their_open_runs(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    finish(study, study.final_job("worst", "sgd", 0), tmp_path, 0.1)
    for job, accuracy in zip(study.search_jobs("worst", "smoothing"), (0.3, 0.5, 0.4), strict=True):
        finish(study, job, tmp_path, accuracy)
    found = study.open_arms()
    assert {"worst sgd (4 runs)", "worst smoothing (3 runs)", "worst sam (10 runs)"} <= set(found)
    assert sum(int(name.partition("(")[2].split()[0]) for name in found) == len(study.list_planned()) - 4


def test_a_chosen_value_at_the_end_of_the_search_is_marked(tmp_path):
    for best, is_edge in ((0, True), (2, False), (4, True)):
        study = evidence.Study("human_noise", results=tmp_path / str(best))
        for number, job in enumerate(study.search_jobs("worst", "sam")):
            finish(study, job, tmp_path / str(best), 0.5 if number == best else 0.1)
        finish(study, study.final_job("worst", "sam", 0), tmp_path / str(best), 0.4)
        (block,) = results_page.read_blocks(study)
        assert results_page.at_edge(study, block, "sam") is is_edge
        assert block.tied("sam") == []


def test_equal_scores_of_a_search_are_told_and_the_first_value_is_taken(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    for job, accuracy in zip(study.search_jobs("worst", "smoothing"), (0.3, 0.5, 0.5), strict=True):
        finish(study, job, tmp_path, accuracy)
    (block,) = results_page.read_blocks(study)
    assert block.tied("smoothing") == ["label_smoothing=0.3", "label_smoothing=0.5"]
    assert study.choice("worst", "smoothing") == "label_smoothing=0.3"


def test_commands_that_another_machine_has_run_are_compared(tmp_path):
    here, there = (evidence.Study("human_noise", results=tmp_path / name) for name in ("here", "elsewhere"))
    for seed, (first, second) in enumerate([(0.1, 0.2), (0.3, 0.36), (0.5, None)]):
        finish(here, here.final_job("worst", "sgd", seed), tmp_path / "here", first)
        if second is not None:
            finish(there, there.final_job("worst", "sgd", seed), tmp_path / "elsewhere", second)
    repeats = results_page.Repeats(here, tmp_path / "elsewhere")
    assert len(repeats.rows) == repeats.difference.n == 2
    assert repeats.difference.mean == pytest.approx(0.08)
    assert repeats.machines == "x"


def test_a_word_of_the_machine_is_left_out_where_an_arm_cannot_have_it(tmp_path):
    study = evidence.Study("family_human", results=tmp_path)
    folders = {"cifar10": "a", "cifar10n": "b"}
    runner = evidence.Runner(study, tmp_path, folders, None, ["device=cuda", "compile=capture"])
    for arm, has_word in (("sam", True), ("ae_sam", False)):
        command = runner.command(study.search_jobs("worst", arm)[0])
        assert ("compile=capture" in command) is has_word
        assert "device=cuda" in command


def test_the_copy_of_the_settings_has_no_folder_of_the_machine(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    runner = evidence.Runner(study, tmp_path, {"cifar10": "/a"}, None, ["device=cpu", "data.cache=/b/cache"])
    job = study.search_jobs("worst", "sam")[0]
    finish(study, job, tmp_path, 0.5)
    folder = tmp_path / "runs" / job.folder_name
    (folder / "config.yaml").write_text("data:\n  root: /a/images\n  cache: /b/cache\ndevice: cpu\n")
    study.add(job, folder, runner.places())
    kept = (tmp_path / "human_noise" / f"{job.name}.yaml").read_text()
    assert kept == "data:\n  root: {cifar10}/images\n  cache: {data.cache}\ndevice: cpu\n"


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
    assert study.count_runs()["finished"] == 11


def test_the_page_says_which_arms_of_a_block_ran_on_which_machine(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    for arm, seed, machine in (("sgd", 0, "x"), ("sgd", 1, "y"), ("sgd-2x", 0, "x")):
        finish(study, study.final_job("worst", arm, seed), tmp_path, 0.3, machine=machine)
    (block,) = results_page.read_blocks(study)
    assert block.machines() == {"x": ["sgd", "sgd-2x"], "y": ["sgd"]}


def test_seconds_are_those_of_the_machine_that_made_most_runs(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    for seed, (machine, seconds) in enumerate([("x", 5.0), ("slow", 2000.0), ("x", 7.0)]):
        job = study.final_job("worst", "sgd", seed)
        finish(study, job, tmp_path, 0.3, machine=machine, training_seconds=seconds)
    (block,) = results_page.read_blocks(study)
    assert (block.estimate("sgd", "training_seconds").mean, block.estimate("sgd", "final/test/accuracy").n) == (6.0, 3)


def finish_short_runs(study, block, tmp_path, gains):
    """Add made-up runs of a block of the study of short runs: SGD ends at 0.4."""
    for number, job in enumerate(study.search_jobs(block, "sam")):
        finish(study, job, tmp_path, 0.5 if number == 1 else 0.1)
    for seed, gain in enumerate(gains):
        finish(study, study.final_job(block, "sgd", seed), tmp_path, 0.4)
        finish(study, study.final_job(block, "sam", seed), tmp_path, 0.4 + gain)


def test_the_answer_of_the_short_runs_holds_for_the_blocks_that_are_finished(tmp_path):
    study = evidence.Study("length", results=tmp_path)
    environment = results_page.open_templates()

    def answer():
        text = results_page.write_answer(study, results_page.read_blocks(study), environment)
        wrapped = results_page.wrap_paragraphs(text)
        assert "  " not in wrapped and "\n " not in wrapped
        return " ".join(wrapped.split())

    finish(study, study.final_job("epochs20", "sgd", 0), tmp_path, 0.4)
    everything = "These blocks are open: epochs5, epochs10, epochs20, narrow."
    assert answer() == f"There is no comparison yet. {everything}"
    finish_short_runs(study, "epochs20", tmp_path, (0.01, 0.02, 0.03))  # 2.0 ± 2.5
    text = answer()
    assert text.startswith(
        "This is not shown. SAM's gain over SGD at equal epochs is not clear with 20 epochs (+2.0 ± 2.5"
    )
    assert text.endswith("SGD memorises 40% with 20 epochs. These blocks are open: epochs5, epochs10, narrow.")
    finish_short_runs(study, "epochs10", tmp_path, (0.03, 0.04, 0.05))
    text = answer()
    clear = "clear with 10 epochs (+4.0 ± 2.5 points), and not clear with 20 epochs (+2.0 ± 2.5)."
    assert text.startswith(f"In part. SAM's gain over SGD at equal epochs is {clear}")
    finish_short_runs(study, "epochs5", tmp_path, (0.06, 0.06, 0.09))
    text = answer()
    assert (
        "SAM with 5 epochs minus SGD with 10 is +7.0 ± 4.3 points, and SAM with 10 minus SGD with 20 is +4.0 ± 2.5."
        in text
    )
    assert text.endswith("SAM with 20 epochs minus SGD with 5, at 2 times its cost, is +2.0 ± 2.5.")


def test_the_answer_on_human_noise_compares_with_a_short_run_of_sgd_in_another_study(tmp_path):
    study, short = (evidence.Study(name, results=tmp_path) for name in ("human_noise", "length"))
    for block in ("worst", "aggre"):
        for job in study.search_jobs(block, "sam"):
            finish(study, job, tmp_path, 0.5)
        for seed, accuracy in enumerate((0.5, 0.52, 0.54)):
            for arm in ("sgd", "sgd-2x", "sam"):
                finish(study, study.final_job(block, arm, seed), tmp_path, accuracy if arm == "sam" else 0.3)
    own, environment = results_page.read_blocks(study), results_page.open_templates()
    assert "5 epochs" not in results_page.write_answer(study, own, environment)
    finish_short_runs(short, "epochs5", tmp_path, (0.1, 0.1, 0.1))
    others = [*own, *results_page.read_blocks(short)]
    answer = " ".join(results_page.write_answer(study, own, environment, others).split())
    assert "SGD with 5 epochs instead of 60 ends at 40.0%" in answer  # SGD with 60 epochs ends at 30%, SAM at 52%
    assert (
        "SAM with 60 epochs minus this SGD is +12.0 ± 5.0 points, at 2 times its cost." in answer
    )  # 20 and 10 gradients


def test_a_difference_of_likelihoods_is_paired(tmp_path):
    study = evidence.Study("clean", results=tmp_path)
    for job in study.search_jobs("fashion", "sam"):
        finish(study, job, tmp_path, 0.5)
    for seed, (sgd, sam) in enumerate([(0.5, 0.4), (0.6, 0.48), (0.7, 0.56)]):  # the likelihoods too
        finish(study, study.final_job("fashion", "sgd", seed), tmp_path, sgd)
        finish(study, study.final_job("fashion", "sam", seed), tmp_path, sam)
    answers = results_answers.Answers(results_page.read_blocks(study))
    assert answers.nll_difference("fashion", "sam", "sgd") == "-0.12 ± 0.05"
    assert answers.times("fashion", "sam", "fashion", "sgd") == "2"


def test_the_summary_counts_clear_gains_and_compares_crops(tmp_path):
    study = evidence.Study("human_noise", results=tmp_path)
    for job in study.search_jobs("worst", "sam"):
        finish(study, job, tmp_path, 0.5)
    for seed, gain in enumerate((0.1, 0.11, 0.13)):
        for arm, accuracy in (
            ("sgd", 0.4),
            ("sgd-2x", 0.41 + 2 * gain * (seed == 0)),
            ("sgd-crops", 0.7),
            ("sam", 0.4 + gain),
        ):
            finish(study, study.final_job("worst", arm, seed), tmp_path, accuracy)
    blocks = results_page.read_blocks(study)
    (group,) = results_answers.group_comparisons(blocks)
    assert (group.counts(), group.span) == (["1 of 1", "1 of 1", "0 of 1"], "+11.3 ± 3.8")
    first, crops = results_answers.summarise(blocks, [group]).splitlines()
    name = "Human label noise, CIFAR-10N"
    assert first.startswith(
        "SAM is clearly better than its baseline in one comparison with wrong labels and no augmentation (1 of 1), "
        "and clearly worse in none."
    )
    gain = "the gain of SGD with crops and flips over SAM without them is clear at 40% noise (+18.7 ± 3.8 points)"
    assert crops == f"In the study *{name}* {gain}."
    for job in study.search_jobs("worst", "sam-crops"):
        finish(study, job, tmp_path, 0.5)
    for seed, accuracy in enumerate((0.7, 0.71, 0.72)):
        finish(study, study.final_job("worst", "sam-crops", seed), tmp_path, accuracy)
    blocks = results_page.read_blocks(study)
    groups = results_answers.group_comparisons(blocks)
    assert [group.counts() for group in groups] == [["1 of 1", "1 of 1", "0 of 1"], ["0 of 1", "0 of 1", "-"]]
    first, _ = results_answers.summarise(blocks, groups).splitlines()
    assert "no augmentation (1 of 1), and in no comparison with wrong labels, crops and flips (0 of 1), and" in first


def test_the_few_comparisons_with_a_clear_gain_are_named():
    clear, unclear = (estimate(values) for values in ([0.01, 0.011, 0.012], [-0.01, 0.0, 0.02]))
    group = results_answers.Group("true labels", {"x": clear, "y": unclear, "z": unclear}, [unclear] * 3, [])
    assert group.say() == "one comparison with true labels (1 of 3: x, +1.1 ± 0.2 points)"
    assert group.counts() == ["1 of 3", "0 of 3", "-"]
    group = results_answers.Group("true labels", {"x": clear, "y": clear, "z": unclear}, [], [])
    assert group.say() == "most comparisons with true labels (2 of 3)"


def test_an_answer_names_clear_gains_then_unclear_ones_then_losses(tmp_path):
    study = evidence.Study("symmetric_noise", results=tmp_path)
    ends = {"rate0": (0.48, 0.49, 0.5), "rate40": (0.7, 0.71, 0.72), "rate80": (0.2, 0.5, 0.9)}
    for block, accuracies in ends.items():
        for job in study.search_jobs(block, "sam"):
            finish(study, job, tmp_path, 0.5)
        for seed, accuracy in enumerate(accuracies):
            finish(study, study.final_job(block, "sgd", seed), tmp_path, 0.6)
            finish(study, study.final_job(block, "sam", seed), tmp_path, accuracy)
    answers = results_answers.Answers(results_page.read_blocks(study))
    assert (
        answers.helps(("sam", "sgd")) == "In part." and answers.helps(("mixup", "sgd")) == "There is no comparison yet."
    )
    assert answers.say("It", "sam", "sgd") == (
        "It is clear at 40% noise (+11.0 ± 2.5 points), not clear at 80% noise (-6.7 ± 87.2), and clearly below 0 "
        "at 0% noise (-11.0 ± 2.5)."
    )
    assert answers.say("It", "sam", "sgd", numbers=False).endswith("clearly below 0 at 0% noise.")
    assert answers.say("It", "mixup", "sgd") == ""
    one = estimate([0.01])
    assert (results_answers.judge(one), results_answers.judge(estimate([0.01, 0.01]))) == (
        "without an interval", "not clear"
    )  # fmt: skip
    same = results_answers.Answers([block for block in results_page.read_blocks(study) if block.name == "rate0"])
    assert same.helps(("sam", "sgd")) == "No."


def test_a_verdict_on_all_blocks_is_short(tmp_path):
    study = evidence.Study("clean", results=tmp_path)
    for block in ("cifar10", "fashion"):
        for job in study.search_jobs(block, "sam"):
            finish(study, job, tmp_path, 0.5)
        for seed, accuracy in enumerate((0.2, 0.5, 0.9)):
            finish(study, study.final_job(block, "sgd", seed), tmp_path, 0.5)
            finish(study, study.final_job(block, "sam", seed), tmp_path, accuracy)
            finish(study, study.final_job(block, "sgd-2x", seed), tmp_path, 0.1 + 0.01 * seed)
    answers = results_answers.Answers(results_page.read_blocks(study))
    assert answers.helps(("sam", "sgd")) == "This is not shown."
    assert answers.say("It", "sam", "sgd", numbers=False) == "It is clear in neither block."
    assert answers.say("It", "sgd-2x", "sgd", numbers=False) == "It is clearly below 0 in both blocks."
    assert answers.helps(("sgd", "sgd-2x")) == "Yes."


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith("family")])
def test_every_study_has_an_answer_that_holds_before_its_runs(name):
    study = evidence.Study(name)
    assert set(study.content["names"]) == set(study.content["blocks"])
    answer = results_page.write_answer(study, [], results_page.open_templates())
    assert answer.strip().startswith("There is no comparison yet.")


def test_every_study_says_which_network_each_block_trains():
    for study in map(evidence.Study, STUDIES):
        assert study.content["network"]
        assert set(study.content.get("networks", {})) <= set(study.content["blocks"])


def test_every_study_is_in_the_first_table_of_the_page_also_without_runs():
    page = (results_page.DOCS / "results.md").read_text(encoding="utf-8")
    table = page[page.index("| study |") : page.index("\n\nHow to read")].splitlines()
    counts = [line.split(" | ")[1:] for line in table if line.endswith("|")][2:]
    assert sorted(int(row[0]) for row in counts) == sorted(len(evidence.Study(name).list_planned()) for name in STUDIES)


def test_the_pages_are_what_the_tables_say():
    assert results_page.find_differences() == []


def test_a_number_that_was_changed_by_hand_and_a_page_without_a_study_are_found(tmp_path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results", ignore=lambda _, names: [
        name for name in names if not name.endswith(".md")
    ])  # fmt: skip
    page = (ROOT / "docs" / "results.md").read_text()
    (tmp_path / "results.md").write_text(re.sub(r"(?<=± )\d\.\d", "99.9", page, count=1))
    (tmp_path / "results" / "unknown.md").write_text("x")
    (tmp_path / "results" / "human_noise.md").unlink()
    assert results_page.find_differences(tmp_path) == ["results/human_noise.md", "results/unknown.md", "results.md"]
