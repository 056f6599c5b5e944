"""Data sets of the library ``datasets`` of Hugging Face, from a folder; nothing is downloaded."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_runner.config.data import HuggingFaceConfig
from sam_runner.data.datasets.folder_layout import SPLIT_NAMES, SPLIT_WORD
from sam_runner.data.datasets.image_folder import _split_test_set, warn_of_test_fraction
from sam_runner.data.files.decode import to_8_bits
from sam_runner.data.own_data import from_dataset
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError, first_line

log = logging.getLogger("sam_runner")
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

    Each parquet file has one split among the words of its name (``test-00000-of-00001.parquet``) or of its folders
    (``test/0000.parquet``). If no file has one, all are train. A split called exactly train, validation or test is
    preferred to others with this word in their names, as ``test`` to ``test_ood``. Without test, validation is the
    test set; without both, a fixed random `test_fraction` of each class is. All examples are read into memory.

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
    for split, part in sets.items():
        for name in (labels, inputs):
            if name not in part.column_names:
                columns = ", ".join(part.column_names)
                raise InputError(f"data.root={root}: {split} has no column {name}\n  columns: {columns}")
    classes = _find_classes(sets, labels)
    parts = {name: _Examples(part, inputs, labels, classes, image_size) for name, part in sets.items()}
    if len(parts) == 1:
        log.info("only a split train: %g of each class becomes the test set", test_fraction)
        made = from_dataset(parts["train"], parts["train"], classes)
        return _split_test_set(made.train, test_fraction)
    test = "test" if "test" in parts else "validation"
    warn_of_test_fraction(test_fraction, f"the split {test}")
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
        if not is_saved:
            return {
                split: datasets.load_dataset("parquet", data_files=[*map(glob.escape, files)], split="train")
                for split, files in find_parquet_files(root).items()
            }
        loaded = datasets.load_from_disk(str(root))
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        reason = first_line(error.__cause__ or error)[:200]
        raise InputError(
            f"data.root={root} cannot be read: {reason}"
            "\n  each split needs at least one example, and each file must be whole"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return {"train": loaded}
    return {split: loaded[name] for split, (name, *_) in _choose_splits(root, list(loaded), may_join=False).items()}


def find_parquet_files(root: Path) -> dict[str, list[str]]:
    """Return the parquet files of a folder by split: train, validation, test. If no file names a split, all are train.

    Raises:
        InputError: If there is none, or some files name a split and others do not.
    """
    files: list[str] = []
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder that has been read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(folder, name) for name in names if not name.startswith("."))
        files += [path for path in paths if path.lower().endswith(".parquet") and os.path.isfile(path)]
    if not files:
        raise InputError(f"data.root={root} holds no data set\n  expected: a folder of save_to_disk, or parquet files")
    files.sort()
    named: dict[str, list[str]] = {}
    for file in files:
        parts = map(_without_number, reversed(Path(file).relative_to(root).with_suffix("").parts))
        named.setdefault(next((part for part in parts if find_split(part)), ""), []).append(file)
    unnamed = named.pop("", [])
    if unnamed and named:
        raise InputError(
            f"data.root={root}: {os.path.relpath(unnamed[0], root)} does not name one split, other files do"
            "\n  each file or its folder needs train, validation or test in its name, or none of them"
        )
    if unnamed:
        found = {"train": unnamed}
    else:
        chosen = _choose_splits(root, list(named), may_join=True)
        found = {split: sorted(file for name in names for file in named[name]) for split, names in chosen.items()}
    log.info("parquet files: %s", ", ".join(f"{len(files):,} of {split}" for split, files in found.items()))
    return found


def _without_number(name: str) -> str:
    """Return the name of a file without the number of the part: ``test`` for ``test-00000-of-00001``."""
    return re.sub(r"[-_.]?\d+(-of-\d+)?$", "", name)


def find_split(name: str) -> str | None:
    """Return the split among the words of a name such as ``cifar_test``; None if there is not exactly one."""
    words = (SPLIT_WORD.fullmatch(word.lower()) for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    found = {SPLIT_NAMES[word[1]] for word in words if word}
    return found.pop() if len(found) == 1 else None


def _choose_splits(root: Path, names: Sequence[str], *, may_join: bool) -> dict[str, list[str]]:
    """Return the names of each split: the one that is called exactly so, or else all that have it among their words.

    Names that are not used are logged.

    Raises:
        InputError: If there is no split train, or several names are one split and must not be joined.
    """
    chosen = {}
    for split in ("train", "validation", "test"):
        exact = [name for name in names if name.lower() == split]
        found = exact or [name for name in names if find_split(name) == split]
        if len(found) > 1 and not may_join:
            raise InputError(
                f"data.root={root} has several splits for {split}: {', '.join(found)}\n  call one of them {split}"
            )
        if found:
            chosen[split] = found
    if "train" not in chosen:
        raise InputError(f"data.root={root} has no split train\n  splits: {', '.join(names)}")
    used = {name for found in chosen.values() for name in found}
    for name in names:
        if name not in used:
            log.warning("data.root=%s: the split %s is not used", root, name)
    return chosen


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


def _class_names(part: Any, labels: str) -> list[str] | None:
    """Return the names of a column of type ClassLabel; None for another type."""
    kind = part.features[labels]
    return [str(name) for name in kind.names] if type(kind).__name__ == "ClassLabel" else None


def _find_classes(sets: dict[str, Any], labels: str) -> list[str]:
    """Return the names of the classes: those of ClassLabel, or all values in order."""
    names = {split: _class_names(part, labels) for split, part in sets.items()}
    classes = names["train"]
    if classes is not None:
        for split, others in names.items():
            unknown = sorted({*(others or classes)} - {*classes})
            if unknown:
                raise InputError(f"data.labels={labels}: {split} has classes that train does not have: {unknown[0]}")
        return classes
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
        self._names = _class_names(part, labels)  # a split can have its classes in another order than train

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL import Image, ImageOps

        row = self._part[index]
        value, label = row[self._inputs], row[self._labels]
        if isinstance(value, Image.Image):
            if self._size is not None:
                rgb = to_8_bits(value).convert("RGB")
                value = ImageOps.fit(rgb, (self._size, self._size), Image.Resampling.BILINEAR)
        elif isinstance(value, str):
            raise InputError(
                f"data.inputs={self._inputs} holds texts\n  tokenise them first, and save the numbers as a column"
            )
        else:
            value = np.atleast_1d(np.asarray(value))
        if self._names is not None and isinstance(label, int) and label >= 0:
            label = self._names[label]
        return value, self._numbers[label] if isinstance(label, str) else label
