"""Batches of an image set on the device, augmented and normalised, in an order that is a function of (seed, epoch)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from sam_runner.config.data import AugmentConfig
from sam_runner.data.augment.augmentation import (
    NUM_DRAWS,
    crop_and_flip,
    cutout_and_erase,
    draw_batch_centre,
    draw_table,
    unfold_crops,
)
from sam_runner.data.augment.mixing import mix_batch
from sam_runner.data.image_sets import ArraySet, Images, ImageSet
from sam_runner.data.normalisation import Normalisation
from sam_runner.data.worker_stream import WorkerStream
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.utils.seeding import make_generator


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images on the device, with labels and targets.

    Attributes:
        images: (B, C, H, W), normalised; inputs that are no images: (B, ...).
        labels: Labels to learn, after noise, int64, (B,).
        targets: Targets of the loss: `labels`, or class probabilities (B, K) after mixup or CutMix.
        clean_labels: Labels before noise, int64, (B,).
        indices: Positions of the images in the set, int64, (B,), on the CPU.
        global_batch_size: Number of images of the batch over all ranks.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    clean_labels: Tensor
    indices: Tensor
    global_batch_size: int


class ImageLoader:
    """Iterator over the batches of an image set.

    Images in memory stay on the device as uint8. Worker processes decode image files ahead of time; with a policy they
    also transform images in memory.

    Args:
        data: Image set.
        batch_size: Number of images in a batch, over all ranks.
        normalisation: Applied after crop, flip and policy; cutout, erasing and mixing follow it.
        device: Device of the batches.
        augmentation: Transformations for training; None for evaluation: every image, in order, not augmented.
        seed: Seed of the order and the augmentation.
        drop_last: Leave out an incomplete last batch of an epoch.
        dtype: dtype of the images.
        channels_last: Return images in channels_last memory format.
        num_workers: Number of worker processes.
        context: The processes (ranks) that train together. Each rank takes its part of every training batch, so all
            ranks together see the batches of a single process, except that mixup and CutMix mix within one rank's
            part. In an evaluation each rank takes every world_size-th batch.
    """

    def __init__(
        self,
        data: Images,
        *,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device,
        augmentation: AugmentConfig | None = None,
        seed: int = 0,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        num_workers: int = 0,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.num_examples, self.shape, self.blank = len(data), data.shape, data.blank
        self.context, self.normalisation = context, normalisation
        self.batch_size, self.dtype = batch_size, dtype
        self.labels, self.clean_labels = data.labels.to(device), data.clean_labels.to(device)
        self._device, self._seed, self._drop_last = device, seed, drop_last
        self._num_workers = num_workers
        self._is_training = augmentation is not None
        self._augmentation = augmentation or AugmentConfig()
        self._num_classes = len(data.classes)
        self.is_image = len(self.shape) == 3
        self.input_type = str(data.inputs.dtype).removeprefix("torch.") if isinstance(data, ArraySet) else "image"
        self._format = torch.channels_last if channels_last and self.is_image else torch.contiguous_format
        self._crops, self._stream, self._inputs = None, None, None
        if isinstance(data, ArraySet):
            self._inputs = data.inputs.to(device)
            if self.is_image and data.inputs.dtype.is_floating_point:
                self._crops, self._inputs = self._unfold_crops(self._inputs), None
        elif isinstance(data, ImageSet) and self._augmentation.policy == "none":
            self._crops = self._unfold_crops(data.images_NCHW.to(device))
        else:
            self._stream = WorkerStream(
                data,
                augmentation=self._augmentation,
                fill=[round(255 * mean) for mean in normalisation.mean],
                seed=seed,
                num_workers=num_workers,
                pin_memory=device.type == "cuda",
            )
        if self._augmentation.policy != "none":  # crop and flip come before the policy, so the workers apply them
            self._augmentation = replace(self._augmentation, pad=0, flip=False)
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalisation.mean, normalisation.std))
        self._levels = 1 if isinstance(data, ArraySet) else 255  # value of the input that stands for 1
        by_channel = (-1, *(1 for _ in self.shape[1:]))
        self._scale = (1 / (self._levels * std)).to(device, dtype).view(by_channel)
        self._offset = (-mean / std).to(device, dtype).view(by_channel)

    def __len__(self) -> int:
        """Number of batches in an epoch over all ranks; training drops a last batch with fewer images than ranks."""
        num_full, num_left = divmod(self.num_examples, self.batch_size)
        min_size = self.context.world_size if self._is_training else 1
        return num_full + (num_left >= min_size and not self._drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[ImageBatch]:
        """Iterate over the batches of an epoch from number `start` on; each call yields the same batches."""
        return _prefetch(self._batches(epoch, start), self._device)

    def _batches(self, epoch: int, start: int) -> Iterator[ImageBatch]:
        if self._is_training:
            order = torch.randperm(self.num_examples, generator=make_generator(self._seed, "order", epoch))
            erasing = self._augmentation.erasing > 0
            table = draw_table(self._seed, epoch, self.num_examples, erasing=erasing).to(self._device)
        else:
            order, table = torch.arange(self.num_examples), torch.zeros(1, NUM_DRAWS, device=self._device)
        device_batches = self._local_batches(order.to(self._device), start)
        indices_ahead = (batch for batch, _ in self._local_batches(order, start))
        prepared = self._stream.batches(epoch, indices_ahead) if self._stream else repeat(None)
        batches = zip(self._local_batches(order, start), device_batches, prepared, strict=False)
        for number, ((cpu_indices, global_batch_size), (indices, _), images_NCHW) in enumerate(batches, start):
            draws = table[indices] if self._is_training else table.expand(len(indices), -1)
            key, labels = (self._seed, epoch, number), self.labels[indices]
            if self._inputs is not None:
                images = self._normalise(self._inputs[indices])
            elif images_NCHW is None:
                assert self._crops is not None
                images = self._augment(self._crops, indices, draws, key)
            else:
                crops = self._unfold_crops(images_NCHW.to(self._device, non_blocking=True))
                images = self._augment(crops, torch.arange(len(indices), device=self._device), draws, key)
            images, targets = mix_batch(images, labels, self._num_classes, self._augmentation, key)
            images = images.contiguous(memory_format=self._format)
            yield ImageBatch(images, labels, targets, self.clean_labels[indices], cpu_indices, global_batch_size)

    def _local_batches(self, order: Tensor, start: int) -> Iterator[tuple[Tensor, int]]:
        """Return this rank's positions in each batch from number `start` on, with the size of the whole batch."""
        numbers = range(start, len(self))
        if self._is_training:
            return _slice_batches(order, numbers, self.batch_size, self.context.local_part)
        return _slice_batches(order, numbers[self.context.rank :: self.context.world_size], self.batch_size)

    def _unfold_crops(self, images_NCHW: Tensor) -> Tensor:
        images_NCHW = images_NCHW.contiguous(memory_format=self._format)
        return unfold_crops(images_NCHW, self._augmentation.pad, self._augmentation.pad_mode)

    def _augment(self, crops: Tensor, indices: Tensor, draws: Tensor, key: tuple[int, int, int]) -> Tensor:
        """Crop, flip, normalise, cut out and erase."""
        images = crop_and_flip(crops, indices, draws, self._augmentation)
        images = self._normalise(images)
        centre = draw_batch_centre(*key).to(images.device) if self._augmentation.cutout_per_batch else None
        return cutout_and_erase(images, draws, self._augmentation, centre)

    def _normalise(self, inputs: Tensor) -> Tensor:
        """Normalise images and floats; integers that are no images, such as tokens, stay as they are."""
        if inputs.dtype == torch.int64:
            return inputs
        return torch.addcmul(self._offset, inputs.to(self._scale.dtype), self._scale)

    def format_options(self) -> dict[str, Any]:
        """Return the arguments with which another loader makes images of the same kind, on the same device."""
        return {
            "normalisation": self.normalisation,
            "device": self._device,
            "dtype": self.dtype,
            "channels_last": self._format == torch.channels_last,
            "num_workers": self._num_workers,
        }

    def denormalise(self, images: Tensor) -> Tensor:
        """Return pixel values in [0, 1], float32, of normalised images."""
        return ((images - self._offset) / (self._levels * self._scale)).float().clamp(0, 1)


def _slice_batches(
    order: Tensor, numbers: range, size: int, take_part: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Yield a part of each batch, and the size of the whole batch.

    It is no method: the stream of batches keeps the iterator, and must not keep its loader alive.
    """
    for number in numbers:
        batch = order[number * size : (number + 1) * size]
        yield (batch if take_part is None else take_part(batch)), len(batch)


def _prefetch(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Prepare each batch during the step before it, on a separate CUDA stream; on a CPU yield `batches` unchanged."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # which may still copy the set to the device
    with torch.cuda.stream(stream):
        upcoming = next(batches, None)
    while upcoming is not None:
        batch, current = upcoming, torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (batch.images, batch.labels, batch.targets, batch.clean_labels):
            tensor.record_stream(current)  # the next batch may reuse its memory only after the step has read it
        with torch.cuda.stream(stream):
            upcoming = next(batches, None)
        yield batch
