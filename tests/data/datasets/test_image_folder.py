"""Image folders that the tests write with PIL."""

import numpy as np
import pytest
import torch
from PIL import Image

from sam_runner.data import reading
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from sam_runner.utils.errors import InputError


def random_pixels(seed, height=6, width=5):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_classes(root, counts, start=0):
    """Random images ``root/<class>/<number>.png``; their pixels by class."""
    seed, pixels = start, {}
    for name, count in counts.items():
        pixels[name] = [random_pixels(seed + index) for index in range(count)]
        for index, image in enumerate(pixels[name]):
            write_image(root / name / f"{index:03d}.png", image)
        seed += count
    return pixels


def nhwc_pixels(part):
    return part.images_NCHW.permute(0, 2, 3, 1).numpy()


def error_message(root, **options):
    with pytest.raises(InputError) as caught:
        image_folder(root=str(root), **options).read()
    return str(caught.value)


def test_train_and_test_folders_in_alphabetical_order(tmp_path):
    train = write_classes(tmp_path / "train", {"zebra": 2, "ant": 3})
    test = write_classes(tmp_path / "test", {"ant": 1, "zebra": 2}, start=50)
    splits = image_folder(root=str(tmp_path)).read()
    assert splits.train.classes == splits.test.classes == ("ant", "zebra")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert np.array_equal(nhwc_pixels(splits.train), np.stack(train["ant"] + train["zebra"]))
    assert np.array_equal(nhwc_pixels(splits.test), np.stack(test["ant"] + test["zebra"]))
    assert splits.train.images_NCHW.is_contiguous()


@pytest.mark.parametrize("num_workers", [0, 1, 8])
def test_order_does_not_depend_on_the_number_of_threads(tmp_path, num_workers):
    pixels = write_classes(tmp_path / "train", {"a": 20, "b": 20})
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    splits = image_folder(root=str(tmp_path), num_workers=num_workers).read()
    assert np.array_equal(nhwc_pixels(splits.train), np.stack(pixels["a"] + pixels["b"]))


def test_images_are_in_the_order_of_their_numbers(tmp_path):
    """noise=human gives the k-th image of a class the k-th label, so 2.png must come before 10.png."""
    for name in "ab":
        for number in range(1, 13):
            write_image(tmp_path / "train" / name / f"{number}.png", np.full((4, 4, 3), number, np.uint8))
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    images = image_folder(root=str(tmp_path), image_size=4).read().train.images_NCHW
    assert images[:, 0, 0, 0].tolist() == [*range(1, 13), *range(1, 13)]


def test_val_folder_is_the_test_set(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    pixels = write_classes(tmp_path / "val", {"a": 1, "b": 1}, start=70)
    assert np.array_equal(
        nhwc_pixels(image_folder(root=str(tmp_path)).read().test), np.stack(pixels["a"] + pixels["b"])
    )


@pytest.mark.parametrize("below", ["", "train"])
def test_split_takes_the_fraction_of_each_class(tmp_path, below):
    pixels = write_classes(tmp_path / below, {"a": 10, "b": 20, "c": 5})
    splits = image_folder(root=str(tmp_path), test_fraction=0.2).read()
    assert splits.test.labels.bincount().tolist() == [2, 4, 1]
    assert splits.train.labels.bincount().tolist() == [8, 16, 4]
    both = sorted(image.tobytes() for part in (splits.train, splits.test) for image in nhwc_pixels(part))
    assert both == sorted(image.tobytes() for images in pixels.values() for image in images)


def test_a_test_set_taken_from_the_training_images_is_logged(tmp_path, caplog):
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    with caplog.at_level("INFO", logger="sam_runner"):
        image_folder(root=str(tmp_path), test_fraction=0.2).read()
    assert f"{tmp_path} has no test or val folder: 0.2 of its images are used for testing" in caplog.messages
    write_classes(tmp_path / "val", {"a": 2, "b": 2})
    caplog.clear()
    with caplog.at_level("INFO", logger="sam_runner"):
        image_folder(root=str(tmp_path)).read()
    splits = f"train set {tmp_path}/train, test set {tmp_path}/val"
    assert set(caplog.messages) == {"reading 24 images into memory", splits}  # no message about a test set


def test_split_is_the_same_for_every_call(tmp_path):
    write_classes(tmp_path, {"a": 20, "b": 20})
    torch.manual_seed(0)
    first = image_folder(root=str(tmp_path), test_fraction=0.5).read()
    torch.manual_seed(1)
    again = image_folder(root=str(tmp_path), test_fraction=0.5).read()
    assert torch.equal(first.test.images_NCHW, again.test.images_NCHW)


def test_files_that_are_no_images_and_hidden_folders_are_passed_over(tmp_path):
    write_classes(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("about the set")
    (tmp_path / ".cache").mkdir()
    splits = image_folder(root=str(tmp_path)).read()
    assert splits.train.classes == ("a", "b")
    assert len(splits.train) + len(splits.test) == 10


@pytest.mark.parametrize("suffix", ["png", "BMP", "ppm", "webp"])
def test_lossless_formats_keep_their_pixels(tmp_path, suffix):
    for name in "ab":
        for index in range(2):
            path = tmp_path / name / f"{index}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(random_pixels(index)).save(path, lossless=True)
    splits = image_folder(root=str(tmp_path), test_fraction=0.5).read()
    images = {image.tobytes() for part in (splits.train, splits.test) for image in nhwc_pixels(part)}
    assert images == {random_pixels(0).tobytes(), random_pixels(1).tobytes()}


def test_grey_images_are_read_as_rgb(tmp_path):
    grey = random_pixels(0)[:, :, 0]
    for name in "ab":
        for index in range(2):
            write_image(tmp_path / name / f"{index}.png", grey)
    images = image_folder(root=str(tmp_path), test_fraction=0.5).read().train.images_NCHW
    assert images.shape == (2, 3, 6, 5)
    assert np.array_equal(images[0].numpy(), np.stack([grey] * 3))


def test_sixteen_bit_grey_images_are_scaled_to_eight_bits(tmp_path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    for name in "ab":
        for index in range(2):
            write_image(tmp_path / name / f"{index}.png", levels)
    images = image_folder(root=str(tmp_path), test_fraction=0.5).read().train.images_NCHW
    assert np.abs(images[0, 0].numpy() - levels / 65535 * 255).max() <= 1


def test_image_size_scales_the_shorter_side_and_cuts_out_the_middle(tmp_path):
    ramp = np.repeat(np.tile(np.arange(32, dtype=np.uint8) * 4, (16, 1))[:, :, None], 3, 2)
    for name in "ab":
        write_image(tmp_path / name / "wide.png", ramp)
        write_image(tmp_path / name / "tall.png", ramp.transpose(1, 0, 2).copy())
    splits = image_folder(root=str(tmp_path), image_size=8, test_fraction=0.5).read()
    images = np.concatenate([nhwc_pixels(splits.train), nhwc_pixels(splits.test)]).astype(np.int64)
    expected = np.repeat(np.tile(8 * np.arange(4, 12) + 2, (8, 1))[:, :, None], 3, 2)  # means of neighbouring columns
    wide = [image for image in images if abs(image - expected).max() <= 1]
    tall = [image for image in images if abs(image.transpose(1, 0, 2) - expected).max() <= 1]
    assert (len(wide), len(tall)) == (2, 2)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (7, 20), (33, 8), (41, 43)])
def test_image_size_gives_every_image_that_size(tmp_path, height, width):
    for name in "ab":
        write_image(tmp_path / name / "first.png", random_pixels(0, 12, 12))
        write_image(tmp_path / name / "second.png", np.full((height, width, 3), 77, np.uint8))
    splits = image_folder(root=str(tmp_path), image_size=12, test_fraction=0.5).read()
    images = np.concatenate([nhwc_pixels(splits.train), nhwc_pixels(splits.test)])
    assert images.shape == (4, 12, 12, 3)
    assert {image.tobytes() for image in images} == {random_pixels(0, 12, 12).tobytes(), bytes([77]) * (12 * 12 * 3)}


def test_unequal_sizes_name_the_file_and_the_way_out(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "b" / "odd.png", random_pixels(0, 7, 9))
    message = error_message(tmp_path)
    assert f"{tmp_path / 'b' / 'odd.png'} is 9x7 pixels" in message
    assert "5x6" in message
    assert "data.image_size" in message


def test_a_test_set_of_another_size_is_refused(tmp_path):
    write_classes(tmp_path / "train", {"a": 3, "b": 3})
    for name in "ab":
        write_image(tmp_path / "test" / name / "1.png", random_pixels(0, 7, 9))
    message = error_message(tmp_path)
    assert f"{tmp_path / 'test/a/1.png'} is 9x7 pixels, train/a/000.png is 5x6" in message
    assert "data.image_size" in message


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_truncated_image_is_named(tmp_path, kept, suffix):
    write_classes(tmp_path, {"a": 3, "b": 3})
    path = tmp_path / "b" / f"001.{suffix}"
    write_image(path, random_pixels(0, 60, 50))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert str(path) in error_message(tmp_path, image_size=6)


def test_text_file_with_the_suffix_of_an_image_is_named(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "002.png").write_text("<html>404 not found</html>")
    path = tmp_path / "a" / "002.png"
    assert error_message(tmp_path).startswith(f"{path} cannot be read as an image: its content is no image\n")
    path.write_bytes(b"")
    assert error_message(tmp_path).startswith(f"{path} cannot be read as an image: it is empty\n")


def test_empty_class_is_named(tmp_path):
    write_classes(tmp_path, {"a": 2, "c": 2})
    (tmp_path / "b").mkdir()
    message = error_message(tmp_path)
    assert f"no images in {tmp_path}: b\n" in message
    assert ".png" in message


def test_missing_root_is_named(tmp_path):
    message = error_message(tmp_path / "nowhere")
    assert f"data.root={tmp_path / 'nowhere'} is not a folder" in message
    assert "<class>" in message


def test_root_without_class_folders_is_refused(tmp_path):
    write_image(tmp_path / "loose.png", random_pixels(0))
    assert ": no class folders" in error_message(tmp_path)


def test_single_class_is_refused(tmp_path):
    write_classes(tmp_path, {"only": 5})
    assert "at least 2 classes, found 1: only" in error_message(tmp_path)


def test_classes_that_differ_between_train_and_test_are_named(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1, "cat": 1})
    write_classes(tmp_path / "test", {"a": 1, "b": 1, "dog": 1})
    assert "does not have: dog; only the training set has: cat" in error_message(tmp_path)


def test_fraction_that_leaves_a_part_empty_is_refused(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    assert "data.test_fraction=0.1 of 4 images" in error_message(tmp_path, test_fraction=0.1)


def test_set_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_classes(tmp_path, {"a": 2, "b": 2})
    monkeypatch.setattr(reading, "MAX_BYTES", 4 * 6 * 5 * 3 - 1)
    assert "data.image_size" in error_message(tmp_path)


def test_classes_too_small_to_split_are_split_together(tmp_path):
    """ImageNet's samples have one image a class."""
    pixels = write_classes(tmp_path / "train", {f"n{number:08d}": 1 for number in range(10)})
    splits = image_folder(root=str(tmp_path), test_fraction=0.2).read()
    assert (len(splits.train), len(splits.test)) == (8, 2)
    both = sorted(image.tobytes() for part in (splits.train, splits.test) for image in nhwc_pixels(part))
    assert both == sorted(image.tobytes() for images in pixels.values() for image in images)


def test_a_test_folder_without_classes_is_passed_over_beside_a_val_folder(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    pixels = write_classes(tmp_path / "val", {"a": 1, "b": 1}, start=70)
    write_image(tmp_path / "test" / "loose.png", random_pixels(0))
    assert np.array_equal(
        nhwc_pixels(image_folder(root=str(tmp_path)).read().test), np.stack(pixels["a"] + pixels["b"])
    )


def test_a_val_folder_without_classes_alone_is_refused(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_image(tmp_path / "val" / "loose.png", random_pixels(0))
    assert f"{tmp_path / 'val'} has no class folders" in error_message(tmp_path)


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_centre_is_the_middle_of_the_shorter_side(tmp_path, storage):
    frame = np.zeros((20, 32, 3), np.uint8)
    frame[5:15, 11:21] = 200  # half of 20 pixels in the middle
    for name in "ab":
        for index in range(2):
            write_image(tmp_path / name / f"{index}.png", frame)
    splits = image_folder(
        root=str(tmp_path), image_size=10, eval_crop_ratio=0.5, storage=storage, test_fraction=0.5
    ).read()
    plain = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    loader = ImageLoader(splits.test, batch_size=2, normalisation=plain, device=torch.device("cpu"))
    torch.testing.assert_close(next(loader.epoch()).images, torch.full((2, 3, 10, 10), 200 / 255))
    whole = image_folder(root=str(tmp_path), image_size=10, storage=storage, test_fraction=0.5).read()
    loader = ImageLoader(whole.test, batch_size=2, normalisation=plain, device=torch.device("cpu"))
    assert float(next(loader.epoch()).images.min()) == 0


def test_centre_without_a_size_has_no_effect_and_is_refused(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    assert "data.eval_crop_ratio=0.5 has no effect" in error_message(tmp_path, eval_crop_ratio=0.5)
