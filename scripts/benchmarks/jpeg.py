"""Compare random crops of JPEG files to 224 pixels with PIL's RandomResizedCrop: seconds of one core, and pixels.

    python scripts/benchmarks/jpeg.py [--quick] [--images FOLDER]

Without --images the files are generated: 500x375 pixels of smooth noise, about 90 kB each. Every program takes a turn
in each round; times are those of the processor, which other work on the machine changes less than the time that has
passed. Decoders of other packages are measured where these are installed.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from time import process_time
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from sam_runner.config.data import AugmentConfig
from sam_runner.data.files import decode, jpeg
from sam_runner.data.files.boxes import CropBox, random_crop_box
from sam_runner.data.image_sets import ImageFiles
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import IMAGENET_NORMALISATION
from sam_runner.data.reading import use_kept_pixels
from sam_runner.utils.hardware import choose_num_workers, configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, ratio, take_turns, wait

SIZE, BATCH = 224, 32
AUGMENTATION = AugmentConfig(flip=True, crop_scale_min=0.08)
CPU = torch.device("cpu")
Decode = Callable[[bytes], object]


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files of the size of ImageNet's."""
    draws = np.random.default_rng(0)
    for index in range(count):
        coarse = draws.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + draws.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.jpg", quality=92)


def make_loader(files: ImageFiles) -> ImageLoader:
    """Return a loader that decodes in this process."""
    return ImageLoader(
        files, batch_size=BATCH, normalisation=IMAGENET_NORMALISATION, device=CPU, augmentation=AUGMENTATION
    )


def read_crops(loader: ImageLoader, epochs: dict[str, int], name: str) -> None:
    """Make the batches of an epoch; every call has other boxes, and every program the same ones."""
    epochs[name] = epochs.get(name, 0) + 1
    for _ in loader._stream.batches(epochs[name], torch.arange(loader.num_examples).split(BATCH)):
        pass


def measure_crops(report: Report, rounds: int, files: ImageFiles, cache: str, origin: str) -> None:
    """Measure the path of a file to a batch."""
    old, epochs = transforms.RandomResizedCrop(SIZE), {}

    def pil() -> None:
        for path in files.paths:
            np.asarray(old(Image.open(files.root / path).convert("RGB")))

    def without_parts(loader: ImageLoader) -> None:
        with patch.object(decode, "open_parts", return_value=None):
            read_crops(loader, epochs, "whole")

    from_files, kept = make_loader(files), make_loader(use_kept_pixels(replace(files, cache=cache)))
    contenders: dict[str, Callable[[], None]] = {
        "PIL RandomResizedCrop": pil,
        "ours": partial(without_parts, from_files),
        "ours, extra jpeg": partial(read_crops, from_files, epochs, "parts"),
        "ours, second epoch with data.cache": partial(read_crops, kept, epochs, "kept"),
    }
    if jpeg.load_codec() is None:
        del contenders["ours, extra jpeg"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = take_turns(contenders, rounds, CPU, process_time)
    torch.set_num_threads(threads)
    rows = [
        [name, len(files) / median(seconds, name), ratio(seconds, "PIL RandomResizedCrop", name)] for name in contenders
    ]
    title = f"JPEG files to {SIZE} pixels, one core ({origin}, {rounds} rounds of {len(files)} files)"
    report.table(title, ["program", "images/s", "speed-up over PIL"], rows)
    for name, bound in (("ours", 1.5), ("ours, extra jpeg", 1.8), ("ours, second epoch with data.cache", 4)):
        if name in contenders:
            value = ratio(seconds, "PIL RandomResizedCrop", name)
            report.check(f"speed of {name} / PIL's RandomResizedCrop, one core", value, bound, at_most=False)


def find_decoders() -> dict[str, Decode]:
    """Return the decoders of whole images that are installed."""
    decoders: dict[str, Decode] = {
        f"pillow {version('pillow')}": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    }
    if (torchvision := jpeg.whole_decoder()) is not None:
        decoders[f"torchvision {version('torchvision')}"] = torchvision
    with suppress(ImportError, RuntimeError):
        from torchcodec.decoders import decode_jpeg

        decoders[f"torchcodec {version('torchcodec')}"] = decode_jpeg
    with suppress(ImportError):
        import simplejpeg

        decoders[f"simplejpeg {version('simplejpeg')}"] = simplejpeg.decode_jpeg
        decoders["simplejpeg, fast DCT and upsampling"] = partial(
            simplejpeg.decode_jpeg, fastdct=True, fastupsample=True
        )
    if jpeg.load_codec() is not None:
        decoders["nvImageCodec, whole image"] = decode_rows
        decoders["nvImageCodec, the last 8 rows"] = partial(decode_rows, count=8)
    return decoders


def decode_rows(content: bytes, count: int | None = None) -> np.ndarray | None:
    """Decode the last rows, or all. Of the rows above, the Huffman codes alone are decoded."""
    parts = jpeg.open_parts(content)
    count = count or parts.height
    return parts.decode(CropBox(parts.height - count, 0, count, parts.width))


def measure_decoders(report: Report, rounds: int, contents: list[bytes]) -> None:
    """Measure the decoding alone, of whole images and of parts, with the boxes of one epoch."""
    sizes = [Image.open(io.BytesIO(content)).size for content in contents]
    boxes = [
        random_crop_box(height, width, AUGMENTATION.crop_scale_min, Random(number))
        for number, (width, height) in enumerate(sizes)
    ]

    def each(decoder: Decode) -> None:
        for content in contents:
            decoder(content)

    def draft() -> None:
        for content, box in zip(contents, boxes, strict=True):
            image = Image.open(io.BytesIO(content))
            image.draft("RGB", tuple(side * SIZE // min(box.height, box.width) for side in image.size))
            image.load()

    def parts() -> None:
        for content, box in zip(contents, boxes, strict=True):
            jpeg.open_parts(content).decode(box)

    contenders = {name: partial(each, decoder) for name, decoder in find_decoders().items()}
    contenders["pillow, draft for the box"] = draft
    if jpeg.load_codec() is not None:
        contenders["nvImageCodec, the box alone"] = parts
    seconds = take_turns(contenders, rounds, CPU, process_time)
    first = next(iter(contenders))
    rows = [[name, 1000 * median(seconds, name) / len(contents), ratio(seconds, first, name)] for name in contenders]
    report.table("Decoding alone, one core", ["decoder", "ms an image", f"speed-up over {first}"], rows)


def compare_pixels(report: Report, contents: list[bytes], folder: Path) -> None:
    """Compare crops with those of the whole image that Pillow decodes: parts, and reduced images for large boxes."""
    rows = []
    for size in (SIZE, 96, 48):
        differences = []
        for number, content in enumerate(contents):
            path = folder / "image.jpg"
            path.write_bytes(content)
            whole = np.asarray(Image.open(path).convert("RGB"))
            box = random_crop_box(*whole.shape[:2], AUGMENTATION.crop_scale_min, Random(number))
            crop = decode.read_crop(path, lambda *_, box=box: box, size).int()
            error = (crop - decode.crop_and_resize(whole, box, size).int()).abs().float()
            differences.append((decode.can_reduce(box, size), error))
        for reduced, name in ((False, "at full size"), (True, "at 1/2, 1/4 or 1/8 of the size")):
            found = [difference for is_reduced, difference in differences if is_reduced is reduced]
            if found:
                error = torch.stack(found)
                noise = float("inf") if not error.any() else float(10 * (255**2 / error.square().mean()).log10())
                rows.append([size, name, len(found), float(error.mean()), int(error.max()), noise])
    columns = ["pixels", "decoded", "crops", "mean difference, of 255", "largest", "PSNR, dB"]
    report.table("Differences from crops of the whole decoded image", columns, rows)


def measure_workers(report: Report, files: ImageFiles, device: torch.device) -> None:
    """Measure the loader with its worker processes."""
    workers = max(choose_num_workers(torch.device("cuda")), 1)
    many = files.subset(torch.arange(len(files)).repeat(max(1, 256 * workers // len(files))))
    loader = ImageLoader(
        many, batch_size=128, normalisation=IMAGENET_NORMALISATION, device=device,
        augmentation=AUGMENTATION, num_workers=workers, channels_last=True,
    )  # fmt: skip

    def epoch() -> None:
        for _ in loader.epoch():
            pass
        wait(device)

    seconds = take_turns({"loader": epoch}, 2, device)
    rows = [[f"{workers} workers, batches on {device}", len(many) / median(seconds, "loader")]]
    report.table("The loader of files", ["workers", "images/s"], rows)


def list_files(root: Path) -> ImageFiles:
    """Return the JPEG files below a folder."""
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    names, labels = tuple(str(path.relative_to(root)) for path in found), torch.zeros(len(found), dtype=torch.int64)
    return ImageFiles(root, names, labels, ("a", "b"), labels, SIZE)


def main() -> int:
    """Measure, print the tables and write the report."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: generated files)")
    options = parser.parse_args()
    device = torch.device(options.device)
    configure_torch(device)
    report = Report("JPEG files", device)
    with tempfile.TemporaryDirectory() as text:
        root = options.images or Path(text) / "images"
        if options.images is None:
            root.mkdir()
            write_images(root, 40)
        files = list_files(root)
        contents = [(root / path).read_bytes() for path in files.paths]
        rounds = 5 if options.quick else 25
        origin = "generated, 500x375" if options.images is None else "from --images"
        measure_crops(report, rounds, files, str(Path(text) / "cache"), origin)
        measure_decoders(report, rounds, contents)
        compare_pixels(report, contents, Path(text))
        measure_workers(report, files, device)
    report.write(options.out, "jpeg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
