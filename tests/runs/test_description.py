"""The settings that the user chose and the facts of a run, for TensorBoard."""

import pytest

from sam_runner.runs.description import chosen_settings, swept_settings
from tests.helpers import config_of, train_tiny
from tests.runs.test_logging import read_events, read_hparams


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("optimizer=sam", "rho=0.1", "seed=3"), {"optimizer": "sam", "rho": 0.1, "seed": 3}),
        (("optimizer=sam", "lr=0.2", "optimizer.p=inf"), {"optimizer": "sam", "lr": 0.2, "optimizer.p": float("inf")}),
        (("noise=symmetric", "noise.rate=0.4"), {"noise": "symmetric", "noise.rate": 0.4}),
        (("grad_clip=null",), {"grad_clip": "None"}),
        (("run_dir=x", "device=cpu", "checkpoint.keep=3", "epochs=2"), {"epochs": 2}),
        (("data=cifar10", "data.root=x", "augment=basic"), {"data": "cifar10", "augment": "basic"}),
    ],
)  # fmt: skip
def test_settings_that_were_typed_and_change_numbers_are_chosen(words, expected):
    assert chosen_settings(config_of(*words), words) == expected


def test_without_a_perturbation_rho_is_0():
    assert chosen_settings(config_of("optimizer=sgd"), ["optimizer=sgd", "rho=0.1"]) == {"optimizer": "sgd", "rho": 0.0}


def test_settings_with_several_values_are_swept():
    command = ["sam-train", "-m", "optimizer=sgd,sam", "rho=range(1,3)", "+optimizer.base.eps=1,2", "epochs=3"]
    assert swept_settings(command) == {"optimizer", "rho", "optimizer.base.eps"}
    assert swept_settings(["sam-train", "augment.betas=[1,2]"]) == set()


def test_a_run_has_a_text_with_its_command_commit_and_data_and_its_typed_settings(tmp_path):
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "rho=0.1", "noise=symmetric", "noise.rate=0.5", "epochs=1")
    (event,) = read_events(folder).Tensors("run/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    parts = (
        "**command:** sam-train data=synthetic", "rho=0.1", "**commit:**", "96 train, 32 test images, 4 classes",
        "training labels corrupted", "parameters", "sam with rho 0.1", "**hardware:**",
    )  # fmt: skip
    for part in parts:
        assert part in text, part
    started = read_hparams(folder, "_hparams_/session_start_info").session_start_info.hparams
    assert {"optimizer", "rho", "noise", "noise.rate", "epochs", "data.num_train"} <= {*started}
    assert {"run_dir", "checkpoint.min_interval", "optimizer.rho", "lr"}.isdisjoint(started)
