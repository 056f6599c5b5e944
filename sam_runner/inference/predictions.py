"""Apply runs to image files or to the sets of the runs, and average their probabilities."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sam_runner.config.data import ImageFolderConfig
from sam_runner.data.image_sets import ArraySet, ImageFiles, Images, ImageSet
from sam_runner.data.loader import ImageLoader
from sam_runner.inference.image_files import IMAGES_PER_CHUNK, UNKNOWN, FoundFiles, decode_files, make_reader
from sam_runner.runs.folder import read_config
from sam_runner.runs.load import load_network, restore_run
from sam_runner.runs.model_facts import read_model_facts
from sam_runner.training.builders.data import build_data
from sam_runner.training.evaluation import evaluation_weights, predict
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_bytes

if TYPE_CHECKING:
    import pandas

Split = Literal["train", "validation", "test"]
MAX_LISTED = 12  # unreadable files in a message


@dataclass(frozen=True)
class Examples:
    """The images that runs are applied to.

    Attributes:
        kind: "path" or "index": what the names are.
        names: Paths of files, or positions in the data set as strings.
        classes: Names of the classes.
        labels: Labels, int64, (N,); -1 for an unknown one. Labels of a training set have its label noise.
        clean_labels: Labels before label noise, int64, (N,).
    """

    kind: Literal["path", "index"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Tensor
    clean_labels: Tensor


@dataclass(frozen=True)
class Predictions:
    """The outputs of some runs for the same examples.

    Attributes:
        examples: The examples.
        logits: Logits (N, C) of each run by its folder.
    """

    examples: Examples
    logits: Mapping[Path, Tensor]

    @property
    def log_probabilities(self) -> Tensor:
        """Logarithm of the mean of the runs' probabilities, float64, (N, C)."""
        return mean_log_probabilities(list(self.logits.values()))


def mean_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return log((1/R) sum_r softmax(z_r)) in float64, without underflow of small probabilities.

    Args:
        logits: z_r of each of the R runs, (N, C).

    Returns:
        float64, (N, C).
    """
    return torch.stack([part.double().log_softmax(1) for part in logits]).logsumexp(0) - math.log(len(logits))


def require_same_classes(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the classes of some runs.

    Raises:
        InputError: If they differ, or a run has no ``model.json``.
    """
    classes = [read_model_facts(folder).classes for folder in folders]
    for folder, other in zip(folders, classes, strict=True):
        if other != classes[0]:
            raise InputError(f"{folder} has other classes than {folders[0]}\n  give runs on the same classes")
    return classes[0]


def predict_files(
    folders: Sequence[Path], files: FoundFiles, which: str, device: str | None = None
) -> tuple[Predictions, list[str]]:
    """Apply runs to image files; the data of the runs are not needed.

    Args:
        folders: Run folders with the same classes.
        files: The files.
        which: Checkpoint, "last" or "best".
        device: Device to use instead of the device in the runs' settings, or None.

    Returns:
        The predictions for the files that all runs can read, and a message for each other file.

    Raises:
        InputError: If a run cannot be used.
    """
    classes = require_same_classes(folders)
    logits: dict[Path, Tensor] = {}
    positions_read: dict[Path, list[int]] = {}
    faults: dict[int, str] = {}  # by position in files.paths; of several runs that cannot read a file, the first one's
    for folder in folders:
        network = load_network(folder, which, device)
        network.facts.require_images(folder)
        data = network.config.data
        ratio = data.eval_crop_ratio if isinstance(data, ImageFolderConfig) else 1.0
        read = make_reader(network.facts.input_shape, ratio)
        own, parts = [], [torch.empty(0, len(classes))]
        with tqdm(total=len(files.paths), desc=_short_name(folder), unit="image", disable=None, leave=False) as bar:
            for images, positions, errors in decode_files(files.paths, read):
                own += positions
                faults = {position: str(error).splitlines()[0] for position, error in errors.items()} | faults
                if positions:
                    parts.append(
                        _logits(network.model, _without_labels(images), network.autocast_dtype, network.format_options)
                    )
                bar.update(len(positions) + len(errors))
        logits[folder] = torch.cat([part.to(parts[-1].dtype) for part in parts])
        positions_read[folder] = own
    readable = [position for position in range(len(files.paths)) if position not in faults]
    for folder, own in positions_read.items():
        logits[folder] = logits[folder][torch.tensor([position not in faults for position in own], dtype=torch.bool)]
    labels = torch.tensor(files.labels)[readable].long()
    names = tuple(str(files.paths[position]) for position in readable)
    return Predictions(Examples("path", names, classes, labels, labels), logits), [
        faults[position] for position in sorted(faults)
    ]


def predict_split(folders: Sequence[Path], split: Split, which: str, device: str | None = None) -> Predictions:
    """Apply runs to one of their own sets, without augmentation.

    Args:
        folders: Run folders whose set has the same examples and labels.
        split: Name of the set.
        which: Checkpoint, "last" or "best".
        device: Device to use instead of the device in the runs' settings, or None.

    Raises:
        InputError: If a run cannot be used or has no such set, or the sets differ.
    """
    examples: Examples | None = None
    logits: dict[Path, Tensor] = {}
    for folder in folders:
        images = read_split(folder, split)
        own = describe_examples(images)
        if examples is not None and (fault := difference(examples, own)):
            raise InputError(
                f"the {split} sets of {folders[0]} and {folder} differ: {fault}\n"
                "  give runs on the same data, or image files"
            )
        examples = own
        run = restore_run(folder, which, device, plain_training_set=True)
        options = {name: value for name, value in run.train.format_options().items() if name != "num_workers"}
        dtype = run.step.objective.autocast_dtype
        parts = []
        with (
            evaluation_weights(run.step.optimizer),
            tqdm(total=len(images), desc=_short_name(folder), unit="image", disable=None, leave=False) as bar,
        ):
            for chunk in _chunks(images):
                parts.append(_logits(run.model, chunk, dtype, options))
                bar.update(len(chunk))
        logits[folder] = torch.cat(parts)
    assert examples is not None
    return Predictions(examples, logits)


def read_split(folder: Path, split: Split) -> Images:
    """Return a set of a run, with the labels that the run was trained or evaluated with.

    Raises:
        InputError: If the run has no validation set, or the data cannot be read.
    """
    config = read_config(folder)
    splits = build_data(config.data, config.noise, config.seed)
    images: Images | None = getattr(splits, split)
    if images is None:
        raise InputError(f"{folder} has no validation set (data.val_fraction=0)\n  accepted: --split test, train")
    return images


def difference(one: Examples, other: Examples) -> str:
    """Return how two sets of examples differ; "" if they are the same images with the same labels."""
    if one.classes != other.classes:
        return "other classes"
    if one.names != other.names:
        same_number = len(one.names) == len(other.names)
        return "other images" if same_number else f"{len(one.names):,} and {len(other.names):,} images"
    if not torch.equal(one.clean_labels, other.clean_labels):
        return "other images"
    return "" if torch.equal(one.labels, other.labels) else "other labels (label noise)"


def describe_examples(images: Images) -> Examples:
    """Return names and labels of a set."""
    names = images.names or tuple(map(str, range(len(images))))
    kind: Literal["path", "index"] = "index" if all(name.isdecimal() for name in names) else "path"
    return Examples(kind, names, images.classes, images.labels, images.clean_labels)


def _chunks(images: Images) -> Iterable[ImageSet | ArraySet]:
    """Yield the inputs of a set in parts that are in memory; their labels are not used.

    Raises:
        InputError: If a file cannot be read.
    """
    if not isinstance(images, ImageFiles):
        for positions in torch.arange(len(images)).split(IMAGES_PER_CHUNK):
            yield images.subset(positions)
        return
    read = make_reader(images.shape, images.eval_crop_ratio)
    for chunk, _, errors in decode_files([images.root / path for path in images.paths], read):
        if errors:
            raise next(iter(errors.values()))
        yield _without_labels(chunk)


def _without_labels(images_NCHW: Tensor) -> ImageSet:
    labels = torch.zeros(len(images_NCHW), dtype=torch.int64)
    return ImageSet(images_NCHW, labels, ("",), labels)


def _logits(
    model: nn.Module, inputs: ImageSet | ArraySet, autocast_dtype: torch.dtype | None, options: Mapping[str, Any]
) -> Tensor:
    """Return the logits of images or other inputs, (n, C), on the CPU.

    Args:
        model: The network.
        inputs: The inputs.
        autocast_dtype: dtype of autocast, or None.
        options: Arguments of `ImageLoader`: normalisation, device, dtype, channels_last.
    """
    loader = ImageLoader(inputs, batch_size=IMAGES_PER_CHUNK, **options)
    return predict(model, loader, autocast_dtype)[0].cpu()


def predictions_table(predictions: Predictions) -> "pandas.DataFrame":
    """Return one row for each example.

    The columns are ``path`` or ``index``; ``label``, empty where it is not known; ``clean_label``, if label noise has
    changed a label of the set; ``predicted``; ``confidence``, the probability of the predicted class; and the
    probability of each class, ``p_<class>``.
    """
    import pandas  # takes a second

    examples, classes = predictions.examples, predictions.examples.classes
    probabilities = predictions.log_probabilities.exp()
    confidence, predicted = probabilities.max(1)

    def column(labels: Tensor) -> list[str]:
        return ["" if label == UNKNOWN else classes[label] for label in labels.tolist()]

    columns: dict[str, Any] = {examples.kind: examples.names, "label": column(examples.labels)}
    if not torch.equal(examples.labels, examples.clean_labels):
        columns["clean_label"] = column(examples.clean_labels)
    columns |= {"predicted": column(predicted), "confidence": confidence.numpy()}
    columns |= {f"p_{name}": probabilities[:, label].numpy() for label, name in enumerate(classes)}
    return pandas.DataFrame(columns)


def summarise(predictions: Predictions) -> str:
    """Return a line: number of images and runs, and the accuracy on the images with a label."""
    examples = predictions.examples
    parts = [f"{len(examples.names):,} images"]
    if len(predictions.logits) > 1:
        parts.append(f"mean of the probabilities of {len(predictions.logits)} runs")
    known = examples.labels != UNKNOWN
    if known.any():
        correct = predictions.log_probabilities.argmax(1) == examples.labels
        kind = "" if torch.equal(examples.labels, examples.clean_labels) else "noisy "
        on = "" if known.all() else f" on {int(known.sum()):,} images"
        parts.append(f"accuracy on the {kind}labels{on} {float(correct[known].double().mean()):.4f}")
    return ", ".join(parts)


def write_table(path: Path, table: "pandas.DataFrame") -> None:
    """Write a table as CSV; see `write_file`."""
    write_file(path, table.to_csv(index=False, float_format="%.6g").encode("utf-8", "surrogateescape"))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically; create its folder.

    Raises:
        InputError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror}\n  give another file") from error


def describe_unreadable(faults: Sequence[str]) -> str:
    """Return a message about files that cannot be read; the first ones are listed."""
    more = [f"and {len(faults) - MAX_LISTED:,} more"] if len(faults) > MAX_LISTED else []
    lines = [f"  {line}" for line in [*faults[:MAX_LISTED], *more]]
    return "\n".join([f"images that cannot be read: {len(faults):,}", *lines])


def _short_name(folder: Path) -> str:
    return folder.resolve().name[:40]
