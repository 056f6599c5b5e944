"""The paper's experiments: settings of each command, the paper's number for it, and labels for bootstrapping."""

import numpy as np
import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.commands.train import CONF
from sam_runner.config.hydra.compose import compose_example
from sam_runner.paper.rows import describe_target, load_rows
from sam_runner.reports.results import load_results
from sam_runner.runs.load import restore_run
from tests.helpers import TINY, config_of, invoke, job_config, train_tiny

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = (
    "experiment=imagenet_resnet50", "data=synthetic", "data.num_train=96", "data.num_test=16", "data.image_size=16",
    "model=resnet20", "augment=basic", "schedule.warmup_epochs=0", "batch_size=32", "optimizer.m=16", "device=cpu",
)  # fmt: skip


def example(*overrides):
    return compose_example([*overrides, "data.root=anywhere"])


def target(*overrides):
    """What a plan says about the paper."""
    return describe_target(example(*overrides))


def test_every_experiment_is_in_a_row():
    """Every experiment has a row, so `make reproduce-smoke`, which takes steps of every row, takes steps of each.

    The experiment with EfficientNet-Lite0 is ours; scripts/studies/evidence.py runs it.
    """
    in_rows = {row.overrides.split()[0].partition("=")[2] for row in load_rows()}
    assert in_rows | {"finetune_efficientnet_lite0"} == set(EXPERIMENTS)


def test_overrides_win_over_the_experiment():
    config = example("experiment=cifar_wrn28_10", "data=cifar100", "augment=autoaugment", "optimizer=sgd", "epochs=400")
    assert config.data.target.endswith(".cifar100")
    assert (config.augment.policy, config.epochs, config.optimizer.m) == ("cifar10", 400, 32)
    assert not hasattr(config.optimizer, "rho")


def test_experiments_of_other_networks_have_settings_of_their_own():
    config = example("experiment=cifar_shake_shake")
    assert config.model.target.endswith("ShakeShakeNet")
    assert [config.optimizer.rho, config.lr, config.weight_decay] == [0.02, 0.02, 0.001]  # Table 6


def test_the_key_paper_is_not_part_of_the_fingerprint():
    words = [*TINY, "optimizer=sam"]
    assert config_of(*words).fingerprint() == config_of(*words, "paper=table4").fingerprint()


@pytest.mark.parametrize(
    ("words", "sam", "sgd"),
    [  # copied from the paper by hand
        (["experiment=cifar_wrn28_10"], "2.7±0.1", "3.5±0.1"),
        (["experiment=cifar_wrn28_10_1800", "augment=autoaugment", "data=cifar100", "rho=0.1"], "12.8±0.2", "16.1±0.2"),
        (["experiment=cifar_pyramidnet", "augment=cutout"], "1.9±0.1", "2.5±0.1"),
        (["experiment=imagenet_resnet50", "epochs=100"], "22.5±0.1 / 6.28±0.08", "22.9±0.1 / 6.62±0.11"),
        (["experiment=imagenet_resnet101", "epochs=200"], "19.4±0.1 / 4.76±0.03", "20.9±0.1 / 5.66±0.04"),
        (["experiment=imagenet_resnet152", "epochs=400"], "18.4±<0.01 / 4.35±0.04", "20.9±<0.0 / 5.84±0.07"),
        (["experiment=finetune_efficientnet_b7", "data.image_size=600", "paper=table3.cars"], "5.57", "5.94"),
        (["experiment=label_noise", "noise.rate=0.8", "rho=0.05"], "77.9", "26.2"),
        (["experiment=fashion_shake_shake", "augment=cutout"], "3.59", "3.76"),
        (["experiment=svhn_shake_shake", "augment=autoaugment", "augment.policy=svhn"], "1.07", "1.03"),
    ],
)
def test_the_paper_reports(words, sam, sgd):
    assert target(*words).endswith(f": SAM {sam}, SGD {sgd}")


def test_the_paper_reports_one_number_or_none():
    assert target("experiment=label_noise", "augment=mixup").endswith(": SGD 93.0")
    assert target("experiment=ascent_steps", "optimizer.ascent_steps=5").endswith(": SAM 2.77")
    assert target("data=cifar10") == ""


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["experiment=svhn_wrn28_10", "augment=cutout"], "row uses augment=basic"),
        (["experiment=label_noise", "noise=pair"], "rows use noise.rate=0.2 noise=symmetric, or noise.rate=0.4 noise"),
        (["experiment=label_noise", "data=cifar100"], "row uses data=cifar10"),
        (["experiment=fashion_wrn28_10", "data=cifar10"], "row uses data=fashion_mnist"),
        (["experiment=finetune_efficientnet_b7", "paper=table3.pets"], "row uses data.image_size=600"),
        (["experiment=imagenet_resnet50", "epochs=90"], "rows use epochs=100, or epochs=200, or epochs=400"),
    ],
)
def test_without_a_number_the_nearest_rows_of_the_table_are_named(words, nearest):
    assert target(*words).startswith(f"no number for these settings; the nearest {nearest}")


def test_a_name_of_no_row_is_named():
    assert target("experiment=label_noise", "paper=table9").endswith("; no row of the tables is named table9")


def test_each_row_of_imagenet_has_both_errors_and_no_other_has():
    for row in load_rows():
        both = [bool(value) for value in (row.sam_top5, row.sgd_top5)]
        assert both == [row.paper.startswith("table2.")] * 2
        if any(both):  # top-5 errors are about a fourth of top-1 errors
            for first, top5 in ((row.sam, row.sam_top5), (row.sgd, row.sgd_top5)):
                assert 0.2 < float(top5.split("±")[0]) / float(first.split("±")[0]) < 0.3


def test_a_rho_other_than_the_papers_is_named():
    words = ["experiment=cifar_wrn28_10", "data=cifar100"]
    assert target(*words).endswith("; the row uses rho=0.1: add it to the command")
    assert "the row uses" not in target(*words, "rho=0.1")
    assert "the row uses" not in target(*words, "optimizer=sgd")


def test_overrides_that_the_row_does_not_have_are_named():
    words = ["experiment=label_noise", "noise.rate=0.8", "rho=0.05", "seed=3", "optimizer=sam", "data.root=x"]
    assert describe_target(example(*words), words).endswith(": SAM 77.9, SGD 26.2")
    words += ["model=resnet20", "epochs=40"]
    assert describe_target(example(*words), words).endswith("; the row does not use model=resnet20 epochs=40")


@pytest.mark.slow
def test_the_command_of_every_row_is_valid_and_matches_only_this_row():
    rows = load_rows()
    for row in rows:
        files = ["data.root=anywhere", *(["noise.file=some.npy"] if row.teacher else [])]
        config = config_of(*row.overrides.split(), *row.tuned_overrides.split(), *files)
        assert [other for other in rows if other.matches(config)] == [row]
        assert row.tuning_differences(config) == ""


def test_dry_run_prints_the_papers_number(tmp_path, monkeypatch, capsys):
    words = ["dry_run=true", *SMALL, "epochs=100"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert "ImageNet, top-1 / top-5 test error in %: SAM 22.5±0.1 / 6.28±0.08, SGD 22.9±0.1 / 6.62±0.11" in done.stdout
    assert "; the row does not use data=synthetic" in done.stdout


def test_relabelled_are_the_predictions_in_the_order_of_the_set(tmp_path, monkeypatch, capsys):
    words = ["augment=basic", "data.num_train=90", "lr=0.2", "epochs=8"]  # the last batch is smaller
    folder = train_tiny(tmp_path / "run", *words, "noise=symmetric", "noise.rate=0.2")
    file = tmp_path / "labels.npy"
    done = invoke(monkeypatch, capsys, tmp_path, folder, "--relabel", file, entry=evaluate_command.main)
    assert done.returncode == 0, done.stderr
    written = np.load(file)
    run = restore_run(folder, "last", plain_training_set=True)
    images = torch.empty(90, *run.train.shape)
    for examples in run.train.epoch(3):  # another order
        images[examples.indices] = examples.images
    run.model.eval()
    with torch.inference_mode():
        expected = torch.cat([run.model(image[None]).argmax(1) for image in images])  # one at a time
    assert written.dtype == np.int64
    assert written.tolist() == expected.tolist()
    assert len(set(written.tolist())) > 1
    changed = int((expected != run.train.labels).sum())
    assert f"{changed} of 90 training labels changed" in done.stdout
    again = train_tiny(tmp_path / "again", *words, "noise=relabelled", f"noise.file={file}")
    assert restore_run(again, "last").train.labels.tolist() == written.tolist()


def test_relabel_names_a_file_that_can_be_read_again(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "run", "--relabel", "labels.txt", entry=evaluate_command.main)
    assert done.returncode == 2
    assert "--relabel labels.npy" in done.stderr


def test_two_searches_in_one_sweep_are_refused(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", "search=rho,mixup")
    assert done.returncode == 2
    assert "search=rho,mixup names two searches" in done.stderr


def test_mixups_alpha_is_searched_for_sgd_as_in_the_papers_column():
    words = ["experiment=label_noise", "search=mixup", "data.root=x"]
    assert job_config(*words).optimizer.name == "sgd"
    assert job_config(*words, "optimizer=sam").optimizer.rho == 0.1


@pytest.mark.parametrize(
    ("words", "key", "grid"),
    [
        (["search=rho", "optimizer=sam"], "rho", ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),  # section 3.1
        (["search=mixup"], "augment.mixup", ["1.0", "8.0", "16.0", "32.0"]),  # Table 4
    ],
)
def test_a_search_of_the_paper_is_a_sweep_with_a_held_out_part(words, key, grid, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "epochs=1", *words, "sweep_name=s")
    assert done.returncode == 0, done.stderr
    results = load_results([tmp_path])
    assert sorted(map(str, results[key])) == sorted(grid)
    assert results["validation/accuracy"].notna().all()
