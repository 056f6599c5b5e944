"""Decoding and resizing against Pillow; random boxes against torchvision's distribution."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import RandomResizedCrop

from sam_runner.data.files import decode
from sam_runner.data.files.boxes import CropBox, centre_crop_box, random_crop_box
from sam_runner.data.files.decode import check_image, crop_and_resize, read_crop, read_image
from sam_runner.utils.errors import InputError

SIDES = st.integers(1, 40)


def smooth_pixels(height, width, seed=0):
    """A smooth image, which JPEG and resizing hardly change."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def hwc(image_CHW):
    return image_CHW.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("with_torchvision", [True, False])
def test_jpeg_equals_pillow(tmp_path, monkeypatch, mode, quality, with_torchvision):
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth_pixels(61, 43)).convert(mode).save(path, quality=quality)
    if not with_torchvision:
        monkeypatch.setattr(decode, "whole_decoder", lambda: None)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 61, 43)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(smooth_pixels(61, 43)).save(tmp_path / "large.jpg")
    with pytest.raises(InputError, match=r"large\.jpg cannot be read.*decompression bomb"):
        read_image(tmp_path / "large.jpg")


def test_the_reason_of_a_broken_jpeg_is_short(tmp_path):
    path = tmp_path / "broken.jpg"
    Image.fromarray(smooth_pixels(61, 43)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read as an image: Image is incomplete or truncated\n"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp"])
def test_a_check_accepts_whole_files_without_decoding_and_files_with_further_bytes(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth_pixels(61, 43)).save(path)
    decoded = []
    monkeypatch.setattr(decode, "read_image", lambda path: decoded.append(path) or read_image(path))
    check_image(path)
    assert decoded == []
    path.write_bytes(path.read_bytes() + b"a note of the camera")
    check_image(path)
    assert decoded == ([path] if suffix in ("jpg", "png") else [])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.9])
def test_a_check_finds_truncated_files(tmp_path, suffix, left):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth_pixels(61, 43)).save(path)
    path.write_bytes(path.read_bytes()[: round(left * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"^{path} cannot be read as an image: "):
        check_image(path)


@pytest.mark.parametrize("factor", [1, 1.9, 2, 3.5, 4, 9])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_crop_is_correct_at_every_reduction(tmp_path, factor, suffix, monkeypatch):
    """For a smooth image, decoding at a fraction of the size differs little from resizing."""
    drafts, draft = [], JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *arguments: drafts.append(draft(*arguments)) or drafts[-1])
    size, side = 12, round(12 * factor)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth_pixels(round(side * 1.5), round(side * 1.25))).save(path, quality=95)
    box = CropBox(side // 4, side // 8, side, side)
    result = read_crop(path, lambda height, width: box, size)
    reductions = [round(side * 1.25) / decoded[2] for _, decoded in drafts]
    assert reductions == ([2 ** int(math.log2(min(factor, 8)))] if suffix == "jpg" and factor >= 2 else [])
    expected = crop_and_resize(hwc(read_image(path)), box, size)
    assert result.shape == (3, size, size)
    assert (result.int() - expected.int()).abs().max() <= (12 if suffix == "jpg" else 0)
    moved = crop_and_resize(hwc(read_image(path)), box._replace(top=0, left=0), size)
    assert (moved.int() - expected.int()).abs().max() > 16


@settings(deadline=None, max_examples=60)
@given(height=st.integers(8, 60), width=st.integers(8, 60), size=st.integers(4, 30), data=st.data())
def test_resizing_equals_pillows_bilinear_filter(height, width, size, data):
    box_height, box_width = data.draw(st.integers(4, height)), data.draw(st.integers(4, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    pixels = smooth_pixels(height, width)
    part = Image.fromarray(pixels[top : top + box_height, left : left + box_width])
    expected = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    result = crop_and_resize(pixels, CropBox(top, left, box_height, box_width), size)
    assert result.shape == (3, size, size)
    differences = np.abs(result.permute(1, 2, 0).numpy().astype(int) - expected)
    assert differences.max() <= 2 and differences.mean() < 0.5  # both round after each of the two directions


@given(height=SIDES, width=SIDES, fraction=st.floats(0.01, 1))
def test_centre_box_is_a_square_in_the_middle(height, width, fraction):
    box = centre_crop_box(height, width, fraction)
    assert box.height == box.width == max(1, round(fraction * min(height, width)))
    assert 0 <= box.top <= height - box.height
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), crop_scale_min=st.floats(0.01, 1), seed=st.integers(0, 2**63)
)
def test_random_box_is_inside(height, width, crop_scale_min, seed):
    box = random_crop_box(height, width, crop_scale_min, random.Random(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert min(box.height, box.width) >= 1


def largest_distance(first, second):
    """Kolmogorov-Smirnov distance of two samples."""
    points = np.sort(np.concatenate([first, second]))
    cumulative = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (first, second)]
    return np.abs(cumulative[0] - cumulative[1]).max()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (60, 300)])
@pytest.mark.parametrize("crop_scale_min", [0.08, 0.5])
def test_random_box_is_distributed_as_torchvisions(height, width, crop_scale_min):
    count = 4000
    draws = random.Random(1)
    result = np.array([random_crop_box(height, width, crop_scale_min, draws) for _ in range(count)], float)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = RandomResizedCrop(8, scale=(crop_scale_min, 1))
    reference = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(count)], float)
    critical = 1.95 * (2 / count) ** 0.5  # one in a thousand
    for axis in range(4):
        assert largest_distance(result[:, axis], reference[:, axis]) < critical
    areas = [sample[:, 2] * sample[:, 3] for sample in (result, reference)]
    assert largest_distance(*areas) < critical
    aspects = [sample[:, 3] / sample[:, 2] for sample in (result, reference)]
    assert largest_distance(*aspects) < critical


def test_the_comparison_of_distributions_sees_another_area():
    draws = random.Random(1)
    samples = [
        np.prod([random_crop_box(375, 500, area, draws)[2:] for _ in range(4000)], axis=1) for area in (0.08, 0.15)
    ]
    assert largest_distance(*samples) > 1.95 * (2 / 4000) ** 0.5
