"""Define the terms in the tables of a report: metrics, differences to a baseline, costs, and the fit of the labels."""

from typing import TYPE_CHECKING

from sam_runner.reports.comparison import FITTED_ACCURACY, FITTED_WRONG_LABELS
from sam_runner.reports.selection import is_of_test_set
from sam_runner.reports.sentences import at_equal_cost

if TYPE_CHECKING:
    from sam_runner.reports.report import Report

RHO = "radius of the neighbourhood of the weights in which SAM takes the largest loss"
COSTS = {  # by column of the tables
    "gradients": "gradient evaluations of a run (--against cost compares at equal numbers)",
    "images backward": (
        "images in backward passes of a run: its cost, as the batch sizes differ (--against cost compares at equal"
        " numbers)"
    ),
    "seconds": "training time of a run, without evaluation; comparable on equal machines only",
}


def define_terms(report: "Report") -> list[tuple[str, str]]:
    """Return the terms in the tables of a report, each with its meaning."""
    columns = {*report.table.columns}
    terms = _define_metrics(report)
    terms += _define_difference(report) if report.baseline is not None else []
    terms += [(title, meaning) for title, meaning in COSTS.items() if title in columns]
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
