"""Pictures: sizes, value ranges and positions."""

import pytest
import torch

from sam_runner.training.pictures import MAX_LABELLED_CLASSES, draw_confusion_matrix, draw_image_grid


def random_images(count, channels, side, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def find_shaded(picture):
    """Mask of the pixels of squares with a non-zero count: they are blue, not white."""
    return (picture[2] == 255) & (picture[0] < 255)


def make_names(count):
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize(("side", "square"), [(8, 48), (28, 56), (32, 64), (48, 48), (50, 50), (64, 64)])
def test_grid_enlarges_small_images_by_a_whole_factor(side, square):
    picture = draw_image_grid(random_images(8, 3, side))
    assert picture.shape == (3, square + 2, 8 * (square + 2))
    assert picture.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12])
def test_grid_places_image_k_in_row_and_column_of_k(count):
    images = random_images(count, 3, 50)
    picture = draw_image_grid(images, columns=3)
    assert picture.shape == (3, -(-count // 3) * 52, 3 * 52)
    for index in range(count):
        top, left = 52 * (index // 3) + 1, 52 * (index % 3) + 1
        assert torch.equal(picture[:, top : top + 50, left : left + 50], images[index])


def test_grid_repeats_pixels_of_enlarged_images():
    images = random_images(2, 3, 4)
    picture = draw_image_grid(images, columns=2, min_side=12)
    assert torch.equal(picture[:, 2:13:3, 2:13:3], images[0])
    assert torch.equal(picture[:, 1:13:3, 3:13:3], images[0])


def test_grid_is_white_between_images_and_where_there_is_none():
    picture = draw_image_grid(torch.zeros(4, 3, 50, 50), columns=3)
    assert int((picture == 0).sum()) == 3 * 4 * 50 * 50
    assert bool((picture[:, [0, 51, 52, 103], :] == 1).all())
    assert bool((picture[:, :, [0, 51, 52, 103, 104, 155]] == 1).all())
    assert bool((picture[:, 52:, 52:] == 1).all())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grid_shows_the_first_channel_as_grey(channels):
    images = random_images(1, channels, 50)
    picture = draw_image_grid(images, columns=1)[:, 1:-1, 1:-1]
    assert torch.equal(picture, images[0, :1].expand(3, -1, -1))


def test_grid_stays_in_range():
    picture = draw_image_grid(random_images(11, 3, 8))
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


@pytest.mark.parametrize("num_classes", [2, 10, MAX_LABELLED_CLASSES, MAX_LABELLED_CLASSES + 1, 100])
def test_confusion_picture_is_a_square_of_bytes(num_classes):
    picture = draw_confusion_matrix(torch.eye(num_classes, dtype=torch.int64), make_names(num_classes))
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.shape[1] == picture.shape[2] >= 4 * num_classes


@pytest.mark.parametrize("num_classes", [3, 10, 25])
def test_confusion_picture_of_a_perfect_model_is_dark_on_the_diagonal_only(num_classes):
    picture = draw_confusion_matrix(7 * torch.eye(num_classes, dtype=torch.int64), make_names(num_classes))
    rows, columns = find_shaded(picture).nonzero().unbind(1)
    assert len(rows) > 10 * num_classes
    square = -(-(int(rows.max()) - int(rows.min())) // num_classes)
    assert int((rows - columns).abs().max()) < square
    assert set(rows.tolist()) == set(columns.tolist())


def test_confusion_picture_has_true_classes_in_rows():
    counts = torch.zeros(25, 25, dtype=torch.int64)
    counts[1, 23] = 5
    picture = draw_confusion_matrix(counts, make_names(25))
    rows, columns = find_shaded(picture).nonzero().unbind(1)
    assert int(rows.max()) < picture.shape[1] / 4
    assert int(columns.min()) > picture.shape[2] * 3 / 4


def test_confusion_picture_is_darker_for_a_larger_part_of_the_row():
    counts = torch.zeros(25, 25, dtype=torch.int64)
    counts[3, :4] = torch.tensor([50, 25, 15, 10])
    picture = draw_confusion_matrix(counts, make_names(25))
    red, mask = picture[0], find_shaded(picture)
    row = int(mask.nonzero()[:, 0].median())
    shades = [int(shade) for shade in torch.unique_consecutive(red[row][mask[row]])]
    assert shades == sorted(shades)
    assert len(set(shades)) == 4
    assert shades == [int(255 - 205 * part) for part in (0.5, 0.25, 0.15, 0.1)]


def test_confusion_picture_shows_parts_of_a_row_not_totals():
    counts = torch.arange(1, 626).reshape(25, 25)
    totals = torch.arange(1, 26)[:, None]
    assert torch.equal(
        draw_confusion_matrix(counts * totals, make_names(25)), draw_confusion_matrix(counts, make_names(25))
    )


def test_confusion_picture_of_a_class_without_examples_is_white():
    counts = torch.zeros(25, 25, dtype=torch.int64)
    assert not bool(find_shaded(draw_confusion_matrix(counts, make_names(25))).any())


def test_confusion_picture_writes_counts_up_to_twenty_classes():
    def ink(num_classes):
        counts = torch.full((num_classes, num_classes), 8)
        return int((draw_confusion_matrix(counts, make_names(num_classes))[:, 30:, 30:] < 40).all(0).sum())

    assert ink(MAX_LABELLED_CLASSES) > 1000
    assert ink(MAX_LABELLED_CLASSES + 1) == 0


def test_confusion_picture_accepts_long_names():
    picture = draw_confusion_matrix(torch.eye(3, dtype=torch.int64), ["x" * 300, "ὑπερβολή", ""])
    assert picture.shape == draw_confusion_matrix(torch.eye(3, dtype=torch.int64), make_names(3)).shape


def test_confusion_picture_writes_a_count_into_its_square():
    counts = torch.zeros(3, 3, dtype=torch.int64)
    counts[1, 2] = 8
    picture = draw_confusion_matrix(counts, make_names(3))
    rows, columns = find_shaded(picture).nonzero().unbind(1)
    inside = picture[:, int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    assert inside.shape == (3, 44, 44)
    ink = (inside[0] > 150).nonzero()  # light on a dark square
    assert len(ink) > 10
    assert bool((ink.double().mean(0) - 22).abs().max() < 4)


def test_confusion_picture_of_a_single_example_is_as_dark_as_of_many():
    pictures = [draw_confusion_matrix(count * torch.eye(25, dtype=torch.int64), make_names(25)) for count in (1, 9)]
    assert torch.equal(*pictures)
