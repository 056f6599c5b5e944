"""Say in words what the tables of a report show: findings, definitions of the columns, and remarks."""

from typing import TYPE_CHECKING

from sam_runner.reports.aggregate import Estimate, ranking_sign
from sam_runner.reports.comparison import COSTS, FITTED_ACCURACY, FITTED_WRONG_LABELS
from sam_runner.reports.selection import Choice
from sam_runner.reports.tables import column_title
from sam_runner.utils.console import format_count

if TYPE_CHECKING:
    from sam_runner.reports.report import Report

MAX_FINDINGS = 6  # largest number of compared groups that are described, a sentence each
AT_COST = {"": "", "cost": " at equal gradient evaluations", "seconds": " at equal training time"}
RHO = "radius of the neighbourhood of the weights in which SAM takes the largest loss"


def describe_findings(report: "Report") -> list[str]:
    """Return what the runs show: the metric of each chosen group, and whether it beats the baseline.

    Without a search these are the groups that have a baseline, if they are few, otherwise the best group.
    """
    if report.runs.empty:
        return []
    differences = report.choice_differences or report.differences
    chosen = {choice.group: choice for choice in report.choices}
    bases = {base for base, _ in differences.values()}
    compared = list(differences) if len(differences) <= MAX_FINDINGS else []
    groups = [
        group for group in (chosen or compared or [choice.group for choice in report.ranking]) if group not in bases
    ]
    return [_describe_group(report, group, chosen.get(group), differences.get(group)) for group in groups]


def _describe_group(report: "Report", group: int, choice: Choice | None, compared: tuple[int, Estimate] | None) -> str:
    text, edge = report.labels[group], ""
    if choice is not None and choice.num_values > 1:
        names = " and ".join(map(column_title, report.searched[0]))
        optimistic = ", which is optimistic" if choice.is_optimistic else ""
        text += f" ({names} chosen from {choice.num_values} values by {choice.metric}{optimistic})"
    if choice is not None and choice.at_edge:
        names = " and ".join(map(column_title, choice.at_edge))
        edge = f" The chosen {names} is at the edge of the values searched: search beyond it."
    text += f": {report.metric} {_describe_mean(report, group)}"
    if compared is None:
        return f"{text}.{edge}"
    base, difference = compared
    judgement = _judge(report, group, base, difference)
    return f"{text}; {report.labels[base]}: {_describe_mean(report, base)}. {judgement}{edge}"


def _describe_mean(report: "Report", group: int) -> str:
    n, mean, half_width = report.estimates[report.metric][group]
    return f"{mean:.4f}{f' ± {half_width:.4f}' if n > 1 else ''} (n = {n})"


def _judge(report: "Report", group: int, base: int, difference: Estimate) -> str:
    """Return sentences on a difference: its interval, whether it is significant, and whether a side has fitted."""
    n, mean, half_width = difference
    if n == 0:
        return "They have no seed in common, so the difference is not paired and not tested."
    text = f"Difference {mean:+.4f}"
    if difference.contains_zero is None:
        text += " for one seed: no interval, so significance is unknown; run more seeds."
    else:
        text += f", 95% interval {mean - half_width:+.4f} to {mean + half_width:+.4f} (n = {n} pairs)"
        better = "better" if ranking_sign(report.metric) * mean > 0 else "worse"
        text += (
            ": it contains 0, so the difference is not significant."
            if difference.contains_zero
            else f": it does not contain 0, so {report.labels[group]} is significantly {better}."
        )
    fits = report.fits
    if fits[group].is_low and fits[base].is_low:
        meaning = (
            "the difference may only show which side learns faster"
            if difference.contains_zero is False
            else "expect no effect before longer training or a larger network fits them"
        )
        text += f" Neither side has fitted its training labels ({fits[group]}; {fits[base]}): {meaning}."
    return text


def define_terms(report: "Report") -> list[tuple[str, str]]:
    """Return the terms that the tables of a report use, and what each means."""
    columns = {*report.table.columns}
    terms = [
        (
            f"{report.metric}, 95% interval, n",
            "mean over n seeds ± half the width of its 95% interval (Student's t)"
            + ("; accuracies are fractions of the images" if "accuracy" in report.metric else ""),
        )
    ]
    if report.best:
        choices = [choice for choice in report.selection if choice.num_values > 1]
        metrics = " or ".join(sorted({choice.metric for choice in choices}))
        counts = sorted({choice.num_values for choice in choices})
        values = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        terms.append(("*", f"best of {values} by {metrics} (mean over seeds)"))
    if "rho" in columns:
        terms.append(("rho", f"{RHO}; - is a run without SAM"))
    if "early stopping" in columns:
        terms.append(
            ("early stopping", f"{report.metric} at the epoch with the best validation/accuracy; all else: last epoch")
        )
    if report.baseline is not None:
        pairs = sorted({difference.n for _, difference in report.differences.values()})
        counted = f"; n = {' or '.join(map(str, pairs))} pairs" if pairs else ""
        at = AT_COST[report.against]
        terms.append(
            (
                f"difference to {report.baseline}",
                f"mean{at} over pairs of runs with the same seed, ± half its 95% interval (paired t-test){counted}",
            )
        )
        terms.append(("contains 0", "whether this interval contains 0; if not, the difference is significant (5%)"))
    if "gradients" in columns:
        terms.append(("gradients", "gradient evaluations of a run (--against cost compares at equal numbers)"))
    if "seconds" in columns:
        terms.append(("seconds", "training time of a run, without evaluation; comparable on equal machines only"))
    if "fit" in columns:
        fitted = f"{FITTED_ACCURACY:.0%} or more" if "memorised" not in columns else "see memorised"
        terms.append(("fit", f"accuracy on the training labels in the last epoch (fitted: {fitted})"))
    if "right" in columns:
        terms.append(("right", "the same on the training images whose labels are right"))
    if "memorised" in columns:
        fitted = f"(fitted: {FITTED_WRONG_LABELS:.0%} or more)"
        terms.append(("memorised", f"fraction of the wrong training labels that the network predicts {fitted}"))
    return terms


def write_remarks(report: "Report") -> list[str]:
    """Return sentences on what a reader of the tables has to know: optimistic choices, many tests, missing numbers."""
    remarks = []
    if any(choice.is_optimistic for choice in report.selection):
        remarks.append(
            "Selected on the test set, so optimistic. Hold out validation data with data.val_fraction."
            if report.metric.removeprefix("best/").startswith("test/")
            else f"Selected by {report.metric} itself, so optimistic."
        )
    if report.baseline is not None and len(report.differences) > 1:
        remarks.append("Each interval is for one comparison: of many comparisons, some are significant by chance.")
    missing = int(report.runs[report.metric].isna().sum()) if report.metric in report.runs else 0
    if missing:
        remarks.append(
            f"{missing} of {len(report.runs)} finished runs have no {report.metric}, or NaN: n leaves them out."
        )
    return [*remarks, *report.no_default_baseline, *_describe_missing_costs(report)]


def _describe_missing_costs(report: "Report") -> list[str]:
    """Return a sentence for a comparison at equal cost that cannot be made."""
    if not report.against or report.baseline is None:
        return []
    name = COSTS[report.against]
    unknown = int(report.runs[name].isna().sum())
    if unknown:
        return [f"{unknown} of {len(report.runs)} runs have no {name} in result.json: an earlier version made them."]
    lines = []
    for missing in report.missing_baselines:
        first, more = report.labels[missing.groups[0]], len(missing.groups) - 1
        who = f"{first} and {format_count(more, 'other group')} have" if more else f"{first} has"
        cost = f"{missing.cost:,.0f} {name.replace('_', ' ')}"
        lines.append(
            f"{who} no baseline of equal cost ({cost}): train {report.baseline} with"
            f" {missing.typed or 'another number of epochs'}."
        )
    return lines
