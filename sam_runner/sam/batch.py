"""A batch of inputs and targets of any structure: split it along the first axis, and join the outputs of its parts.

A structure is a tensor or a nested tuple, list or dict of tensors (or any container registered with PyTorch's pytree,
as Hugging Face's ``ModelOutput`` is).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device. The first axis of every tensor is the example.

    Attributes:
        inputs: Arguments of the model, see `sam_runner.sam.objective.call_model`: a tensor (NCHW for images) or a
            structure of tensors.
        targets: Second argument of the loss: a tensor (classes, int64, (N,), or probabilities, floating point, (N, C)),
            a structure of tensors, or None if the loss needs no targets.
        weight: Weight of the batch in the mean over ranks: local batch size divided by the mean local batch size.
    """

    inputs: Any
    targets: Any
    weight: float = 1.0

    def __len__(self) -> int:
        """Number of examples N.

        Raises:
            ValueError: If inputs and targets contain no tensor.
        """
        if isinstance(self.inputs, Tensor):
            return len(self.inputs)
        tensors = [leaf for leaf in tree_leaves((self.inputs, self.targets)) if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError("a batch needs at least one tensor in inputs or targets")
        return len(tensors[0])

    def split(self, size: int | None, *, min_size: int = 1) -> list["Batch"]:
        """Split the batch into consecutive parts of at most `size` examples, each with weight 1.

        Leaves that are no tensors are the same in every part. With None, or a `size` of at least N, the batch itself is
        the only part.

        Args:
            size: Number of examples of all parts but the last one, which has the remainder; see `part_sizes`.
            min_size: If the remainder is smaller, the same number of parts has sizes that differ by at most 1.

        Raises:
            ValueError: If the first axes of two tensors differ, or a tensor has no axis.
        """
        if size is None or size >= len(self):
            return [self]
        leaves, structure = tree_flatten((self.inputs, self.targets))
        sizes = part_sizes(len(self), size, min_size)
        columns = [
            self._split_leaf(leaf, sizes) if isinstance(leaf, Tensor) else [leaf] * len(sizes) for leaf in leaves
        ]
        return [Batch(*tree_unflatten(list(row), structure)) for row in zip(*columns, strict=True)]

    def select(self, indices: Tensor) -> "Batch":
        """Return the examples of some indices, with weight 1.

        Args:
            indices: int64 (k,), on the batch's device.
        """
        return Batch(*map_tensors(lambda leaf: leaf.index_select(0, indices), (self.inputs, self.targets)))

    def _split_leaf(self, leaf: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        if leaf.ndim == 0 or len(leaf) != len(self):
            raise ValueError(
                f"cannot split a batch of {len(self)} examples: it contains a tensor of shape {tuple(leaf.shape)}\n"
                "  the first axis of every tensor in inputs and targets must be the example"
            )
        parts: tuple[Tensor, ...] = leaf.split(sizes)
        return parts


def part_sizes(count: int, size: int | None, min_size: int = 1) -> list[int]:
    """Return the numbers of examples of the parts that `Batch.split` makes.

    Args:
        count: Number of examples.
        size: Largest number of examples of a part; None: one part.
        min_size: See `Batch.split`.
    """
    if size is None or size >= count:
        return [count]
    num_parts, remainder = -(-count // size), count % size
    if 0 < remainder < min_size:
        return [count // num_parts + (part < count % num_parts) for part in range(num_parts)]
    return [size] * (count // size) + [remainder] * (remainder > 0)


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Apply `function` to every tensor of a structure; other leaves stay the same."""
    if isinstance(structure, Tensor):
        return function(structure)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure)


def join_outputs(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Join the model's outputs for the parts of a batch; the result has the structure of each part's outputs.

    Tensors whose first axis is the number of examples of their part are concatenated along it. 0-dim floating-point
    tensors (a loss that the model computes, say) are averaged, weighted by numbers of examples. Any other leaf is that
    of the first part.

    Args:
        parts: Outputs of the same structure, in the order of the batch.
        sizes: Number of examples of each part.

    Raises:
        ValueError: If the structures of two parts differ.
    """
    if len(parts) == 1:
        return parts[0]
    flat = [tree_flatten(part) for part in parts]
    structure = flat[0][1]
    if any(other != structure for _, other in flat):
        raise ValueError("the model returns outputs of different structures for the parts of one batch")
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([_join_leaves(column, sizes) for column in columns], structure)


def _join_leaves(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return leaves[0]
    pairs = list(zip(leaves, sizes, strict=True))
    if all(leaf.ndim and len(leaf) == size for leaf, size in pairs):
        return torch.cat(list(leaves))
    if all(leaf.ndim == 0 and leaf.is_floating_point() for leaf in leaves):
        return torch.stack([leaf * (size / sum(sizes)) for leaf, size in pairs]).sum()
    return leaves[0]


def batch_signature(batch: Batch) -> tuple[Any, ...]:
    """Return structure, shapes and dtypes of a batch as a hashable value; equal signatures fit one CUDA graph."""
    leaves, structure = tree_flatten((batch.inputs, batch.targets))
    kinds = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return str(structure), kinds
