"""The text of `sam-train --help`, written from what is in conf/, so that it is never out of date."""

from pathlib import Path

import yaml

EXAMPLES = (
    ("optimizer=sam rho=0.05", "SAM on scikit-learn's digits, seconds on a CPU"),
    ("optimizer=sgd", "the same without SAM"),
    ("-m optimizer=sgd,sam seed=0,1,2", "a sweep: every combination, one after the other"),
    (
        "-m optimizer=sam rho=0.02,0.05,0.1 sweep_name=rho",
        "a sweep over rho; the same command again runs what is missing",
    ),
    ("optimizer=sam rho=0.1 noise=symmetric noise.rate=0.4", "40% of the training labels are wrong"),
    ("optimizer=sam optimizer.m=16", "m-sharpness: an eps for every 16 images"),
    ("optimizer=sam optimizer.p=inf rho=0.001", "the ball of another norm"),
    ("optimizer=sam optimizer/base=adamw lr=0.001", "SAM around AdamW"),
    ("data=image_folder data.root=~/photos data.image_size=64 model=resnet20 augment=basic", "your own images"),
    ("optimizer=sam model=resnet110 dry_run=true", "parameters, FLOPs, steps; nothing is trained"),
)


def first_comment(path: Path) -> str:
    """The first comment of a YAML file that is no directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:].strip()
    return ""


def options(conf: Path) -> dict[str, list[str]]:
    """The options of each group, by the group's path."""
    groups: dict[str, list[str]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        if group != "." and not group.startswith("hydra"):
            groups.setdefault(group, []).append(path.stem)
    return groups


def keys_of(folder: Path, option: str) -> set[str]:
    """The keys of an option, with those of the options that it is composed of."""
    content = yaml.safe_load((folder / f"{option}.yaml").read_text(encoding="utf-8")) or {}
    parents = [entry for entry in content.get("defaults", []) if isinstance(entry, str)]
    inherited = [keys_of(folder, parent) for parent in parents if (folder / f"{parent}.yaml").is_file()]
    return {key for key in content if key != "defaults"}.union(*inherited)


def help_text(conf: Path) -> str:
    """All of `--help`."""
    config = (conf / "config.yaml").read_text(encoding="utf-8")
    chosen = {
        key: value
        for entry in yaml.safe_load(config)["defaults"]
        if isinstance(entry, dict)
        for key, value in entry.items()
    }
    lines = ["sam-train: train with Sharpness-Aware Minimization (SAM) or its base optimizer", ""]
    lines += ["usage: sam-train [-m] [key=value | group=option]...", "", "examples"]
    width = max(len(command) for command, _ in EXAMPLES[:7])
    for command, meaning in EXAMPLES:
        gap = "\n" + " " * (width + 14) if len(command) > width else " " * (width - len(command) + 2)
        lines.append(f"  sam-train {command}{gap}{meaning}")
    lines += ["", "groups (the default is marked *)"]
    for group, names in options(conf).items():
        marked = [
            f"{name}*" if chosen.get(group) == name or (group == "optimizer/base" and name == "sgd") else name
            for name in names
        ]
        lines.append(f"  {group:15} {'  '.join(marked)}")
    lines += ["", "keys and their defaults"]
    for line in config.split("\nhydra:")[0].splitlines():
        if line and not line.startswith(("#", "defaults", "  -")):
            lines.append(f"  {line}")
    lines += [
        "",
        "flags",
        "  -m, --multirun      run every combination of comma-separated values",
        "  --cfg job           print the whole configuration, with the keys of the chosen groups, and stop",
        "  --config-dir DIR    also look for groups and options in your own folder",
        '  -sc install=bash    shell completion: eval "$(sam-train -sc install=bash)" (also zsh, fish)',
        "  --hydra-help        flags of Hydra itself",
        "",
        "sweeps in other processes (each needs an extra, docs/scaling.md)",
        "  hydra/launcher=joblib          a cell on each GPU or core of this machine at once",
        "  hydra/launcher=submitit_slurm  each cell as a job of Slurm",
        "  hydra/sweeper=optuna           search rho, lr and optimizer.m by the held-out accuracy",
        "",
        "exit codes: 0 done, 1 the run failed, 2 bad input, 75 stopped by a signal after saving, 130 interrupted",
    ]
    return "\n".join(lines)
