"""Prepare batches on the CPU ahead of training, in worker processes: decode files, apply policies."""

import atexit
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sam_runner.config.data import AugmentConfig
from sam_runner.data.augment.augmentation import crop_and_flip, draw_table, unfold_crops
from sam_runner.data.augment.policy import apply_policy, build_policy
from sam_runner.data.files.boxes import centre_crop_box, random_crop_box
from sam_runner.data.files.decode import stack_images
from sam_runner.data.files.jpeg import load_decoder
from sam_runner.data.image_sets import ImageFiles, Images, ImageSet
from sam_runner.utils.errors import InputError, TrainingError
from sam_runner.utils.seeding import derive_seed
from sam_runner.utils.signals import block_stop_signals, ignore_stop_signals, keep_handler, kill_data_workers

Key = tuple[int, int]  # epoch and index of an example

WORKER_KILLED = (
    "a worker process that reads images was killed, for lack of memory perhaps\n"
    "  the same command continues the run; data.num_workers=0 needs least memory"
)


class _PreparedImages(Dataset[Tensor]):
    """Images by (epoch, index). The key holds all that changes between epochs, so workers live as long as the run.

    Args:
        data: Image set.
        augmentation: Sets the random crop of files and, with a policy, crop, flip and the policy.
        fill: See `build_policy`.
        seed: Seed of the random transformations.
    """

    def __init__(self, data: Images, augmentation: AugmentConfig, fill: Sequence[float], seed: int) -> None:
        self._data, self._augmentation, self._seed = data, augmentation, seed
        self._policy = build_policy(augmentation, fill)
        self._table: tuple[int, Tensor] = (-1, torch.empty(0))  # epoch and its uniform numbers

    def __getitems__(self, keys: list[Key]) -> Tensor | InputError:
        """Return a batch of one epoch as one tensor, or an error as a value: DataLoader would change its message."""
        try:
            epoch, indices = keys[0][0], [index for _, index in keys]
            images = self._read_batch(epoch, indices)
            if self._policy is None:
                return images
            if self._table[0] != epoch:
                self._table = epoch, draw_table(self._seed, epoch, len(self._data))
            crops = unfold_crops(images, self._augmentation.pad, self._augmentation.pad_mode)
            images = crop_and_flip(crops, torch.arange(len(images)), self._table[1][indices], self._augmentation)
            return apply_policy(images, self._policy, self._seed, epoch, indices)
        except InputError as error:
            return InputError(str(error))  # without the frames of the original, which would keep the loader alive

    def _read_batch(self, epoch: int, indices: list[int]) -> Tensor:
        if isinstance(self._data, ImageSet):
            return self._data.images_NCHW[indices]
        files = self._data
        assert isinstance(files, ImageFiles)  # other inputs need no worker
        return stack_images([self._read_file(files, epoch, index) for index in indices])

    def _read_file(self, files: ImageFiles, epoch: int, index: int) -> Tensor:
        crop_scale_min = self._augmentation.crop_scale_min
        if crop_scale_min is None:
            choose_box = partial(centre_crop_box, fraction=files.eval_crop_ratio)
        else:
            draws = random.Random(derive_seed(self._seed, "crop", epoch, index))
            choose_box = partial(random_crop_box, crop_scale_min=crop_scale_min, draws=draws)
        return files.read_crop(index, choose_box)


class _BatchSampler:
    """Batch sampler whose epoch is replaced.

    The keys of a batch are made when a worker is to prepare it: those of a million images take seconds.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batches: Iterator[Tensor] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        return ([(epoch, index) for index in batch.tolist()] for batch in self.batches)


def _identity(batch: Any) -> Any:
    return batch


def _says_worker_was_killed(error: Exception) -> bool:
    """Return whether torch found a dead worker (it has no class for this), or a connection to a worker broke off."""
    return not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker")


class WorkerStream:
    """Stream of batches that worker processes prepare.

    Args:
        data: Image set.
        augmentation: See `_PreparedImages`.
        fill: See `build_policy`.
        seed: Seed of the random transformations.
        num_workers: Number of worker processes; 0 prepares each batch in this process when it is requested.
        pin_memory: Copy batches into pinned memory, for asynchronous copies to a CUDA device.
    """

    def __init__(
        self,
        data: Images,
        *,
        augmentation: AugmentConfig,
        fill: Sequence[float],
        seed: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        if num_workers and isinstance(data, ImageFiles):
            load_decoder()
        self._sampler = _BatchSampler()
        self._loader: DataLoader[Tensor] = DataLoader(
            _PreparedImages(data, augmentation, fill, seed),
            batch_sampler=self._sampler,
            collate_fn=_identity,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # by default each epoch draws from the generator of the dropout masks
        )

    def batches(self, epoch: int, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 images (B, C, H, W) on the CPU for each entry of `indices`, which is read a few batches ahead.

        Raises:
            InputError: If an image cannot be read; the message has its path.
            TrainingError: If a worker process was killed.
        """
        was_killed = False
        try:
            yield from self._batches(epoch, indices)
        except (RuntimeError, EOFError, ConnectionError) as error:
            was_killed = self._loader.num_workers > 0 and _says_worker_was_killed(error)
            if not was_killed:
                raise
        if was_killed:  # raised here, without the original, which would keep its frames and the workers alive
            raise TrainingError(WORKER_KILLED)

    def _batches(self, epoch: int, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        self._sampler.epoch, self._sampler.batches = epoch, iter(indices)
        # A stop signal must not kill a worker before the worker ignores it. torch's handler of SIGCHLD is undone: if a
        # worker dies, it raises an error wherever the program is, in an exit function or in the release of a lock, say.
        # Without it the loader finds the dead worker when it has waited 5 seconds for a batch.
        with block_stop_signals(signal.SIGCHLD), keep_handler(signal.SIGCHLD):
            prepared = iter(self._loader)
        # Registered again for each epoch, to run before the exit functions that torch and multiprocessing registered.
        atexit.unregister(kill_data_workers)
        atexit.register(kill_data_workers)
        for batch in prepared:
            if isinstance(batch, InputError):
                raise InputError(str(batch))  # a copy: the original would keep this frame and its workers alive
            yield batch
