"""The paper's experiments: what a command chooses, what the paper reports for it, and labels for bootstrapping."""

import numpy as np
import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.commands.train import CONF
from sam_runner.paper.rows import rows, target
from sam_runner.reports.results import records
from sam_runner.runs.load import restored
from tests.helpers import TINY, compose_config, invoke, train_tiny

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = (
    "experiment=imagenet_resnet50", "data=synthetic", "data.num_train=96", "data.num_test=16", "data.image_size=16",
    "model=resnet20", "augment=basic", "schedule.warmup_epochs=0", "batch_size=32", "optimizer.m=16", "device=cpu",
)  # fmt: skip


def settings_of_row(*words):
    return plain(compose_config(*words, "data.root=anywhere"))


def test_every_experiment_is_in_a_row():
    """So that `make reproduce-smoke`, which takes steps of every row, takes steps of every experiment."""
    assert {row.words.split()[0].partition("=")[2] for row in rows()} == set(NAMES)


def test_what_is_typed_wins_over_the_experiment():
    settings = settings_of_row(
        "experiment=cifar_wrn28_10", "data=cifar100", "augment=autoaugment", "optimizer=sgd", "epochs=400"
    )
    assert settings["data"]["_target_"].endswith(".cifar100")
    assert (settings["augment"]["policy"], settings["epochs"], settings["optimizer"]["m"]) == ("cifar10", 400, 32)
    assert "rho" not in settings["optimizer"]


def test_an_experiment_of_another_network_is_not_the_first_ones():
    settings = settings_of_row("experiment=cifar_shake_shake")
    assert settings["model"]["_target_"].endswith("ShakeShakeNet")
    assert [settings[key] for key in ("rho", "lr", "weight_decay")] == [0.02, 0.02, 0.001]  # Table 6


def test_the_paper_is_no_part_of_what_a_run_is():
    words = [*TINY, "optimizer=sam"]
    assert fingerprint(compose_config(*words)) == fingerprint(compose_config(*words, "paper=table4"))


@pytest.mark.parametrize(
    ("words", "sam", "sgd"),
    [  # typed from the paper
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
    line = target(settings_of_row(*words))
    assert line.endswith(f": SAM {sam}, SGD {sgd}")


def test_the_paper_reports_one_number_or_none():
    assert target(settings_of_row("experiment=label_noise", "augment=mixup")).endswith(": SGD 93.0")
    assert target(settings_of_row("experiment=ascent_steps", "optimizer.ascent_steps=5")).endswith(": SAM 2.77")
    assert target(settings_of_row("experiment=svhn_wrn28_10", "augment=cutout")) == "no number for this choice"
    for other in ("noise=pair", "data=cifar100"):
        assert target(settings_of_row("experiment=label_noise", other)) == "no number for this choice"
    assert target(settings_of_row("experiment=fashion_wrn28_10", "data=cifar10")) == "no number for this choice"
    assert target(settings_of_row("data=cifar10")) == ""


def test_each_row_of_imagenet_has_both_errors_and_no_other_has():
    for row in rows():
        both = [bool(value) for value in (row.sam_top5, row.sgd_top5)]
        assert both == [row.paper.startswith("table2.")] * 2
        if any(both):  # top-5 errors are about a fourth of top-1 errors
            for first, top5 in ((row.sam, row.sam_top5), (row.sgd, row.sgd_top5)):
                assert 0.2 < float(top5.split("±")[0]) / float(first.split("±")[0]) < 0.3


def test_a_radius_that_the_paper_does_not_use_is_told():
    words = ["experiment=cifar_wrn28_10", "data=cifar100"]
    assert "rho=0.1 here" in target(settings_of_row(*words))
    assert "typed" not in target(settings_of_row(*words, "rho=0.1"))
    assert "typed" not in target(settings_of_row(*words, "optimizer=sgd"))


def test_what_is_typed_beside_a_row_is_told():
    words = ["experiment=label_noise", "noise.rate=0.8", "rho=0.05", "seed=3", "optimizer=sam", "data.root=x"]
    assert target(settings_of_row(*words), words).endswith(": SAM 77.9, SGD 26.2")
    others = ["model=resnet20", "epochs=40"]
    assert target(settings_of_row(*words, *others), [*words, *others]).endswith("; not with model=resnet20 epochs=40")


@pytest.mark.slow
def test_every_row_is_what_its_words_choose():
    for row in rows():
        words = [
            *row.words.split(),
            *row.typed.split(),
            "data.root=anywhere",
            *(["noise.file=some.npy"] if row.labels else []),
        ]
        config = compose_config(*words)
        validate(config, words, multirun=False)
        settings = plain(config)
        assert [other for other in rows() if other.fits(settings)] == [row]
        assert row.untuned(settings) == ""


def test_dry_run_prints_the_papers_number(tmp_path, monkeypatch, capsys):
    words = ["dry_run=true", *SMALL, "epochs=100"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert "ImageNet, top-1 / top-5 test error in %: SAM 22.5±0.1 / 6.28±0.08, SGD 22.9±0.1 / 6.62±0.11" in done.stdout
    assert "; not with data=synthetic" in done.stdout


def test_relabelled_are_the_predictions_in_the_order_of_the_set(tmp_path, monkeypatch, capsys):
    words = ["augment=basic", "data.num_train=90", "lr=0.2", "epochs=8"]  # the last batch is smaller
    folder = train_tiny(tmp_path / "run", *words, "noise=symmetric", "noise.rate=0.2")
    file = tmp_path / "labels.npy"
    done = invoke(monkeypatch, capsys, tmp_path, f"run_dir={folder}", f"relabel={file}", entry=evaluate_command.main)
    assert done.returncode == 0, done.stderr
    written = np.load(file)
    run = restored(folder, "last", as_is=True)
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
    assert restored(again, "last").train.labels.tolist() == written.tolist()


def test_relabel_names_a_file_that_can_be_read_again(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "run_dir=run", "relabel=labels.txt", entry=evaluate_command.main)
    assert done.returncode == 2
    assert "relabel=labels.npy" in done.stderr


def test_two_searches_in_one_sweep_are_refused(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", "search=rho,mixup")
    assert done.returncode == 2
    assert "search=rho,mixup names two searches" in done.stderr


def test_mixups_alpha_is_searched_for_sgd_as_in_the_papers_column():
    words = ["experiment=label_noise", "search=mixup", "data.root=x"]
    assert "rho" not in settings_of_row(*words)["optimizer"]
    assert settings_of_row(*words, "optimizer=sam")["optimizer"]["rho"] == 0.1


@pytest.mark.parametrize(
    ("words", "key", "grid"),
    [
        (["search=rho", "optimizer=sam"], "rho", ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),  # section 3.1
        (["search=mixup"], "mixup", ["1.0", "8.0", "16.0", "32.0"]),  # Table 4
    ],
)
def test_a_search_of_the_paper_is_a_sweep_with_a_held_out_part(words, key, grid, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "epochs=1", *words, "sweep_name=s")
    assert done.returncode == 0, done.stderr
    runs = records([tmp_path])
    assert sorted(str(float(run.settings.get(key, run.settings.get(f"augment.{key}")))) for run in runs) == sorted(grid)
    assert all("validation/accuracy" in run.final for run in runs)
