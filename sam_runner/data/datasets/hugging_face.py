"""Data sets of the library ``datasets`` of Hugging Face, from a folder; nothing is downloaded."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_runner.config.data import HuggingFaceConfig
from sam_runner.data.datasets.image_folder import _split_test_set
from sam_runner.data.own_data import from_dataset
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError

log = logging.getLogger("sam_runner")
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
LABELS = ("label", "labels")  # names of a column of labels that is not of type ClassLabel


def hugging_face(
    *,
    root: str,
    inputs: str | None = None,
    labels: str | None = None,
    image_size: int | None = None,
    test_fraction: float = HuggingFaceConfig.test_fraction,
) -> Splits:
    """Read a folder that ``save_to_disk`` has written, or a folder of parquet files.

    Each parquet file has the name of its split among the words of its name (``test-00000-of-00001.parquet``) or of its
    folders (``test/0000.parquet``). If no file has one, all are train. Without test, validation is the test set;
    without both, a fixed random `test_fraction` of each class is the test set. All examples are read into memory.

    Args:
        root: The folder.
        inputs: Column of images, numbers, or lists of numbers of one length; None: the column of images, or the only
            one beside the labels.
        labels: Column of the classes; None: the column of type ClassLabel, or ``label`` or ``labels``.
        image_size: Side in pixels to which the centre crop of each image is resized; None keeps the images.
        test_fraction: See above, in (0, 1).

    Raises:
        InputError: If the library is not installed, or the folder or its columns cannot be used.
    """
    sets = _load(Path(root).expanduser())
    first = sets["train"]
    labels = labels or _find_labels(first)
    inputs = inputs or _find_inputs(first, labels)
    for name in (labels, inputs):
        if name not in first.column_names:
            raise InputError(f"data.root={root} has no column {name}\n  columns: {', '.join(first.column_names)}")
    classes = _find_classes(sets, labels)
    parts = {name: _Examples(part, inputs, labels, classes, image_size) for name, part in sets.items()}
    if len(parts) == 1:
        made = from_dataset(parts["train"], parts["train"], classes)
        return _split_test_set(made.train, test_fraction)
    test = "test" if "test" in parts else "validation"
    return from_dataset(
        parts["train"], parts[test], classes, validation=parts.get("validation") if test == "test" else None
    )


def _load(root: Path) -> dict[str, Any]:
    """Return the splits by name: train, and validation and test if there are any."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "data=hugging_face needs the library datasets\n  pip install 'sam-runner[hugging_face]'"
        ) from error
    datasets.disable_progress_bars()
    is_saved = (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()
    try:
        if is_saved:
            loaded = datasets.load_from_disk(str(root))
        else:
            files = sorted(root.rglob("*.parquet"))
            if not files:
                raise InputError(
                    f"data.root={root} holds no data set\n  expected: a folder of save_to_disk, or parquet files"
                )
            loaded = datasets.load_dataset("parquet", data_files=_group_files(root, files))
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(f"data.root={root} cannot be read: {str(error).splitlines()[0][:200]}") from error
    sets = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    return _use_splits(root, sets)


def _use_splits(root: Path, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits as train, validation and test; log which others there are."""
    used: dict[str, Any] = {}
    for name, examples in sets.items():
        split = _find_split(name)
        if split is None:
            log.warning("data.root=%s: the split %s is not used", root, name)
        elif split in used:
            raise InputError(f"data.root={root} has two splits for {split}\n  splits: {', '.join(sets)}")
        else:
            used[split] = examples
    if "train" not in used:
        raise InputError(f"data.root={root} has no split train\n  splits: {', '.join(sets)}")
    return used


def _find_split(name: str) -> str | None:
    """Return the split among the words of a name such as test-00000-of-00001; None if there is not exactly one."""
    words = set(re.split("[^a-z]+", name.lower()))
    found = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
    return found[0] if len(found) == 1 else None


def _group_files(root: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    """Return parquet files by the split that the file or else one of its folders names; train if none is named."""
    splits: dict[str, list[str]] = {}
    unnamed = []
    for file in files:
        parts = reversed(file.relative_to(root).with_suffix("").parts)
        split = next((found for part in parts if (found := _find_split(part))), None)
        if split is None:
            unnamed.append(file)
        splits.setdefault(split or "train", []).append(str(file))
    if unnamed and len(unnamed) < len(files):
        raise InputError(
            f"data.root={root}: {unnamed[0].relative_to(root)} names no split, other files do"
            "\n  each file or its folder needs train, validation or test in its name, or none of them"
        )
    return splits


def _find_labels(part: Any) -> str:
    typed = [name for name, kind in part.features.items() if type(kind).__name__ == "ClassLabel"]
    named = [name for name in LABELS if name in part.column_names]
    found = typed if len(typed) == 1 else named
    if len(found) != 1:
        raise InputError(f"which column holds the labels?\n  set data.labels to one of {', '.join(part.column_names)}")
    return str(found[0])


def _find_inputs(part: Any, labels: str) -> str:
    images = [name for name, kind in part.features.items() if type(kind).__name__ == "Image"]
    others = [name for name in part.column_names if name != labels]
    found = images if len(images) == 1 else others
    if len(found) != 1:
        raise InputError(f"which column holds the inputs?\n  set data.inputs to one of {', '.join(others)}")
    return str(found[0])


def _find_classes(sets: dict[str, Any], labels: str) -> list[str]:
    """Return the names of the classes: those of ClassLabel, or all values in order."""
    kind = sets["train"].features[labels]
    if type(kind).__name__ == "ClassLabel":
        return [str(name) for name in kind.names]
    values = {value for part in sets.values() for value in part.unique(labels)}
    if all(isinstance(value, int) for value in values):
        return [str(number) for number in range(max(values) + 1)]
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"data.labels={labels} holds other values than classes\n  accepted: whole numbers or texts")
    return sorted(values)


class _Examples:
    """Pairs (input, label) of a split, as `from_dataset` reads them."""

    def __init__(self, part: Any, inputs: str, labels: str, classes: Sequence[str], image_size: int | None) -> None:
        self._part, self._inputs, self._labels, self._size = part, inputs, labels, image_size
        self._numbers = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL import Image, ImageOps

        row = self._part[index]
        value, label = row[self._inputs], row[self._labels]
        if isinstance(value, Image.Image):
            if self._size is not None:
                value = ImageOps.fit(value.convert("RGB"), (self._size, self._size), Image.Resampling.BILINEAR)
        elif isinstance(value, str):
            raise InputError(
                f"data.inputs={self._inputs} holds texts\n  tokenise them first, and save the numbers as a column"
            )
        else:
            value = np.atleast_1d(np.asarray(value))
        return value, self._numbers[label] if isinstance(label, str) else label
