"""Compare the data path with torchvision's: augmentation of images in memory, and JPEG files at 224 pixels.

    python scripts/bench_data.py [--quick] [--images FOLDER]

The other programs are torchvision's transforms of PIL images in a DataLoader, and its RandomResizedCrop. Without
--images the JPEG files are generated: 500x375 pixels of smooth noise, about 90 kB each.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import Report, make_parser, median, ratio, take_turns, wait
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from sam_runner.config.data import AugmentConfig
from sam_runner.data.image_sets import ImageFiles, make_image_set
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import IMAGENET_NORMALISATION, Normalisation
from sam_runner.utils.hardware import choose_num_workers, configure_torch

BATCH = 256


class Pictures(Dataset):
    """A data set in memory that makes a PIL image and transforms it, as torchvision's data sets do."""

    def __init__(self, images_NHWC: np.ndarray, transform: Callable) -> None:
        self.images, self.transform = images_NHWC, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), 0


def measure_in_memory(report: Report, rounds: int, device: torch.device) -> None:
    """Measure pad and crop, flip and normalisation of images of CIFAR's shape."""
    pixels = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    data = make_image_set(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.arange(50_000) % 10, tuple("abcdefghij")
    )
    normalisation = Normalisation.from_images(data.images_NCHW)
    few = pixels[: 16 * BATCH]
    old = transforms.Compose([
        transforms.RandomCrop(32, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(normalisation.mean, normalisation.std),
    ])  # fmt: skip
    new = v2.Compose([
        v2.ToImage(), v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(normalisation.mean, normalisation.std),
    ])  # fmt: skip

    def usual(transform: Callable, workers: int) -> Callable[[], None]:
        loader = DataLoader(
            Pictures(few, transform), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

        def run() -> None:
            for images, labels in loader:
                images.to(device), labels.to(device)

        return run

    def ours(*, channels_last: bool = False, cutout: int = 0) -> Callable[[], None]:
        augmentation = AugmentConfig(pad=4, flip=True, cutout=cutout)
        loader = ImageLoader(
            data, batch_size=BATCH, normalisation=normalisation, device=device, augmentation=augmentation,
            channels_last=channels_last,
        )  # fmt: skip

        def run() -> None:
            for _ in loader.epoch():
                pass
            wait(device)

        return run

    contenders = {
        "PIL + DataLoader": usual(old, 0), "PIL + DataLoader, 2 workers": usual(old, 2),
        "v2 + DataLoader": usual(new, 0),
        "ours": ours(), "ours, channels_last": ours(channels_last=True), "ours, with cutout": ours(cutout=16),
    }  # fmt: skip
    counts = {name: len(data) if name.startswith("ours") else len(few) for name in contenders}
    seconds = take_turns(contenders, rounds, device)
    speed = {name: counts[name] / median(seconds, name) for name in contenders}
    rows = [[name, value, value / speed["PIL + DataLoader"]] for name, value in speed.items()]
    report.table("Images of 32x32 in memory: crop, flip, normalise", ["program", "images/s", "times"], rows)
    report.check("batched augmentation, images/s", speed["ours"], 70_000, at_most=False)
    report.check(
        "speed of batched augmentation / PIL + DataLoader", speed["ours"] / speed["PIL + DataLoader"], 15, at_most=False
    )


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of the size of ImageNet's, and return their paths."""
    draws = np.random.default_rng(0)
    for index in range(count):
        coarse = draws.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + draws.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


def measure_jpeg(report: Report, rounds: int, paths: list[Path], device: torch.device, origin: str) -> None:
    """Measure random crops to 224 pixels on one core, then the loader with its workers."""
    old = transforms.RandomResizedCrop(224)
    labels = torch.zeros(len(paths), dtype=torch.int64)
    files = ImageFiles(Path("/"), tuple(str(path.resolve()) for path in paths), labels, ("a", "b"), labels, 224)
    augmentation = AugmentConfig(flip=True, crop_scale_min=0.08)

    def pil() -> None:
        for path in paths:
            np.asarray(old(Image.open(path).convert("RGB")))

    alone = ImageLoader(
        files,
        batch_size=32,
        normalisation=IMAGENET_NORMALISATION,
        device=torch.device("cpu"),
        augmentation=augmentation,
    )

    def ours() -> None:
        for _ in alone._stream.batches(0, list(torch.arange(len(paths)).split(32))):
            pass

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = take_turns({"PIL": pil, "ours": ours}, rounds, torch.device("cpu"))
    torch.set_num_threads(threads)
    gain = ratio(seconds, "PIL", "ours")
    rows = [
        [name, len(paths) / median(seconds, key)] for name, key in (("PIL RandomResizedCrop", "PIL"), ("ours", "ours"))
    ]
    report.table(f"JPEG files to 224 pixels, one core ({origin})", ["program", "images/s"], rows)
    report.check("speed of JPEG to 224 pixels / PIL's RandomResizedCrop, one core", gain, 1.5, at_most=False)
    workers = max(choose_num_workers(torch.device("cuda")), 1)
    many = files.subset(torch.arange(len(paths)).repeat(max(1, 256 * workers // len(paths))))
    loader = ImageLoader(
        many, batch_size=128, normalisation=IMAGENET_NORMALISATION, device=device,
        augmentation=augmentation, num_workers=workers,
        channels_last=True,
    )  # fmt: skip

    def epoch() -> None:
        for _ in loader.epoch():
            pass
        wait(device)

    seconds = take_turns({"loader": epoch}, 2, device)
    rows = [[f"{workers} workers, batches on {device}", len(many) / median(seconds, "loader")]]
    report.table("The loader of files", ["workers", "images/s"], rows)


def main() -> int:
    """Measure, print the tables and write the report."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: generated files)")
    options = parser.parse_args()
    device = torch.device(options.device)
    configure_torch(device)
    report = Report("The data path", device)
    rounds = 3 if options.quick else 7
    measure_in_memory(report, rounds, device)
    with tempfile.TemporaryDirectory() as folder:
        found = (
            [path for path in sorted(options.images.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
            if options.images
            else []
        )
        paths = found or write_images(Path(folder), 40)
        measure_jpeg(report, rounds, paths, device, "from --images" if found else "generated, 500x375")
    report.write(options.out, "data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
