"""JPEG decoders other than Pillow: nvImageCodec decodes a part of an image, torchvision a whole one.

nvImageCodec is optional (extra ``jpeg``). It stops after the last row of the part, and leaves out the columns beside
it. Both use libjpeg-turbo with the same settings, so that they give the same pixels.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sam_runner.data.files.boxes import CropBox

log = logging.getLogger("sam_runner")
START = b"\xff\xd8\xff"  # first bytes of a JPEG file
PACKAGES = ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13")  # both have the decoder for CPUs
_loading = threading.Lock()
_of_thread = threading.local()


class JpegParts:
    """A JPEG file of which parts can be decoded.

    Args:
        stream: The file as a ``CodeStream`` of nvImageCodec.
        codec: Module of nvImageCodec.

    Attributes:
        height: Height of the whole image in pixels.
        width: Width of the whole image in pixels.
    """

    def __init__(self, stream: Any, codec: Any) -> None:
        self._stream, self._codec = stream, codec
        self.height, self.width = int(stream.height), int(stream.width)

    def decode(self, box: CropBox) -> NDArray[np.uint8] | None:
        """Return the pixels of a box, RGB, uint8, (height, width, 3).

        None if the file is damaged above the last row of the box, or the decoder fails; what is below that row is not
        read.
        """
        region = self._codec.Region(box.top, box.left, box.top + box.height, box.left + box.width)
        try:
            image = _decoder_of_thread(self._codec).decode(
                self._stream.get_sub_code_stream(region=region),
                params=self._codec.DecodeParams(apply_exif_orientation=False),
            )
        except RuntimeError:
            return None
        if image is None or image.shape != (box.height, box.width, 3):
            return None
        return np.asarray(image)


def open_parts(content: bytes) -> JpegParts | None:
    """Return a JPEG file to decode parts of.

    Args:
        content: The whole file.

    Returns:
        None without nvImageCodec, and for a file that is left to Pillow: it is no JPEG, is damaged, has four channels
        or more than 8 bits, or so many pixels that Pillow has something to say.
    """
    codec = load_codec() if content.startswith(START) else None
    stream = None if codec is None else _parse(codec, content)
    if stream is None or stream.num_channels not in (1, 3) or stream.precision != 8:
        return None
    if Image.MAX_IMAGE_PIXELS is not None and stream.height * stream.width > Image.MAX_IMAGE_PIXELS:
        return None
    return JpegParts(stream, codec)


def _parse(codec: Any, content: bytes) -> Any:
    try:
        stream = codec.CodeStream(content)
        return stream if stream.codec_name == "jpeg" else None
    except RuntimeError:
        return None


def _decoder_of_thread(codec: Any) -> Any:
    """Return this thread's decoder; one decoder cannot be used by two threads at once."""
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.CPU_ONLY)],
        )
    return _of_thread.decoder


def load_codec() -> Any:
    """Return the module of nvImageCodec, None if it is not installed or cannot be used, which is logged."""
    with _loading:
        return _load_codec()


@cache
def _load_codec() -> Any:
    try:
        found = find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:
        return None
    if found is None or found.origin is None:
        return None
    try:
        with _only_the_jpeg_decoder(Path(found.origin).parent):
            from nvidia import nvimgcodec

            _decoder_of_thread(nvimgcodec)
        return nvimgcodec
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        log.warning("nvImageCodec is installed but not used: %s", error)
        return None


@contextmanager
def _only_the_jpeg_decoder(package: Path) -> Iterator[None]:
    """Let nvImageCodec load its JPEG decoder for CPUs alone: the others print that CUDA libraries are missing.

    It also says nothing of damaged files, which are reported otherwise. It reads both variables when it is imported.
    """
    with TemporaryDirectory() as folder:
        for library in package.glob("extensions/*jpeg_turbo_ext*"):
            os.symlink(library, Path(folder) / library.name)
        chosen = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        before = {name: os.environ.get(name) for name in chosen}
        os.environ.update(chosen)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@cache
def whole_decoder() -> Callable[[bytes], NDArray[np.uint8]] | None:
    """Return torchvision's JPEG decoder, or None if this release has none (they are to move to TorchCodec).

    It maps the content of a file to the image, RGB, uint8, (H, W, 3).
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # imported here because it takes a second
    except ImportError:
        return None

    def decode(content: bytes) -> NDArray[np.uint8]:
        image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
        pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
        return pixels

    return decode


def load_decoder() -> None:
    """Import the decoder that most JPEG files need: worker processes that are forked later have it at once."""
    if load_codec() is None:
        whole_decoder()


def describe_decoders() -> str:
    """Return the packages that decode image files, with their versions; the first that can read a file does."""
    codecs = [name for name in PACKAGES if _version(name)] if load_codec() is not None else []
    return ", ".join(f"{name} {_version(name)}" for name in (*codecs[:1], "torchvision", "pillow"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
