"""Write small made-up files in the formats that the studies of evidence.py read, for their smoke runs."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = {"train": 40, "test": 10}  # of each class
WRONG = 0.4  # fraction of wrong labels
COLUMNS = ("clean_label", "aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")


def write_small_data(folder: Path) -> dict[str, str]:
    """Write images of random pixels, also as Fashion-MNIST, human labels, and random weights of EfficientNet-Lite0.

    Args:
        folder: Where to write. Files that exist are kept.

    Returns:
        The folders by the names that studies have for them.
    """
    write_small_images(folder / "cifar10")
    random = np.random.default_rng(1)
    clean = np.repeat(np.arange(len(CLASSES)), IMAGES["train"])
    labels = {name: np.where(random.random(len(clean)) < WRONG, (clean + 1) % len(CLASSES), clean) for name in COLUMNS}
    torch.save({**labels, "clean_label": clean}, folder / "CIFAR-10_human.pt")
    _write_fashion(folder / "fashion-mnist", random)
    _write_weights(folder)
    return {"cifar10": str(folder / "cifar10"), **dict.fromkeys(("cifar10n", "fashion", "lite0"), str(folder))}


def write_small_images(folder: Path) -> None:
    """Write images of random pixels into folders of CIFAR-10's classes."""
    random = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for name in CLASSES:
            images = folder / split / name
            images.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{number:04}.jpg")


def _write_fashion(folder: Path, random: np.random.Generator) -> None:
    """Write the four files of Fashion-MNIST in their published format (IDX, gzip)."""
    folder.mkdir(exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = IMAGES[split] * len(CLASSES)
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % len(CLASSES)
        images_file, labels_file = (folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        images_file.write_bytes(gzip.compress(struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes()))
        labels_file.write_bytes(gzip.compress(struct.pack(">2i", 0x801, count) + labels.tobytes()))


def _write_weights(folder: Path) -> None:
    """Write EfficientNet-Lite0 as `scripts.efficientnet_lite0` does, with random weights."""
    import timm
    from safetensors.torch import save_file

    weights = timm.create_model("tf_efficientnet_lite0").state_dict()
    save_file(weights, folder / "efficientnet_lite0.safetensors", {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
