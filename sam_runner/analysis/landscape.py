"""Slices of the loss: lines and planes through the weights of one, two or three checkpoints.

Each point is evaluated by itself and stored. So points run in parallel, and a stopped command continues.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sam_runner.analysis.answers import hold_lock, require_folder, settings_digest
from sam_runner.analysis.options import GridOptions, Measurement
from sam_runner.analysis.subject import Subject
from sam_runner.geometry.directions import Plane, draw_filter_normalised_direction, plane_through
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.sam.batch import Batch
from sam_runner.training.subset import decay_in_loss
from sam_runner.utils.errors import InputError, TrainingError
from sam_runner.utils.hardware import start_threads

log = logging.getLogger("sam_runner")
MARGIN = 0.25  # of the extent of the points, around a path or a plane through checkpoints
Point = tuple[float, float]
COLUMNS = ["a", "b", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]


@dataclass(frozen=True)
class Slice:
    """A slice that is to be evaluated.

    Attributes:
        kind: "line", "surface" (both filter-normalised, around one checkpoint), "path" (two) or "plane" (three).
        plane: Its directions.
        a: Coordinates along the first direction.
        b: Coordinates along the second direction; [0] for a line and a path.
        marks: (label, a, b) of the checkpoints.
    """

    kind: str
    plane: Plane
    a: list[float]
    b: list[float]
    marks: list[tuple[str, float, float]]

    @property
    def points(self) -> list[Point]:
        """All coordinates, the first one changing fastest."""
        return [(a, b) for b in self.b for a in self.a]


def path_coordinates(num_points: int) -> list[float]:
    """Return equidistant coordinates from about -`MARGIN` to 1 + `MARGIN` that contain 0 and 1 exactly.

    Args:
        num_points: Number of coordinates, at least 3.
    """
    inside = round((num_points - 1) / (1 + 2 * MARGIN))  # intervals between 0 and 1
    inside += (num_points - 1 - inside) % 2  # as many points on either side
    before = (num_points - 1 - inside) // 2
    return [(number - before) / inside for number in range(num_points)]


def centred_coordinates(extent: float, num_points: int) -> list[float]:
    """Return equidistant coordinates from -`extent` to `extent` that contain 0 exactly, if their number is odd."""
    return [extent * (2 * number - num_points + 1) / (num_points - 1) for number in range(num_points)]


def plane_coordinates(places: Sequence[float], num_points: int) -> list[float]:
    """Return coordinates around checkpoints; the coordinate nearest to each checkpoint is moved onto it.

    Args:
        places: Coordinates of the checkpoints along one axis.
        num_points: Number of coordinates.
    """
    low, high = min(places), max(places)
    margin = MARGIN * (high - low)
    axis = np.linspace(low - margin, high + margin, num_points)
    is_moved = np.zeros(num_points, dtype=bool)
    for place in sorted(set(places)):
        nearest = np.where(is_moved, np.inf, np.abs(axis - place)).argmin()
        axis[nearest], is_moved[nearest] = place, True
    return sorted(float(value) for value in axis)


def make_slices(subjects: Sequence[Subject], losses: Sequence[MeanLoss], options: GridOptions) -> list[Slice]:
    """Return the slices for one, two or three checkpoints of the same network.

    Args:
        subjects: The checkpoints.
        losses: Loss of each.
        options: Sizes of the grids.

    Raises:
        InputError: If the networks have weights of other shapes, or other values that are not weights, or three
            checkpoints are on one line.
        TrainingError: If the loss of a checkpoint is not finite.
    """
    loss, weights = losses[0], [own.weights for own in losses]
    for subject, own in zip(subjects, losses, strict=True):
        _require_same_network(subjects[0], loss, subject, own)
        _warn_of_other_loss(subjects[0], loss, subject, own)
        value = own.value(own.weights)
        if not math.isfinite(value):
            raise TrainingError(
                f"{subject.folder} {subject.checkpoint} has no slice: its training loss is {value:g}\n"
                "  leave this run out"
            )
    labels = [subject.label for subject in subjects]
    if len(subjects) == 1:
        first, second = (draw_filter_normalised_direction(loss, number, options.seed) for number in (0, 1))
        line = centred_coordinates(options.extent, options.line_points)
        grid = centred_coordinates(options.extent, options.points)
        marks = [(labels[0], 0.0, 0.0)]
        return [
            Slice("line", Plane(weights[0], first, None), line, [0.0], marks),
            Slice("surface", Plane(weights[0], first, second), grid, grid, marks),
        ]
    if len(subjects) == 2:
        line = path_coordinates(options.line_points)
        marks = [(labels[0], 0.0, 0.0), (labels[1], 1.0, 0.0)]
        return [Slice("path", Plane(weights[0], weights[1] - weights[0], None), line, [0.0], marks)]
    try:
        plane, places = plane_through(*weights)
    except ValueError as error:
        raise InputError(f"{error}\n  give three different checkpoints") from error
    axes = [plane_coordinates([place[axis] for place in places], options.points) for axis in (0, 1)]
    return [
        Slice("plane", plane, axes[0], axes[1], [(label, *place) for label, place in zip(labels, places, strict=True)])
    ]


def _require_same_network(first: Subject, loss: MeanLoss, other: Subject, own: MeanLoss) -> None:
    """Require that the weights of a run make its network of the network of the first run.

    Raises:
        InputError: If the weights have other shapes, or frozen layers, running statistics or other buffers differ.
    """
    if [param.shape for param in own.parameters] != [param.shape for param in loss.parameters]:
        raise InputError(
            f"{other.folder} and {first.folder} have networks with weights of other shapes\n"
            "  give runs of the same network"
        )
    states = loss.fixed_state, own.fixed_state
    differ = [name for name in states[0] if name not in states[1] or not torch.equal(*(s[name] for s in states))]
    if not differ:
        return
    name = differ[0].removeprefix("model.")
    statistics = all(name.endswith(("running_mean", "running_var")) for name in differ)
    raise InputError(
        f"{other.folder} and {first.folder} differ in {name}, which is not trained, so a point between them has no "
        + ("running statistics\n  use --batchnorm reestimate" if statistics else "network\n  give runs that share it")
    )


def _warn_of_other_loss(first: Subject, loss: MeanLoss, other: Subject, own: MeanLoss) -> None:
    """Say so if a run was trained with another loss than the first run, whose loss is measured at all points."""
    parts = {
        "training images or labels": not own.shares_examples(loss),
        "label smoothing": other.config.label_smoothing != first.config.label_smoothing,
        "weight decay in the loss": decay_in_loss(other.config) != decay_in_loss(first.config),
    }
    differ = [name for name, is_other in parts.items() if is_other]
    if differ:
        log.warning(
            "%s was trained with other %s than %s, whose loss is measured at all points",
            other.label, ", ".join(differ), first.label,
        )  # fmt: skip


def evaluate_slice(part: Slice, loss: MeanLoss, test: Batch, path: Path, *, num_threads: int) -> pd.DataFrame:
    """Return loss and accuracy on training and test examples at every point of a slice.

    Args:
        part: The slice.
        loss: Loss of the training examples; its batch-norm mode decides about the statistics at every point.
        test: Test examples.
        path: JSON lines of the points that are finished; new ones are appended.
        num_threads: Number of points that are evaluated at once, each by a network of its own.

    Returns:
        One row for each point, with `COLUMNS`.
    """
    with hold_lock(path):
        known = dict(_read_points(path))
        missing = [point for point in part.points if point not in known]
        if missing:
            known |= _evaluate_points(missing, part, loss, test, path, num_threads)
        else:
            log.info("%s: from %s", part.kind, path)
    rows = [[*point, *known[point]] for point in part.points]
    return pd.DataFrame(rows, columns=COLUMNS)


def _evaluate_points(
    points: Sequence[Point], part: Slice, loss: MeanLoss, test: Batch, path: Path, num_threads: int
) -> dict[Point, list[float]]:
    """Return the scores of points; each is appended to the file when it is found."""
    found: dict[Point, list[float]] = {}
    local, lock = threading.local(), threading.Lock()
    before = torch.get_num_threads()

    def evaluate(point: Point) -> tuple[Point, list[float]]:
        if not hasattr(local, "loss"):
            if num_threads > 1:
                torch.set_num_threads(1)
            with lock:
                local.loss = loss.clone()
        scores = local.loss.scores(part.plane.point(*point), [test])
        return point, [value for score in scores for value in score]

    with path.open("a", encoding="utf-8") as handle, start_threads(num_threads) as pool:
        try:
            for point, values in tqdm(pool.map(evaluate, points), part.kind, len(points), disable=None, leave=False):
                found[point] = values
                handle.write(json.dumps([*point, *values]) + "\n")
                handle.flush()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)
    return found


def _read_points(path: Path) -> Iterator[tuple[Point, list[float]]]:
    """Yield the finished points of a file; an incomplete last line is ignored and ended."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        try:
            a, b, *values = json.loads(line)
        except ValueError:
            continue
        if len(values) == len(COLUMNS) - 2:
            yield (a, b), values
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as handle:
            handle.write("\n")


def points_path(part: Slice, subjects: Sequence[Subject], how: Measurement, options: GridOptions) -> Path:
    """Return the file of finished points of a slice, beside the first run; each combination of settings has one."""
    settings: dict[str, Any] = asdict(how) | {"seed": options.seed, "kind": part.kind}
    settings["sha256"] = [subject.digest for subject in subjects]
    require_folder(subjects[0].files)
    return subjects[0].files / f"points-{part.kind}-{settings_digest(settings)}.jsonl"


def default_threads(device: torch.device) -> int:
    """Return the number of points to evaluate at once: one for each core, or one on a GPU."""
    return 1 if device.type != "cpu" else len(os.sched_getaffinity(0))
