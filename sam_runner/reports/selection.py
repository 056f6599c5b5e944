"""Choose the values of searched settings, such as rho, by the mean of a held-out metric over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sam_runner.reports.aggregate import ranking_sign
from sam_runner.utils.errors import InputError

SEARCHED_SETTINGS = ("rho", "augment.mixup", "lr", "weight_decay")  # chosen where they vary and --select is not given


@dataclass(frozen=True)
class Choice:
    """The group that was chosen among groups that differ in searched settings only.

    Attributes:
        settings: The settings that are not searched, by name.
        group: The chosen group.
        num_values: Number of values, or combinations of values, that were searched.
        metric: The metric that chose: a validation metric, or the compared metric where a group has no validation set.
        is_held_out: Whether `metric` is measured on other images than the compared metric.
        at_edge: The searched settings whose chosen value is the smallest or the largest of at least three numbers;
            none where all values are equally good.
        num_best: Number of values, or combinations of values, that are equally good and the best.
        searched: The groups of all values that were searched.
        has_equal_seeds: Whether these groups have the same seeds.
        seeds: The seeds on which the groups were compared, see `average_over_shared_seeds`; empty for the seeds that
            each group has.
        left_out: The groups of `searched` that lack some of `seeds`.
    """

    settings: Mapping[str, Any]
    group: int
    num_values: int
    metric: str
    is_held_out: bool
    at_edge: tuple[str, ...]
    num_best: int
    searched: tuple[int, ...]
    has_equal_seeds: bool
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]

    @property
    def is_optimistic(self) -> bool:
        """Whether the numbers that are reported chose among several values: the best of them is partly luck."""
        return self.num_values > 1 and not self.is_held_out


def is_of_test_set(metric: str) -> bool:
    """Return whether a metric is measured on the test set, of the weights or of their average."""
    return metric.removeprefix("best/").startswith(("test/", "test_ema/"))


def held_out_metric(metric: str) -> str:
    """Return the metric of the validation set that corresponds to a metric of the test set.

    For ``best/test/accuracy``, at the epoch of early stopping, it is ``best/validation/accuracy``; for
    ``test_ema/nll``, of averaged weights, ``validation_ema/nll``. A metric of another set is returned unchanged.
    """
    return metric.replace("test", "validation", 1) if is_of_test_set(metric) else metric


def split_settings(
    settings: Sequence[str], select: Sequence[str] | None, by: Sequence[str] | None, known: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the settings that are searched, and the settings with a choice for each combination of their values.

    Args:
        settings: The settings that distinguish groups of runs.
        select: Names given with --select; None chooses those of `SEARCHED_SETTINGS` that distinguish groups.
        by: Names given with --by; None takes all settings that are not searched.
        known: All settings of the runs.

    Raises:
        InputError: Where a searched setting does not vary, a name is unknown, or a setting that varies is in neither.
    """
    if select is None:
        select = [name for name in SEARCHED_SETTINGS if name in settings and name not in (by or ())]
    if "seed" in (*select, *(by or ())):
        raise InputError("seed: runs that differ in the seed only are averaged\n  leave it out of --select and --by")
    for name in select:
        if name not in settings:
            accepted = ", ".join(settings) or "none: all runs have the same settings"
            raise InputError(f"--select {name}: the runs do not differ in {name}\n  accepted: {accepted}")
    if by is None:
        return list(select), [name for name in settings if name not in select]
    for name in by:
        if name not in known:
            raise InputError(f"--by {name}: no run has this setting\n  accepted: {', '.join(known)}")
    missing = [name for name in settings if name not in {*select, *by}]
    if missing:
        every = ",".join([*by, *missing])
        raise InputError(f"the runs also differ in {', '.join(missing)}\n  add it to one of them: --by {every}")
    return list(select), [name for name in by if name not in select]


class SeedMeans(NamedTuple):
    """Means over the same seeds; see `average_over_shared_seeds`."""

    means: pd.Series
    seeds: tuple[int, ...]
    has_equal_seeds: bool


def average_over_shared_seeds(runs: pd.DataFrame, metric: str) -> SeedMeans:
    """Return the mean of a metric by group over the seeds that more than half of the groups have.

    A group that lacks one of these seeds is left out: its other runs have diverged or are not finished, so its mean
    says nothing about these seeds. Seeds that only a few groups have do not count. If all groups would be left out, the
    means are over the seeds that each group has, and no seeds are returned.

    Args:
        runs: A table of `group_over_seeds`, of the groups that are compared.
        metric: A metric.
    """
    runs = runs[["group", "seed", metric]].dropna()
    values = runs.groupby("group")[metric]
    num_groups = runs.groupby("seed")[metric].count()
    shared = num_groups.index[num_groups > len(values) / 2]
    found = runs[runs["seed"].isin(shared)].groupby("group")[metric].agg(["count", "mean"])
    means = found.loc[found["count"] == len(shared), "mean"]
    has_equal_seeds = bool((num_groups == len(values)).all())
    if means.empty:
        return SeedMeans(values.mean(), (), has_equal_seeds)
    return SeedMeans(means, tuple(map(int, shared)), has_equal_seeds)


def choose(runs: pd.DataFrame, metric: str, select: Sequence[str], by: Sequence[str]) -> list[Choice]:
    """Choose a group for each combination of the settings `by`, by means over the same seeds.

    Groups without the metric do not take part. If no value of the metric is better than another (`ranking_sign`),
    nothing is chosen.

    Args:
        runs: A table of `group_over_seeds`.
        metric: The compared metric, e.g. ``test/accuracy``.
        select: The searched settings.
        by: The settings that have a choice each.
    """
    if not ranking_sign(metric):
        return []
    held_out = held_out_metric(metric)
    counts = {name: runs.groupby("group")[name].transform("count") for name in {metric, held_out} if name in runs}
    runs = runs[counts[metric] > 0]
    if by:  # the settings that are named first vary slowest, their values in the order of the runs
        order = [pd.factorize(runs[name], use_na_sentinel=False)[0] for name in reversed(by)]
        runs = runs.iloc[np.lexsort(order)]
    parts = runs.groupby(list(by), dropna=False, sort=False) if by else [((), runs)]
    choices = []
    for _, part in parts:
        groups = part.drop_duplicates("group").set_index("group").sort_index()
        is_held_out = held_out != metric and held_out in counts and (counts[held_out].loc[part.index] > 0).all()
        chosen_by = held_out if is_held_out else metric
        means, seeds, has_equal_seeds = average_over_shared_seeds(part, chosen_by)
        scores = ranking_sign(metric) * means
        best = int(scores.index.to_list()[scores.argmax()])
        num_best = int((scores == scores.max()).sum())
        choices.append(
            Choice(
                settings={name: groups.iloc[0][name] for name in by},
                group=best,
                num_values=len(groups.drop_duplicates(list(select))) if select else 1,
                metric=chosen_by,
                is_held_out=bool(is_held_out),
                at_edge=tuple(name for name in select if num_best < len(scores) and _is_at_edge(groups[name], best)),
                num_best=num_best,
                searched=tuple(map(int, groups.index)),
                has_equal_seeds=has_equal_seeds,
                seeds=seeds,
                left_out=tuple(map(int, groups.index.difference(scores.index))),
            )
        )
    return choices


def _is_at_edge(values: pd.Series, chosen: int) -> bool:
    """Return whether the chosen entry is the smallest or the largest of at least three numbers."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() < 3:
        return False
    return bool(values[chosen] in (values.min(), values.max()))
