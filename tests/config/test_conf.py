"""Every file under conf/ composes, is typed, and builds what it names."""

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.errors import MissingConfigException

from sam_runner.commands.train import CONF
from sam_runner.config.experiment import load_experiment, settings_classes
from sam_runner.config.help import list_keys, list_options
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.config.instantiate import locate
from sam_runner.training.builders.run import build_run
from sam_runner.utils.errors import InputError
from tests.data.datasets.test_cifar import random_files, write_dataset, write_labels_file
from tests.helpers import TINY, compose_config, config_of, job_config, write_image_folder

SMALL = ("data=synthetic", "data.num_train=64", "data.num_test=16", "data.image_size=16", "batch_size=32", "device=cpu")
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
NEEDS = {  # what a file cannot do without
    "data/image_folder.yaml": lambda folder: [f"data.root={write_image_folder(folder)}"],
    "data/fashion_mnist.yaml": lambda folder: [f"data.root={fashion(folder)}"],
    "data/cifar10.yaml": lambda folder: [f"data.root={cifar(folder, 'cifar10')}"],
    "data/cifar100.yaml": lambda folder: [f"data.root={cifar(folder, 'cifar100')}"],
    "noise/human.yaml": lambda folder: [
        "data=cifar10",
        f"data.root={cifar(folder, 'cifar10')}",
        f"noise.file={human_labels(folder)}",
    ],
    "data/digits.yaml": lambda folder: [],
    "data/imagenet.yaml": lambda folder: [f"data.root={write_image_folder(folder)}", "data.image_size=16"],
    "data/svhn.yaml": lambda folder: [f"data.root={house_numbers(folder)}"],
    "noise/relabelled.yaml": lambda folder: [f"noise.file={labels_of_64(folder)}"],
    "augment/inception.yaml": lambda folder: [
        "data=image_folder",
        f"data.root={write_image_folder(folder)}",
        "data.storage=disk",
        "data.image_size=8",
    ],
    "model/wide_resnet.yaml": lambda folder: ["model.depth=10", "model.widen_factor=1"],
    "model/wrn*.yaml": lambda folder: ["model.depth=10", "model.widen_factor=1"],
    "model/resnet32_mentormix.yaml": lambda folder: ["model.depth=8", "model.width=4"],
    "model/shake_shake*.yaml": lambda folder: ["model.depth=8", "model.width=4"],
    "model/pyramidnet272*.yaml": lambda folder: ["model.depth=11", "model.alpha=9"],
    "model/pyramidnet110.yaml": lambda folder: ["model.depth=8", "model.alpha=9"],
    "model/torchvision.yaml": lambda folder: ["model.name=shufflenet_v2_x0_5"],
    "model/timm.yaml": lambda folder: ["model.name=test_resnet"],
    "optimizer/around/*.yaml": lambda folder: ["optimizer=interval"],
    "data/image_list.yaml": lambda folder: [f"data.file={listed(folder)}"],
    "data/own.yaml": lambda folder: ["data._target_=sam_runner.data.datasets.digits.digits"],
    "noise/own.yaml": lambda folder: ["noise._target_=sam_runner.data.noise.none"],
    "model/own.yaml": lambda folder: ["model._target_=torchvision.models.mnasnet0_5"],
    "schedule/own.yaml": lambda folder: ["schedule._target_=sam_runner.training.schedules.constant"],
    "optimizer/base/torch.yaml": lambda folder: ["optimizer.base._target_=torch.optim.Adagrad"],
}
NAMED = {
    "defaults": ["torchvision", "_self_"]
}  # files that only name a large network: tests/models/test_torchvision_timm.py
TRAINED = [
    file
    for file in FILES
    if not file.startswith(("experiment/", "search/", "optimizer/own", "data/hugging_face"))  # have their own tests
    and {key: value for key, value in yaml.safe_load((CONF / file).read_text()).items() if key != "name"} != NAMED
]
COUNT = 127


def cifar(folder, name):
    write_dataset(folder, name, "binary", random_files(name))
    if name == "cifar100":  # 20 training images, where 32 are wanted
        path = folder / "cifar-100-binary" / "train.bin"
        path.write_bytes(path.read_bytes() * 2)
    return folder


def human_labels(folder):
    clean = np.concatenate([labels for file, (_, labels) in random_files("cifar10").items() if file != "test_batch"])
    return write_labels_file(folder / "human.pt", {"clean_label": clean, "worse_label": clean[::-1].copy()})


def house_numbers(folder):
    from tests.data.datasets.test_svhn import write_files

    write_files(folder, {"train_32x32.mat": 40, "test_32x32.mat": 10})
    return folder


def labels_of_64(folder):
    np.save(folder / "labels.npy", np.arange(64) % 10)
    return folder / "labels.npy"


def fashion(folder):
    for name, count in (("train", 64), ("t10k", 16)):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(range(256)) * (count * 784 // 256))
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count.to_bytes(4, "big") + labels)
    return folder


def listed(folder):
    write_image_folder(folder)
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "labels.csv"


def overrides_for(file, folder):
    """A command line that chooses the file."""
    if file == "config.yaml":
        return list(SMALL)
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    needed = next((need for name, need in NEEDS.items() if fnmatch(file, name)), lambda folder: [])(folder)
    own_data = (group == "data" and file != "data/synthetic.yaml") or any(word.startswith("data=") for word in needed)
    chosen = ("batch_size=32", "device=cpu") if own_data else SMALL
    return [*chosen, f"{group}={name}", *needed]


@pytest.mark.parametrize("file", TRAINED)
def test_the_file_composes_validates_and_trains_a_step(file, tmp_path):
    overrides = overrides_for(file, tmp_path)
    run = build_run(config_of(*overrides))
    examples = next(iter(run.train.epoch(0)))
    from sam_runner.sam.batch import Batch

    stats = run.step(Batch(examples.images, examples.labels), run.rho(0), 0)
    assert torch.isfinite(stats.loss)
    assert stats.outputs.shape == (32, len(run.classes))


def test_the_number_of_files_is_known():
    assert len(FILES) == COUNT


@pytest.mark.parametrize("file", FILES)
def test_the_file_opens_with_what_it_is_for(file):
    lines = [line for line in (CONF / file).read_text().splitlines() if not line.startswith("# @")]
    assert lines[0].startswith("# ") and len(lines[0]) > 17


@pytest.mark.parametrize("file", [file for file in FILES if "_target_" in (CONF / file).read_text()])
def test_the_target_exists_and_takes_the_keys(file):
    content = yaml.safe_load((CONF / file).read_text())
    if content["_target_"] != "???":
        assert callable(locate(content["_target_"]))


def test_an_option_has_the_keys_of_those_that_it_is_composed_of():
    assert list_keys(CONF / "model", "shake_shake26_2x64d") == {"_target_", "depth", "width", "init", "weights"}
    assert list_keys(CONF / "model", "resnet50") == {"_target_", "name", "weights"}


def test_schema_nodes_are_no_options_of_a_group():
    assert set(list_options(CONF)) == {
        "augment",
        "data",
        "debug",
        "experiment",
        "model",
        "noise",
        "optimizer",
        "optimizer/around",
        "optimizer/base",
        "schedule",
        "search",
    }
    with pytest.raises(MissingConfigException) as caught:
        compose_config("optimizer=schema")
    assert set(caught.value.options) == set(list_options(CONF)["optimizer"])


def test_every_settings_class_is_used():
    used = "".join((CONF / file).read_text() for file in FILES)
    paths = settings_classes().keys() - {"root"}
    assert all(f"/hydra/settings/{path}@_here_" in used for path in paths)


@pytest.mark.parametrize(
    ("same", "first", "second"),
    [
        (True, ["optimizer=sgd"], ["optimizer=sgd", "run_dir=elsewhere", "log_every=7"]),
        (True, ["optimizer=sgd"], ["optimizer=sgd", "sweep.on_error=stop"]),
        (True, ["optimizer=sam", "rho=0.1"], ["optimizer=sam", "optimizer.rho=0.1"]),
        (False, ["optimizer=sam", "rho=0.1"], ["optimizer=sam", "rho=0.2"]),
        (False, ["optimizer=sgd"], ["optimizer=sam"]),
        (True, ["data=cifar10"], ["data=cifar10", "data.download=true", "data.url=http://mirror"]),
        (True, ["data=image_folder", "data.root=a"], ["data=image_folder", "data.root=a", "data.num_workers=3"]),
        (False, ["seed=0"], ["seed=1"]),
        (False, ["batch_size=8"], ["batch_size=8", "accumulate=2"]),
        (False, ["noise=symmetric"], ["noise=symmetric", "noise.rate=0.3"]),
    ],
)
def test_fingerprints_tell_runs_apart(same, first, second):
    assert (job_config(*first).fingerprint() == job_config(*second).fingerprint()) is same


def test_own_code_needs_trust_and_then_works(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import torch\n\ndef flat(num_classes, in_channels, *, size=8):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels * size * size, num_classes))\n"
    )
    (tmp_path / "model").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = plain_settings(compose_config(*TINY[:6], "batch_size=16", "device=cpu"))
    settings["model"] = {"_target_": "my_models.flat", "size": 8}
    with pytest.raises(InputError, match="SAM_RUNNER_TRUSTED"):
        load_experiment(settings)
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_models")
    model = build_run(load_experiment(settings)).model
    assert sum(param.numel() for param in model.parameters()) == 64 * 4 + 4
    settings["model"]["sze"] = 4
    with pytest.raises(InputError, match=r"did you mean model\.size"):
        build_run(load_experiment(settings))


@pytest.mark.parametrize(
    "name", sorted(name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type))
)  # every class of torch.optim
def test_every_optimizer_of_torch_is_a_base_or_is_refused_in_words(name):
    words = ["optimizer/base=torch", f"optimizer.base._target_=torch.optim.{name}"]
    settings = config_of(*TINY, *words)
    if name in ("LBFGS", "SparseAdam", "Optimizer", "Muon"):
        with pytest.raises(InputError, match=name):
            build_run(settings)
        return
    if name == "Rprop":
        with pytest.raises(InputError, match="Rprop has no argument weight_decay\n  set weight_decay=0"):
            build_run(settings)
        settings = config_of(*TINY, *words, "weight_decay=0")
    run = build_run(settings)
    assert type(run.step.optimizer).__name__ == name


def test_a_wheel_and_a_checkout_find_the_same_conf():
    assert Path(CONF).is_absolute()
    assert (CONF / "config.yaml").is_file()
