"""Compare groups of runs with a baseline: differences paired by seed, at equal settings or at equal cost."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.reports.aggregate import (
    METHOD_SETTINGS,
    Estimate,
    aggregate,
    paired_difference,
    rows_by_group,
    values_by_seed,
)
from sam_runner.reports.tables import format_value
from sam_runner.utils.errors import InputError

COSTS = {"cost": "gradient_evaluations", "seconds": "training_seconds"}  # choices of --against
COST_TOLERANCE = 0.1  # costs that differ by less than this fraction count as equal
LENGTH_SETTINGS = {name for name, facts, _ in walk(ExperimentConfig()) if facts.sets_length}
PATIENCE = "early_stopping.patience"  # sets the length; with any patience the weights are those of the best epoch
FITTED_ACCURACY = 0.95  # training accuracy from which a network counts as fitted, if no label is wrong
FITTED_WRONG_LABELS = 0.5  # memorised fraction of the wrong labels from which a network counts as fitted


@dataclass(frozen=True)
class Baseline:
    """The baseline that groups of runs are compared with.

    Attributes:
        settings: Settings of the baseline, as text by name, e.g. ``{"optimizer": "sgd"}``.
        against: "" compares at equal settings, "cost" at equal gradient evaluations, "seconds" at equal training time.
    """

    settings: Mapping[str, str]
    against: str = ""

    def __str__(self) -> str:
        return " ".join(value if name == "optimizer" else f"{name}={value}" for name, value in self.settings.items())

    @property
    def ignored_settings(self) -> set[str]:
        """The settings in which a group may differ from its baseline; on a patience see `_compared_value`."""
        methods = METHOD_SETTINGS if "optimizer" in self.settings else set()
        free = {*LENGTH_SETTINGS, "eval_every"} - {PATIENCE}  # longer runs are often evaluated less often
        return {*self.settings, *methods, *(free if self.against else ())}

    @property
    def option_value(self) -> str:
        """The baseline as the value of --baseline."""
        return ",".join(f"{name}={value}" for name, value in self.settings.items())

    def contains(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a group with these settings is a baseline."""
        return all(_is_value(settings.get(name), text) for name, text in self.settings.items())


def parse_baseline(text: str, groups: pd.DataFrame) -> dict[str, str]:
    """Return the settings of ``key=value,key=value``, where at least one group has them.

    Raises:
        InputError: Where a word has no "=", a setting is not one of the columns of `groups`, or no group has the
            values.
    """
    for word in text.split(","):
        if "=" not in word:
            names = [f"{name}={word}" for name in groups if any(_is_value(found, word) for found in groups[name])]
            hint = f"did you mean {' or '.join(names)}?" if names else f"accepted: {_list_values(groups, word)}"
            raise InputError(f"--baseline {text}: {word} is not of the form key=value\n  {hint}")
    pairs = (word.partition("=") for word in text.split(","))
    settings = {name: value for name, _, value in pairs}
    for name, value in settings.items():
        if name not in groups:
            accepted = ", ".join(map(str, groups.columns)) or "none: all runs have the same settings"
            raise InputError(f"--baseline {text}: {name} does not distinguish these runs\n  accepted: {accepted}")
        if not any(_is_value(found, value) for found in groups[name]):
            accepted = _list_values(groups, name)
            raise InputError(f"--baseline {text}: no run has {name}={value}\n  accepted: {accepted}")
    if not any(Baseline(settings).contains(row) for row in rows_by_group(groups).values()):
        raise InputError(f"--baseline {text}: no run has all of these settings\n  give fewer of them")
    return settings


def _list_values(groups: pd.DataFrame, name: str) -> str:
    """Return the values of a setting as they are typed; of an unknown name those of all settings."""
    names = [name] if name in groups else list(map(str, groups))
    return ", ".join(f"{key}={format_value(found, key)}" for key in names for found in groups[key].unique())


def _is_value(value: Any, text: str) -> bool:
    if format_value(value) == text or format_value(value, "._target_") == text:
        return True
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return False


def find_baselines(settings: pd.DataFrame, baseline: Baseline, costs: pd.Series) -> dict[int, int]:
    """Return the baseline of each group that has one.

    A baseline has the group's values in all settings but `Baseline.ignored_settings`. At equal cost it is the one with
    the nearest cost, within `COST_TOLERANCE`; it may differ in `LENGTH_SETTINGS`, but both have a patience or neither
    has one.

    Args:
        settings: The settings of the groups, indexed by group.
        baseline: The baseline.
        costs: Mean cost of the groups, indexed by group; NaN where it is unknown.

    Raises:
        InputError: Where several groups are the baseline of one.
    """
    rows = rows_by_group(settings)
    bases = find_equal_bases(settings, baseline)
    is_base = {base for equal in bases.values() for base in equal}
    found = {}
    for group in rows:
        fitting = bases.get(group, [])
        if baseline.against:
            distances = {base: _cost_distance(costs[group], costs[base]) for base in fitting}
            fitting = sorted((base for base in fitting if distances[base] <= COST_TOLERANCE), key=distances.__getitem__)
        if group not in is_base and fitting:
            _require_one(rows, fitting, baseline)
            found[group] = fitting[0]
    return found


def find_equal_bases(settings: pd.DataFrame, baseline: Baseline) -> dict[int, list[int]]:
    """Return the baselines that have a group's values in all settings but `Baseline.ignored_settings`, for each group.

    Groups without a baseline are left out. A group that is a baseline is listed as its own baseline.

    Args:
        settings: The settings of the groups, indexed by group.
        baseline: The baseline.
    """
    ignored, base = baseline.ignored_settings, "optimizer.base."
    if f"{base}_target_" in ignored:  # another base optimizer has other settings, such as betas
        ignored |= {str(name) for name in settings if str(name).startswith(base)}
    compared = [str(name) for name in settings if name not in ignored]
    rows = rows_by_group(settings)
    values = {
        group: tuple(_compared_value(name, row[name], baseline) for name in compared) for group, row in rows.items()
    }
    bases: dict[tuple[Any, ...], list[int]] = {}
    for group, row in rows.items():
        if baseline.contains(row):
            bases.setdefault(values[group], []).append(group)
    return {group: bases[value] for group, value in values.items() if value in bases}


def _compared_value(name: str, value: Any, baseline: Baseline) -> Any:
    """Return what a group and its baseline have in common; of a patience at equal cost whether there is one."""
    if name == PATIENCE and baseline.against:
        return not pd.isna(value)
    return None if pd.isna(value) else value


def _require_one(rows: Mapping[int, Mapping[str, Any]], bases: Sequence[int], baseline: Baseline) -> None:
    """Refuse baselines that differ in more than their length; the message names a way to choose each."""
    free = LENGTH_SETTINGS if baseline.against else set()
    names = [
        name
        for name in rows[bases[0]]
        if name not in free and any(not _are_equal(rows[base][name], rows[bases[0]][name]) for base in bases)
    ]
    if names:
        settings = [{name: format_value(rows[base][name], name) for name in names} for base in bases]
        accepted = [Baseline({**baseline.settings, **found}).option_value for found in settings]
        choices = "; ".join(dict.fromkeys(accepted))
        raise InputError(f"--baseline {baseline.option_value} matches several groups\n  accepted: {choices}")


def _are_equal(first: Any, second: Any) -> bool:
    return bool(first == second or (pd.isna(first) and pd.isna(second)))


def _cost_distance(cost: float, other: float) -> float:
    """Return the difference of two costs as a fraction of the first; infinity where one is unknown."""
    distance = abs(other / cost - 1)
    return math.inf if math.isnan(distance) else distance


def cost_column(runs: pd.DataFrame, against: str) -> str:
    """Return the column of the cost of a run by a choice of --against; without a choice that of "cost".

    Gradient evaluations count batches. Where the batch sizes differ, the images of the backward passes are the cost.
    """
    name = COSTS[against or "cost"]
    sizes_differ = "batch_size" in runs and runs["batch_size"].nunique() > 1
    return "images_backward" if sizes_differ and name == COSTS["cost"] else name


def mean_costs(runs: pd.DataFrame, against: str) -> pd.Series:
    """Return the mean cost of each group by a choice of --against; NaN where a run has not recorded it."""
    return runs.groupby("group")[cost_column(runs, against)].agg(lambda costs: costs.mean(skipna=False))


def time_spread(runs: pd.DataFrame) -> pd.Series:
    """Return, for each group, the slowest time of a gradient evaluation divided by the fastest, at least 1.

    The time of an evaluation is compared, not that of a run, since early stopping ends runs at different lengths. NaN
    where a time is unknown.
    """
    times = runs["training_seconds"] / runs["gradient_evaluations"].where(runs["gradient_evaluations"] > 0)
    grouped = times.groupby(runs["group"])
    spread: pd.Series = grouped.max() / grouped.min()
    return spread


def compare(
    runs: pd.DataFrame, metric: str, settings: pd.DataFrame, baseline: Baseline
) -> dict[int, tuple[int, Estimate]]:
    """Return the baseline of each group that has one, and the difference to it, paired by seed.

    Args:
        runs: A table of `group_over_seeds`.
        metric: A metric, e.g. ``test/accuracy``.
        settings: The compared settings of some groups, indexed by group.
        baseline: The baseline.
    """
    found = find_baselines(settings, baseline, mean_costs(runs, baseline.against))
    values = values_by_seed(runs, metric)
    return {group: (base, paired_difference(values, group, base)) for group, base in found.items()}


@dataclass(frozen=True)
class MissingBaseline:
    """A baseline that is missing for a comparison at equal cost.

    Attributes:
        groups: The groups without it, of about equal cost.
        cost: Mean cost of the first of them.
        base: The baseline whose cost is nearest; None where there is no baseline with their settings.
        length: The setting and the value with which the baseline has the cost of the groups, e.g. ``{"epochs": 40}``;
            empty where none does.
    """

    groups: Sequence[int]
    cost: float
    base: int | None
    length: Mapping[str, Any]

    @property
    def length_text(self) -> str:
        """The length as a word of a command line."""
        return " ".join(f"{name}={value}" for name, value in self.length.items())


def find_missing_baselines(runs: pd.DataFrame, settings: pd.DataFrame, baseline: Baseline) -> list[MissingBaseline]:
    """Return the baselines that are missing for a comparison at equal cost, each once.

    Args:
        runs: A table of `group_over_seeds`.
        settings: The settings of the groups, indexed by group.
        baseline: The baseline.
    """
    costs = mean_costs(runs, baseline.against)
    found, bases = find_baselines(settings, baseline, costs), find_equal_bases(settings, baseline)
    is_base = {base for equal in bases.values() for base in equal}
    missing: dict[tuple[int | None, float], list[int]] = {}
    for group in sorted({*map(int, settings.index)} - {*is_base, *found}, key=lambda group: (costs[group], group)):
        fitting = bases.get(group, [])
        base = min(fitting, key=lambda base: _cost_distance(costs[group], costs[base]), default=None)
        near = (key for key in missing if key[0] == base and _cost_distance(costs[group], key[1]) <= COST_TOLERANCE)
        missing.setdefault(next(near, (base, float(costs[group]))), []).append(group)
    return [
        MissingBaseline(groups, cost, base, {} if base is None else _find_length(runs, base, cost / costs[base]))
        for (base, cost), groups in missing.items()
    ]


def may_end_early(runs: pd.DataFrame, group: int, factor: float) -> bool:
    """Return whether early stopping may end the runs of a group, or runs with `factor` times their epochs."""
    run = runs[runs["group"] == group].iloc[0]
    return not pd.isna(run[PATIENCE]) and bool(run[PATIENCE] < run["epochs"] * max(1, factor))


def _find_length(runs: pd.DataFrame, base: int, factor: float) -> dict[str, Any]:
    """Return the number of epochs or steps that multiplies the cost of a group by a factor; empty where none does.

    Where early stopping may end a run, its number of epochs does not determine its cost.
    """
    if may_end_early(runs, base, factor):
        return {}
    run = runs[runs["group"] == base].iloc[0]
    name = "epochs" if pd.isna(run["max_steps"]) else "max_steps"
    length = round(run[name] * factor)
    return {name: length} if length and _cost_distance(run[name] * factor, length) <= COST_TOLERANCE else {}


@dataclass(frozen=True)
class Fit:
    """How far a group has fitted its training labels, by the final metrics, as means over seeds.

    Attributes:
        accuracy: Accuracy on the training labels, a fraction; NaN where it is unknown.
        right: Accuracy on the images whose labels are right; NaN without wrong labels.
        memorised: Fraction of the wrong labels that the network predicts; NaN without wrong labels.
    """

    accuracy: float
    right: float
    memorised: float

    def __str__(self) -> str:
        if math.isnan(self.accuracy):
            return "-"
        parts = {"right": self.right, "wrong": self.memorised}
        text = ", ".join(f"{value:.0%} of {name}" for name, value in parts.items() if not math.isnan(value))
        return f"{self.accuracy:.1%}" + (f" ({text})" if text else "")

    @property
    def is_low(self) -> bool:
        """Whether the network has not fitted its labels: the wrong ones, or all where none is known to be wrong."""
        if math.isnan(self.memorised):
            return self.accuracy < FITTED_ACCURACY
        return self.memorised < FITTED_WRONG_LABELS


MIXING = ("augment.mixup", "augment.cutmix")  # settings with which a network trains on mixtures of images
FIT_METRICS = ("train/accuracy", "train/accuracy_clean", "train/memorised")  # in the order of the attributes of `Fit`


def measure_fit(runs: pd.DataFrame, groups: Collection[int]) -> dict[int, Fit]:
    """Return how far each group has fitted its training labels; NaN for groups with mixed images.

    The metrics of training compare the predictions for mixtures with the label of one of the mixed images, so they say
    nothing about the images themselves.
    """
    mixes = runs.reindex(columns=list(MIXING)).apply(pd.to_numeric, errors="coerce").gt(0).any(axis=1)
    means = [
        (aggregate(runs, tag)["mean"] if tag in runs else pd.Series(math.nan, list(groups), dtype=float)).mask(
            lambda mean: mean.index.isin(runs.loc[mixes, "group"])
        )
        for tag in FIT_METRICS
    ]
    return {group: Fit(*(float(mean[group]) for mean in means)) for group in groups}
