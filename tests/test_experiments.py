"""The paper's experiments: what a command chooses, what the paper reports for it, and labels for bootstrapping."""

import re

import numpy as np
import pytest
import torch

from sam_runner import cli
from sam_runner.cli import CONF
from sam_runner.config import fingerprint, plain, validate
from sam_runner.evaluation import restored
from sam_runner.paper import rows, target
from tests.commands import TINY, compose_config, invoke, train

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALLER = {  # a smaller network of the same kind, by the experiment's name
    r".*shake_shake": ["model.depth=8", "model.width=4"],
    r".*pyramidnet.*": ["model.depth=11", "model.alpha=9"],
    r"imagenet.*": ["model=resnet20", "augment=basic", "schedule.warmup_epochs=0"],
    r"finetune.*": ["model=resnet20", "augment=basic", "lr=0.0001"],  # frozen statistics are meant for trained weights
    r"label_noise": ["model.depth=8", "model.width=4"],
    r"m_sharpness": ["model.depth=8"],
    r".*": ["model.depth=10", "model.widen_factor=1"],
}
SETS = ["data=synthetic", "data.num_train=96", "data.num_test=16", "data.image_size=16"]


def smaller(name):
    network = next(words for pattern, words in SMALLER.items() if re.fullmatch(pattern, name))
    return [*SETS, *network, f"experiment={name}", "debug=fast", "batch_size=32", "optimizer.m=16", "device=cpu"]


def settings_of_row(*words):
    return plain(compose_config(*words, "data.root=anywhere"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sam", "sgd"])
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains_three_steps(name, optimizer, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *smaller(name), f"optimizer={optimizer}", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert '"step": 3,' in (tmp_path / "run" / "result.json").read_text()


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
        (["experiment=imagenet_resnet152", "epochs=400"], "18.4±<0.01", "20.9±<0.0"),
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


def test_a_radius_that_the_paper_does_not_use_is_told():
    words = ["experiment=cifar_wrn28_10", "data=cifar100"]
    assert "rho=0.1 here" in target(settings_of_row(*words))
    assert "typed" not in target(settings_of_row(*words, "rho=0.1"))
    assert "typed" not in target(settings_of_row(*words, "optimizer=sgd"))


@pytest.mark.slow
def test_every_row_is_what_its_words_choose():
    for row in rows():
        words = [*row.words.split(), *row.typed.split(), "data.root=anywhere"]
        config = compose_config(*words)
        validate(config, words, multirun=False)
        settings = plain(config)
        assert [other for other in rows() if other.fits(settings)] == [row]
        assert row.untuned(settings) == ""


def test_dry_run_prints_the_papers_number(tmp_path, monkeypatch, capsys):
    words = ["dry_run=true", *smaller("imagenet_resnet50"), "epochs=100"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert "ImageNet, top-1 test error in %: SAM 22.5±0.1, SGD 22.9±0.1" in done.stdout


def test_relabelled_are_the_predictions_in_the_order_of_the_set(tmp_path, monkeypatch, capsys):
    words = ["augment=basic", "data.num_train=90", "lr=0.2", "epochs=8"]  # the last batch is smaller
    folder = train(tmp_path / "run", *words, "noise=symmetric", "noise.rate=0.2")
    file = tmp_path / "labels.npy"
    done = invoke(monkeypatch, capsys, tmp_path, f"run_dir={folder}", f"relabel={file}", entry=cli.evaluate)
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
    again = train(tmp_path / "again", *words, "noise=relabelled", f"noise.file={file}")
    assert restored(again, "last").train.labels.tolist() == written.tolist()


def test_relabel_names_a_file_that_can_be_read_again(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "run_dir=run", "relabel=labels.txt", entry=cli.evaluate)
    assert done.returncode == 2
    assert "relabel=labels.npy" in done.stderr
