"""Choose the values of searched settings, such as rho, by the mean of a held-out metric over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sam_runner.reports.aggregate import aggregate, ranking_sign
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
        searched: The groups that it was chosen from.
    """

    settings: Mapping[str, Any]
    group: int
    num_values: int
    metric: str
    is_held_out: bool
    at_edge: tuple[str, ...] = ()
    num_best: int = 1
    searched: tuple[int, ...] = ()

    @property
    def is_optimistic(self) -> bool:
        """Whether the numbers that are reported chose among several values: the best of them is partly luck."""
        return self.num_values > 1 and not self.is_held_out


def held_out_metric(metric: str) -> str:
    """Return the metric of the validation set that corresponds to a metric of the test set.

    For ``best/test/accuracy``, at the epoch of early stopping, it is ``best/validation/accuracy``. A metric of another
    set is returned unchanged.
    """
    prefix = "best/" if metric.startswith("best/") else ""
    name = metric.removeprefix(prefix)
    return f"{prefix}validation/{name.removeprefix('test/')}" if name.startswith("test/") else metric


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


def choose(runs: pd.DataFrame, metric: str, select: Sequence[str], by: Sequence[str]) -> list[Choice]:
    """Choose a group for each combination of the settings `by`; groups without the metric are left out.

    Args:
        runs: A table of `group_over_seeds`.
        metric: The compared metric, e.g. ``test/accuracy``.
        select: The searched settings.
        by: The settings that have a choice each.
    """
    held_out = held_out_metric(metric)
    groups = runs.drop_duplicates("group").set_index("group")
    means = {name: aggregate(runs, name) for name in {metric, held_out} if name in runs}
    groups = groups[means[metric]["n"] > 0]
    if by:  # the settings that are named first vary slowest, their values in the order of the runs
        order = [pd.factorize(groups[name], use_na_sentinel=False)[0] for name in reversed(by)]
        groups = groups.iloc[np.lexsort(order)]
    parts = groups.groupby(list(by), dropna=False, sort=False) if by else [((), groups)]
    choices = []
    for _, part in parts:
        members = part.index.sort_values()
        is_held_out = held_out != metric and held_out in means and (means[held_out].loc[members, "n"] > 0).all()
        chosen_by = held_out if is_held_out else metric
        scores = ranking_sign(metric) * means[chosen_by].loc[members, "mean"]
        best = int(scores.index.to_list()[scores.argmax()])
        values = len(part.drop_duplicates(list(select))) if select else 1
        num_best = int((scores == scores.max()).sum())
        at_edge = tuple(name for name in select if num_best < values and _is_at_edge(part[name], best))
        settings = {name: part.iloc[0][name] for name in by}
        choices.append(Choice(settings, best, values, chosen_by, bool(is_held_out), at_edge, num_best, tuple(members)))
    return choices


def _is_at_edge(values: pd.Series, chosen: int) -> bool:
    """Return whether the chosen entry is the smallest or the largest of at least three numbers."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() < 3:
        return False
    return bool(values[chosen] in (values.min(), values.max()))
