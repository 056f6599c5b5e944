"""What is done with runs that are there: evaluate, verify and compare them. Each command gives its exit code."""

import os
from pathlib import Path

from sam_runner.config.validation import unknown_key
from sam_runner.utils.errors import InputError

EVALUATE = (
    "sam-eval run_dir=FOLDER [checkpoint=last|best] [device=...]: a checkpoint's metrics\n"
    "  relabel=FILE.npy: instead, what it says of each training image, for noise=relabelled noise.file=FILE.npy"
)
VERIFY = "sam-verify PATH...: whether the checkpoints of runs, folders or files are intact; code 2 if one is not"
REPORT = (
    "sam-report FOLDER... [metric=test/accuracy] [out=FOLDER]: compare runs; a table, plots and report.html in out\n"
    "  --paper table4: beside the paper's numbers (table1 to 5, table11, fig3, c4, c5), also paper-table4.md in out"
)


def evaluate(arguments: list[str]) -> int:
    """`sam-eval`."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if not arguments or {"--help", "-h"} & set(arguments):
        print(EVALUATE)
        return 0 if arguments else 2
    for key in given:
        if os.path.isdir(os.path.expanduser(key)):
            raise InputError(f"{key}: a run is given as run_dir={key}")
        if key not in (known := ["run_dir", "checkpoint", "device", "relabel"]):
            raise InputError(unknown_key(key, known))
    if "run_dir" not in given:
        raise InputError("run_dir has to be given: sam-eval run_dir=FOLDER")
    which = given.get("checkpoint", "last")
    if which not in ("last", "best"):
        raise InputError(f"checkpoint={which} is not known\n  accepted: last, best")
    if "relabel" in given and not given["relabel"].endswith(".npy"):
        raise InputError(f"relabel={given['relabel']} is no name of a .npy file\n  give relabel=labels.npy")
    from sam_runner.config import yaml_guard
    from sam_runner.runs import folder as run_folder

    yaml_guard.install()
    folder, device = Path(os.path.expanduser(given["run_dir"])), given.get("device")
    run_folder.read_settings(folder)  # refused now if there is no run: torch takes seconds
    from sam_runner.runs.load import evaluate_folder, relabel, restored

    if "relabel" in given:
        path = Path(os.path.expanduser(given["relabel"]))
        run = restored(folder, which, device, as_is=True)
        print(f"{path}: {relabel(run, path):,} of {run.train.num_examples:,} training labels changed")
        return 0
    for tag, value in evaluate_folder(folder, which, device).items():
        print(f"{tag} {value:.6f}")
    return 0


def verify(arguments: list[str]) -> int:
    """`sam-verify`."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(VERIFY)
        return 0 if arguments else 2
    from sam_runner.commands.verification import verdicts

    faults = 0
    for path, fault in verdicts([Path(os.path.expanduser(argument)) for argument in arguments]):
        print(f"good     {path}" if fault is None else f"damaged  {path}: {fault}")
        faults += fault is not None
    return 2 if faults else 0


def report(arguments: list[str]) -> int:
    """`sam-report`."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(REPORT)
        return 0 if arguments else 2
    options = {"metric": "test/accuracy", "out": "", "paper": ""}
    folders = []
    for argument in _one_word_each(arguments):
        key, equals, value = argument.partition("=")
        if equals and not os.path.exists(os.path.expanduser(argument)):
            if key not in options:
                raise InputError(unknown_key(key, list(options)))
            options[key] = value
        else:
            folders.append(Path(os.path.expanduser(argument)))
    if not folders:
        raise InputError("a folder of runs has to be given: sam-report FOLDER")
    if options["paper"]:
        if options["metric"] != "test/accuracy":
            raise InputError("metric has no effect with --paper: the table has its own\n  leave one of them out")
        return _beside_the_paper(folders, options["paper"], Path(os.path.expanduser(options["out"] or str(folders[0]))))
    from sam_runner.reports.report import as_text, report_of, write

    found = report_of(folders, options["metric"])
    out = Path(os.path.expanduser(options["out"] or str(folders[0])))
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = write(found, out, ", ".join(folder.resolve().name for folder in folders))
    except OSError as error:
        raise InputError(f"out={out} cannot be written to: {error.strerror}\n  give another out=FOLDER") from error
    print(f"{as_text(found)}\nreport: {page}")
    return 0


def _one_word_each(arguments: list[str]) -> list[str]:
    """``--paper table4`` as ``paper=table4``, since keys are written so."""
    text = "\0".join(arguments).replace("--paper\0", "paper=")
    return [word.replace("--paper=", "paper=", 1) for word in text.split("\0")]


def _beside_the_paper(folders: list[Path], table: str, out: Path) -> int:
    from sam_runner.reports.paper_comparison import as_markdown, as_text, compared
    from sam_runner.utils.files import write_atomically

    found = compared(folders, table)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / f"paper-{table}.md", lambda handle: handle.write(as_markdown(found).encode()))
    except OSError as error:
        raise InputError(f"out={out} cannot be written to: {error.strerror}\n  give another out=FOLDER") from error
    print(f"{as_text(found)}\nreport: {out / f'paper-{table}.md'}")
    return 0


def tell(folder: Path) -> None:
    """What a sweep found, at its end; nothing where there is no cell of it."""
    if not folder.is_dir():
        return
    from sam_runner.reports.report import as_text, report_of, write
    from sam_runner.reports.results import records

    if not records([folder]):
        return
    found = report_of([folder])
    print(f"\n{as_text(found)}")
    try:
        print(f"report: {write(found, folder, folder.name)}")
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
