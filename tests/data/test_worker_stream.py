"""Sets on disk: the same batches as from memory, for any number of workers."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from sam_runner.config.data import AugmentConfig
from sam_runner.data.datasets import image_folder as folder_module
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.files.decode import read_image
from sam_runner.data.image_sets import ImageFiles, ImageSet
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import IMAGENET_NORMALISATION, Normalisation
from sam_runner.data.splits import hold_out
from sam_runner.utils.errors import InputError, TrainingError
from tests.data.files.test_decode import smooth_pixels
from tests.helpers import command

CPU = torch.device("cpu")
FULL = AugmentConfig(pad=2, flip=True, cutout=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve images of two classes, of different sizes and shapes."""
    base = tmp_path_factory.mktemp("images")
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            (base / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = smooth_pixels(20 + 3 * index, 30 - 2 * index, seed=10 * label + index)
                Image.fromarray(pixels).save(base / part / name / f"{index}.png")
    return base


def load_splits(root, storage):
    return image_folder(root=str(root), image_size=12, storage=storage).read()


def make_loader(data, **options):
    defaults = {"batch_size": 5, "normalisation": IMAGENET_NORMALISATION, "device": CPU, "seed": 3}
    return ImageLoader(data, **{**defaults, **options})


def collect(loader, epoch=0, start=0):
    return [(examples.indices, examples.labels, examples.images) for examples in loader.epoch(epoch, start)]


def equal_batches(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_disk_and_memory_list_the_same_set(root):
    disk, memory = load_splits(root, "disk"), load_splits(root, "memory")
    assert isinstance(disk.train, ImageFiles)
    assert isinstance(memory.train, ImageSet)
    for part in ("train", "test"):
        assert torch.equal(getattr(disk, part).labels, getattr(memory, part).labels)
        assert getattr(disk, part).classes == getattr(memory, part).classes == ("ant", "bee")
        assert getattr(disk, part).shape == getattr(memory, part).shape == (3, 12, 12)


@pytest.mark.parametrize(
    "augmentation", [None, AugmentConfig(), FULL, AugmentConfig(pad=2, flip=True, policy="cifar10", cutout=3)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_from_disk_equal_those_from_memory(root, augmentation, channels_last):
    options = {"augmentation": augmentation, "channels_last": channels_last}
    disk, memory = (make_loader(load_splits(root, storage).train, **options) for storage in ("disk", "memory"))
    for epoch in (0, 1):
        assert equal_batches(collect(disk, epoch), collect(memory, epoch))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(images.is_contiguous(memory_format=layout) for _, _, images in collect(disk))


@pytest.mark.dist
@pytest.mark.parametrize(("crop_scale_min", "policy"), [(None, "none"), (0.2, "none"), (0.2, "trivialaugment")])
def test_batches_do_not_depend_on_the_number_of_workers(root, crop_scale_min, policy):
    data = load_splits(root, "disk").train
    options = {"augmentation": AugmentConfig(pad=1, flip=True, crop_scale_min=crop_scale_min, policy=policy)}
    alone, many = make_loader(data, **options), make_loader(data, num_workers=2, **options)
    for epoch in (0, 1, 1):
        assert equal_batches(collect(alone, epoch), collect(many, epoch))
    del many
    assert not multiprocessing.active_children()


def test_an_epoch_from_a_start_is_the_tail_of_the_epoch(root):
    loader = make_loader(load_splits(root, "disk").train, augmentation=AugmentConfig(flip=True, crop_scale_min=0.3))
    assert equal_batches(collect(loader, 2)[1:], collect(loader, 2, start=1))


def test_parts_change_with_epoch_and_seed_and_are_of_the_image(root):
    data = load_splits(root, "disk").train
    augmentation = AugmentConfig(crop_scale_min=0.1)
    plain = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    loader = make_loader(data, augmentation=augmentation, batch_size=12, normalisation=plain)
    other = make_loader(data, augmentation=augmentation, batch_size=12, normalisation=plain, seed=4)
    views = [collect(loader, 0), collect(loader, 1), collect(other, 0)]
    by_index = [dict(zip(view[0][0].tolist(), view[0][2], strict=True)) for view in views]
    for index in range(12):
        first, second, third = (view[index] for view in by_index)
        assert not torch.equal(first, second)
        assert not torch.equal(first, third)
        whole = read_image(data.root / data.paths[index]).float() / 255
        for channel in range(3):
            assert whole[channel].min() - 0.02 <= first[channel].min()
            assert first[channel].max() <= whole[channel].max() + 0.02


@pytest.fixture
def damaged(tmp_path):
    """A training set on disk, and one of its files that is truncated."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.fromarray(smooth_pixels(12, 12)).save(tmp_path / name / f"{index}.jpg")
    splits = image_folder(root=str(tmp_path), image_size=8, storage="disk", test_fraction=0.25).read()
    broken = splits.train.root / splits.train.paths[2]
    broken.write_bytes(broken.read_bytes()[:200])
    return splits, broken


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.dist)])
def test_an_image_that_cannot_be_read_is_named(damaged, num_workers):
    splits, broken = damaged
    message = ""
    try:  # not pytest.raises: its result and this frame would keep each other and the workers alive
        collect(make_loader(splits.train, num_workers=num_workers))
    except InputError as error:
        message = str(error)
    assert message.startswith(f"{broken} cannot be read as an image")
    assert "Traceback" not in message


def test_an_error_keeps_nothing_alive(damaged):
    """A reference cycle would keep the loader and its workers until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        loader = make_loader(damaged[0].train)
        left = weakref.ref(loader)
        with contextlib.suppress(InputError):
            collect(loader)
        del loader
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.dist
def test_a_run_with_workers_ends_after_an_error(tmp_path):
    for name, index in itertools.product("ab", range(4)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_pixels(40, 40)).save(tmp_path / "set" / name / f"{index}.png")
    for broken in (tmp_path / "set").rglob("*.png"):  # within: the check before training does not find it
        content = broken.read_bytes()
        broken.write_bytes(content[:-40] + bytes(byte ^ 255 for byte in content[-40:-20]) + content[-20:])
    done = command(
        "data=image_folder", f"data.root={tmp_path / 'set'}", "data.image_size=8", "data.storage=disk",
        "data.normalisation=imagenet", "data.num_workers=2", "data.test_fraction=0.25", "batch_size=2", "device=cpu",
        "run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert ".png cannot be read as an image" in done.stderr
    assert (tmp_path / "run" / "config.yaml").exists()  # the error came during training
    assert "Traceback" not in done.stderr


@pytest.fixture
def default_handler(monkeypatch):
    """The process as if no loader had been used before: torch installs its handler of SIGCHLD only once."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, previous)


@pytest.mark.dist
def test_a_worker_that_is_killed_is_one_message(root, default_handler):
    others = {*multiprocessing.active_children()}
    batches = make_loader(load_splits(root, "disk").train, batch_size=1, num_workers=1).epoch(0)
    next(batches)
    assert signal_handling._SIGCHLD_handler_set
    (worker,) = {*multiprocessing.active_children()} - others
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # torch's handler of SIGCHLD would raise its error here
    with pytest.raises(TrainingError, match="a worker process that reads images was killed") as caught:
        list(batches)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_that_is_killed_while_it_sends_a_batch_is_the_same_message(root, monkeypatch, error):
    def fail(_):
        raise error
        yield

    monkeypatch.setattr(DataLoader, "__iter__", fail)
    data = load_splits(root, "disk").train
    with pytest.raises(TrainingError, match="a worker process that reads images was killed"):
        list(make_loader(data, num_workers=1).epoch(0))
    with pytest.raises(type(error)):  # there is no worker
        list(make_loader(data, num_workers=0).epoch(0))


@pytest.mark.dist
def test_workers_start_with_signals_blocked_and_block_none_themselves(root, monkeypatch):
    start, blocked = DataLoader.__iter__, []

    def record(loader):
        blocked.append({signal.SIGCHLD, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return start(loader)

    monkeypatch.setattr(DataLoader, "__iter__", record)
    batches = make_loader(load_splits(root, "disk").train, batch_size=1, num_workers=1).epoch(0)
    next(batches)
    assert blocked == [True]
    assert not {signal.SIGCHLD, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    status = Path(f"/proc/{multiprocessing.active_children()[0].pid}/status").read_text()
    assert int(status.split("SigBlk:")[1].split()[0], 16) == 0


def test_workers_of_an_open_epoch_end_with_the_program(root):
    """Workers ignore SIGTERM, which multiprocessing sends before it waits for them at exit."""
    program = (
        "import torch\n"
        "from sam_runner.data.datasets.image_folder import image_folder\n"
        "from sam_runner.data.loader import ImageLoader\n"
        "from sam_runner.data.normalisation import IMAGENET_NORMALISATION as values\n"
        f"train = image_folder(root={str(root)!r}, image_size=12, storage='disk').read().train\n"
        "options = {'batch_size': 5, 'device': torch.device('cpu'), 'num_workers': 2}\n"
        "batches = ImageLoader(train, normalisation=values, **options).epoch()\n"
        "next(batches)\n"
    )
    checkout = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=checkout, timeout=100, check=True)


def test_disk_needs_a_size(root):
    with pytest.raises(InputError, match=r"data\.image_size"):
        image_folder(root=str(root), storage="disk").read()


@pytest.mark.parametrize(("limit", "kind"), [(16 * 3 * 144, ImageSet), (16 * 3 * 144 - 1, ImageFiles)])
def test_auto_is_memory_up_to_a_limit(root, monkeypatch, limit, kind):
    monkeypatch.setattr(folder_module, "MAX_AUTO_BYTES", limit)
    assert isinstance(load_splits(root, "auto").train, kind)


def test_held_out_and_relabelled_files_keep_their_labels(root):
    splits = hold_out(load_splits(root, "disk"), 0.25)
    whole = load_splits(root, "disk").train
    label_of = dict(zip(whole.paths, whole.labels.tolist(), strict=True))
    assert len(splits.validation) == 3
    assert set(splits.train.paths).isdisjoint(splits.validation.paths)
    for part in (splits.train, splits.validation):
        assert [label_of[path] for path in part.paths] == part.labels.tolist()
    flipped = splits.train.with_labels(1 - splits.train.labels)
    assert torch.equal(flipped.clean_labels, splits.train.labels)


def test_digest_depends_on_names_and_labels(root):
    splits = load_splits(root, "disk")
    assert splits.digest() == load_splits(root, "disk").digest()
    renamed = splits.train.subset(torch.arange(len(splits.train)).flip(0))
    assert type(splits)(renamed, splits.test).digest() != splits.digest()
    assert type(splits)(splits.train.with_labels(1 - splits.train.labels), splits.test).digest() != splits.digest()
