"""Say in words what the tables of a report show: findings, meanings of the columns, and remarks."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sam_runner.reports.aggregate import Estimate, ranking_sign, student_t
from sam_runner.reports.comparison import (
    COST_TOLERANCE,
    FITTED_ACCURACY,
    FITTED_WRONG_LABELS,
    MissingBaseline,
    cost_column,
    may_end_early,
    time_spread,
)
from sam_runner.reports.group_tables import COST_COLUMNS
from sam_runner.reports.results import RunRecord
from sam_runner.reports.selection import Choice, is_of_test_set
from sam_runner.reports.setup import MAX_NAMED, name_runs
from sam_runner.reports.tables import column_title, format_p_value, printable, settings_label
from sam_runner.utils.console import format_count, format_duration

if TYPE_CHECKING:
    from sam_runner.reports.report import Report

MAX_FINDINGS = 6  # largest number of compared groups that findings describe
COST_NAMES = {
    "gradient_evaluations": "gradient evaluations",
    "images_backward": "images in backward passes",
    "training_seconds": "training seconds",
}  # columns of costs
TIME_SPREAD = 1.2  # a report warns if the slowest run of a group took this many times as long for a gradient
RHO = "radius of the neighbourhood of the weights in which SAM takes the largest loss"
COST_TERMS = {  # definitions, by column of the tables
    "gradients": "gradient evaluations of a run (--against cost compares at equal numbers)",
    "images backward": (
        "images in backward passes of a run: its cost, as the batch sizes differ (--against cost compares at equal"
        " numbers)"
    ),
    "seconds": "training time of a run, without evaluation; comparable on equal machines only",
}


def at_equal_cost(report: "Report") -> str:
    """Return " at equal ..." for a comparison at equal cost or time; "" for one at equal settings."""
    names = COST_NAMES | {"training_seconds": "training time"}
    return f" at equal {names[cost_column(report.runs, report.against)]}" if report.against else ""


def describe_findings(report: "Report") -> list[str]:
    """Return what the runs show: the metric of each chosen group, and whether it is better than the baseline.

    Further sentences say what the group costs and, if images were held out, compare it at the epochs of early stopping.
    Without a search the groups are those with a baseline; if there are more than `MAX_FINDINGS`, the best group only,
    as the best of so many.
    """
    if report.runs.empty:
        return []
    differences = report.choice_differences or report.differences
    chosen = {choice.group: choice for choice in report.choices or _best_of_many(report)}
    bases = {base for base, _ in differences.values()}
    findings = []
    for group in chosen or (differences if len(differences) <= MAX_FINDINGS else ()):
        if report.choices and group in bases:
            continue
        findings.append(_describe_group(report, group, chosen.get(group), differences.get(group)))
        if group in differences:
            base, _ = differences[group]
            findings += [*_describe_early_stopping(report, group, base), *_describe_fit(report, group, base)]
            findings += _describe_cost(report, group, base)
        findings += _describe_search(report, chosen[group]) if report.choices else []
    return findings


def _best_of_many(report: "Report") -> list[Choice]:
    """Return the best group as the only entry if it stands for all in the findings; empty after a search."""
    return [] if report.choices or 0 < len(report.differences) <= MAX_FINDINGS else report.ranking


def _describe_group(report: "Report", group: int, choice: Choice | None, compared: tuple[int, Estimate] | None) -> str:
    text, edge = report.labels[group], ""
    if choice is not None and choice.num_values > 1:
        names = " and ".join(map(column_title, report.search_settings[0]))
        search = f"{names} chosen from {choice.num_values} values" if report.choices else f"best of {choice.num_values}"
        optimistic = ", which is optimistic" if choice.is_optimistic else ""
        equal = f"; {choice.num_best} of them are equally good" if choice.num_best > 1 else ""
        by = choice.metric + _name_other_metric(report, choice) + _name_seeds(choice)
        text += f" ({search} by {by}{optimistic}{equal})"
    if report.choices and choice is not None and choice.at_edge:
        names = " and ".join(map(column_title, choice.at_edge))
        edge = f" The chosen {names} is at the edge of the values searched: search beyond it."
    when = f" in the {report.last_epoch}" if f"best/{report.metric}" in report.estimates else ""
    text += f": {report.metric}{when} {_describe_mean(report, group, report.metric)}"
    if compared is None:
        return f"{text}.{edge}"
    base, difference = compared
    judgement = _judge(report, group, base, difference)
    return f"{text}; {report.labels[base]}: {_describe_mean(report, base, report.metric)}. {judgement}{edge}"


def _name_other_metric(report: "Report", choice: Choice) -> str:
    """Return ", not by early_stopping.metric=..." if the runs choose their best epoch by another held-out metric."""
    config = report.first_record(choice.group).config
    metric = choice.metric if config is None else config.early_stopping.metric
    is_other = choice.is_held_out and metric != choice.metric.removeprefix("best/")
    return f", not by early_stopping.metric={metric}" if is_other else ""


def _name_seeds(choice: Choice) -> str:
    """Return " on seeds 0 1 2" if the compared groups have different seeds."""
    if choice.has_equal_seeds:
        return ""
    return f" on seeds {' '.join(map(str, choice.seeds))}" if choice.seeds else " on different seeds"


def _describe_early_stopping(report: "Report", group: int, base: int) -> list[str]:
    """Return a sentence on the difference at the epochs of early stopping; none if no images were held out."""
    difference = report.early_difference(group, base)
    if difference is None:
        return []
    tag = f"best/{report.metric}"
    means = [f"{report.labels[arm]}: {_describe_mean(report, arm, tag)}" for arm in (group, base)]
    judgement = _judge_difference(report, group, difference)
    return [f"With early stopping (epoch of the best {report.early_metrics}), {'; '.join(means)}. {judgement}"]


def _describe_fit(report: "Report", group: int, base: int) -> list[str]:
    """Return a sentence on the labels that a group and its baseline have fitted; none if no training label is wrong."""
    fits = [report.fits[arm] for arm in (group, base)]
    if any(math.isnan(fit.right) or math.isnan(fit.memorised) for fit in fits):
        return []
    parts = [
        f"{report.labels[arm]} predicts {fit.right:.1%} of the right and {fit.memorised:.1%} of the wrong ones"
        for arm, fit in zip((group, base), fits, strict=True)
    ]
    return [f"Of the training labels, {'; '.join(parts)}."]


def _describe_cost(report: "Report", group: int, base: int) -> list[str]:
    """Return a sentence on the cost of a group relative to its baseline, and a command; none if costs are equal."""
    ratio = report.cost_ratio(group, base)
    if report.against or report.baseline is None or not abs(ratio - 1) > COST_TOLERANCE:
        return []
    name = COST_NAMES[cost_column(report.runs, "cost")]
    text = f"{report.labels[group]} costs {ratio:.3g} times the {name} of {report.labels[base]}."
    if report.with_equal_cost is None:  # several baselines have this cost
        return [text]
    is_known = group in report.with_equal_cost
    words = [
        *("sam-report", *map(_shorten, report.given_folders)),
        *(("--metric", report.metric) if report.metric != "test/accuracy" else ()),
        *(("--select", ",".join(report.select)) if report.select is not None else ()),
        *(("--by", ",".join(report.by)) if report.by is not None else ()),
        *(("--baseline", report.baseline.option_value) if report.baseline_settings is not None else ()),
        *("--against", "cost"),
    ]
    train = "" if is_known else f"train {report.baseline} for {ratio:.3g} times the epochs as well, then "
    if train and may_end_early(report.runs, base, ratio):
        how = "with another number of epochs as well (early_stopping.patience may end it before)"
        train = f"train {report.baseline} {how}, then "
    return [f"{text} At equal cost: {train}{printable(shlex.join(words))}"]


def _describe_search(report: "Report", choice: Choice) -> list[str]:
    """Return a sentence on the cost of a search relative to that of the chosen value; none without a search."""
    total, chosen = (report.total_cost(groups, "cost") for groups in (choice.searched, [choice.group]))
    if choice.num_values < 2 or math.isnan(total) or not chosen:
        return []
    names = " and ".join(map(column_title, report.search_settings[0]))
    arm = settings_label(choice.settings)
    num_runs = int(report.runs["group"].isin(choice.searched).sum())
    seconds = report.total_cost(choice.searched, "seconds")
    name = COST_NAMES[cost_column(report.runs, "cost")]
    training = "" if math.isnan(seconds) else f" ({format_duration(seconds)} of training)"
    return [
        f"Searching {names}{arm and f' for {arm}'} took {format_count(num_runs, 'run')} and"
        f" {total:,.0f} {name}{training}, {total / chosen:.3g} times as many as the chosen value alone."
    ]


def _shorten(folder: str) -> str:
    """Return a folder relative to the working folder if it is inside it, otherwise unchanged."""
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def _describe_mean(report: "Report", group: int, metric: str) -> str:
    n, mean, half_width = report.estimates[metric][group]
    if n == 0:
        return "-"
    return f"{mean:.4f}{f' ± {half_width:.4f}' if n > 1 else ''} (n = {n})"


def _judge(report: "Report", group: int, base: int, difference: Estimate) -> str:
    """Return sentences on a difference: interval, significance, and whether the groups have fitted their labels."""
    text = _judge_difference(report, group, difference)
    fits = report.fits
    if difference.n and fits[group].is_low and fits[base].is_low:
        meaning = (
            "the difference may only show which side learns faster"
            if difference.contains_zero is False
            else "expect no effect until one has; train longer, or use a larger network"
        )
        text += f" Neither side has fitted its training labels ({fits[group]}; {fits[base]}): {meaning}."
    return text


def _judge_difference(report: "Report", group: int, difference: Estimate) -> str:
    """Return a sentence on a difference: interval, and whether it is significant."""
    n, mean, half_width = difference
    if n == 0:
        return "The two groups have no seed in common, so there is no paired difference and no test."
    text = f"Difference {mean:+.4f}"
    interval = f", 95% interval {mean - half_width:+.4f} to {mean + half_width:+.4f} (n = {n} pairs"
    if difference.is_constant:
        text += f"{interval}): all pairs differ by the same number, too few distinct values for a test, so"
        text += " significance is unknown; run more seeds."
    elif difference.contains_zero is None:
        text += " for one seed: no interval, so significance is unknown; run more seeds."
    else:
        p_value = format_p_value(difference.p_value)
        text += f"{interval}, p {p_value if p_value.startswith('<') else f'= {p_value}'})"
        sign = ranking_sign(report.metric)
        word = ("better" if sign * mean > 0 else "worse") if sign else ("higher" if mean > 0 else "lower")
        text += (
            ": it contains 0, so the difference is not significant."
            if difference.contains_zero
            else f": it does not contain 0, so {report.labels[group]} is significantly {word}."
        )
    return text


def define_terms(report: "Report") -> list[tuple[str, str]]:
    """Return the terms in the tables of a report, each with its meaning."""
    columns = {*report.table.columns}
    terms = _define_metrics(report)
    terms += _define_difference(report) if report.baseline is not None else []
    terms += [(title, meaning) for title, meaning in COST_TERMS.items() if title in columns]
    return terms + _define_fit(report)


def _define_metrics(report: "Report") -> list[tuple[str, str]]:
    """Define the compared metric, the star, the validation metric, rho, and early stopping."""
    columns, is_of_test = {*report.table.columns}, is_of_test_set(report.metric)
    terms = [
        (
            f"{report.metric}, 95% interval, n",
            "mean over n seeds ± half the width of its 95% interval (Student's t)"
            + (", which covers the seeds on one test set, not the choice of its images" if is_of_test else "")
            + ("; accuracies are fractions of the images" if "accuracy" in report.metric else ""),
        )
    ]
    if report.best:
        choices = [choice for choice in report.selection if choice.num_values > 1]
        metrics = " or ".join(sorted({choice.metric for choice in choices}))
        counts = sorted({choice.num_values for choice in choices})
        values = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        seeds = "seeds" if all(choice.has_equal_seeds for choice in choices) else "the seeds that the remarks name"
        terms.append(("*", f"best of {values} by {metrics} (mean over {seeds})"))
    for tag, weights in (("validation/accuracy", ""), ("validation_ema/accuracy", " of the averaged weights")):
        if tag in columns:
            terms.append((tag, f"accuracy{weights} on the held-out images{_describe_ceiling(report)}"))
    if "rho" in columns:
        terms.append(("rho", f"{RHO}; - is a run without SAM"))
    if "early stopping" in columns:
        epoch = f"the epoch with the best {report.early_metrics}; other columns: {report.last_epoch}"
        terms.append(("early stopping", f"{report.metric} at {epoch}"))
    return terms


def _define_difference(report: "Report") -> list[tuple[str, str]]:
    """Define the difference to the baseline and its test."""
    title = f"difference to {report.baseline}"
    pairs = sorted({difference.n for _, difference in report.differences.values()})
    counted = f"; n = {' or '.join(map(str, pairs))} pairs" if pairs else ""
    interval = f"± half its 95% interval (paired t-test){counted}"
    terms = [(title, f"mean{at_equal_cost(report)} over pairs of runs with the same seed, {interval}")]
    if "difference, early stopping" in report.table:
        terms.append(("difference, early stopping", "the same difference at the epochs of early stopping"))
    meaning = f"whether the interval of {title} contains 0; if not, the difference is significant (5%)"
    if any(difference.is_constant for _, difference in report.differences.values()):
        meaning += "; - where all pairs differ by the same number: too few distinct values for a test"
    test = f"p-value of the paired t-test of {title}, two-sided, not corrected for the number of comparisons"
    return [*terms, ("contains 0", meaning), ("p", test)]


def _define_fit(report: "Report") -> list[tuple[str, str]]:
    """Define how far a network has fitted its training labels."""
    columns = {*report.table.columns}
    terms = []
    if "fit" in columns:
        fitted = f" (fitted: {FITTED_ACCURACY:.0%} or more)" if "memorised" not in columns else ", right and wrong ones"
        meaning = f"accuracy on the training labels in the training steps of the {report.last_epoch}{fitted}"
        terms.append(("fit", f"{meaning}; unknown where a run mixes images"))
    if "right" in columns:
        terms.append(("right", "accuracy on the training images whose labels are right"))
    if "memorised" in columns:
        fitted = f"(fitted: {FITTED_WRONG_LABELS:.0%} or more)"
        terms.append(("memorised", f"fraction of the wrong training labels that the network predicts {fitted}"))
    return terms


def _describe_ceiling(report: "Report") -> str:
    """Say which accuracy a network that is always right gets on noisy held-out labels; "" for clean labels."""
    rates = [
        record.result["data"]["wrong_labels"] / record.result["data"]["train"]
        for record in report.records
        if record.config is not None
        and record.config.data.val_fraction > 0
        and record.config.data.val_labels == "noisy"
        and isinstance(record.result.get("data"), dict)
        and record.result["data"]["wrong_labels"]
    ]
    if not rates:
        return ""
    low, high = min(rates), max(rates)
    return (
        f"; their labels are as noisy as the training labels ({_percent_range(low, high)} wrong), so a network"
        f" that is always right reaches about {_percent_range(1 - high, 1 - low)}"
    )


def _percent_range(low: float, high: float) -> str:
    return " to ".join(dict.fromkeys((f"{low:.0%}", f"{high:.0%}")))


def write_remarks(report: "Report") -> list[str]:
    """Return what a reader of the tables has to know: how groups were chosen, many tests, missing numbers."""
    remarks = []
    named = report.selection or (_best_of_many(report) if report.baseline is not None else [])
    if not ranking_sign(report.metric) and len(report.rows) > 1:
        remarks.append(
            f"No value of {report.metric} is better than another: no setting is chosen by it, no group is the best, and"
            " differences are called higher or lower."
        )
    remarks += [_explain_seeds(report, choice) for choice in named if not choice.has_equal_seeds]
    if any(choice.is_optimistic for choice in named):
        remarks.append(
            "Selected on the test set, so optimistic. Hold out validation data with data.val_fraction."
            if is_of_test_set(report.metric)
            else f"Selected by {report.metric} itself, so optimistic."
        )
    if report.baseline is not None and len(report.differences) > 1:
        remarks.append("Each interval is for one comparison: of many comparisons, some are significant by chance.")
    missing = int(report.runs[report.metric].isna().sum()) if report.metric in report.runs else 0
    if missing:
        remarks.append(
            f"{missing} of {len(report.runs)} finished runs have no {report.metric}, or NaN; n does not count them."
        )
    if any(found.n == 2 for found in report.estimates.get(report.metric, {}).values()):
        of_two, of_three = map(float, student_t(pd.Series([1, 2])))
        ratio = of_two / of_three * math.sqrt(3 / 2)
        remarks.append(
            f"With n = 2 an interval is {ratio:.1f} times as wide as with n = 3 and the same spread of the seeds"
            " (Student's t): add a seed."
        )
    remarks += [
        *_describe_repeats(report),
        *_describe_replaced_runs(report),
        *_warn_of_times(report),
        *report.no_default_baseline,
    ]
    return [*remarks, *_describe_missing_baselines(report), *_describe_missing_costs(report)]


def _describe_repeats(report: "Report") -> list[str]:
    """Return a sentence on the finished runs that do not count because their settings and seed were run again."""
    if not report.repeats:
        return []
    return [f"{_say_uncounted(report.repeats)}: a later run has the same settings and seed, and other results."]


def _describe_replaced_runs(report: "Report") -> list[str]:
    """Return a sentence on the finished runs that do not count, and on the settings that reports do not show."""
    replaced = report.replaced_runs
    if not replaced:
        return []
    names = sorted({name for _, differing in replaced for name in differing})
    return [
        f"{_say_uncounted([run for run, _ in replaced])}: a later run has the same seed and differs only in"
        f" {' and '.join(names)}, which reports do not compare. Report such runs separately."
    ]


def _say_uncounted(runs: Sequence[RunRecord]) -> str:
    do = "does" if len(runs) == 1 else "do"
    return f"{format_count(len(runs), 'finished run')} {do} not count ({printable(name_runs(runs))})"


def _explain_seeds(report: "Report", choice: Choice) -> str:
    """Return sentences on a choice among groups with different seeds: what was compared, and what was left out."""
    arm = settings_label(choice.settings)
    names = " and ".join(map(column_title, report.search_settings[0]))
    what = f"The values of {names}{arm and f' for {arm}'}" if report.choices else "The groups"
    if not choice.seeds:
        return (
            f"{what} have different seeds and too few in common, so the choice compares means over different seeds:"
            " run the missing seeds before you use it."
        )
    text = (
        f"{what} have different seeds: compared on seeds {' '.join(map(str, choice.seeds))}, which most of them have."
    )
    if choice.left_out:
        labels = [report.labels[group] for group in choice.left_out]
        more = f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else ""
        text += f" Not chosen, because seeds are missing: {'; '.join(labels[:MAX_NAMED])}{more}."
        text += " Run the missing seeds, unless they have diverged."
    return text


def _warn_of_times(report: "Report") -> list[str]:
    """Return a warning about the column seconds if runs that differ in the seed only took different times."""
    spread = time_spread(report.runs).dropna()
    if spread.empty or spread.max() < TIME_SPREAD:
        return []
    slowest = spread.index.to_list()[spread.argmax()]
    return [
        f"seconds are unreliable: of runs that differ in the seed only, the slowest took up to {spread.max():.1f} times"
        f" as long for a gradient as the fastest ({report.labels[slowest]}). Other work on the machine can cause this."
        f" Compare {COST_COLUMNS[cost_column(report.runs, 'cost')]} instead."
    ]


def _describe_missing_baselines(report: "Report") -> list[str]:
    """Return a sentence on the groups that have no baseline at equal settings."""
    baseline = report.baseline
    if baseline is None or report.against:
        return []
    found = report.choice_differences if report.choices else report.differences
    groups = [choice.group for choice in report.choices] or list(report.rows)
    missing = [group for group in groups if group not in found and not baseline.contains(report.rows[group])]
    if not missing:
        return []
    return [f"{_name_groups(report, missing)} no difference: no run of {baseline} has the same other settings."]


def _describe_missing_costs(report: "Report") -> list[str]:
    """Return sentences on the groups that have no baseline of equal cost, and on what to train for it."""
    if not report.against or report.baseline is None:
        return []
    name = cost_column(report.runs, report.against)
    unknown = int(report.runs[name].isna().sum())
    if unknown:
        return [f"{unknown} of {len(report.runs)} runs have no {name} in result.json: an earlier version made them."]
    lines = []
    for missing in report.missing_baselines:
        lines.append(
            f"{_name_groups(report, missing.groups)} no baseline of equal cost ({missing.cost:,.0f}"
            f" {COST_NAMES[name]}): train {report.baseline} with {_describe_missing_length(report, missing)}."
        )
    return lines


def _name_groups(report: "Report", groups: Sequence[int]) -> str:
    """Return the label of the first group and the number of the others, with the verb."""
    first, more = report.labels[groups[0]], len(groups) - 1
    return f"{first} and {format_count(more, 'other group')} have" if more else f"{first} has"


def _describe_missing_length(report: "Report", missing: MissingBaseline) -> str:
    """Return what to train the baseline with, so that it has the cost of a group."""
    if missing.base is None:
        return "the same other settings"
    may_end = may_end_early(report.runs, missing.base, missing.cost / report.costs[report.against][missing.base])
    hint = " (early_stopping.patience may end it before)" if may_end else ""
    return missing.length_text or f"another number of epochs{hint}"
