"""A training script as people write it around a SAM from PyPI; the rival of bench_end_to_end.py.

    python scripts/benchmarks/typical_script.py ROOT [--workers 0] [--seed 0] [--epochs 2] [--max-steps 0]

Torchvision transforms on PIL images in a DataLoader, pytorch-optimizer's SAM, float32, evaluation in batches of the
same size. Prints one line of JSON.
"""

import argparse
import json
import math
import time

import torch
from PIL import Image
from pytorch_optimizer import SAM
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sam_runner.data.datasets.fashion_mnist import fashion_mnist
from sam_runner.models.small_cnn import SmallCNN


class Pictures(Dataset):
    """As torchvision's FashionMNIST."""

    def __init__(self, part, transform) -> None:
        self.images, self.labels, self.transform = part.images_NCHW[:, 0].numpy(), part.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    splits = fashion_mnist(root=options.root)
    to_tensor = [transforms.ToTensor(), transforms.Normalize((0.2860,), (0.3530,))]
    augmented = [
        transforms.RandomCrop(28, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        *to_tensor,
    ]
    more = {"batch_size": 256, "num_workers": options.workers, "persistent_workers": options.workers > 0}
    train = DataLoader(Pictures(splits.train, transforms.Compose(augmented)), shuffle=True, drop_last=True, **more)
    test = DataLoader(Pictures(splits.test, transforms.Compose(to_tensor)), **more)
    model = SmallCNN(10, 1)
    optimizer = SAM(
        model.parameters(), torch.optim.SGD, rho=0.05, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    total = min(options.epochs * len(train), options.max_steps or 10**9)
    step, trained, seconds, accuracy, evaluation = 0, 0, 0.0, math.nan, 0.0
    while step < total:
        model.train()
        started = time.perf_counter()
        for images, labels in train:
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / total))
            F.cross_entropy(model(images), labels).backward()
            optimizer.first_step(zero_grad=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.second_step(zero_grad=True)
            step, trained = step + 1, trained + len(labels)
            if step == total:
                break
        seconds += time.perf_counter() - started
        model.eval()
        started = time.perf_counter()
        with torch.no_grad():
            correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
        evaluation += time.perf_counter() - started
        accuracy = correct / len(splits.test)
    print(json.dumps({"images_per_second": trained / seconds, "accuracy": accuracy, "evaluation_seconds": evaluation}))


if __name__ == "__main__":
    main()
