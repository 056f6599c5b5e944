"""The sharpness of a checkpoint by several measures, and its generalisation gap, stored as they are found."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from sam_runner.analysis.answers import Answer, hold_lock, require_folder
from sam_runner.analysis.curvature import describe
from sam_runner.analysis.options import Measurement, SharpnessOptions
from sam_runner.analysis.subject import Subject
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.geometry.sharpness import Average, average_case, m_sharpness, worst_case
from sam_runner.utils.errors import InputError

log = logging.getLogger("sam_runner")
GAPS = ("loss gap", "accuracy gap")
METHOD = 2  # increased when numbers change: answers of an earlier method are computed anew


@dataclass(frozen=True)
class Sharpness:
    """The sharpness of one checkpoint.

    Attributes:
        subject: The checkpoint.
        values: A value for each measure by name, ``<name> error`` for those that are means, and ``train_accuracy``,
            ``train_nll``, ``test_accuracy``, ``test_nll``; NaN where the loss is not finite.
    """

    subject: Subject
    values: dict[str, float]

    @property
    def gaps(self) -> dict[str, float]:
        """``loss gap`` = test loss minus training loss, ``accuracy gap`` = training accuracy minus test accuracy."""
        values = self.values
        gaps = values["test_nll"] - values["train_nll"], values["train_accuracy"] - values["test_accuracy"]
        return dict(zip(GAPS, gaps, strict=True))


def measures(options: SharpnessOptions) -> dict[str, Callable[[MeanLoss], float | Average]]:
    """Return the measures by name."""
    found: dict[str, Callable[[MeanLoss], float | Average]] = {}

    def add(name: str, rho: float, *, adaptive: bool) -> None:
        def worst(loss: MeanLoss) -> float:
            return worst_case(
                loss.gradient,
                loss.weights,
                rho,
                num_steps=options.num_steps,
                num_restarts=options.num_restarts,
                scale=loss.weights.abs() if adaptive else None,
                seed=options.seed,
            )

        def average(loss: MeanLoss) -> Average:
            return average_case(
                loss.value,
                loss.weights,
                rho,
                num_directions=options.num_directions,
                scale=loss.weights.abs() if adaptive else None,
                seed=options.seed,
            )

        found[f"{name}worst case, rho {rho:g}"] = worst
        found[f"{name}average, rho {rho:g}"] = average

    def add_groups(m: int, rho: float) -> None:
        found[f"m-sharpness, m {m}, rho {rho:g}"] = lambda loss: m_sharpness(
            loss, m, rho, num_steps=options.num_steps, max_groups=options.max_groups
        )

    for rho in options.radii:
        add("", rho, adaptive=False)
    for rho in options.adaptive_radii:
        add("adaptive ", rho, adaptive=True)
    for m in options.group_sizes:
        for rho in options.radii:
            add_groups(m, rho)
    return found


def describe_groups(m: int, num_examples: int, options: SharpnessOptions) -> str:
    """Say how many groups of m examples are measured, and how many examples are in no group.

    Raises:
        InputError: If there are fewer than m examples.
    """
    num_groups, rest = divmod(num_examples, m)
    if not num_groups:
        raise InputError(
            f"--m {m} is larger than the number of images, {num_examples}\n  give a smaller --m, or more --examples"
        )
    measured = min(num_groups, options.max_groups)
    text = f"m {m}: {measured} of {num_groups} groups" if measured < num_groups else f"m {m}: {num_groups} groups"
    return f"{text}, {rest} images are in no group" if rest else text


def measure_sharpness(subject: Subject, how: Measurement, options: SharpnessOptions) -> Sharpness:
    """Compute all measures of a checkpoint, or read them from the answers beside the run; each is saved when found.

    Raises:
        InputError: If a value of m is larger than the number of examples, or the results cannot be written.
    """
    require_folder(subject.files)
    path = subject.files / f"sharpness-{subject.checkpoint}.json"
    with hold_lock(path):
        values = _measure(subject, how, options, path)
    found = {name: math.nan if value is None else value for name, value in values.items()}
    unknown = [name for name in measures(options) if math.isnan(found[name])]
    if unknown:
        log.warning(
            "%s %s: the loss is not finite near the weights: no %s", subject.label, subject.checkpoint,
            "; ".join(unknown),
        )  # fmt: skip
    return Sharpness(subject, found)


def _measure(subject: Subject, how: Measurement, options: SharpnessOptions, path: Path) -> dict[str, float | None]:
    """Return the content of the answer; None stands for a number that is not finite, which JSON does not have."""
    settings = {**asdict(how), "sha256": subject.digest, "method": METHOD}
    kept = ("num_steps", "num_restarts", "num_directions", "max_groups", "seed")
    settings |= {name: value for name, value in asdict(options).items() if name in kept}
    answer, wanted = Answer(path, settings), measures(options)
    missing = [name for name in wanted if name not in answer.values]
    if not missing and "test_nll" in answer.values:
        log.info("%s %s: from %s", subject.label, subject.checkpoint, answer.path)
        return answer.values
    loss = subject.loss(how)
    groups = [describe_groups(m, loss.num_examples, options) for m in options.group_sizes]
    _require_possible_groups(loss, options)
    log.info("%s", describe(subject, loss, how))
    log.info("m-sharpness: %s", "; ".join(groups))
    if "test_nll" not in answer.values:
        answer.save(**{name: _finite(value) for name, value in subject.generalisation().items()})
    for name in tqdm(missing, "measures", disable=None, leave=False):
        found = wanted[name](loss)
        if isinstance(found, Average):
            answer.save(**{name: _finite(found.value), f"{name} error": _finite(found.standard_error)})
        else:
            answer.save(**{name: _finite(found)})
    return answer.values


def _require_possible_groups(loss: MeanLoss, options: SharpnessOptions) -> None:
    """Refuse groups of one image if batch norm would have one value for each channel."""
    if 1 not in options.group_sizes:
        return
    try:
        loss.part(0, 1).value(loss.weights)
    except ValueError as error:
        raise InputError(
            "--m 1: batch norm cannot normalise one image\n  give --m of at least 2, or --batchnorm eval"
        ) from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sharpness_table(found: Sequence[Sharpness], names: Sequence[str]) -> pd.DataFrame:
    """Return one row for each checkpoint: label, step, the measures, the gaps, accuracies and losses, folder."""
    rows = []
    for entry in found:
        row: dict[str, Any] = {"run": entry.subject.label, "step": entry.subject.step}
        for name in names:
            row[name] = entry.values[name]
            if f"{name} error" in entry.values:
                row[f"{name} error"] = entry.values[f"{name} error"]
        row |= entry.gaps
        row |= {key: entry.values[key] for key in ("train_accuracy", "test_accuracy", "train_nll", "test_nll")}
        rows.append(row | {"folder": str(entry.subject.folder), "checkpoint": entry.subject.checkpoint})
    return pd.DataFrame(rows)
