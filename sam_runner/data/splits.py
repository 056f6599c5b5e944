"""Training, validation and test set: holding out, subsampling and label noise, in the order that the noise requires.

A data set is a function that returns `Splits`; its arguments are the keys of its file in conf/data. To add one, write
the function in `sam_runner/data/datasets`, its arguments in `sam_runner/config/data.py`, the file and a test.
"""

import hashlib
import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam_runner.data.image_sets import ArraySet, ImageFiles, Images, ImageSet, UnreadImages
from sam_runner.data.noise import NoiseNeeds, require_labels
from sam_runner.data.reading import check_files, read_sets, use_kept_pixels
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed, make_generator

log = logging.getLogger("sam_runner")
MAX_LISTED = 10  # classes in a log line
MAX_COMPARED = 2 << 30  # bytes of training examples that are compared with the others, at about a second per GiB


@dataclass(frozen=True)
class Splits:
    """Training set, test set, and validation set or None."""

    train: Images
    test: Images
    validation: Images | None = None

    def with_train_labels(self, labels: Tensor) -> "Splits":
        """Return the same sets with other labels to learn in the training set."""
        return replace(self, train=self.train.with_labels(labels))

    def read(self) -> "Splits":
        """Return the same sets, with the images decoded that are to be in memory; files that stay on disk are checked.

        Raises:
            InputError: See `reading.read_sets`, `reading.check_files` and `reading.use_kept_pixels`.
        """
        on_disk = {name: part for name, part in vars(self).items() if type(part) is ImageFiles}
        check_files(list(on_disk.values()))
        kept = {name: use_kept_pixels(part) for name, part in on_disk.items()}
        parts = {name: part for name, part in vars(self).items() if isinstance(part, UnreadImages)}
        return replace(self, **kept, **dict(zip(parts, read_sets(tuple(parts.values())), strict=True)))

    def digest(self) -> str:
        """Return the hex sha256 of shapes, classes, images (of files: their paths) and labels."""
        total = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            if part is not None:
                total.update(repr(((len(part), *part.shape), part.classes)).encode())
                for content in (part.digest_bytes(), part.labels.numpy().data, part.clean_labels.numpy().data):
                    total.update(content)
        return total.hexdigest()


def prepare_splits(
    splits: Splits,
    noise: Callable[..., Tensor],
    *,
    needs: NoiseNeeds,
    seed: int,
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
    val_labels: str = "clean",
) -> Splits:
    """Hold out validation images, subsample the training set, read what is left into memory and apply label noise.

    Noise that needs the whole set is applied first, so that each image keeps its label for every fraction. Other noise
    is applied to the images that are trained on, so that its rate is exact for them.

    Args:
        splits: Sets of a data set function, without noise.
        noise: Noise model, called with keywords `labels`, `num_classes`, `seed` and, if it needs images, `images_NCHW`.
        needs: Input of the noise model, from `sam_runner.data.noise.noise_needs`.
        seed: Seed of the label noise. It does not affect which images are held out or kept.
        val_fraction: Fraction of the training images to hold out, in [0, 1).
        train_fraction: Fraction of the remaining training images to keep, in (0, 1].
        val_labels: "clean", or "noisy" to apply the noise to the validation labels too.

    Raises:
        InputError: If a set would be empty, image files cannot be read, the noise model needs images that are not in
            memory, or it returns no labels of the set.
    """

    def corrupt(part: Images, noise_seed: int) -> Tensor:
        images = {}
        if needs == "images":
            if not isinstance(part, ImageSet):
                raise InputError(
                    "the noise model needs the images in memory\n"
                    "  set data.storage=memory, or use another noise for inputs that are not images"
                )
            images["images_NCHW"] = part.images_NCHW
        labels = noise(labels=part.labels.clone(), num_classes=len(part.classes), seed=noise_seed, **images)
        return require_labels(labels, len(part), len(part.classes))

    if needs == "whole_set":
        if val_labels == "noisy" and splits.validation is not None and not val_fraction:
            raise InputError(
                "data.val_labels=noisy has no effect: the noise has labels for the training images only\n"
                "  use data.val_labels=clean"
            )
        splits = splits.with_train_labels(corrupt(splits.train, seed))
    splits = subsample(hold_out(splits, val_fraction, val_labels=val_labels), train_fraction).read()
    _log_missing_classes(splits)
    _log_similar_classes(splits.train.classes)
    _log_common_examples(splits)
    if needs == "whole_set":
        return splits
    splits = splits.with_train_labels(corrupt(splits.train, seed))
    if val_labels == "noisy" and splits.validation is not None:
        held_out_seed = seed if needs == "images" else derive_seed(seed, "held-out label noise")
        labels = corrupt(splits.validation, held_out_seed)  # of images: the map to wrong labels is the same
        splits = replace(splits, validation=splits.validation.with_labels(labels))
    return splits


def _log_missing_classes(splits: Splits) -> None:
    """Log the classes without a training image, and those without a test image."""
    facts = []
    for name, part in (("training", splits.train), ("test", splits.test)):
        counts = torch.bincount(part.clean_labels, minlength=len(part.classes))
        missing = [part.classes[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
            facts.append(f"no {name} image of {', '.join(missing[:MAX_LISTED])}{more}")
    if facts:
        log.warning("%s", "; ".join(facts))


def _log_similar_classes(classes: Sequence[str]) -> None:
    """Log classes whose names a reader takes for one: ``Cat`` and ``cat``, or two encodings of one accent."""
    found: dict[str, list[str]] = {}
    for name in classes:
        found.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(ascii(name))
    alike = [", ".join(names) for names in found.values() if len(names) > 1]
    if alike:
        log.warning("different classes have names that look alike: %s", "; ".join(alike[:MAX_LISTED]))


def _log_common_examples(splits: Splits) -> None:
    """Log how many test and validation examples are also training examples: their accuracy says little."""
    train = splits.train
    if not isinstance(train, ImageFiles) and _inputs(train).nbytes > MAX_COMPARED:
        return
    trained = _fingerprints(train, train)
    for name, part in (("test", splits.test), ("validation", splits.validation)):
        found = [] if part is None else _fingerprints(part, train)
        common = {*found}.intersection(trained)
        if part is not None and common:
            number = sum(fingerprint in common for fingerprint in found)
            log.warning("%s of %s %s examples are also training examples", f"{number:,}", f"{len(part):,}", name)


def _fingerprints(part: Images, train: Images) -> Sequence[object]:
    """Return a value for each example, equal for equal inputs; for files on disk their paths in the folder of train."""
    if isinstance(part, ImageFiles):
        return part.paths if isinstance(train, ImageFiles) and part.root == train.root else ()
    return [hash(row.tobytes()) for row in _inputs(part).contiguous().numpy()]


def _inputs(part: ImageSet | ArraySet) -> Tensor:
    return part.images_NCHW if isinstance(part, ImageSet) else part.inputs


def hold_out(splits: Splits, fraction: float, *, val_labels: str = "clean") -> Splits:
    """Move a random `fraction` of the training set, in [0, 1), to the validation set.

    The same examples are held out for every seed of a run, so runs with different seeds and rho are compared on one
    validation set. `val_labels` chooses their labels: "clean" (before noise) or "noisy" (as in training). With fraction
    0 a data set keeps its own validation set, if it has one.

    Raises:
        InputError: If a set would be empty.
    """
    if fraction == 0:
        return splits
    if splits.validation is not None:
        log.warning(
            "the data set's own %d validation images are not used: data.val_fraction=%g holds out training images",
            len(splits.validation), fraction,
        )  # fmt: skip
    num_held_out = round(fraction * len(splits.train))
    if not 0 < num_held_out < len(splits.train):
        raise InputError(
            f"data.val_fraction={fraction} of {len(splits.train)} images leaves one part empty\n"
            f"  use a {'larger' if num_held_out == 0 else 'smaller'} data.val_fraction"
        )
    order = torch.randperm(len(splits.train), generator=make_generator(0, "held-out split"))
    validation = splits.train.subset(order[:num_held_out].sort().values)
    if val_labels == "clean":
        validation = validation.with_labels(validation.clean_labels)
    return replace(splits, train=splits.train.subset(order[num_held_out:].sort().values), validation=validation)


def subsample(splits: Splits, fraction: float) -> Splits:
    """Keep a random `fraction` of the training set, in (0, 1]; a larger fraction includes the images of a smaller one.

    The same examples are kept for every seed of a run, in their original order.

    Raises:
        InputError: If no image would be left.
    """
    if fraction == 1:
        return splits
    num_kept = round(fraction * len(splits.train))
    if num_kept == 0:
        raise InputError(
            f"data.train_fraction={fraction} of {len(splits.train)} images leaves no training images\n"
            "  use a larger data.train_fraction"
        )
    order = torch.randperm(len(splits.train), generator=make_generator(0, "part of the training set"))
    return replace(splits, train=splits.train.subset(order[:num_kept].sort().values))
