"""Parts of JPEG files: the same pixels as those of whole images, whatever decodes them."""

import io
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sam_runner.data.files import decode, jpeg
from sam_runner.data.files.boxes import CropBox
from sam_runner.data.files.decode import read_crop
from sam_runner.utils.errors import InputError
from tests.data.files.test_decode import smooth_pixels

needs_codec = pytest.mark.skipif(jpeg.load_codec() is None, reason="the extra jpeg is not installed")
ROTATED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6


def noisy_pixels(height, width):
    noise = np.random.default_rng(0).normal(0, 10, (height, width, 3))
    return (smooth_pixels(height, width) + noise).clip(0, 255).astype(np.uint8)


def jpeg_file(height, width, mode="RGB", **options):
    content = io.BytesIO()
    Image.fromarray(noisy_pixels(height, width)).convert(mode).save(content, "JPEG", **options)
    return content.getvalue()


def whole(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def random_box(height, width, draws):
    box_height, box_width = draws.randint(1, height), draws.randint(1, width)
    return CropBox(draws.randint(0, height - box_height), draws.randint(0, width - box_width), box_height, box_width)


def cut(image_HWC, box):
    return image_HWC[box.top : box.top + box.height, box.left : box.left + box.width]


class FakeCodec:
    """What is used of nvImageCodec; Pillow decodes."""

    NVIMGCODEC_DEVICE_CPU_ONLY, CPU_ONLY = -99999, "cpu"

    def __init__(self, fault=None):
        self.fault, self.regions = fault, []
        self.Region, self.DecodeParams, self.Backend = lambda *corners: corners, dict, str

    def CodeStream(self, content):  # noqa: N802
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
        return SimpleNamespace(
            codec_name="jpeg", height=height, width=width, num_channels=3, precision=8,
            get_sub_code_stream=lambda region: (content, region),
        )  # fmt: skip

    def Decoder(self, **options):  # noqa: N802
        return self

    def decode(self, stream, params):
        assert params == {"apply_exif_orientation": False}
        content, (top, left, bottom, right) = stream
        self.regions.append((top, left, bottom, right))
        if self.fault == "error":
            raise RuntimeError
        return None if self.fault == "nothing" else whole(content)[top:bottom, left:right]


@pytest.fixture
def use_codec(monkeypatch):
    def use(codec):
        monkeypatch.setattr(jpeg, "load_codec", lambda: codec)
        monkeypatch.setattr(jpeg, "_of_thread", SimpleNamespace())
        return codec

    return use


@pytest.mark.parametrize("fault", [None, "nothing", "error"])
def test_a_crop_is_the_same_with_a_decoder_of_parts_and_when_that_fails(tmp_path, use_codec, fault):
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg_file(61, 43))
    calls, box = [], CropBox(7, 5, 19, 17)

    def choose_box(height, width):
        calls.append((height, width))
        return box

    use_codec(None)
    expected = read_crop(path, choose_box, 12)
    codec = use_codec(FakeCodec(fault))
    assert torch.equal(read_crop(path, choose_box, 12), expected)
    assert codec.regions == [(7, 5, 7 + 19, 5 + 17)]
    assert calls == [(61, 43)] * 2  # once for each crop: a random box is not drawn again


def test_large_boxes_are_still_decoded_at_a_fraction_of_their_size(tmp_path, use_codec):
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg_file(61, 43))
    use_codec(None)
    expected = read_crop(path, lambda height, width: CropBox(0, 0, 40, 40), 12)
    codec = use_codec(FakeCodec())
    assert torch.equal(read_crop(path, lambda height, width: CropBox(0, 0, 40, 40), 12), expected)
    assert codec.regions == []


@pytest.mark.parametrize("size", [96, 48])
def test_reduced_decoding_differs_little_from_resizing_the_whole_image(tmp_path, size):
    """PSNR of at least 38 dB, 2.5 of 255 levels on average, with the noise of a photo."""
    path, draws = tmp_path / "image.jpg", random.Random(0)
    path.write_bytes(jpeg_file(375, 500, quality=92))
    errors = []
    while len(errors) < 10:
        box = random_box(375, 500, draws)
        if decode.can_reduce(box, size):
            crop = read_crop(path, lambda height, width, box=box: box, size).int()
            errors.append(crop - decode.crop_and_resize(whole(path.read_bytes()), box, size).int())
    error = torch.stack(errors).float()
    assert error.abs().mean() <= 2.5
    assert 10 * (255**2 / error.square().mean()).log10() >= 38
    assert error.any()  # otherwise nothing was reduced


@needs_codec
@pytest.mark.parametrize(
    "options",
    [
        {}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": "4:1:1"}, {"progressive": True}, {"mode": "L"},
        {"progressive": True, "subsampling": 1}, {"restart_marker_blocks": 3}, {"keep_rgb": True}, {"quality": 20},
        {"optimize": True, "quality": 100}, {"exif": ROTATED},
    ],
    ids=str,
)  # fmt: skip
def test_a_part_has_the_pixels_of_the_whole_image(options):
    draws = random.Random(0)
    for height, width in ((61, 43), (16, 16), (1, 1), (97, 130), (8, 33)):
        content = jpeg_file(height, width, **options)
        expected, by_torchvision = whole(content), jpeg.whole_decoder()(content)
        assert np.array_equal(by_torchvision, expected)
        for box in (CropBox(0, 0, height, width), *(random_box(height, width, draws) for _ in range(8))):
            assert np.array_equal(jpeg.open_parts(content).decode(box), cut(expected, box)), (height, width, box)


@needs_codec
def test_damage_counts_only_above_the_end_of_the_box(tmp_path):
    path = tmp_path / "image.jpg"
    content = jpeg_file(200, 100)
    path.write_bytes(content[: len(content) // 2])
    top = read_crop(path, lambda height, width: CropBox(0, 0, 30, 30), 20)
    path.write_bytes(content)
    assert torch.equal(top, read_crop(path, lambda height, width: CropBox(0, 0, 30, 30), 20))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"^{path} cannot be read as an image: Image is incomplete"):
        read_crop(path, lambda height, width: CropBox(160, 0, 30, 30), 20)


@needs_codec
@pytest.mark.parametrize("kind", ["CMYK", "png", "garbage", "empty", "large"])
def test_other_files_are_left_to_pillow(kind, monkeypatch):
    content = {
        "CMYK": lambda: jpeg_file(20, 20, "CMYK"), "garbage": lambda: jpeg.START + bytes(100), "empty": bytes,
        "large": lambda: jpeg_file(20, 20), "png": lambda: b"\x89PNG\r\n\x1a\n",
    }[kind]()  # fmt: skip
    if kind == "large":
        assert jpeg.open_parts(content) is not None
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    assert jpeg.open_parts(content) is None


@needs_codec
def test_the_decoder_prints_nothing_and_leaves_the_environment_alone(tmp_path):
    (tmp_path / "image.jpg").write_bytes(jpeg_file(100, 100)[:1000])
    code = (
        "import os; before = dict(os.environ)\n"
        "from sam_runner.data.files import jpeg, boxes\n"
        "parts = jpeg.open_parts(open('image.jpg', 'rb').read())\n"
        "assert parts.decode(boxes.CropBox(0, 0, 100, 100)) is None\n"
        "assert dict(os.environ) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@needs_codec
def test_threads_and_forked_processes_decode_at_the_same_time():
    contents = [jpeg_file(100 + number, 90) for number in range(8)]
    box = CropBox(11, 3, 60, 50)

    def decode_part(content):
        return all(np.array_equal(jpeg.open_parts(content).decode(box), cut(whole(content), box)) for _ in range(20))

    assert decode_part(contents[0])
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode_part, contents))
    child = os.fork()
    if child == 0:
        os._exit(0 if decode_part(contents[1]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_installation_that_cannot_be_used_is_named_once(monkeypatch, tmp_path):
    messages = []
    monkeypatch.setattr(jpeg.log, "warning", lambda text, *values: messages.append(text % values))
    monkeypatch.setattr(jpeg, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace())  # a package without nvimgcodec
    jpeg._load_codec.cache_clear()
    try:
        assert [jpeg.load_codec(), jpeg.load_codec()] == [None, None]
    finally:
        jpeg._load_codec.cache_clear()
    (message,) = messages
    assert message.startswith("nvImageCodec is installed but not used: cannot import name 'nvimgcodec'")


def test_the_decoders_are_named_with_their_versions(use_codec, monkeypatch):
    versions = {"nvidia-nvimgcodec-cu13": "0.9", "torchvision": "0.29", "pillow": "13"}
    monkeypatch.setattr(jpeg, "_version", versions.get)
    use_codec(None)
    assert jpeg.describe_decoders() == "torchvision 0.29, pillow 13"
    use_codec(FakeCodec())
    assert jpeg.describe_decoders() == "nvidia-nvimgcodec-cu13 0.9, torchvision 0.29, pillow 13"


def test_resizing_gets_and_gives_pixels_in_channels_last_memory(monkeypatch):
    """Of another layout torch makes a copy; a batch of such images is copied without a transposition."""
    seen, resize = [], decode.F.interpolate
    monkeypatch.setattr(
        decode.F,
        "interpolate",
        lambda images, *rest, **options: seen.append(images) or resize(images, *rest, **options),
    )
    pixels = noisy_pixels(50, 40)
    pixels.setflags(write=False)
    crops = [decode.crop_and_resize(pixels, CropBox(3, 4, side, side), 16) for side in (30, 16)]
    (images,) = seen
    assert images.stride() == (30 * 30 * 3, 1, 30 * 3, 3)
    batch = decode.stack_images(crops)
    assert batch.stride() == (16 * 16 * 3, 1, 16 * 3, 3)
    assert torch.equal(batch, torch.stack(crops))
    assert torch.equal(crops[1].permute(1, 2, 0), torch.from_numpy(pixels[3:19, 4:20].copy()))
