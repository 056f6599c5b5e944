"""From an image set in memory to batches on the device, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.data.augment import NUM_DRAWS, Augmentation, crop_and_flip, cut_out, draw_table, windows
from sam_runner.data.sets import ImageSet
from sam_runner.seeding import generator


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(images_NCHW: Tensor) -> "Normalisation":
        """Over all pixels of a uint8 image set, in float64; a constant channel has std 1."""
        counts = [torch.bincount(channel.flatten().int(), minlength=256).double() for channel in images_NCHW.unbind(1)]
        levels = torch.arange(256, dtype=torch.float64) / 255
        means = [float((count * levels).sum() / count.sum()) for count in counts]
        variances = [
            float((count * (levels - mean) ** 2).sum() / count.sum()) for count, mean in zip(counts, means, strict=True)
        ]
        constant = [int((count > 0).sum()) == 1 for count in counts]  # round-off would leave a variance of 1e-35
        deviations = [1.0 if same else variance**0.5 for same, variance in zip(constant, variances, strict=True)]
        return Normalisation(tuple(means), tuple(deviations))


@dataclass(frozen=True)
class Examples:
    """A batch with what metrics need.

    Attributes:
        images: (B, C, H, W), normalised.
        labels: The labels to learn, int64, (B,).
        clean_labels: The labels before noise, int64, (B,).
        indices: Positions in the set, int64, (B,), on the CPU.
    """

    images: Tensor
    labels: Tensor
    clean_labels: Tensor
    indices: Tensor


class Loader:
    """Batches of an image set that lives on the device as uint8.

    Args:
        data: The set.
        batch_size: Images in a batch.
        normalisation: Applied last.
        device: Where the set and its batches live.
        augmentation: None for evaluation: no augmentation, in order, every image.
        seed: Of order and augmentation.
        drop_last: Leave out the last batch of an epoch where it is smaller (training only).
        dtype: Of the images.
        channels_last: Lay out the images NHWC in memory.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.augmentation = augmentation
        self.num_examples = len(data)
        self.batch_size = batch_size
        self.labels, self.clean_labels = data.labels.to(device), data.clean_labels.to(device)
        self._device = device
        self._seed = seed
        self._drop_last = drop_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        pad = augmentation or Augmentation()
        self._windows = windows(data.images_NCHW.to(device), pad.pad, pad.pad_mode)
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalisation.mean, normalisation.std))
        self._scale = (1 / (255 * std)).to(device, dtype)[:, None, None]
        self._offset = (-mean / std).to(device, dtype)[:, None, None]

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.num_examples, self.batch_size)
        return full + (rest > 0 and not self._drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Examples]:
        """The batches of an epoch from number `start` on; the same however often and from wherever it is called."""
        if self.augmentation is None:
            order = torch.arange(self.num_examples)
        else:
            order = torch.randperm(self.num_examples, generator=generator(self._seed, "order", epoch))
        table = None if self.augmentation is None else draw_table(self._seed, epoch, self.num_examples).to(self._device)
        for number in range(start, len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            on_device = indices.to(self._device, non_blocking=True)
            yield Examples(
                self._images(on_device, table), self.labels[on_device], self.clean_labels[on_device], indices
            )

    def _images(self, indices: Tensor, table: Tensor | None) -> Tensor:
        draws = torch.zeros(len(indices), NUM_DRAWS, device=self._device) if table is None else table[indices]
        augmentation = self.augmentation or Augmentation()
        images = crop_and_flip(self._windows, indices, draws, augmentation)
        images = torch.addcmul(self._offset, images.to(self._scale.dtype), self._scale)
        if augmentation.cutout:
            images = cut_out(images, draws, augmentation.cutout)
        return images.contiguous(memory_format=self._format)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation: values in [0, 1], float32."""
        return ((images - self._offset) / (255 * self._scale)).float().clamp(0, 1)
