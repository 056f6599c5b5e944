"""A batch of inputs and targets of any structure: split it along the first axis, and join the outputs of its parts.

A structure is a tensor or a nested tuple, list or dict of tensors (or any container registered with PyTorch's pytree,
as Hugging Face's ``ModelOutput`` is). Outputs may also be dataclasses, namespaces and dictionaries of an own class.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device. The first axis of every tensor is the example.

    Attributes:
        inputs: Arguments of the model, see `sam_runner.sam.objective.call_model`: a tensor (NCHW for images) or a
            structure of tensors. A mapping other than a dict, such as Hugging Face's ``BatchEncoding``, becomes one.
        targets: Second argument of the loss: a tensor (classes, int64, (N,), or probabilities, floating point, (N, C)),
            a structure of tensors, or None if the loss needs no targets.
        weight: Weight of the batch in the mean over ranks: local batch size divided by the mean local batch size.
    """

    inputs: Any
    targets: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Mapping) and not isinstance(self.inputs, dict):
            object.__setattr__(self, "inputs", dict(self.inputs))

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

    def count_writes(self) -> list[int]:
        """Return how often each tensor was written in place, by autograd's counters; parts of a batch share them."""
        tensors = [leaf for leaf in tree_leaves((self.inputs, self.targets)) if isinstance(leaf, Tensor)]
        return [tensor._version for tensor in tensors if not tensor.is_inference()]

    def split(self, size: int | None, *, min_size: int = 1) -> list["Batch"]:
        """Split the batch into consecutive parts of at most `size` examples, each with weight 1.

        Leaves that are no tensors are the same in every part. With None, or a `size` of at least N, the batch itself,
        with its weight, is the only part.

        Args:
            size: Number of examples of all parts but the last one, which has the remainder; see `part_sizes`.
            min_size: Smallest number of examples of a part. If the remainder is smaller, the same number of parts get
                sizes that differ by at most 1.

        Raises:
            ValueError: If the first axes of two tensors differ, a tensor has no axis, or an entry is an object whose
                tensors cannot be found by pytree.
        """
        if size is None or size >= len(self):
            return [self]
        leaves, structure = tree_flatten((self.inputs, self.targets))
        sizes = part_sizes(len(self), size, min_size)
        columns = [self._split_leaf(leaf, sizes) for leaf in leaves]
        return [Batch(*tree_unflatten(list(row), structure)) for row in zip(*columns, strict=True)]

    def select(self, indices: Tensor) -> "Batch":
        """Return the examples of some indices, with weight 1.

        Args:
            indices: int64 (k,), on the batch's device.
        """
        return Batch(*map_tensors(lambda leaf: leaf.index_select(0, indices), (self.inputs, self.targets)))

    def _split_leaf(self, leaf: Any, sizes: list[int]) -> Sequence[Any]:
        if not isinstance(leaf, Tensor):
            if _read_fields(leaf) is not None:
                raise ValueError(f"cannot split the {type(leaf).__name__} in inputs or targets: give a dict or a tuple")
            return [leaf] * len(sizes)
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
    return tree_map(lambda leaf: _map_leaf(function, leaf), structure)


def _map_leaf(function: Callable[[Tensor], Any], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return function(leaf)
    entries = _read_fields(leaf)
    return leaf if entries is None else _replace_fields(leaf, map_tensors(function, entries))


def _read_fields(leaf: Any) -> dict[str, Any] | None:
    """Return the entries of an object that pytree takes for a leaf; None for a leaf that holds no others."""
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: getattr(leaf, field.name) for field in fields(leaf)}
    if isinstance(leaf, dict):  # of a class of its own: pytree knows dict itself
        return dict(leaf.items())
    return dict(vars(leaf)) if isinstance(leaf, SimpleNamespace) else None


def _replace_fields(leaf: Any, entries: Mapping[str, Any]) -> Any:
    """Return a copy of an object with other entries, the same names as those that `_read_fields` returned."""
    new = copy.copy(leaf)
    for name, value in entries.items():
        if isinstance(new, dict) and name in new:  # a dataclass may be a dictionary too, without its empty fields
            new[name] = value
        if not isinstance(new, dict) or is_dataclass(new):
            object.__setattr__(new, name, value)  # a dataclass may be frozen
    return new


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
    entries = [_read_fields(leaf) for leaf in leaves]
    if entries[0] is not None:
        return _replace_fields(leaves[0], join_outputs(entries, sizes))
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
