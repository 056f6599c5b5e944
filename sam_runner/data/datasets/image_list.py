"""Images that a CSV file lists, with their labels."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import torch

from sam_runner.config.data import ImageListConfig
from sam_runner.data.datasets.folder_layout import SPLIT_NAMES, natural_key
from sam_runner.data.datasets.image_folder import _split_test_set, warn_of_test_fraction
from sam_runner.data.image_sets import ImageFiles, Images, UnreadImages
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores

COLUMNS = ("path", "label", "split", "clean_label")


def image_list(
    *,
    file: str,
    image_size: int | None = None,
    storage: str = "memory",
    test_fraction: float = ImageListConfig.test_fraction,
    cache: bool | str = False,
) -> Splits:
    """Read the images that a CSV file lists.

    The first line names the columns. ``path`` is relative to the folder of the file; ``label`` is the name of a class;
    ``split`` is train, val or test, as folders of `image_folder` are named; ``clean_label`` is the label without noise,
    which the metrics ``memorised`` and ``recovered`` need. Test and validation images have their clean labels. Classes
    are the labels of all rows in natural order. Without a test split, the validation split or a fixed random
    `test_fraction` of each class is the test set.

    Args:
        file: The CSV file, UTF-8, with commas, semicolons or tabs.
        image_size: Side in pixels to which the centre crop of each image is resized; None keeps the images unchanged,
            which must then all have one size.
        storage: "memory" decodes the images once and keeps them; "disk" decodes them in every epoch and needs
            `image_size`.
        test_fraction: Fraction of each class for testing, in (0, 1), if there is no test or validation split.
        cache: Value of ``data.cache``: where decoded images are kept.

    Raises:
        InputError: If a column, a value or an image is missing or cannot be used; the message names the line.
    """
    path = Path(file).expanduser()
    if storage == "disk" and image_size is None:
        raise InputError("data.storage=disk needs one size for all images\n  set data.image_size")
    rows = _read_rows(path)
    classes = tuple(sorted({row[name] for row in rows for name in ("label", "clean_label")}, key=natural_key))
    if not any(row["split"] == "train" for row in rows):
        raise InputError(f"{path} lists no training images\n  write train into the column split, or leave it out")
    if len(classes) < 2:
        raise InputError(f"{path} has {len(classes)} classes\n  accepted: at least 2")

    def make(split: str) -> Images | None:
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            return None
        paths = tuple(row["path"] for row in chosen)
        labels, clean = (
            torch.tensor([classes.index(row[name]) for row in chosen]) for name in ("label", "clean_label")
        )
        files = path.parent, paths, labels, classes, clean, image_size or 0, 1.0, cache
        made = ImageFiles(*files) if storage == "disk" else UnreadImages(*files, num_workers=count_usable_cores())
        return made if split == "train" else made.with_labels(clean)

    train, validation, test = make("train"), make("validation"), make("test")
    assert train is not None
    if test is None and validation is None:
        splits = _split_test_set(train, test_fraction)
        return replace(splits, test=splits.test.with_labels(splits.test.clean_labels))
    warn_of_test_fraction(test_fraction, f"the rows with split {'val' if test is None else 'test'} of {path}")
    return Splits(train, validation if test is None else test, None if test is None else validation)  # type: ignore[arg-type]


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows with the columns of `COLUMNS`, all filled in."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.file={path} cannot be read: {error}\n  give a CSV file in UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or []]
    faults = [f"an unknown column {name}" for name in names if name not in COLUMNS]
    faults += [f"two columns {name}" for name in COLUMNS if names.count(name) > 1]
    faults += [f"no column {name}" for name in ("path", "label") if name not in names]
    if faults:
        raise InputError(f"data.file={path} has {faults[0]}\n  accepted in the first line: {', '.join(COLUMNS)}")
    reader.fieldnames = names
    rows = []
    for row in reader:
        place = f"data.file={path}, line {reader.line_num}"
        filled = {name: (row.get(name) or "").strip() for name in names}
        if None in row or not filled["path"] or not filled["label"]:
            raise InputError(f"{place}: {len(names)} values are expected\n  columns: {', '.join(names)}")
        split = filled.get("split") or "train"
        if split.lower() not in SPLIT_NAMES:
            raise InputError(f"{place}: split {split} is not known\n  accepted: train, val, test")
        if not os.path.isfile(path.parent / filled["path"]):
            raise InputError(f"{place}: there is no file {path.parent / filled['path']}")
        clean = filled.get("clean_label") or filled["label"]
        rows.append({**filled, "split": SPLIT_NAMES[split.lower()], "clean_label": clean})
    return rows
