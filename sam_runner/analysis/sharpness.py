"""The sharpness of a checkpoint by several measures, and its generalisation gap, stored as they are found."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from sam_runner.analysis.answers import Answer, require_folder
from sam_runner.analysis.curvature import describe
from sam_runner.analysis.subject import Measurement, Subject
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.geometry.sharpness import Average, average_case, m_sharpness, worst_case

log = logging.getLogger("sam_runner")
GAPS = ("loss gap", "accuracy gap")


@dataclass(frozen=True)
class SharpnessOptions:
    """What is computed.

    Attributes:
        radii: Radii of the ball for worst case, average and m-sharpness.
        adaptive_radii: Radii for the adaptive measures, whose ball is scaled by |w|.
        group_sizes: Values of m.
        num_steps: Gradients of each ascent.
        num_restarts: Further ascents from random starts.
        num_directions: Pairs of random directions of an average.
        max_groups: Largest number of groups of m-sharpness.
        seed: Seed of all random vectors.
    """

    radii: tuple[float, ...] = (0.05, 0.1)
    adaptive_radii: tuple[float, ...] = (0.5,)
    group_sizes: tuple[int, ...] = (16, 128)
    num_steps: int = 10
    num_restarts: int = 1
    num_directions: int = 10
    max_groups: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Sharpness:
    """The sharpness of one checkpoint.

    Attributes:
        subject: The checkpoint.
        values: Content of the answer: a value for each measure by name, ``<name> error`` for those that are means, and
            ``train_accuracy``, ``train_nll``, ``test_accuracy``, ``test_nll``.
    """

    subject: Subject
    values: dict[str, Any]

    @property
    def gaps(self) -> dict[str, float]:
        """``loss gap`` = test loss minus training loss, ``accuracy gap`` = training accuracy minus test accuracy."""
        values = self.values
        gaps = values["test_nll"] - values["train_nll"], values["train_accuracy"] - values["test_accuracy"]
        return dict(zip(GAPS, gaps, strict=True))


def measures(options: SharpnessOptions, num_examples: int) -> dict[str, Callable[[MeanLoss], float | Average]]:
    """Return the measures by name; a value of m above the number of examples is left out."""
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
            if m <= num_examples:
                add_groups(m, rho)
    return found


def measure_sharpness(subject: Subject, how: Measurement, options: SharpnessOptions) -> Sharpness:
    """Compute all measures of a checkpoint, or read them from the answers beside the run; each is saved when found."""
    require_folder(subject.files)
    settings = {**asdict(how), "sha256": subject.digest}
    kept = ("num_steps", "num_restarts", "num_directions", "max_groups", "seed")
    settings |= {name: value for name, value in asdict(options).items() if name in kept}
    answer = Answer(subject.files / f"sharpness-{subject.checkpoint}.json", settings)
    wanted = measures(options, min(how.examples, len(subject.train)))
    missing = [name for name in wanted if name not in answer.values]
    if "test_nll" not in answer.values:
        answer.save(**subject.generalisation())
    if not missing:
        log.info("%s %s: from %s", subject.label, subject.checkpoint, answer.path)
        return Sharpness(subject, answer.values)
    loss = subject.loss(how)
    log.info("%s", describe(subject, loss, how))
    for name in tqdm(missing, "measures", disable=None, leave=False):
        found = wanted[name](loss)
        if isinstance(found, Average):
            answer.save(**{name: found.value, f"{name} error": found.standard_error})
        else:
            answer.save(**{name: found})
    return Sharpness(subject, answer.values)


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
