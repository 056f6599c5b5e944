"""Compare the augmentation of images in memory with torchvision's transforms of PIL images in a DataLoader.

python scripts/benchmarks/data.py [--quick]
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from sam_runner.config.data import AugmentConfig
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, take_turns, wait

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
    report.table("Images of 32x32 in memory: crop, flip, normalise", ["program", "images/s", "speed-up"], rows)
    report.check("batched augmentation, images/s", speed["ours"], 70_000, at_most=False)
    report.check(
        "speed of batched augmentation / PIL + DataLoader", speed["ours"] / speed["PIL + DataLoader"], 15, at_most=False
    )


def main() -> int:
    """Measure, print the tables and write the report."""
    options = make_parser(__doc__.splitlines()[0]).parse_args()
    device = torch.device(options.device)
    configure_torch(device)
    report = Report("The data path", device)
    measure_in_memory(report, 3 if options.quick else 7, device)
    report.write(options.out, "data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
