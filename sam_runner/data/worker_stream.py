"""Batches that worker processes prepare ahead of the training: files are decoded, policies drawn for each image."""

import atexit
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sam_runner.data.augment.augmentation import Augmentation, crop_and_flip, draw_table, windows
from sam_runner.data.augment.policy import apply_policy, policy_of
from sam_runner.data.decode import centre_box, random_box, read_part
from sam_runner.data.image_sets import ImageFiles, Images, ImageSet
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed
from sam_runner.utils.signals import block_stop_signals, ignore_stop_signals, kill_data_workers

Key = tuple[int, int]  # epoch and index of an example


class _Prepared(Dataset[Tensor]):
    """Images by (epoch, index): what a worker has to know is in the key, so workers can stay alive between epochs.

    Args:
        data: The set.
        augmentation: What is done here: the parts of files, and with a policy crop, flip and the policy.
        fill: See `policy_of`.
        seed: Of what is drawn.
    """

    def __init__(self, data: Images, augmentation: Augmentation, fill: Sequence[float], seed: int) -> None:
        self._data, self._augmentation, self._seed = data, augmentation, seed
        self._policy = policy_of(augmentation, fill)
        self._table: tuple[int, Tensor] = (-1, torch.empty(0))  # of one epoch

    def __getitems__(self, keys: list[Key]) -> Tensor | InputError:
        """A batch of one epoch as one tensor; an error as a value, which a worker hands over as it is."""
        try:
            epoch, indices = keys[0][0], [index for _, index in keys]
            images = self._read(epoch, indices)
            if self._policy is None:
                return images
            if self._table[0] != epoch:
                self._table = epoch, draw_table(self._seed, epoch, len(self._data))
            pad, pad_mode = self._augmentation.pad, self._augmentation.pad_mode
            source, places = windows(images, pad, pad_mode), torch.arange(len(images))
            images = crop_and_flip(source, places, self._table[1][indices], self._augmentation)
            return apply_policy(images, self._policy, self._seed, epoch, indices)
        except InputError as error:
            return error

    def _read(self, epoch: int, indices: list[int]) -> Tensor:
        if isinstance(self._data, ImageSet):
            return self._data.images_NCHW[indices]
        return torch.stack([self._decoded(self._data, epoch, index) for index in indices])

    def _decoded(self, files: ImageFiles, epoch: int, index: int) -> Tensor:
        crop_scale_min = self._augmentation.crop_scale_min
        if crop_scale_min is None:
            choose = partial(centre_box, fraction=files.eval_crop_ratio)
        else:
            draws = random.Random(derive_seed(self._seed, "crop", epoch, index))
            choose = partial(random_box, crop_scale_min=crop_scale_min, draws=draws)
        return read_part(files.root / files.paths[index], choose, files.image_size)


class _Order:
    """The batches that are wanted next; read anew at the start of each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _as_it_is(batch: Any) -> Any:
    return batch


class Stream:
    """Prepared batches in a given order.

    Args:
        data: The set.
        augmentation: See `_Prepared`.
        fill: See `policy_of`.
        seed: Of what is drawn.
        num_workers: Processes that prepare; 0 prepares when a batch is asked for.
        pin_memory: Hand over memory that a CUDA device can copy from without waiting.
    """

    def __init__(
        self,
        data: Images,
        *,
        augmentation: Augmentation,
        fill: Sequence[float],
        seed: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._order = _Order()
        self._loader: DataLoader[Tensor] = DataLoader(
            _Prepared(data, augmentation, fill, seed),
            batch_sampler=self._order,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # otherwise each epoch would draw from the generator of the dropout masks
        )

    def batches(self, epoch: int, indices: list[Tensor]) -> Iterator[Tensor]:
        """Uint8 images (B, C, H, W) on the CPU for each entry of `indices`.

        Raises:
            InputError: Where an image cannot be read, with its path.
        """
        self._order.batches = [[(epoch, index) for index in batch.tolist()] for batch in indices]
        with block_stop_signals():  # a worker must not be killed before it ignores signals
            decoded = iter(self._loader)
        atexit.unregister(
            kill_data_workers
        )  # what was registered last is called first: before torch's and multiprocessing's
        atexit.register(kill_data_workers)
        for batch in decoded:
            if isinstance(batch, InputError):
                raise InputError(str(batch))  # the error itself would keep this frame alive, and the workers
            yield batch
