"""The text of `sam-train --help`, generated from the files of conf/ and the settings classes."""

from dataclasses import fields
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from sam_runner.config.experiment import GROUPS, ExperimentConfig, settings_classes
from sam_runner.config.keys import Key, walk

EXAMPLES = (
    ("optimizer=sam rho=0.05", "SAM on scikit-learn's digits; takes seconds on a CPU"),
    ("optimizer=sgd", "the same without SAM; optimizer=adamw: AdamW without SAM"),
    ("-m optimizer=sgd,sam seed=0,1,2", "a sweep: one run per combination, as many at once as there are cores or GPUs"),
    (
        "-m optimizer=sam rho=0.02,0.05,0.1 sweep_name=rho",
        "a sweep over rho; the same command again runs only missing jobs",
    ),
    ("optimizer=sam rho=0.1 noise=symmetric noise.rate=0.4", "40% of the training labels are wrong"),
    ("optimizer=sam optimizer.m=16", "m-sharpness: one perturbation per 16 images"),
    ("optimizer=sam optimizer.p=inf rho=0.001", "SAM with another norm of the perturbation"),
    ("optimizer=sam optimizer/base=adamw lr=0.001", "SAM with AdamW as base optimizer"),
    ("data=image_folder data.root=~/photos data.image_size=64 model=resnet20 augment=basic", "your own images"),
    ("optimizer=sam model=resnet110 dry_run=true", "print parameters, FLOPs and steps; train nothing"),
)

COMMANDS = (
    ("sam-status", "how far a sweep or a run is"),
    ("sam-report", "compare runs: tables, plots, report.html"),
    ("sam-eval", "metrics of checkpoints, also on other data"),
    ("sam-predict", "class and probabilities of each image, as CSV"),
    ("sam-suspects", "training images whose labels the runs doubt"),
    ("sam-export", "the model as safetensors, torch program or ONNX"),
    ("sam-curvature", "Hessian eigenvalues, trace and density"),
    ("sam-sharpness", "sharpness of runs against generalisation"),
    ("sam-landscape", "slices of the loss"),
    ("sam-verify", "check that checkpoints are intact"),
)


@cache
def list_options(conf: Path) -> dict[str, list[str]]:
    """Return the sorted names of the options of each group, by the group's path, e.g. ``optimizer/base``.

    The folder is read once per process, so the dictionary must not be changed.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        if group != "." and not group.startswith("hydra"):
            groups.setdefault(group, []).append(path.stem)
    return groups


def list_default_options(conf: Path) -> dict[str, str]:
    """Return the default option of each group, by the group's path."""
    chosen = read_choices(conf / "config.yaml")
    for group, option in list(chosen.items()):
        inner = read_choices(conf / group / f"{option}.yaml")
        chosen |= {f"{group}/{name}": inner_option for name, inner_option in inner.items()}
    return chosen


def read_choices(path: Path) -> dict[str, str]:
    """Return the options that the defaults list of a file chooses, by group."""
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    choices = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in choices.items() if option and not group.startswith("override")}


def list_keys(folder: Path, option: str, shared: Path | None = None) -> set[str]:
    """Return the keys of an option, including those of the options and settings classes in its defaults list.

    Args:
        folder: Folder of the group with the option.
        option: Name of the option.
        shared: Folder of the group in conf/, for an option of the user's own folder.
    """
    content = yaml.safe_load((folder / f"{option}.yaml").read_text(encoding="utf-8")) or {}
    keys = {str(key) for key in content if key != "defaults"}
    for entry in content.get("defaults", []):
        if not isinstance(entry, str):
            continue
        if entry.startswith("/hydra/settings/rho/"):
            continue
        if entry.startswith("/hydra/settings/"):
            name = entry.removeprefix("/hydra/settings/").partition("@")[0]
            if name in settings_classes():
                keys |= {field.name for field in fields(settings_classes()[name]) if "key" in field.metadata}
        else:
            files = [found for found in (folder, shared) if found and (found / f"{entry}.yaml").is_file()]
            keys |= list_keys(files[0], entry, shared) if files and entry != option else set()
    return keys


def help_text(conf: Path) -> str:
    """Return the whole text of `--help`."""
    groups, chosen = list_options(conf), list_default_options(conf)
    for path in groups.keys() - chosen.keys():  # such as optimizer/around, which the default optimizer does not have
        parent, _, group = path.rpartition("/")
        for name in groups.get(parent, ()):
            if option := read_choices(conf / parent / f"{name}.yaml").get(group):
                chosen[path] = option
    lines = ["sam-train: train with Sharpness-Aware Minimization (SAM) or its base optimizer", ""]
    lines += ["usage: sam-train [-m] [key=value | group=option]...", "", "examples"]
    width = max(len(command) for command, _ in EXAMPLES[:7])
    for command, meaning in EXAMPLES:
        gap = "\n" + " " * (width + 14) if len(command) > width else " " * (width - len(command) + 2)
        lines.append(f"  sam-train {command}{gap}{meaning}")
    lines += ["", "groups and their options (* marks the default; debug, experiment and search have none)"]
    for group, names in groups.items():
        marked = [f"{name}*" if chosen.get(group) == name else name for name in names]
        lines.append(f"  {group:{max(map(len, groups))}}  {'  '.join(marked)}")
    lines += ["", "settings and their defaults (docs/settings.md adds types, ranges and the groups' settings)"]
    for name, facts, value in walk(ExperimentConfig()):
        if name.partition(".")[0] not in GROUPS:
            lines += _format_setting(name, facts, value)
    lines += [
        "",
        "files and runs",
        "  config=FILE.yaml    the settings of a file, which has a line `key: value` for each `key=value` to type",
        "  config=RUN          the settings of an earlier run again, in a new folder",
        "  resume=RUN          continue a run in its folder, e.g. with epochs=40",
        "",
        "flags",
        "  -m, --multirun      run a sweep: one job per combination of the comma-separated values",
        "  --cfg job           print the composed configuration, including the chosen options, and stop",
        "  --config-dir DIR    also look for groups and options in your own folder",
        '  -sc install=bash    shell completion: eval "$(sam-train -sc install=bash)" (also zsh, fish)',
        "  --version           print the version and stop",
        "  --hydra-help        flags of Hydra itself",
        "",
        "launchers and sweepers (the extras ray, submitit and optuna install them, see docs/scaling.md)",
        "  hydra/launcher=ray             jobs in parallel on this machine, assigned by Ray",
        "  hydra/launcher=submitit_slurm  one Slurm job for each job of the sweep",
        "  hydra/sweeper=optuna           search rho, lr and optimizer.m for the best held-out accuracy",
        "",
        "other commands (each has --help)",
        *(f"  {name:<20}{meaning}" for name, meaning in COMMANDS),
        "",
        "exit codes: 0 done, 1 the run or a job of the sweep failed, 2 bad input, 75 stopped by a signal after saving,",
        "            130 Ctrl-C",
    ]
    return "\n".join(lines)


def _format_setting(name: str, facts: Key, value: Any) -> list[str]:
    """Return the lines of one setting: its name, default and meaning."""
    words = [(None, "null"), (True, "true"), (False, "false")]
    shown = next((word for constant, word in words if value is constant), value)
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else shown
    head = f"  {name}={shown}"
    meaning = wrap(facts.meaning, 88)
    if len(head) > 29:
        return [head, *(" " * 30 + line for line in meaning)]
    return [f"{head:<30}{meaning[0]}", *(" " * 30 + line for line in meaning[1:])]
