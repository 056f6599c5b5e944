"""Augmentation against slow NumPy loops over images, and its distributions against torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from sam_runner.config.data import AugmentConfig
from sam_runner.data.augment.augmentation import (
    NUM_DRAWS,
    NUM_ERASING_DRAWS,
    crop_and_flip,
    draw_batch_centre,
    draw_table,
    erase_rectangle,
    unfold_crops,
    zero_square,
)

NUMPY_MODE = {"reflect": "reflect", "zero": "constant"}
SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)


def random_images(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_draws(seed, count):
    return np.random.default_rng(seed).random((count, NUM_DRAWS), dtype=np.float32)


def numpy_crop_and_flip(image_CHW, draws, pad, pad_mode, flip):
    """Crop and flip one image as the fields of AugmentConfig say."""
    _, height, width = image_CHW.shape
    padded = np.pad(image_CHW, ((0, 0), (pad, pad), (pad, pad)), mode=NUMPY_MODE[pad_mode])
    row, column = (int(np.floor(draw * np.float32(2 * pad + 1))) for draw in draws[:2])
    crop = padded[:, row : row + height, column : column + width]
    return crop[:, :, ::-1] if flip and draws[2] < 0.5 else crop


def numpy_cutout(image_CHW, draws, size):
    """Cut out a square of one image, pixel by pixel."""
    result = image_CHW.copy()
    _, height, width = image_CHW.shape
    top = int(np.floor(draws[3] * np.float32(height))) - size // 2
    left = int(np.floor(draws[4] * np.float32(width))) - size // 2
    for row in range(max(top, 0), min(top + size, height)):
        for column in range(max(left, 0), min(left + size, width)):
            result[:, row, column] = 0
    return result


def within_four_standard_errors(counts, trials):
    probability = 1 / len(counts)
    return bool(((counts - trials * probability).abs() < 4 * (trials * probability * (1 - probability)) ** 0.5).all())


@pytest.mark.parametrize("pad_mode", ["reflect", "zero"])
@settings(deadline=None)
@given(height=SIDES, width=SIDES, seed=SEEDS, data=st.data())
def test_unfold_crops_equal_numpy_padding_and_slicing(pad_mode, height, width, seed, data):
    pad = data.draw(st.integers(0, min(height, width) - 1 if pad_mode == "reflect" else 12))
    images = random_images(seed, 2, 3, height, width)
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=NUMPY_MODE[pad_mode])
    result = unfold_crops(torch.from_numpy(images), pad, pad_mode)
    assert result.shape == (2, 3, 2 * pad + 1, 2 * pad + 1, height, width)
    for row, column in np.ndindex(2 * pad + 1, 2 * pad + 1):
        expected = padded[:, :, row : row + height, column : column + width]
        assert np.array_equal(result[:, :, row, column].numpy(), expected)


def test_unfold_crops_do_not_copy_what_overlaps():
    result = unfold_crops(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), 4, "reflect")
    assert result.untyped_storage().nbytes() == 10 * 3 * 40 * 40


@settings(deadline=None)
@given(
    height=st.integers(2, 8),
    width=st.integers(2, 8),
    pad_mode=st.sampled_from(["reflect", "zero"]),
    flip=st.booleans(),
    seed=SEEDS,
    data=st.data(),
)
def test_crop_and_flip_equals_a_loop_over_images(height, width, pad_mode, flip, seed, data):
    pad = data.draw(st.integers(0, min(height, width) - 1))
    indices = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    images, draws = random_images(seed, 5, 2, height, width), random_draws(seed, len(indices))
    result = crop_and_flip(
        unfold_crops(torch.from_numpy(images), pad, pad_mode),
        torch.tensor(indices),
        torch.from_numpy(draws),
        AugmentConfig(pad=pad, pad_mode=pad_mode, flip=flip),
    )
    expected = [
        numpy_crop_and_flip(images[index], row, pad, pad_mode, flip) for index, row in zip(indices, draws, strict=True)
    ]
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), np.stack(expected))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, size=st.integers(0, 12), seed=SEEDS)
def test_zero_square_equals_a_loop_over_pixels(height, width, size, seed):
    images = np.random.default_rng(seed).normal(size=(6, 2, height, width))
    draws = random_draws(seed, 6)
    result = zero_square(torch.from_numpy(images), torch.from_numpy(draws)[:, 3:5], size)
    expected = np.stack([numpy_cutout(image, row, size) for image, row in zip(images, draws, strict=True)])
    assert np.array_equal(result.numpy(), expected)


def test_zero_square_in_the_middle_removes_size_squared_pixels():
    draws = torch.full((1, NUM_DRAWS), 0.5)
    result = zero_square(torch.ones(1, 3, 32, 32), draws[:, 3:5], 16)
    assert int((result == 0).sum()) == 3 * 16 * 16
    assert torch.equal(result[0, 0, 8:24, 8:24], torch.zeros(16, 16))


def test_largest_draw_is_the_last_offset():
    images = torch.from_numpy(random_images(0, 1, 1, 9, 9))
    draws = torch.full((1, NUM_DRAWS), 1 - 2**-24)
    result = crop_and_flip(unfold_crops(images, 4, "zero"), torch.tensor([0]), draws, AugmentConfig(pad=4))
    assert torch.equal(result[0, 0, :5, :5], images[0, 0, 4:, 4:])
    assert int(zero_square(torch.ones(1, 1, 9, 9), draws[:, 3:5], 1)[0, 0, 8, 8]) == 0


def test_crop_offsets_are_uniform():
    count, pad = 40_000, 4
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    crops = crop_and_flip(
        unfold_crops(image, pad, "zero"),
        torch.zeros(count, dtype=torch.int64),
        draw_table(0, 0, count),
        AugmentConfig(pad=pad, pad_mode="zero"),
    )
    position = crops.flatten(1).argmax(1)
    assert within_four_standard_errors(torch.bincount(position, minlength=81), count)


def test_half_of_the_images_are_flipped():
    count = 40_000
    image = torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    crops = crop_and_flip(
        unfold_crops(image, 0, "zero"),
        torch.zeros(count, dtype=torch.int64),
        draw_table(0, 0, count),
        AugmentConfig(flip=True),
    )
    assert within_four_standard_errors(crops[:, 0, 0].long().sum(0), count)


def test_cutout_centres_are_uniform():
    count = 40_000
    cut = zero_square(torch.ones(1, 1, 5, 6).expand(count, -1, -1, -1), draw_table(0, 0, count)[:, 3:5], 1) == 0
    assert within_four_standard_errors(cut.flatten(1).sum(0), count)


def test_draws_are_independent_of_each_other():
    count = 40_000
    correlation = np.corrcoef(draw_table(0, 0, count).double().numpy(), rowvar=False)
    assert np.abs(correlation - np.eye(NUM_DRAWS)).max() < 4 / count**0.5


def test_draws_are_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = draw_table(3, 5, 100)
    torch.manual_seed(2)
    draw_table(3, 6, 1000)
    assert torch.equal(draw_table(3, 5, 100), first)
    assert first.shape == (100, NUM_DRAWS)
    assert first.dtype == torch.float32
    assert 0 <= float(first.min()) <= float(first.max()) < 1


@pytest.mark.parametrize(("seed", "epoch"), [(3, 6), (4, 5)])
def test_other_seeds_and_epochs_draw_other_numbers(seed, epoch):
    assert not bool((draw_table(seed, epoch, 1000) == draw_table(3, 5, 1000)).all(1).any())


@pytest.mark.parametrize(("pad", "side"), [(1, 4), (4, 12)])
def test_crops_and_flips_are_distributed_as_torchvisions(pad, side):
    """All pixels of the image differ, so the first two pixels identify offset and flip."""
    count = 8000
    image = torch.arange((side + 2 * pad) ** 2).reshape(1, side + 2 * pad, side + 2 * pad)
    torch.manual_seed(0)
    reference = v2.Compose([v2.RandomCrop(side), v2.RandomHorizontalFlip()])
    expected = torch.stack([reference(image) for _ in range(count)])
    draws = torch.from_numpy(random_draws(1, count))
    all_crops = image[None].unfold(2, side, 1).unfold(3, side, 1)
    result = crop_and_flip(all_crops, torch.zeros(count, dtype=torch.int64), draws, AugmentConfig(pad=pad, flip=True))
    assert result.shape == expected.shape
    num_outcomes = 2 * (2 * pad + 1) ** 2
    counts = [torch.unique(images[:, 0, 0, :2], dim=0, return_counts=True) for images in (result, expected)]
    assert torch.equal(counts[0][0], counts[1][0])  # the same offsets and directions occur
    assert len(counts[0][1]) == num_outcomes
    statistic = float(((counts[0][1] - counts[1][1]) ** 2 / (counts[0][1] + counts[1][1])).sum())
    freedom = num_outcomes - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # chi squared of two samples, four standard deviations


def numpy_erase(image_CHW, draws, probability):
    """Erase a rectangle of one image as the docstring of `erase_rectangle` says, in float64."""
    result, (_, height, width) = image_CHW.copy(), image_CHW.shape
    for area_draw, aspect_draw in draws[3:].reshape(-1, 2):
        area = (0.02 + area_draw * (1 / 3 - 0.02)) * height * width
        aspect = np.exp(np.log(0.3) + aspect_draw * (np.log(1 / 0.3) - np.log(0.3)))
        rows, columns = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if rows < height and columns < width:
            if draws[0] < probability:
                top, left = int(draws[1] * (height - rows + 1)), int(draws[2] * (width - columns + 1))
                result[:, top : top + rows, left : left + columns] = 0
            break
    return result


@settings(deadline=None)
@given(height=st.integers(2, 20), width=st.integers(2, 20), probability=st.floats(0, 1), seed=SEEDS)
def test_erase_equals_a_loop_over_images(height, width, probability, seed):
    images = np.random.default_rng(seed).normal(size=(6, 2, height, width))
    draws = np.random.default_rng(seed + 1).random((6, NUM_ERASING_DRAWS))
    result = erase_rectangle(torch.from_numpy(images), torch.from_numpy(draws), probability)
    expected = np.stack([numpy_erase(image, row, probability) for image, row in zip(images, draws, strict=True)])
    assert np.array_equal(result.numpy(), expected)


def test_erased_parts_are_distributed_as_torchvisions():
    count, side, bins = 6000, 12, 13
    reference = v2.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))
    torch.manual_seed(0)
    image = [torch.zeros(1, side, side)]
    params = [reference.make_params(image) for _ in range(count)]
    erased = erase_rectangle(torch.ones(count, 1, side, side), torch.rand(count, NUM_ERASING_DRAWS), 1.0)[:, 0] == 0
    rows, columns = erased.any(2), erased.any(1)
    result = {"h": rows.sum(1), "w": columns.sum(1), "i": rows.long().argmax(1), "j": columns.long().argmax(1)}
    for name, values in result.items():
        expected = torch.tensor([entry[name] for entry in params]).bincount(minlength=bins)
        counts = values.bincount(minlength=bins)
        occurs = (counts + expected) > 0
        statistic = float(((counts - expected) ** 2 / (counts + expected))[occurs].sum())
        freedom = int(occurs.sum()) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5, name


def test_the_given_part_of_the_images_is_erased():
    count = 20_000
    draws = draw_table(0, 0, count, erasing=True)[:, NUM_DRAWS:]
    erased = (erase_rectangle(torch.ones(count, 1, 8, 8), draws, 0.3) == 0).flatten(1).any(1)
    assert abs(float(erased.double().mean()) - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5
    assert not bool((erase_rectangle(torch.ones(9, 1, 8, 8), draws[:9], 0.0) == 0).any())


def test_erasing_draws_leave_the_others_as_they_were():
    table = draw_table(3, 5, 100, erasing=True)
    assert table.shape == (100, NUM_DRAWS + NUM_ERASING_DRAWS)
    assert torch.equal(table[:, :NUM_DRAWS], draw_table(3, 5, 100))
    correlation = np.corrcoef(draw_table(0, 0, 40_000, erasing=True).double().numpy(), rowvar=False)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 4.5 / 200


def test_centres_of_batches_are_uniform_and_a_function_of_seed_epoch_and_batch():
    count = 4000
    centres = torch.stack([draw_batch_centre(0, number % 7, number) for number in range(count)])
    for axis in (0, 1):
        assert within_four_standard_errors((centres[:, axis] * 5).long().bincount(minlength=5), count)
    assert torch.equal(draw_batch_centre(1, 2, 3), draw_batch_centre(1, 2, 3))
    others = [draw_batch_centre(*key) for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3))]
    assert not any(torch.equal(other, draw_batch_centre(1, 2, 3)) for other in others)
