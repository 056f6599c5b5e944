"""Find the splits, classes and image files of a folder, and count by reason the files that are not read."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sam_runner.data.files.decode import SUFFIXES, is_image_file
from sam_runner.utils.errors import InputError, MissingDataError

LAYOUT = "<root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg, or <root>/<class>/*.jpg"
SPLIT_NAMES = {  # folder names of a split, in upper or lower case, also as a word of a longer name: training_set
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation", "eval": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_WORD = re.compile(f"({'|'.join(SPLIT_NAMES)})(?:set|data|images)?")  # a word of a name: test, testset, testdata
# Written by operating systems and other programs. Some hold copies or thumbnails of the images.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found"})
NEVER_IMAGES = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".py", ".yaml", ".yml"})
MAX_LISTED = 10  # names in a message


@dataclass
class LeftOut:
    """Files and folders that are not read: for each reason their number and the first path."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count one file or folder."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples[reason] = min(path, self.examples.get(reason, path))

    def __str__(self) -> str:
        return ", ".join(
            f"{self.counts[reason]:,} {reason} ({self.examples[reason]})" for reason in sorted(self.counts)
        )


@dataclass(frozen=True)
class Part:
    """The image files of one split, sorted by class, then by path, both in natural order (2.jpg before 10.jpg).

    Attributes:
        folder: The folder of the split.
        paths: Paths of the files relative to the root.
        labels: Index of each file's class in `Layout.classes`.
    """

    folder: str
    paths: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Layout:
    """The image files of a folder.

    Attributes:
        classes: Names of the classes, in natural order.
        train: The training set.
        validation: The validation set; None unless there are folders for validation and for test.
        test: The test set; None without folders for test and validation. Then a part of the training set must become
            the test set.
        left_out: Files and folders that are not read.
        suffixes: Number of image files by suffix in lower case ("" for files without one), largest number first.
    """

    classes: tuple[str, ...]
    train: Part
    validation: Part | None
    test: Part | None
    left_out: LeftOut
    suffixes: dict[str, int]

    @property
    def parts(self) -> list[Part]:
        """The parts that exist: train, validation, test."""
        return [part for part in (self.train, self.validation, self.test) if part is not None]


def find_layout(root: str) -> Layout:
    """Find the images below a folder by the names of files and folders, without decoding images.

    Folders named in `SPLIT_NAMES` hold the splits; without such folders, the folders in `root` are the classes. A
    validation folder without a test folder is the test set. Folders inside a class belong to the class. Hidden files
    and folders are left out, and links are followed. The suffix says whether a file is an image; if the suffix is
    unknown, the content does.

    Args:
        root: Path of the folder.

    Raises:
        InputError: If the folder does not exist, a class has no image, or the folders have no accepted layout.
    """
    if not os.path.isdir(root):
        raise MissingDataError(f"data.root={root} is not a folder\n  expected: {LAYOUT}")
    left_out = LeftOut()
    folders = _find_splits(root, left_out)
    train_folder = folders.get("train", root)
    classes = _find_classes(root, train_folder)
    train = _list_part(root, train_folder, classes, left_out)
    _require_images(train, classes)
    validation, test = (
        _list_part(root, folders[split], classes, left_out) if split in folders else None
        for split in ("validation", "test")
    )
    if test is None:
        validation, test = None, validation
    parts = [part for part in (train, validation, test) if part is not None]
    suffixes = Counter(suffix_of(path) for part in parts for path in part.paths)
    return Layout(classes, train, validation, test, left_out, dict(suffixes.most_common()))


def list_images(folder: str) -> tuple[list[str], LeftOut]:
    """Return the paths of all images below a folder, relative to it and in natural order, and what is not read.

    Args:
        folder: Path of an existing folder.

    Raises:
        InputError: If a folder cannot be read.
    """
    left_out = LeftOut()
    return sorted(_find_images(folder, folder, left_out), key=natural_key), left_out


def describe_suffixes(suffixes: Mapping[str, int]) -> str:
    """Return the number of image files of each suffix, e.g. "40 .png, 10 .tif, 10 without a suffix"."""
    return ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in suffixes.items())


def natural_key(path: str) -> tuple[list[list[str | int]], str]:
    """Return a sort key that compares the numbers in names as numbers: 2.jpg comes before 10.jpg."""
    parts = [re.split("([0-9]+)", part) for part in path.split("/")]
    return [[int(text) if odd % 2 else text for odd, text in enumerate(part)] for part in parts], path


def _find_splits(root: str, left_out: LeftOut) -> dict[str, str]:
    """Return the folders of the splits by "train", "validation", "test"; empty if `root` holds the classes itself."""
    names = _list_folders(root)
    groups: dict[str, list[str]] = {}
    for name in names:
        split = SPLIT_NAMES.get(name.lower())
        if split is not None:
            groups.setdefault(split, []).append(name)
    if not groups:
        groups = _find_splits_by_word(root, names)
    split_names = {name for found in groups.values() for name in found}
    others = [name for name in names if name not in split_names]
    with_classes = {
        split: kept for split, found in groups.items() if (kept := [n for n in found if _list_folders(f"{root}/{n}")])
    }
    # A folder called "test", say, without folders inside is a class like those beside it, unless another split exists.
    if not with_classes and others and len(groups) < 2:
        return {}
    if groups and "train" not in with_classes:
        if "train" in groups:
            raise InputError(f"{root}/{groups['train'][0]} has no class folders\n  expected: {LAYOUT}")
        raise InputError(
            f"data.root={root} has {' and '.join(sorted(split_names))} but no train folder\n  expected: {LAYOUT}"
        )
    if groups and len(groups) > 1 and len(with_classes) == 1:
        name = next(name for split in ("test", "validation") for name in groups.get(split, []))
        raise InputError(f"{root}/{name} has no class folders\n  expected: {LAYOUT}")
    for found in with_classes.values():
        if len(found) > 1:
            raise InputError(
                f"data.root={root} has {' and '.join(found)}, two folders of one split\n  rename or remove one of them"
            )
    folders = {split: f"{root}/{found[0]}" for split, found in with_classes.items()}
    _require_different(folders)
    if folders.keys() == {"train"}:
        _require_no_unknown_split(root, folders["train"], others)
    if folders:
        for name in others:
            left_out.add("folders beside those of the splits", name)
        _count_outside(root, root, left_out)
        for name in split_names - {os.path.basename(folder) for folder in folders.values()}:
            left_out.add("folders without class folders", name)
    return folders


def _find_splits_by_word(root: str, names: list[str]) -> dict[str, list[str]]:
    """Return folders such as training_set and test_set by split; empty unless "train" and another split exist."""
    groups: dict[str, list[str]] = {}
    for name in names:
        words = (SPLIT_WORD.fullmatch(word) for word in re.findall("[a-z]+", name.lower()))
        splits = {SPLIT_NAMES[word[1]] for word in words if word}
        if len(splits) == 1 and _list_folders(f"{root}/{name}") and not _holds_images(f"{root}/{name}"):
            groups.setdefault(splits.pop(), []).append(name)
    return groups if "train" in groups and len(groups) > 1 else {}


def _require_no_unknown_split(root: str, train: str, others: list[str]) -> None:
    """Refuse a folder beside the training folder that has some of its classes: a test set with an unknown name."""
    classes = set(_list_folders(train))
    for name in others:
        if classes & set(_list_folders(f"{root}/{name}")):
            raise InputError(
                f"{root}/{name} has classes of the training set, but not the name of a test or validation set\n"
                f"  call it test or val, or move it out of data.root={root}"
            )


def _require_different(folders: dict[str, str]) -> None:
    splits = sorted(folders)
    for number, split in enumerate(splits):
        for other in splits[:number]:
            if os.path.samefile(folders[split], folders[other]):
                raise InputError(
                    f"{folders[other]} and {folders[split]} are the same folder\n  each split needs images of its own"
                )


def _find_classes(root: str, folder: str) -> tuple[str, ...]:
    """Return the class folders of the training set."""
    classes = tuple(_list_folders(folder))
    if len(classes) == 1:
        inner = f"{folder}/{classes[0]}"
        hint = f"data.root={inner}, which holds folders" if folder == root and _list_folders(inner) else LAYOUT
        raise InputError(f"need at least 2 classes, found 1: {classes[0]} in {folder}\n  expected: {hint}")
    if folder == root:
        _require_one_level(root, classes)
    for name in classes:
        nested = [inner for inner in _list_folders(f"{folder}/{name}") if inner.lower() in SPLIT_NAMES]
        if nested:
            raise InputError(
                f"{folder}/{name} has the folder {nested[0]}: splits inside classes are not read\n  expected: {LAYOUT}"
            )
    return classes


def _require_one_level(root: str, classes: tuple[str, ...]) -> None:
    """Refuse folders without images that all have the same folders inside: either level could be the classes."""
    inner = {tuple(_list_folders(f"{root}/{name}")) for name in classes}
    names = inner.pop() if len(inner) == 1 else ()
    if len(names) < 2 or any(_holds_images(f"{root}/{name}") for name in classes):
        return
    raise InputError(
        f"{' and '.join(classes[:MAX_LISTED])} all have the folders {', '.join(names[:MAX_LISTED])}: which are the "
        f"classes?\n  if the inner folders are the classes, use data.root={root}/{classes[0]}\n"
        f"  if the outer folders are the classes, move them into {root}/train"
    )


def _list_part(root: str, folder: str, classes: tuple[str, ...], left_out: LeftOut) -> Part:
    """List the images of each class below the folder of a split.

    Raises:
        InputError: If a folder that is not a class of the training set holds images.
    """
    names, unknown = _list_folders(folder), []
    label_of = {name: label for label, name in enumerate(classes)}
    paths: list[str] = []
    labels: list[int] = []
    for name in names:
        found = sorted(_find_images(f"{folder}/{name}", root, left_out), key=natural_key)
        if name in label_of:
            paths += found
            labels += [label_of[name]] * len(found)
        elif found:
            unknown.append(name)
        else:
            left_out.add("empty folders", os.path.relpath(f"{folder}/{name}", root))
    if unknown:
        missing = sorted(label_of.keys() - {*names}, key=label_of.__getitem__)
        hint = f"; only the training set has: {', '.join(missing[:MAX_LISTED])}" if missing else ""
        raise InputError(
            f"{folder} has classes that the training set does not have: {', '.join(unknown[:MAX_LISTED])}{hint}\n"
            "  expected: class folders with the same names as in the training set"
        )
    _count_outside(folder, root, left_out)
    by_class = sorted(zip(labels, paths, strict=True), key=lambda found: found[0])  # stable: keeps the order of paths
    return Part(folder, [path for _, path in by_class], [label for label, _ in by_class])


def _count_outside(folder: str, root: str, left_out: LeftOut) -> None:
    """Count the images and hidden entries beside the class folders or split folders; they are not read."""
    for entry in _scan(folder):
        if _is_hidden(entry.name):
            left_out.add("hidden", os.path.relpath(entry.path, root))
        elif entry.is_file() and _is_image(entry):
            left_out.add("images outside the class folders", os.path.relpath(entry.path, root))


def _require_images(train: Part, classes: tuple[str, ...]) -> None:
    found = set(train.labels)
    empty = [name for label, name in enumerate(classes) if label not in found]
    if empty or not classes:
        names = ", ".join(empty[:MAX_LISTED]) or "no class folders"
        raise InputError(
            f"no images in {train.folder}: {names}\n"
            f"  expected: one folder per class with files of {' '.join(sorted(SUFFIXES))}"
        )


def _find_images(folder: str, root: str, left_out: LeftOut, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of all images below a folder, relative to `root`.

    Args:
        folder: The folder.
        root: The root of the set.
        left_out: Collects the files that are not read.
        above: Real paths of the folders around `folder`. Links to one of them are not followed.
    """
    above = (*above, os.path.realpath(folder))
    for entry in _scan(folder):
        path = os.path.relpath(entry.path, root) if entry.is_symlink() else entry.path.removeprefix(f"{root}/")
        if _is_hidden(entry.name):
            left_out.add("hidden", path)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if entry.is_symlink() and any(f"{outer}/".startswith(f"{real}/") for outer in above):
                left_out.add("links to a folder above", path)
            else:
                yield from _find_images(entry.path, root, left_out, above)
        elif not entry.is_file():
            left_out.add("broken links" if entry.is_symlink() else "special files", path)
        elif _is_image(entry):
            yield path
        else:
            left_out.add(f"{suffix_of(entry.name) or 'without a suffix'}: no accepted image format", path)


def _is_image(entry: "os.DirEntry[str]") -> bool:
    suffix = suffix_of(entry.name)
    return suffix in SUFFIXES or (suffix not in NEVER_IMAGES and is_image_file(entry.path))


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, e.g. ``.jpg``; "" without one."""
    return os.path.splitext(name)[1].lower()


def _holds_images(folder: str) -> bool:
    return any(not _is_hidden(entry.name) and entry.is_file() and _is_image(entry) for entry in _scan(folder))


def _list_folders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, in natural order, without hidden ones."""
    found = (entry.name for entry in _scan(folder) if not _is_hidden(entry.name) and entry.is_dir())
    return sorted(found, key=natural_key)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _scan(folder: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}\n  data.root needs folders of images") from error
