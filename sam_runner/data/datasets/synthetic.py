"""Random images that can be learnt, for dry runs and tests."""

import torch

from sam_runner.data.image_sets import ImageSet, Splits, image_set
from sam_runner.utils.seeding import make_generator


def synthetic(
    *, num_train: int, num_test: int, num_classes: int, channels: int, image_size: int, data_seed: int = 0
) -> Splits:
    """Random images that can be learnt, for dry runs and tests: a 4x4 pattern per class, enlarged, under uniform noise.

    Args:
        num_train: Training images, at least 1.
        num_test: Test images, at least 1.
        num_classes: C, at least 2.
        channels: Channels of an image.
        image_size: Height and width in pixels, at least 4.
        data_seed: Seed of the images, apart from the run's.
    """
    draws = make_generator(data_seed, "synthetic images")
    patterns = torch.rand(num_classes, channels, 4, 4, generator=draws)
    rows = torch.arange(image_size) * 4 // image_size
    large = patterns[:, :, rows][:, :, :, rows]
    classes = tuple(f"class {label}" for label in range(num_classes))

    def draw(count: int) -> ImageSet:
        labels = torch.randint(num_classes, (count,), generator=draws)
        noise = torch.rand(count, channels, image_size, image_size, generator=draws)
        return image_set(((large[labels] + noise) * 127.5).to(torch.uint8), labels, classes)

    return Splits(train=draw(num_train), test=draw(num_test))
