"""Batches: order, augmentation, normalisation, memory format."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_runner.config.data import AugmentConfig
from sam_runner.data import loader as loader_module
from sam_runner.data.augment.augmentation import draw_table
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from tests.data.augment.test_augmentation import numpy_crop_and_flip, numpy_cutout

CPU = torch.device("cpu")
FULL = AugmentConfig(pad=2, flip=True, cutout=3)


def random_set(count=23, channels=3, side=8, seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, channels, side, side), dtype=np.uint8))
    return make_image_set(images, torch.arange(count) % 4, ("a", "b", "c", "d"))


def make_loader(data, **options):
    options = {"batch_size": 5, "normalisation": Normalisation.from_images(data.images_NCHW), "device": CPU, **options}
    return ImageLoader(data, **options)


def epoch_order(loader, epoch=0):
    return torch.cat([examples.indices for examples in loader.epoch(epoch)]).tolist()


def images_by_index(loader, epoch):
    pairs = [zip(examples.indices.tolist(), examples.images, strict=True) for examples in loader.epoch(epoch)]
    return dict(itertools.chain(*pairs))


def numpy_normalise(data):
    values = data.images_NCHW.numpy() / 255
    axes = (0, 2, 3)
    return (values - values.mean(axes, keepdims=True)) / values.std(axes, keepdims=True)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), epoch=st.integers(0, 300), seed=st.integers(0, 2**40))
def test_every_example_comes_exactly_once(count, batch_size, epoch, seed):
    loader = make_loader(random_set(count, 1, 2), batch_size=batch_size, augmentation=AugmentConfig(), seed=seed)
    sizes = [len(examples.indices) for examples in loader.epoch(epoch)]
    assert sorted(epoch_order(loader, epoch)) == list(range(count))
    assert len(loader) == len(sizes) == -(-count // batch_size)
    assert all(size == batch_size for size in sizes[:-1])


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_drop_last_leaves_out_the_incomplete_batch_only(count, batch_size):
    data = random_set(count, 1, 2)
    whole = epoch_order(make_loader(data, batch_size=batch_size, augmentation=AugmentConfig()))
    loader = make_loader(data, batch_size=batch_size, augmentation=AugmentConfig(), drop_last=True)
    assert len(loader) == count // batch_size
    batches = [examples.indices.tolist() for examples in loader.epoch()]
    assert list(itertools.chain(*batches)) == whole[: count // batch_size * batch_size]
    assert all(len(batch) == batch_size for batch in batches)


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_epoch_from_a_start_is_the_tail_of_the_epoch(start):
    loader = make_loader(random_set(), augmentation=FULL, seed=4)
    whole, tail = list(loader.epoch(2)), list(loader.epoch(2, start=start))
    assert len(tail) == 5 - start
    for expected, examples in zip(whole[start:], tail, strict=True):
        assert torch.equal(examples.images, expected.images)
        assert torch.equal(examples.labels, expected.labels)
        assert torch.equal(examples.indices, expected.indices)


def test_order_is_a_function_of_seed_and_epoch():
    data = random_set(100, 1, 2)
    torch.manual_seed(1)
    first = epoch_order(make_loader(data, augmentation=AugmentConfig(), seed=1), epoch=3)
    torch.manual_seed(2)
    assert epoch_order(make_loader(data, augmentation=AugmentConfig(), seed=1, batch_size=9), epoch=3) == first
    assert epoch_order(make_loader(data, augmentation=AugmentConfig(), seed=1), epoch=4) != first
    assert epoch_order(make_loader(data, augmentation=AugmentConfig(), seed=2), epoch=3) != first
    assert first != list(range(100))


def test_augmentation_of_an_image_does_not_depend_on_its_batch():
    data = random_set()
    single, seven = (make_loader(data, augmentation=FULL, seed=2, batch_size=size) for size in (1, 7))
    alone, together = images_by_index(single, 6), images_by_index(seven, 6)
    assert alone.keys() == together.keys() == set(range(23))
    assert all(torch.equal(alone[index], together[index]) for index in alone)


def test_augmentation_changes_from_epoch_to_epoch():
    loader = make_loader(random_set(), augmentation=FULL)
    first, second = images_by_index(loader, 0), images_by_index(loader, 1)
    assert sum(torch.equal(first[index], second[index]) for index in first) < 3


@pytest.mark.parametrize("pad_mode", ["reflect", "zero"])
def test_batches_equal_a_slow_numpy_pipeline(pad_mode):
    data = random_set()
    augmentation = AugmentConfig(pad=2, pad_mode=pad_mode, flip=True, cutout=3)
    loader = make_loader(data, augmentation=augmentation, seed=9, dtype=torch.float64)
    table, pixels = draw_table(9, 1, 23).numpy(), data.images_NCHW.numpy()
    mean, std = ((pixels / 255).mean((0, 2, 3))[:, None, None], (pixels / 255).std((0, 2, 3))[:, None, None])
    for index, image in images_by_index(loader, 1).items():
        crop = numpy_crop_and_flip(pixels[index], table[index], 2, pad_mode, True)
        expected = numpy_cutout((crop / 255 - mean) / std, table[index], 3)
        np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("augmentation", [None, FULL])
def test_both_labels_stay_with_their_image(augmentation):
    clean = random_set()
    data = clean.with_labels((clean.labels + torch.arange(23) % 2) % 4)
    for examples in make_loader(data, augmentation=augmentation).epoch():
        assert torch.equal(examples.labels, data.labels[examples.indices])
        assert torch.equal(examples.clean_labels, clean.labels[examples.indices])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_evaluation_is_in_order_and_equals_numpy_normalisation(dtype, tolerance):
    data = random_set()
    batches = list(make_loader(data, dtype=dtype).epoch())
    images = torch.cat([examples.images for examples in batches])
    assert torch.cat([examples.indices for examples in batches]).tolist() == list(range(23))
    assert images.dtype == dtype
    np.testing.assert_allclose(images.numpy(), numpy_normalise(data), rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_numpy_mean_and_standard_deviation(channels):
    images = random_set(50, channels).images_NCHW
    result = Normalisation.from_images(images)
    values = images.numpy() / 255
    np.testing.assert_allclose(result.mean, values.mean((0, 2, 3)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.std, values.std((0, 2, 3)), rtol=0, atol=1e-12)


@settings(deadline=None)
@given(level=st.integers(0, 255), count=st.integers(1, 50), side=st.integers(1, 28))
def test_constant_channel_has_standard_deviation_one(level, count, side):
    images = torch.full((count, 1, side, side), level, dtype=torch.uint8)
    assert Normalisation.from_images(images).std == (1.0,)


def test_constant_channel_becomes_zero():
    data = make_image_set(torch.full((4, 1, 28, 28), 7, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    images = next(make_loader(data, dtype=torch.float64).epoch()).images
    assert float(images.abs().max()) < 1e-10


def test_denormalise_inverts_the_normalisation():
    data = random_set()
    loader = make_loader(data)
    images = torch.cat([loader.denormalise(examples.images) for examples in loader.epoch()])
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), data.images_NCHW.numpy() / 255, rtol=0, atol=1e-5)


def test_denormalised_pixels_stay_in_range():
    loader = make_loader(random_set())
    pixels = loader.denormalise(3 * next(loader.epoch()).images)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)


def test_pixels_of_a_cut_out_square_are_the_mean():
    data = random_set()
    loader = make_loader(data, augmentation=AugmentConfig(cutout=1000))
    pixels = loader.denormalise(next(loader.epoch()).images)
    expected = np.broadcast_to((data.images_NCHW.numpy() / 255).mean((0, 2, 3))[:, None, None], (5, 3, 8, 8))
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("augmentation", [None, FULL])
def test_channels_last_has_the_same_values(augmentation):
    data = random_set()
    usual = make_loader(data, augmentation=augmentation).epoch()
    last = make_loader(data, augmentation=augmentation, channels_last=True).epoch()
    for expected, examples in zip(usual, last, strict=True):
        assert expected.images.is_contiguous()
        assert examples.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(examples.images, expected.images)


def test_loading_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    list(make_loader(random_set(), augmentation=FULL).epoch())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stream_of_the_batches_waits_for_the_stream_of_their_tables(monkeypatch):
    """A CUDA stream in place of which a list notes what is done: nothing is prepared before it has waited."""
    events = []

    class Stream:
        def __init__(self, name="current"):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    class Recorded:
        def record_stream(self, stream):
            pass

    def batches():
        for number in range(2):
            events.append(f"batch {number}")
            yield SimpleNamespace(images=Recorded(), labels=Recorded(), targets=Recorded(), clean_labels=Recorded())

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    assert len(list(loader_module._prefetch(batches(), torch.device("cuda")))) == 2
    assert events == [
        "side waits for current", "batch 0", "current waits for side", "batch 1", "current waits for side",
    ]  # fmt: skip
