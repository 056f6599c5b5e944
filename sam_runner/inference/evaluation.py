"""Metrics of runs on their own sets or on other images, and of the mean of their probabilities."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sam_runner.inference.image_files import find_labelled_files
from sam_runner.inference.predictions import (
    Examples,
    Split,
    describe_examples,
    describe_unreadable,
    difference,
    mean_log_probabilities,
    predict_files,
    predict_split,
    read_split,
    require_same_classes,
)
from sam_runner.runs.load import restore_run
from sam_runner.runs.result import read_finished_result
from sam_runner.training.evaluation import Metrics, add_prefix, evaluate
from sam_runner.training.metrics import evaluation_metrics, label_noise_metrics
from sam_runner.utils.errors import InputError

log = logging.getLogger("sam_runner")
RESULTS = {"last": "final", "best": "best"}  # entries of result.json by checkpoint
TOLERANCE = 0.05  # of a likelihood, relative; devices and number formats differ by less
ENSEMBLE = "ensemble"  # row of the mean of the probabilities
EVALUATED: tuple[Split, ...] = ("test", "validation")


def evaluate_runs(folders: Sequence[Path], which: str, device: str | None = None) -> tuple[dict[str, Metrics], str]:
    """Evaluate runs on their own test and validation sets.

    Args:
        folders: Run folders.
        which: Checkpoint, "last" or "best".
        device: Device to use instead of the device in the runs' settings, or None.

    Returns:
        The metrics by tag of each run, by its folder, and of the ensemble; and a line for each set that has no
        ensemble, or "". The ensemble is the mean of the probabilities of several runs with the same images and labels.

    Raises:
        InputError: If a run cannot be used.
    """
    rows: dict[str, Metrics] = {}
    outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str, logits: Tensor, labels: Tensor) -> None:
        outputs.setdefault(name, []).append((logits.cpu(), labels.cpu()))

    for folder in folders:
        values = rows[str(folder)] = evaluate(restore_run(folder, which, device), log_outputs=keep)
        _warn_of_other_metrics(folder, values, (read_finished_result(folder) or {}).get(RESULTS[which], {}))
    if len(folders) == 1:
        return rows, ""
    ensemble: Metrics = {}
    faults = []
    for name in EVALUATED:
        found = outputs.get(name, [])
        if len(found) != len(folders):
            continue
        sets = {folder: describe_examples(read_split(folder, name)) for folder in folders}
        if fault := _find_difference(name, sets):
            faults.append(fault)
        else:
            ensemble |= add_prefix(name, _mean_metrics([logits for logits, _ in found], found[0][1]))
    return rows | ({ENSEMBLE: ensemble} if ensemble else {}), "\n".join(faults)


def evaluate_split(
    folders: Sequence[Path], split: Split, which: str, device: str | None = None
) -> tuple[dict[str, Metrics], str]:
    """Evaluate runs on one of their own sets, without augmentation and in evaluation mode.

    Args:
        folders: Run folders.
        split: Name of the set. The labels of the training set are those that the run was trained with.
        which: Checkpoint, "last" or "best".
        device: Device to use instead of the device in the runs' settings, or None.

    Returns:
        The metrics by tag, such as ``train/accuracy``, of each run by its folder, and of the ensemble; and why there is
        no ensemble, or "". If label noise has changed labels of the set, also ``accuracy_clean``, ``memorised`` and
        ``recovered``, as `sam_runner.training.metrics.train_metrics` defines them.

    Raises:
        InputError: If a run cannot be used or has no such set.
    """
    logits: dict[Path, Tensor] = {}
    examples: dict[Path, Examples] = {}
    for folder in folders:
        found = predict_split([folder], split, which, device)
        logits[folder], examples[folder] = found.logits[folder], found.examples
    rows = {str(folder): add_prefix(split, _set_metrics(logits[folder], examples[folder])) for folder in folders}
    if len(folders) == 1:
        return rows, ""
    if fault := _find_difference(split, examples):
        return rows, fault
    mean = mean_log_probabilities(list(logits.values()))
    return {**rows, ENSEMBLE: add_prefix(split, _set_metrics(mean, examples[folders[0]]))}, ""


def evaluate_on_folder(folders: Sequence[Path], data: Path, which: str, device: str | None) -> dict[str, Metrics]:
    """Evaluate runs on the images of a folder that has one folder for each class.

    Args:
        folders: Run folders with the same classes; their own data are not needed.
        data: The folder.
        which: Checkpoint, "last" or "best".
        device: Device to use instead of the device in the runs' settings, or None.

    Returns:
        The metrics by tag, ``data/accuracy`` and alike, of each run by its folder, and of the ensemble of several.

    Raises:
        InputError: If a run cannot be used, or an image has no label or cannot be read.
    """
    classes = require_same_classes(folders)
    predictions, faults = predict_files(folders, find_labelled_files(data, classes), which, device)
    if faults:
        raise InputError(describe_unreadable(faults))
    labels = predictions.examples.labels
    rows = {
        str(folder): add_prefix("data", evaluation_metrics(logits, labels))
        for folder, logits in predictions.logits.items()
    }
    if len(folders) > 1:
        rows[ENSEMBLE] = add_prefix("data", _mean_metrics(list(predictions.logits.values()), labels))
    return rows


def metrics_table(rows: Mapping[str, Metrics]) -> str:
    """Return metrics as a table of text with a line for each row; a metric that a row does not have is "-"."""
    import pandas  # takes a second

    from sam_runner.reports.tables import printable, text_table

    table = pandas.DataFrame.from_dict(dict(rows), orient="index")
    shown = table.map(lambda value: "-" if pandas.isna(value) else f"{value:.6f}")
    shown.insert(0, "run", [printable(name) for name in rows])
    return text_table(shown)


def _mean_metrics(logits: Sequence[Tensor], labels: Tensor) -> Metrics:
    return evaluation_metrics(mean_log_probabilities(logits), labels)  # softmax(log p) = p


def _set_metrics(logits: Tensor, examples: Examples) -> Metrics:
    """Return the metrics of a set, with those of its label noise."""
    noise = label_noise_metrics(logits.argmax(1), examples.labels, examples.clean_labels)
    return evaluation_metrics(logits, examples.labels) | noise


def _warn_of_other_metrics(folder: Path, found: Metrics, logged: Mapping[str, float]) -> None:
    """Log a warning if a network has another likelihood than its run logged."""
    for name, value in found.items():
        if name.endswith("/nll") and abs(value - logged.get(name, value)) > 0.001 + TOLERANCE * value:
            log.warning(
                "%s: %s is %.4g, and the run logged %.4g. Possible causes: state of the network that checkpoints do "
                "not save (Python attributes, buffers with persistent=False), random numbers in evaluation mode, "
                "changed code",
                *(folder, name, value, logged[name]),
            )
            return


def _find_difference(name: Split, examples: Mapping[Path, Examples]) -> str:
    """Return why the sets of some runs have no ensemble; "" if they are the same."""
    first = next(iter(examples))
    for folder, own in examples.items():
        if fault := difference(examples[first], own):
            return f"no ensemble: the {name} sets of {first} and {folder} differ: {fault}"
    return ""
