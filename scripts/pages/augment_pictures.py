"""Writes docs/img/augment_<name>.png: eight images of a folder, as they are and in four epochs of an augmentation.

    python scripts/pages/augment_pictures.py CIFAR_FOLDER [--large IMAGENET_FOLDER]

The first row has the images as they are. Inception-style crops are drawn from the second folder, of larger files.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from sam_runner.config.data import AugmentConfig
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.image_sets import Images
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import IMAGENET_NORMALISATION
from sam_runner.training.pictures import draw_image_grid

BASIC = {"pad": 4, "flip": True}
AUGMENTATIONS = {
    "basic": AugmentConfig(**BASIC),
    "cutout": AugmentConfig(**BASIC, cutout=16),
    "cutout_per_batch": AugmentConfig(**BASIC, cutout=16, cutout_per_batch=True),
    "autoaugment": AugmentConfig(**BASIC, policy="cifar10", cutout=16),
    "randaugment": AugmentConfig(**BASIC, policy="randaugment"),
    "trivialaugment": AugmentConfig(**BASIC, policy="trivialaugment"),
    "erasing": AugmentConfig(**BASIC, erasing=0.5),
    "mixup": AugmentConfig(**BASIC, mixup=1.0),
    "cutmix": AugmentConfig(**BASIC, cutmix=1.0),
}
IMAGES, EPOCHS = 8, 4


def draw(data: Images, augmentation: AugmentConfig, path: Path) -> None:
    """Draw a row of the images as they are, and a row for each epoch, in the same order."""
    options = {"batch_size": IMAGES, "normalisation": IMAGENET_NORMALISATION, "device": torch.device("cpu")}
    plain, loader = ImageLoader(data, **options), ImageLoader(data, augmentation=augmentation, **options)
    rows = [plain.denormalise(next(plain.epoch()).images)]
    for epoch in range(EPOCHS):
        examples = next(loader.epoch(epoch))
        rows.append(loader.denormalise(examples.images)[examples.indices.argsort()])
    picture = draw_image_grid(torch.cat(rows), columns=IMAGES, min_side=50)
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} {path.stat().st_size / 1024:.0f} kB")


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="an image folder of 32x32 images")
    parser.add_argument("--large", help="an image folder of larger files")
    parser.add_argument("--out", default=Path(__file__).parents[2] / "docs" / "img", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    test = image_folder(root=arguments.folder, image_size=32).read().test
    chosen = test.subset((torch.arange(IMAGES) + 0.5).mul(len(test) / IMAGES).long())
    for name, augmentation in AUGMENTATIONS.items():
        draw(chosen, augmentation, arguments.out / f"augment_{name}.png")
    if arguments.large:
        large = image_folder(root=arguments.large, image_size=56, storage="disk", eval_crop_ratio=0.875).read().train
        inception = AugmentConfig(flip=True, crop_scale_min=0.08)
        draw(large.subset(torch.arange(IMAGES)), inception, arguments.out / "augment_inception.png")


if __name__ == "__main__":
    main()
