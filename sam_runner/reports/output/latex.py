"""Write the tables for a paper: report.tex, narrow enough for one column, and report-full.tex, with all columns."""

import math
from collections.abc import Mapping, Sequence

from sam_runner.reports.aggregate import Estimate
from sam_runner.reports.comparison import cost_column
from sam_runner.reports.group_tables import LEFT_ALIGNED
from sam_runner.reports.report import Report
from sam_runner.reports.sentences import COST_NAMES, at_equal_cost
from sam_runner.reports.tables import escape_latex, format_value, latex_table

SYMBOLS = {"rho": r"$\rho$", "optimizer.alpha": r"$\alpha$", "lr": "learning rate", "noise.rate": "noise rate"}
INITIALS = {"sgd", "sam", "asam", "esam", "gsam", "wsam"}  # optimizers whose names are initials
DASH = "--"


def write_narrow_table(report: Report) -> str:
    """Return the chosen groups, or all where no setting is searched, as LaTeX for the packages booktabs and tabularx.

    A row has the method, the metric and the difference to the baseline with 95% intervals, n, and the cost relative to
    the baseline; accuracies are in %. Where images were held out, the same rows follow at the
    epochs of early stopping. The first column takes the width that is left.
    """
    comments = [r"\usepackage{booktabs,tabularx}", *(f"{name}: {text}" for name, text in report.setup.facts)]
    lines = [f"% {text}" for text in comments]
    if report.runs.empty:
        return "\n".join([*lines, ""])
    differences = report.choice_differences if report.choices else report.differences
    groups = [choice.group for choice in report.choices] or list(report.rows)
    has_costs = bool(differences) and all(not math.isnan(report.costs["cost"][group]) for group in groups)
    heads = ["method", _metric_title(report), "difference", "$n$", "cost"]
    heads = [head for head in heads if (head != "difference" or differences) and (head != "cost" or has_costs)]
    early = f"best/{report.metric}"
    titles = {escape_latex(report.last_epoch): report.metric, "early stopping": early}
    blocks = titles if early in report.estimates else {"": report.metric}
    rows = list[str]()
    for title, metric in blocks.items():
        rows += [r"\midrule"] + ([rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{title}}}}} \\"] if title else [])
        for group in groups:
            cells = _format_row(report, group, metric, differences)
            rows.append(" & ".join(cells[head] for head in heads) + r" \\")
    columns = r">{\raggedright\arraybackslash}X" + "r" * (len(heads) - 1)
    return "\n".join(
        [
            *lines,
            r"\begin{table}[t]",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_write_caption(report, groups, differences, has_costs)}}}",
            rf"\label{{tab:{report.name}}}",
            rf"\begin{{tabularx}}{{\linewidth}}{{{columns}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            *rows,
            r"\bottomrule",
            r"\end{tabularx}",
            r"\end{table}",
            "",
        ]
    )


def write_full_tables(report: Report) -> str:
    """Return the tables with all columns, each as wide as the text, as LaTeX for the packages booktabs and graphicx.

    The notes are comments.
    """
    tables = {
        "chosen": ("Chosen settings", report.choice_table, [choice.group for choice in report.choices]),
        "all": ("All settings", report.table, [*report.rows]),
    }
    left = LEFT_ALIGNED | report.text_columns
    lines = ["% \\usepackage{booktabs,graphicx}", *(f"% {note}" for note in report.notes)]
    for label, (title, table, groups) in tables.items():
        if table.empty:
            continue
        lines += [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{title}. {_write_task(report)}{_define_metric(report, escape_latex(report.metric), groups)}}}",
            rf"\label{{tab:{report.name}-{label}}}",
            rf"\resizebox{{\linewidth}}{{!}}{{%{chr(10)}{latex_table(table, {*map(str, table)} - left)}}}",
            r"\end{table}",
        ]
    return "\n".join([*lines, ""])


def _format_row(
    report: Report, group: int, metric: str, differences: Mapping[int, tuple[int, Estimate]]
) -> dict[str, str]:
    """Return the cells of a group by the heads of their columns."""
    base, difference = differences.get(group, (None, None))
    if base is not None and metric != report.metric:
        difference = report.early_difference(group, base)
    is_base = any(group == other for other, _ in differences.values())
    found = report.estimates[metric][group]
    ratio = 1.0 if is_base else math.nan if base is None else report.cost_ratio(group, base)
    mark = "$^{*}$" if difference is not None and difference.contains_zero is False else ""
    return {
        "method": _name_method(report, group),
        _metric_title(report): _format_estimate(found, _is_fraction(report)),
        "difference": _format_estimate(difference, _is_fraction(report), sign="+") + mark,
        "$n$": str(found.n),
        "cost": DASH if math.isnan(ratio) else rf"{ratio:.3g}$\times$",
    }


def _is_fraction(report: Report) -> bool:
    return "accuracy" in report.metric


def _format_estimate(found: Estimate | None, is_fraction: bool, sign: str = "") -> str:
    """Return mean and interval, of a fraction in % with two decimals."""
    if found is None or found.n == 0:
        return DASH
    factor, digits = (100, 2) if is_fraction else (1, 4)
    text = f"{factor * found.mean:{sign}.{digits}f}".replace("-", "$-$").replace("+", "$+$")
    return text + (rf" $\pm$ {factor * found.half_width:.{digits}f}" if found.n > 1 else "")


def _name_method(report: Report, group: int) -> str:
    """Return the settings that distinguish a group, the optimizer first."""
    row = report.rows[group]
    parts = list[str]()
    for name in report.settings:
        value = format_value(row[name], name, missing="")
        if not value:
            continue
        if name == "optimizer":
            parts.insert(0, value.upper() if value in INITIALS else escape_latex(value.replace("_", " ")))
        else:
            title = SYMBOLS.get(name) or escape_latex(
                name.removesuffix("._target_").rpartition(".")[2].replace("_", " ")
            )
            parts.append(f"{title} {escape_latex(value)}")
    return ", ".join(parts) or "all runs"


def _metric_title(report: Report) -> str:
    words = escape_latex(report.metric.removeprefix("best/").replace("/", " ").replace("_", " "))
    return words + (r" (\%)" if _is_fraction(report) else "")


def _write_task(report: Report) -> str:
    """Return network, data, noise and epochs as a sentence."""
    return f"{escape_latex(report.setup.task)}. " if report.setup.task else ""


def _define_metric(report: Report, title: str, groups: Sequence[int]) -> str:
    """Return a sentence on the mean and the interval of the metric, and n of the groups in the table."""
    counts = sorted({report.estimates[report.metric][group].n for group in groups})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"{title[0].upper()}{title[1:]}: mean over $n$ = {seeds} seeds $\\pm$ half its 95\\% interval (Student's $t$)."
    )


def _write_caption(
    report: Report, groups: Sequence[int], differences: Mapping[int, tuple[int, Estimate]], has_costs: bool
) -> str:
    """Return sentences that define each number of the table."""
    sentences = [f"{_write_task(report)}{_define_metric(report, _metric_title(report), groups)}"]
    if differences:
        baseline = str(report.baseline)
        name = baseline.upper() if baseline in INITIALS else escape_latex(baseline)
        sentences.append(
            f"Difference to {name}{at_equal_cost(report)}: mean over runs with the same seed $\\pm$ half its 95\\%"
            " interval (paired $t$-test); $^{*}$ the interval does not contain 0."
        )
        pairs = {group: difference.n for group, (_, difference) in differences.items()}
        if any(n != report.estimates[report.metric][group].n for group, n in pairs.items()):
            num_pairs = " to ".join(map(str, sorted({min(pairs.values()), max(pairs.values())})))
            sentences.append(f"Each difference is over {num_pairs} pairs of runs.")
        early = [report.early_difference(group, base) for group, (base, _) in differences.items()]
        found = [*early, *(difference for _, difference in differences.values())]
        if any(difference is not None and difference.is_constant for difference in found):
            sentences.append("An interval of width 0 has too few distinct values for a test.")
        if has_costs:
            sentences.append(f"Cost: {COST_NAMES[cost_column(report.runs, 'cost')]} relative to {name}.")
    chosen = sorted({choice.metric for choice in report.choices if choice.num_values > 1})
    if chosen:
        names = " and ".join(SYMBOLS.get(name) or escape_latex(name) for name in report.search_settings[0])
        optimistic = ", which is optimistic" if any(choice.is_optimistic for choice in report.choices) else ""
        counts = sorted({choice.num_values for choice in report.choices if choice.num_values > 1})
        values = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        metrics = escape_latex(" or ".join(chosen))
        seeds = _describe_seeds(report)
        verb = "has" if len(report.search_settings[0]) == 1 else "have"
        sentences.append(
            f"{names[0].upper()}{names[1:]} {verb} the best {metrics} of {values} values{seeds}{optimistic}."
        )
    if f"best/{report.metric}" in report.estimates or report.metric.startswith("best/"):
        best = escape_latex(report.early_metrics)
        sentences.append(f"Early stopping: the epoch of the best {best} of the same run.")
    return " ".join(sentences)


def _describe_seeds(report: Report) -> str:
    """Return on which seeds the values of a search were compared; "" if they have equal seeds."""
    unequal = [choice for choice in report.choices if not choice.has_equal_seeds]
    if not unequal:
        return ""
    num_left_out = sum(len(choice.left_out) for choice in unequal)
    left_out = f" ({num_left_out} left out: seeds are missing)" if num_left_out else ""
    is_shared = all(choice.seeds for choice in unequal)
    return f" on {'the seeds that most values have' if is_shared else 'different seeds'}{left_out}"
