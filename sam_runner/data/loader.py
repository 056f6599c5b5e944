"""From an image set to batches on the device, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from sam_runner.data.augment.augmentation import (
    NUM_DRAWS,
    Augmentation,
    apply_cutout,
    batch_place,
    crop_and_flip,
    draw_table,
    windows,
)
from sam_runner.data.augment.mixing import mix_batch
from sam_runner.data.image_sets import Images, ImageSet
from sam_runner.data.worker_stream import Stream
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.utils.seeding import make_generator


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(images_NCHW: Tensor) -> "Normalisation":
        """Over all pixels of a uint8 image set, in float64; a constant channel has std 1."""
        counts = [torch.bincount(channel.flatten(), minlength=256).double() for channel in images_NCHW.unbind(1)]
        levels = torch.arange(256, dtype=torch.float64) / 255
        means = [float((count * levels).sum() / count.sum()) for count in counts]
        variances = [
            float((count * (levels - mean) ** 2).sum() / count.sum()) for count, mean in zip(counts, means, strict=True)
        ]
        constant = [int((count > 0).sum()) == 1 for count in counts]  # round-off would leave a variance of 1e-35
        deviations = [1.0 if same else variance**0.5 for same, variance in zip(constant, variances, strict=True)]
        return Normalisation(tuple(means), tuple(deviations))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision's models; for sets on disk


@dataclass(frozen=True)
class Examples:
    """A batch with what metrics need.

    Attributes:
        images: (B, C, H, W), normalised.
        labels: The labels to learn, int64, (B,).
        targets: What the loss compares with: `labels`, or after mixing probabilities (B, K).
        clean_labels: The labels before noise, int64, (B,).
        indices: Positions in the set, int64, (B,), on the CPU.
        num_all: Images of the batch over all ranks, of which these are a part.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    clean_labels: Tensor
    indices: Tensor
    num_all: int


class Loader:
    """Batches of an image set: the images in memory live on the device as uint8, files are decoded ahead by workers.

    Args:
        data: The set.
        batch_size: Images in a batch.
        normalisation: Applied last.
        device: Where the batches live.
        augmentation: None for evaluation: no augmentation, in order, every image.
        seed: Of order and augmentation.
        drop_last: Leave out the last batch of an epoch where it is smaller (training only).
        dtype: Of the images.
        channels_last: Lay out the images NHWC in memory.
        num_workers: Processes that decode files.
        context: The processes that train together. Each takes its part of every training batch, so that
            together they see what one process would (but that mixup and CutMix mix within a part), and every
            so-many-th batch of an evaluation.
    """

    def __init__(
        self,
        data: Images,
        *,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        num_workers: int = 0,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.num_examples, self.shape = len(data), data.shape
        self.context = context
        self.batch_size, self.dtype = batch_size, dtype
        self.labels, self.clean_labels = data.labels.to(device), data.clean_labels.to(device)
        self._device, self._seed, self._drop_last = device, seed, drop_last
        self._shuffled = augmentation is not None
        self._augmentation = augmentation or Augmentation()
        self._num_classes = len(data.classes)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        if isinstance(data, ImageSet) and self._augmentation.policy == "none":
            self._windows, self._stream = self._padded(data.images_NCHW.to(device)), None
        else:
            self._stream = Stream(
                data,
                augmentation=self._augmentation,
                fill=[round(255 * mean) for mean in normalisation.mean],
                seed=seed,
                num_workers=num_workers,
                pin_memory=device.type == "cuda",
            )
        if self._augmentation.policy != "none":  # comes after crop and flip, so the workers do them
            self._augmentation = replace(self._augmentation, pad=0, flip=False)
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalisation.mean, normalisation.std))
        self._scale = (1 / (255 * std)).to(device, dtype)[:, None, None]
        self._offset = (-mean / std).to(device, dtype)[:, None, None]

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks together; a last one of fewer images than ranks is left out of training."""
        full, rest = divmod(self.num_examples, self.batch_size)
        fewest = self.context.world_size if self._shuffled else 1
        return full + (rest >= fewest and not self._drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Examples]:
        """The batches of an epoch from number `start` on; the same however often and from wherever it is called."""
        return _ahead(self._examples(epoch, start), self._device)

    def _examples(self, epoch: int, start: int) -> Iterator[Examples]:
        if self._shuffled:
            order = torch.randperm(self.num_examples, generator=make_generator(self._seed, "order", epoch))
            erasing = self._augmentation.erasing > 0
            table = draw_table(self._seed, epoch, self.num_examples, erasing=erasing).to(self._device)
        else:
            order, table = torch.arange(self.num_examples), torch.zeros(1, NUM_DRAWS, device=self._device)
        indices = self._own(order, start)
        on_device = self._own(order.to(self._device), start)
        decoded = self._stream.batches(epoch, [batch for batch, _ in indices]) if self._stream else repeat(None)
        together = zip(indices, on_device, decoded, strict=False)
        for number, ((batch, num_all), (here, _), files) in enumerate(together, start):
            draws = table[here] if self._shuffled else table.expand(len(batch), -1)
            key, labels = (self._seed, epoch, number), self.labels[here]
            images = self._finished(*self._source(here, files), draws, key)
            images, targets = mix_batch(images, labels, self._num_classes, self._augmentation, key)
            images = images.contiguous(memory_format=self._format)
            yield Examples(images, labels, targets, self.clean_labels[here], batch, num_all)

    def _own(self, order: Tensor, start: int) -> list[tuple[Tensor, int]]:
        """This rank's positions in each batch from number `start` on, and the images of the whole batch."""
        batches = list(order.split(self.batch_size))[start : len(self)]
        if self._shuffled:
            return [(self.context.local_part(batch), len(batch)) for batch in batches]
        return [(batch, len(batch)) for batch in batches[self.context.rank :: self.context.world_size]]

    def _padded(self, images_NCHW: Tensor) -> Tensor:
        return windows(
            images_NCHW.contiguous(memory_format=self._format), self._augmentation.pad, self._augmentation.pad_mode
        )

    def _source(self, indices: Tensor, decoded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Windows of images, and the places in them of the images that are wanted."""
        if decoded is None:
            return self._windows, indices
        images = decoded.to(self._device, non_blocking=True)
        return self._padded(images), torch.arange(len(images), device=self._device)

    def _finished(self, source: Tensor, indices: Tensor, draws: Tensor, key: tuple[int, int, int]) -> Tensor:
        images = crop_and_flip(source, indices, draws, self._augmentation)
        images = torch.addcmul(self._offset, images.to(self._scale.dtype), self._scale)
        place = batch_place(*key).to(images.device) if self._augmentation.cutout_per_batch else None
        return apply_cutout(images, draws, self._augmentation, place)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation: values in [0, 1], float32."""
        return ((images - self._offset) / (255 * self._scale)).float().clamp(0, 1)


def _ahead(batches: Iterator[Examples], device: torch.device) -> Iterator[Examples]:
    """On CUDA each batch is prepared on a stream of its own, while the step before it runs."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        upcoming = next(batches, None)
    while upcoming is not None:
        examples, current = upcoming, torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (examples.images, examples.labels, examples.targets, examples.clean_labels):
            tensor.record_stream(current)  # its memory is not for the next batch before the step has read it
        with torch.cuda.stream(stream):
            upcoming = next(batches, None)
        yield examples
