"""Choice of searched settings: by the validation metric, for each combination of the other settings."""

import itertools
import json
import re
import shlex
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam_runner.commands import report as report_command
from sam_runner.config.hydra.command_line import parse_command_line
from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.reports.aggregate import group_over_seeds
from sam_runner.reports.output.latex import write_narrow_table
from sam_runner.reports.report import make_report
from sam_runner.reports.rerun import final_command
from sam_runner.reports.results import RunRecord, read_runs, results_frame
from sam_runner.reports.selection import choose, split_settings
from sam_runner.utils.errors import InputError
from tests.helpers import config_of, invoke, write_experiment
from tests.run_folders import lay, leave

RADII = (0.02, 0.1)
TYPED = ["optimizer=sgd,sam", "rho=0.02,0.1", "seed=0,1", "noise=symmetric", "noise.rate=0.2,0.4"]


@cache
def composed(*words):
    return config_of(*words)


def lay_search(folder, validation=None, rates=(0.2, 0.4), typed=()):
    """SAM with two radii and SGD on some rates of noise; `validation` is a function of rate and rho, or None."""
    environment = {"command": ["/usr/bin/sam-train", "-m", *TYPED, *typed]}
    arms = [("optimizer=sgd",), *(("optimizer=sam", f"rho={rho}") for rho in RADII)]
    for rate, (rho, words), seed in itertools.product(rates, zip((0, *RADII), arms, strict=True), range(2)):
        final = {"validation/accuracy": validation(rate, rho) + seed / 100} if validation else {}
        words = (*words, "noise=symmetric", f"noise.rate={rate}", *(["data.val_fraction=0.1"] if validation else []))
        config = replace(composed(*words), seed=seed)
        leave(folder / f"{rate}-{rho}-{seed}", config, accuracy=0.5 + rho + seed / 50, environment=environment, **final)
    return folder


def small_at_low_noise(rate, rho):
    return {(0.2, 0.02): 0.9, (0.2, 0.1): 0.8, (0.4, 0.02): 0.6, (0.4, 0.1): 0.7}.get((rate, rho), 0.5)


def test_each_group_has_the_value_with_the_best_validation_metric(tmp_path):
    report = make_report(
        [lay_search(tmp_path / "s", small_at_low_noise)], select=["rho"], by=["optimizer", "noise.rate"]
    )
    table = report.choice_table
    rows = table[["optimizer", "noise.rate", "chosen rho", "values searched", "chosen by"]].to_numpy().tolist()
    assert sorted(rows) == [
        ["sam", "0.2", "0.02", "2", "validation/accuracy"],
        ["sam", "0.4", "0.1", "2", "validation/accuracy"],
        ["sgd", "0.2", "-", "1", "one value"],
        ["sgd", "0.4", "-", "1", "one value"],
    ]
    chosen = table[(table["optimizer"] == "sam") & (table["noise.rate"] == "0.2")].iloc[0]
    assert chosen["validation/accuracy"] == "0.9050"
    assert chosen["test/accuracy"] == f"{0.5 + 0.02 + 0.01:.4f}"
    assert chosen["n"] == "2"
    assert chosen["difference to sgd"] == "+0.0200 ± 0.0000"
    assert "optimistic" not in report.to_text()


def test_the_cost_of_a_search_is_that_of_all_its_runs(tmp_path):
    for name, rho, seed in (("sgd", 0, 0), ("sgd", 0, 1), *itertools.product(["sam"], (0.1, 0.2), (0, 1))):
        words = (f"optimizer={name}", *([f"rho={rho}"] if rho else []), f"seed={seed}", "data.val_fraction=0.1")
        steps = 1000 if rho < 0.2 else 500  # another rho stopped early
        result = {"gradient_evaluations": steps * (2 if rho else 1), "training_seconds": steps / 100}
        leave(tmp_path / f"{name}{rho}{seed}", config_of(*words), accuracy=0.5 + rho, result=result,
              **{"validation/accuracy": 0.9 - rho})  # fmt: skip
    report = make_report([tmp_path], select=["rho"], by=["optimizer"])
    sentence = "Searching rho for sam took 4 runs and 6,000 gradient evaluations (30 s of training), 1.5 times as"
    assert [text.startswith(sentence) for text in report.findings] == [False, False, True]


@pytest.mark.parametrize("by", [["noise.rate", "optimizer"], ["optimizer", "noise.rate"]])
def test_the_rows_have_the_order_of_the_settings_that_are_named(by, tmp_path):
    table = make_report([lay_search(tmp_path / "s", small_at_low_noise)], select=["rho"], by=by).choice_table
    values = {"noise.rate": ["0.2", "0.4"], "optimizer": ["sgd", "sam"]}
    assert list(zip(*(table[name] for name in by), strict=True)) == list(itertools.product(*(values[n] for n in by)))


@pytest.mark.parametrize(("seeds", "is_said"), [(1, False), (2, True), (3, False)])
def test_wide_intervals_of_two_seeds_are_explained(seeds, is_said, tmp_path):
    for seed in range(seeds):
        leave(tmp_path / f"{seed}", replace(composed("optimizer=sam"), seed=seed), accuracy=0.5 + seed / 50)
    text = make_report([tmp_path]).to_text()
    assert ("With n = 2 an interval is 3.6 times as wide as with n = 3" in text) == is_said


def test_equal_values_are_named_and_are_no_reason_to_search_further(tmp_path):
    for rho in (0.02, 0.05, 0.1, 0.2):
        for folder, best in (("all", 0.7), ("two", 0.9 if rho < 0.1 else 0.7)):
            config = composed("optimizer=sam", f"rho={rho}", "data.val_fraction=0.1")
            leave(tmp_path / folder / f"{rho}", config, accuracy=0.5, **{"validation/accuracy": best})
    all_equal, two_equal = (make_report([tmp_path / folder]).to_text() for folder in ("all", "two"))
    assert "(rho chosen from 4 values by validation/accuracy; 4 of them are equally good)" in all_equal
    assert "at the edge" not in all_equal
    assert "; 2 of them are equally good)" in two_equal
    assert "The chosen rho is at the edge of the values searched" in two_equal


@pytest.mark.parametrize(
    ("metric", "compared", "said"),
    [
        ("validation/accuracy", "test/accuracy", "by validation/accuracy)"),
        ("validation/nll", "test/accuracy", "by validation/accuracy, not by early_stopping.metric=validation/nll)"),
        ("validation/nll", "test/nll", "by validation/nll)"),
    ],
)
def test_a_choice_by_another_metric_than_that_of_early_stopping_is_named(metric, compared, said, tmp_path):
    for rho in (0.1, 0.2):
        config = composed("optimizer=sam", f"rho={rho}", "data.val_fraction=0.1", f"early_stopping.metric={metric}")
        values = {"validation/accuracy": rho, "validation/nll": rho}
        leave(tmp_path / f"{rho}", config, accuracy=0.5, **values)
    assert f"(rho chosen from 2 values {said}" in make_report([tmp_path], metric=compared).to_text()


@pytest.mark.parametrize(("best", "beyond"), [(0.4, 0.8), (0.1, 0.05), (0.2, None)])
def test_a_value_at_the_edge_has_a_command_with_the_next_one(tmp_path, best, beyond):
    typed = {"command": ["sam-train", "-m", "optimizer=sam", "rho=0.1,0.2,0.4", "data.val_fraction=0.1", "seed=0,1"]}
    for rho, seed in itertools.product((0.1, 0.2, 0.4), (0, 1)):
        config = composed("optimizer=sam", f"rho={rho}", f"seed={seed}", "data.val_fraction=0.1")
        leave(tmp_path / "s" / f"{rho}-{seed}", config, environment=typed, accuracy=0.5,
              **{"validation/accuracy": 0.9 if rho == best else 0.7})  # fmt: skip
    found = [command for purpose, command in make_report([tmp_path / "s"]).next_commands if "at the edge" in purpose]
    words = f"sam-train -m optimizer=sam rho={beyond} data.val_fraction=0.1 seed=0,1 sweep_name=s"
    assert found == ([] if beyond is None else [words])


def test_a_baseline_that_names_a_searched_setting_is_that_of_the_chosen_groups(tmp_path):
    report = make_report(
        [lay_search(tmp_path / "s", small_at_low_noise, rates=(0.4,))], baseline="optimizer=sam,rho=0.02"
    )
    assert list(report.choice_table["difference to sam rho=0.02"]) == ["-0.0200 ± 0.0000", "+0.0800 ± 0.0000"]
    assert r"& $+$8.00 $\pm$ 0.00 &" in write_narrow_table(report)


def test_the_next_value_is_beyond_the_edge_also_where_another_setting_has_no_value(tmp_path):
    for m, rho in itertools.product(("null", 16), (0.1, 0.2, 0.4)):
        config = composed("optimizer=sam", f"rho={rho}", f"optimizer.m={m}", "data.val_fraction=0.1")
        leave(tmp_path / "s" / f"{m}-{rho}", config, accuracy=0.5, **{"validation/accuracy": rho})
    found = [purpose for purpose, _ in make_report([tmp_path / "s"]).next_commands if "at the edge" in purpose]
    assert [purpose.partition(": ")[2] for purpose in found] == ["try rho 0.8"] * 2


def test_the_next_value_is_beyond_those_of_its_own_method(tmp_path):
    for name, values in (("sam", (0.1, 0.2, 0.4)), ("asam", (1.0, 2.0, 4.0))):
        for rho in values:
            config = composed(f"optimizer={name}", f"rho={rho}", "data.val_fraction=0.1")
            leave(tmp_path / "s" / f"{name}{rho}", config, accuracy=0.5, **{"validation/accuracy": rho})
    purposes = [text for text, _ in make_report([tmp_path / "s"]).next_commands if "at the edge" in text]
    assert {text.rpartition("try ")[2] for text in purposes} == {"rho 0.8", "rho 8"}


@pytest.mark.parametrize("chosen", [0.9, 0.0])
def test_a_value_at_the_end_of_its_range_has_no_next_one(tmp_path, chosen):
    for smoothing in (0.0, 0.5, 0.9):
        config = composed(f"label_smoothing={smoothing}", "data.val_fraction=0.1")
        leave(tmp_path / "s" / f"{smoothing}", config, accuracy=0.5,
              **{"validation/accuracy": 0.9 if smoothing == chosen else 0.7})  # fmt: skip
    report = make_report([tmp_path / "s"], select=["label_smoothing"])
    assert report.choices[0].at_edge == ("label_smoothing",)
    assert not [purpose for purpose, _ in report.next_commands if "at the edge" in purpose]


def test_without_held_out_data_the_choice_is_called_optimistic_in_the_table_and_beside_it(tmp_path):
    report = make_report([lay_search(tmp_path / "s", rates=(0.4,))])
    assert list(report.choice_table["chosen by"]) == ["one value", "test/accuracy (optimistic)"]
    for text in (report.to_text(), report.to_markdown()):
        assert "Selected on the test set, so optimistic." in text
        assert "by test/accuracy, which is optimistic" in text
    assert [command for _, command in report.next_commands] == [f"sam-train -m {' '.join(TYPED)} data.val_fraction=0.1"]
    validated = lay_search(tmp_path / "v", small_at_low_noise, rates=(0.4,))
    commands = dict(make_report([validated], "validation/accuracy").next_commands)
    assert "choose on held-out images instead" not in commands
    for file in (tmp_path / "s").glob("*/environment.json"):  # the command is not known
        file.write_text("{}")
    assert make_report([tmp_path / "s"]).next_commands == []


def lay_seeds(folder, seeds, words=("data.val_fraction=0.1",), score="validation/accuracy"):
    """SAM with a larger rho better on each seed, and later seeds much better; `seeds` are those of each rho."""
    for rho, own_seeds in seeds.items():
        for seed in own_seeds:
            config = replace(composed("optimizer=sam", f"rho={rho}", *words), seed=seed)
            environment = {"command": ["sam-train", "-m", "optimizer=sam", "rho=0.02,0.05,0.1", *words]}
            final = {score: 0.5 + seed / 10 + rho}
            leave(folder / f"{rho}-{seed}", config, accuracy=0.5 + seed / 100, environment=environment, **final)
    return make_report([folder])


def test_a_value_that_lacks_seeds_is_not_chosen_but_named(tmp_path):
    report = lay_seeds(tmp_path / "s", {0.02: [3], 0.05: range(4), 0.1: range(4)})
    assert list(report.choice_table["chosen rho"]) == ["0.1"]
    text = report.to_text()
    assert "(rho chosen from 3 values by validation/accuracy on seeds 0 1 2 3)" in text
    assert "The values of rho have different seeds: compared on seeds 0 1 2 3, which most of them have." in text
    assert "Not chosen, because seeds are missing: rho 0.02. Run the missing seeds, unless they have diverged." in text
    values = "3 values on the seeds that most values have (1 left out: seeds are missing)."
    narrow = write_narrow_table(report)
    assert f"has the best validation/accuracy of {values}" in narrow and "over $n$ = 4 seeds" in narrow
    equal = lay_seeds(tmp_path / "equal", {0.05: range(2), 0.1: range(2)}).to_text()
    assert "(rho chosen from 2 values by validation/accuracy)" in equal and "different seeds" not in equal


@pytest.mark.parametrize("words", [(), ("early_stopping.patience=2",)])
def test_further_seeds_of_one_value_do_not_count_in_a_choice(words, tmp_path):
    report = lay_seeds(tmp_path / "s", {0.02: range(5), 0.1: range(2)}, ("data.val_fraction=0.1", *words))
    assert list(report.choice_table["chosen rho"]) == ["0.1"]
    assert "on seeds 0 1)" in report.to_text() and "Not chosen" not in report.to_text()
    (final,) = [command for purpose, command in report.next_commands if purpose.startswith("final runs")]
    assert " seed=0,1,2,3,4 " in final  # the seeds of the whole search


def test_values_without_seeds_in_common_are_told(tmp_path):
    report = lay_seeds(tmp_path / "s", {0.02: [2, 3], 0.1: [0, 1]})
    assert "(rho chosen from 2 values by validation/accuracy on different seeds)" in report.to_text()
    assert "too few in common, so the choice compares means over different seeds: run the missing" in report.to_text()


def test_averaged_weights_are_chosen_on_held_out_images(tmp_path):
    words = ("ema_decay=0.9", "data.val_fraction=0.1")
    lay_seeds(tmp_path / "s", {0.02: range(2), 0.1: range(2)}, words, "validation_ema/accuracy")
    for result in (tmp_path / "s").glob("*/result.json"):
        content = json.loads(result.read_text())
        content["final"]["test_ema/accuracy"] = 1 - content["final"]["validation_ema/accuracy"]
        result.write_text(json.dumps(content))
    report = make_report([tmp_path / "s"], "test_ema/accuracy")
    assert list(report.choice_table["chosen rho"]) == ["0.1"]
    assert list(report.choice_table["chosen by"]) == ["validation_ema/accuracy"]
    assert "accuracy of the averaged weights on the held-out images" in report.to_text()
    assert [purpose.partition(" of ")[0] for purpose, _ in report.next_commands] == ["final runs"]


@pytest.mark.parametrize("metric", ["test/accuracy", "test_ema/accuracy"])
def test_a_choice_on_the_test_set_is_called_so_also_for_averaged_weights(metric, tmp_path):
    for rho in (0.02, 0.1):
        lay(tmp_path / str(rho), rho=rho, final={"test_ema/accuracy": rho})
    assert "Selected on the test set, so optimistic." in make_report([tmp_path], metric).to_text()


def test_a_metric_without_a_direction_chooses_nothing(tmp_path):
    sharpness = {"optimizer=sgd": (7.0, 8.0, 9.5), "rho=0.02": (3.0, 4.1, 5.2), "rho=0.1": (1.0, 2.1, 3.3)}
    for words, values in sharpness.items():
        for seed, value in enumerate(values):
            config = replace(composed(*(["optimizer=sam"] if "rho" in words else []), words), seed=seed)
            leave(tmp_path / f"{words}{seed}", config, accuracy=0.5, **{"telemetry/lambda_max": value})
    report = make_report([tmp_path], "telemetry/lambda_max")
    assert report.choice_table.empty and not report.best
    text = report.to_text()
    assert "No value of telemetry/lambda_max is better than another: no setting is chosen by it" in text
    assert "so sam, rho 0.1 is significantly lower." in text
    assert not re.search(r"[*]|significantly (better|worse)", text)
    with pytest.raises(InputError, match=r"(?s)telemetry/lambda_max is better.*by one of: test/accuracy, test/nll$"):
        make_report([tmp_path], "telemetry/lambda_max", select=["rho"])


EIGHTHS = st.integers(0, 8).map(lambda number: number / 8)  # sums without rounding
RUN = st.tuples(st.sampled_from([16, 32]), st.sampled_from([0.1, 0.2, 0.4]), st.integers(0, 3), EIGHTHS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RUN, min_size=1, max_size=8))
def test_the_choice_is_the_largest_mean_of_a_loop_over_all_runs(rows):
    base = composed("optimizer=sam")
    scores = {}
    for size, rho, seed, validation in rows:
        scores.setdefault(size, {}).setdefault(rho, {})[seed] = validation
    records = [
        RunRecord(f"{size}-{rho}-{seed}", "finished",
                  replace(base, batch_size=size, seed=seed, optimizer=replace(base.optimizer, rho=rho)),
                  {"final": {"validation/accuracy": value, "test/accuracy": 1 - value}}, {}, {})
        for size, by_rho in scores.items() for rho, values in by_rho.items() for seed, value in values.items()
    ]  # fmt: skip
    runs = group_over_seeds(results_frame(records))
    choices = choose(runs, "test/accuracy", ["rho"], ["batch_size"])
    assert {choice.settings["batch_size"] for choice in choices} == scores.keys()
    for choice in choices:
        by_rho = scores[choice.settings["batch_size"]]
        seeds = [seed for seed in range(4) if 2 * sum(seed in values for values in by_rho.values()) > len(by_rho)]
        complete = [rho for rho, values in by_rho.items() if seeds and values.keys() >= {*seeds}]
        counted = {rho: [by_rho[rho][seed] for seed in seeds] for rho in complete}
        counted = counted or {rho: list(values.values()) for rho, values in by_rho.items()}
        means = {rho: sum(values) / len(values) for rho, values in counted.items()}
        rho = runs.loc[runs["group"] == choice.group, "rho"].iloc[0]
        assert means[rho] == pytest.approx(max(means.values()))
        assert (choice.num_values, choice.metric) == (len(by_rho), "validation/accuracy")
        assert (choice.seeds, len(choice.left_out)) == (tuple(seeds if complete else ()), len(by_rho) - len(means))
        num_best = list(means.values()).count(max(means.values()))
        is_at_edge = len(by_rho) > 2 and len(means) > num_best and rho in (min(by_rho), max(by_rho))
        assert choice.num_best == num_best
        assert choice.at_edge == (("rho",) if is_at_edge else ())


@pytest.mark.parametrize(
    ("select", "by", "message"),
    [
        (["lr"], None, "the runs do not differ in lr\n  accepted: optimizer, rho"),
        (["rho"], ["colour"], "no run has this setting"),
        (["seed"], None, "seed: runs that differ in the seed only are averaged"),
        (["rho"], ["optimizer", "seed"], "seed: runs that differ in the seed only are averaged"),
        (["rho"], [], "also differ in optimizer\n  add it to one of them: --by optimizer"),
    ],
)
def test_settings_that_do_not_fit_the_runs_are_refused(select, by, message):
    with pytest.raises(InputError, match=message):
        split_settings(["optimizer", "rho"], select, by, ["optimizer", "rho", "lr"])


def test_hyperparameters_are_searched_and_other_settings_compared_where_nothing_is_given():
    assert split_settings(["optimizer", "rho", "lr", "epochs"], None, None, []) == (
        ["rho", "lr"],
        ["optimizer", "epochs"],
    )
    assert split_settings(["optimizer", "rho"], None, ["optimizer", "rho"], ["optimizer", "rho"])[0] == []


def test_the_commands_of_the_final_runs_compose_to_the_chosen_settings_on_all_images(tmp_path):
    report = make_report(
        [lay_search(tmp_path / "s", small_at_low_noise, typed=["data.val_fraction=0.1", "search=rho"])]
    )
    assert len(report.next_commands) == 4
    chosen = {(r.config.optimizer.name, r.config.noise.rate): r.config for r in read_runs([tmp_path])}
    for _, command in report.next_commands:
        program, flag, *words = command.split()
        assert (program, flag) == ("sam-train", "-m")
        assert {"seed=0,1,2", "sweep_name=s-final"} <= {*words}
        config = compose_experiment([word for word in words if not word.startswith(("seed=", "sweep_name="))])
        assert config.data.val_fraction == 0
        assert (config.optimizer.name, config.noise.rate) in chosen
        if config.optimizer.name == "sam":
            assert config.optimizer.rho == {0.2: 0.02, 0.4: 0.1}[config.noise.rate]


def test_a_command_that_would_not_give_the_settings_again_reads_them_from_the_run(tmp_path):
    folder = lay_search(tmp_path / "s", small_at_low_noise, rates=(0.4,), typed=["model=resnet20"])  # not of the runs
    commands = [command for _, command in make_report([folder]).next_commands]
    assert [command.rpartition("sweep_name=")[2] for command in commands] == ["s-final"] * 2
    for command in commands:
        assert f"config={folder}" in command
        assert " data.val_fraction=0 " in command


def test_a_command_names_the_folder_of_own_options_that_the_runs_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write_experiment(tmp_path, "# @package _global_\nlr: 0.125\n")
    config = compose_experiment(["experiment=own", "data.val_fraction=0.1"], config_dir="mine")
    words = ["sam-train", "-m", "-cd=mine", "experiment=own", "seed=0,1", "data.val_fraction=0.1"]
    folder = leave(
        tmp_path / "run", config, accuracy=0.9, environment={"command": words, "folder": str(tmp_path.resolve())}
    )
    (record,) = read_runs([folder])
    end = "experiment=own seed=4,5 sweep_name=last"
    assert final_command(record, [4, 5], "last") == f"sam-train -m --config-dir mine {end}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    elsewhere = final_command(record, [4, 5], "last")
    assert elsewhere == f"sam-train -m --config-dir {tmp_path.resolve()}/mine {end}"
    line = parse_command_line(shlex.split(elsewhere)[1:])
    assert compose_experiment(line.overrides[:1], config_dir=line.config_dir).lr == 0.125
    own.unlink()
    assert f"config={folder}" in final_command(record, [4, 5], "last")


def test_a_run_of_saved_settings_is_repeated_from_its_own(tmp_path):
    folder = lay(tmp_path / "run", environment={"command": ["sam-train", "config=outputs/runs/x", "seed=1"]})
    (record,) = read_runs([folder])
    assert f"config={folder} " in final_command(record, [4], "last")


def test_the_command_line_chooses_and_writes_the_tables(tmp_path, monkeypatch, capsys):
    folder = lay_search(tmp_path / "s", small_at_low_noise, rates=(0.4,))
    words = (folder, "--select", "rho", "--by", "optimizer,noise.rate", "--baseline", "optimizer=sgd")
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=report_command.main)
    assert done.returncode == 0, done.stderr
    assert "chosen rho" in done.stdout
    assert r"$\rho$ has the best validation/accuracy of 2 values." in (folder / "report.tex").read_text()
    assert "validation/accuracy" in (folder / "report-full.tex").read_text()
    assert "chosen rho" in (folder / "report.md").read_text()


def test_a_loss_is_chosen_by_its_smallest_value(tmp_path):
    for rho, loss in ((0.02, 0.5), (0.1, 0.3)):
        lay(tmp_path / str(rho), rho=rho, final={"validation/nll": loss}, accuracy=1 - rho)
    report = make_report([tmp_path], "test/nll")
    assert list(report.choice_table["chosen rho"]) == ["0.1"]
    assert list(report.choice_table["chosen by"]) == ["validation/nll"]


@pytest.mark.parametrize(("name", "base"), [("adamw", "adamw"), ("none", "sgd")])
def test_runs_of_the_base_optimizer_alone_are_the_default_baseline(name, base, tmp_path):
    accuracies = {f"optimizer={name}": (0.5, 0.6), "optimizer=sam": (0.7, 0.9)}
    for words, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            config = replace(config_of(words, f"optimizer/base={base}", "lr=0.01"), seed=seed)
            leave(tmp_path / f"{words}-{seed}", config, accuracy=accuracy)
    ((_, difference),) = make_report([tmp_path]).differences.values()
    assert difference.mean == pytest.approx(0.25)


def test_a_chosen_setting_that_is_not_the_one_of_the_baseline_is_no_missing_baseline(tmp_path):
    arms = [("sgd", 0.05), ("sgd", 0.1), ("sam", 0.1), ("sam", 0.2)]
    for (optimizer, lr), seed in itertools.product(arms, range(2)):
        config = replace(composed(f"optimizer={optimizer}", f"lr={lr}", "data.val_fraction=0.1"), seed=seed)
        numbers = {"accuracy": 0.5 + lr + seed / 100, "validation/accuracy": 0.5 + lr}
        leave(tmp_path / f"{optimizer}-{lr}-{seed}", config, **numbers)
    report = make_report([tmp_path], select=["lr"])
    assert len(report.choices) == 2 and report.choice_differences
    assert not [line for line in report.remarks if "has no difference" in line]
