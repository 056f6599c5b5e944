"""`sam-report`: compare runs."""

from pathlib import Path

from sam_runner.commands.arguments import Parser, names, path
from sam_runner.commands.exit_codes import DONE, run_command
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_bytes


def main() -> int:
    """Run `sam-report FOLDER... [options]`. Returns the exit code."""
    return run_command(report)


def report(arguments: list[str]) -> int:
    """Print the tables of some runs and write their report."""
    parser = Parser("sam-report", "Compare the runs below some folders: tables, plots and report.html.")
    parser.add_argument("folders", type=path, nargs="+", metavar="FOLDER", help="folders of runs or sweeps")
    parser.add_argument("--metric", help="metric that is compared (default: test/accuracy)")
    parser.add_argument(
        "--select", type=names, metavar="KEYS",
        help="settings whose best value is chosen by the validation metric, such as rho or rho,lr (default: rho,"
        " augment.mixup, lr and weight_decay, if they vary)",
    )  # fmt: skip
    parser.add_argument(
        "--by", type=names, metavar="KEYS",
        help="choose once for each combination of the values of these settings, such as optimizer,noise.rate (default:"
        " all others that vary)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", metavar="KEY=VALUE,...",
        help="runs that all others are compared with, paired by seed (default: optimizer=sgd, or optimizer=none if no"
        " run has optimizer=sgd)",
    )  # fmt: skip
    parser.add_argument(
        "--against", choices=["cost", "seconds"],
        help="compare with the baseline of the same number of gradient evaluations (cost) or of the same training time"
        " (seconds); it may have other numbers of epochs (default: with the baseline of the same settings)",
    )  # fmt: skip
    parser.add_argument("--out", type=path, help="folder of the report (default: the first folder)")
    parser.add_argument(
        "--paper",
        metavar="TABLE",
        help="compare with a table of the paper: table1 to table5, table4_bootstrap, table11, fig3, c4 or c5",
    )
    given = parser.parse(arguments)
    out = given.out or given.folders[0]
    if given.paper:
        for option in ("metric", "select", "by", "baseline", "against"):
            if getattr(given, option):
                raise InputError(
                    f"--{option} has no effect with --paper: the table has its own\n  leave one of them out"
                )
        return _compare_with_paper(given.folders, given.paper, out)
    from sam_runner.reports.output.files import write_report
    from sam_runner.reports.report import make_report

    comparison = make_report(
        given.folders,
        given.metric or "test/accuracy",
        select=given.select,
        by=given.by,
        baseline=given.baseline,
        against=given.against or "",
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = write_report(comparison, out, ", ".join(folder.resolve().name for folder in given.folders))
    except OSError as error:
        raise _no_report(out, error) from error
    print(f"{comparison.to_text()}\nreport: {page}")
    return DONE


def _compare_with_paper(folders: list[Path], table: str, out: Path) -> int:
    """Print the table of the paper beside the runs, and write it as Markdown."""
    from sam_runner.reports.paper_comparison import compare_with_paper

    comparison = compare_with_paper(folders, table)
    page = out / f"paper-{table}.md"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(page, comparison.to_markdown().encode())
    except OSError as error:
        raise _no_report(out, error) from error
    print(f"{comparison.to_text()}\nreport: {page}")
    return DONE


def _no_report(out: Path, error: OSError) -> InputError:
    return InputError(
        f"the report cannot be written to {out}: {error.strerror}\n  mend this, or give another folder: --out FOLDER"
    )
