"""``dry_run=true`` without the data: every experiment is planned from published sizes."""

import json

import pytest
import torch
from torch import nn

from sam_runner.data.datasets.published_sizes import SIZES
from sam_runner.paper.rows import load_rows
from sam_runner.runs import dry_run
from sam_runner.runs.dry_run import count_activation_bytes, count_state_copies, describe_time
from sam_runner.utils.files import CONF
from tests.helpers import TINY, invoke

HEAVY = {"cifar_pyramidnet", "cifar_pyramidnet_shakedrop", "finetune_efficientnet_b7", "imagenet_resnet152"}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
FACTS = {  # (training images, classes, steps in all, parameters), by arithmetic and from the papers of the networks
    "cifar_wrn28_10": (50_000, 10, 200 * (50_000 // 256), 36_479_194),
    "imagenet_resnet50": (1_281_167, 1_000, 100 * (1_281_167 // 4_096), 25_557_032),
    "fashion_wrn28_10": (60_000, 10, 200 * (60_000 // 256), None),
    "svhn_wrn28_10": (73_257, 10, 200 * (73_257 // 256), 36_479_194),
    "finetune_efficientnet_b7": (2_040, 102, 5_000, None),
    "label_noise": (50_000, 10, 200 * (50_000 // 256), None),
}
NARROW = {  # smaller networks, where the network of the file is built for another experiment or in tests/models
    "cifar_wrn28_10_1800": ["model.widen_factor=1"],
    "ascent_steps": ["model.widen_factor=1"],
    "norms": ["model.widen_factor=1"],
    "fashion_shake_shake": ["model.width=16"],
    "svhn_shake_shake": ["model.width=16"],
    "imagenet_resnet101": ["model=resnet18"],
}
TOTALS = {  # images of all splits, as the pages of the sets give them
    "cifar10": 60_000, "cifar100": 60_000, "svhn": 99_289, "svhn_extra": 630_420, "fashion_mnist": 70_000,
    "aircraft": 10_000, "birdsnap": 49_829, "cars": 16_185, "flowers": 8_189, "food101": 101_000, "pets": 7_349,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def networks_are_measured_once():
    """Experiments share networks, and passes through a large one take seconds."""
    found = {}

    def remember(measure):
        def measured(model, *arguments, **options):
            sizes = [(param.numel(), param.requires_grad) for param in model.parameters()]
            shapes = [getattr(argument, "shape", argument) for argument in arguments]
            key = str((measure, type(model), sizes, shapes, options))
            if key not in found:
                found[key] = measure(model, *arguments, **options)
            return found[key]

        return measured

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_count_flops", "count_activation_bytes"):
            patch.setattr(dry_run, name, remember(getattr(dry_run, name)))
        yield


def plan(monkeypatch, capsys, folder, *words):
    done = invoke(monkeypatch, capsys, folder, *words, "dry_run=true", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "also training examples" not in done.stdout  # images that nobody has read are not equal
    assert not list(folder.iterdir())
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("  ")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in EXPERIMENTS]
)
def test_every_experiment_has_a_plan_without_data(name, tmp_path, monkeypatch, capsys):
    words = [] if name == "finetune_efficientnet_b7" else ["dry_run_tflops=100"]
    rows = plan(monkeypatch, capsys, tmp_path, f"experiment={name}", *words, *NARROW.get(name, []))
    assert "(data: not read, published sizes of " in rows["data"]
    assert {"data", "model", "optimizer", "steps", "compute", "time", "memory"} <= rows.keys()
    assert rows["memory"].startswith("about ")
    assert ("at 100 TFLOP/s" in rows["time"]) == bool(words)
    assert ("paper" in rows) == (name != "finetune_efficientnet_lite0")
    if name in FACTS:
        images, classes, steps, parameters = FACTS[name]
        assert f": {images:,} train, " in rows["data"]
        assert f" {classes} classes" in rows["data"]
        assert rows["steps"].startswith(f"{steps:,} in all")
        assert parameters is None or f": {parameters:,} parameters" in rows["model"]


@pytest.mark.parametrize("name", TOTALS)
def test_training_and_test_images_add_up_to_the_published_total(name):
    assert SIZES[name].train + SIZES[name].test == TOTALS[name]


def test_the_set_of_a_row_of_table_3_is_found(tmp_path, monkeypatch, capsys):
    words = ("experiment=finetune_efficientnet_b7", "model=resnet18", "data.image_size=32")
    for name in ("pets", "food101"):
        rows = plan(monkeypatch, capsys, tmp_path, *words, f"paper=table3.{name}", "data.root=/nowhere")
        assert f"published sizes of {SIZES[name].title}" in rows["data"]
    sets = {row.paper.partition(".")[2] for row in load_rows() if row.paper.startswith("table3.")}
    assert sets <= SIZES.keys()


def test_settings_of_the_data_hold_for_published_sizes(tmp_path, monkeypatch, capsys):
    words = ("data=cifar10", "model=resnet20", "data.val_fraction=0.1", "data.train_fraction=0.5", "batch_size=100")
    rows = plan(monkeypatch, capsys, tmp_path, *words, "noise=symmetric", "noise.rate=0.4", "epochs=2")
    assert "22,500 train, 10,000 test, 5,000 validation images, 10 classes" in rows["data"]
    assert "9,000 training labels corrupted" in rows["data"]
    assert rows["steps"].startswith("450 in all, 225 per epoch")
    extra = plan(monkeypatch, capsys, tmp_path, "data=svhn", "data.extra=true", "data.download=true", "model=resnet20")
    assert "604,388 train" in extra["data"]


@pytest.mark.parametrize(
    "words", [("data=image_folder", "data.root=nowhere"), ("data=cifar10", "noise=relabelled"), ("dry_run_tflops=1",)]
)
def test_what_is_not_published_or_has_no_effect_is_refused(words, tmp_path, monkeypatch, capsys):
    rest = () if "dry_run_tflops=1" in words else ("dry_run=true",)
    done = invoke(monkeypatch, capsys, tmp_path, *words, *rest)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_plan_a_folder_has_to_be_given(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "experiment=imagenet_resnet50")
    assert done.returncode == 2
    assert "data.root has to be given" in done.stderr


def test_activations_are_those_that_autograd_keeps():
    """Of Linear, ReLU, Linear: the input, and the output of the ReLU once, float32."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    assert count_activation_bytes(model, torch.zeros(2, 3, 2, 2)) == (12 + 16) * 4


@pytest.mark.parametrize(
    ("kind", "options", "copies"),
    [("SGD", {"momentum": 0.9}, 1), ("SGD", {}, 0), ("AdamW", {}, 2), ("AdamW", {"amsgrad": True}, 3)],
)
def test_copies_of_the_weights_in_the_state(kind, options, copies):
    optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.ones(4))], lr=0.1, **options)
    assert count_state_copies(optimizer) == copies


def test_the_number_of_epochs_is_that_of_the_steps(tmp_path, monkeypatch, capsys):
    words = ("data=cifar10", "model=resnet20", "epochs=9", "batch_size=100")
    assert plan(monkeypatch, capsys, tmp_path, *words)["steps"] == "4,500 in all, 500 per epoch, 9 epochs"
    shorter = plan(monkeypatch, capsys, tmp_path, *words, "max_steps=1001")["steps"]
    assert shorter == "1,001 in all (max_steps), 500 per epoch, 3 epochs"


def test_the_plan_of_a_run_that_exists_says_what_is_done(tmp_path, monkeypatch, capsys):
    words = [*TINY, "optimizer=sam", "run_dir=run", "precision=fp32"]
    assert "  done " not in invoke(monkeypatch, capsys, tmp_path, *words, "dry_run=true").stdout
    invoke(monkeypatch, capsys, tmp_path, *words, "epochs=1")
    steps = json.loads((tmp_path / "run/result.json").read_text())["step"]
    planned = invoke(monkeypatch, capsys, tmp_path, "resume=run", "epochs=2", "dry_run=true")
    assert f"  done       {steps:,} steps; steps, compute and time" in planned.stdout
    assert f"  steps      {2 * steps:,} in all" in planned.stdout
    refused = invoke(monkeypatch, capsys, tmp_path, "resume=run", "lr=0.3", "dry_run=true")
    assert (refused.returncode, "holds a run with other settings" in refused.stderr) == (2, True)


def test_times_are_in_a_unit_that_reads():
    assert describe_time(3.6e17, 100).startswith("1 hours at 100 TFLOP/s")
    assert describe_time(9e15, 100).startswith("1.5 minutes at 100")
    assert describe_time(3e15, 100).startswith("30 seconds at 100")
    assert describe_time(3e13, 100).startswith("0.3 seconds at 100")
    assert describe_time(8.64e19, 100).startswith("10 days at 100")
