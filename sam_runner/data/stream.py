"""Batches of image files, decoded by worker processes ahead of the training."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sam_runner.data.decode import centre_box, random_box, read_part
from sam_runner.data.sets import ImageFiles
from sam_runner.errors import InputError
from sam_runner.seeding import derive_seed
from sam_runner.stopping import held_back, ignore_in_worker

Key = tuple[int, int]  # epoch and index of an example


class _Decoded(Dataset[Tensor]):
    """Images by (epoch, index): what a worker has to know is in the key, so workers can stay alive between epochs.

    Args:
        files: The set.
        min_area: Smallest part of an image that is cut out, see `random_box`; None takes the middle.
        seed: Of the parts that are cut out.
    """

    def __init__(self, files: ImageFiles, min_area: float | None, seed: int) -> None:
        self._files, self._min_area, self._seed = files, min_area, seed

    def __getitem__(self, key: Key) -> Tensor:
        epoch, index = key
        files = self._files
        if self._min_area is None:
            choose = partial(centre_box, fraction=files.centre)
        else:
            draws = random.Random(derive_seed(self._seed, "crop", epoch, index))
            choose = partial(random_box, min_area=self._min_area, draws=draws)
        return read_part(files.root / files.paths[index], choose, files.image_size)

    def __getitems__(self, keys: list[Key]) -> Tensor | InputError:
        """A batch as one tensor; an error as a value, which a worker hands over as it is."""
        try:
            return torch.stack([self[key] for key in keys])
        except InputError as error:
            return error


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
    """Decoded batches in a given order.

    Args:
        files: The set.
        min_area: See `_Decoded`.
        seed: Of the parts that are cut out.
        num_workers: Processes that decode; 0 decodes when a batch is asked for.
        pin_memory: Hand over memory that a CUDA device can copy from without waiting.
    """

    def __init__(
        self, files: ImageFiles, *, min_area: float | None, seed: int, num_workers: int, pin_memory: bool
    ) -> None:
        self._order = _Order()
        self._loader: DataLoader[Tensor] = DataLoader(
            _Decoded(files, min_area, seed),
            batch_sampler=self._order,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=ignore_in_worker,
            generator=torch.Generator(),  # otherwise each epoch would draw from the generator of the dropout masks
        )

    def batches(self, epoch: int, indices: list[Tensor]) -> Iterator[Tensor]:
        """Uint8 images (B, 3, S, S) on the CPU for each entry of `indices`.

        Raises:
            InputError: Where an image cannot be read, with its path.
        """
        self._order.batches = [[(epoch, index) for index in batch.tolist()] for batch in indices]
        with held_back():  # a worker must not be killed before it ignores signals
            decoded = iter(self._loader)
        for batch in decoded:
            if isinstance(batch, InputError):
                raise batch
            yield batch
