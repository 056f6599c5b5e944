"""The paper's numbers, read from numbers.yaml, and the row of a table that a run belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.config.optimizer.perturbation import SamConfig

NUMBERS = Path(__file__).with_name("numbers.yaml")
AUGMENT_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {  # by option of the group augment: accepted values by key
    "basic": {"augment.policy": ("none",), "augment.cutout": (0,), "augment.mixup": (None,)},
    "cutout": {"augment.policy": ("none",), "augment.cutout": (16,), "augment.mixup": (None,)},
    "autoaugment": {"augment.policy": ("cifar10", "svhn"), "augment.cutout": (16,), "augment.mixup": (None,)},
}


@dataclass(frozen=True)
class Row:
    """One row of a table in the paper.

    Attributes:
        title: Title of the table, with the unit of the numbers.
        metric: "error" or "accuracy", in %.
        paper: Value of the key ``paper`` in the row's experiment.
        overrides: Overrides that choose the row.
        tuned_overrides: Overrides with the values tuned for the row, e.g. ``rho=0.1``: the paper's, or ours where the
            paper gives none.
        sam: SAM's number as printed: the mean, and the 95% interval where there is one; "" without a number.
        sgd: The baseline's number as printed; "" without a number.
        sam_top5: SAM's top-5 error as printed; "" without one.
        sgd_top5: The baseline's top-5 error as printed; "" without one.
        conditions: Data and noise that the number is for, as overrides.
        subfolder: Folder of the row's images below a folder with the images of all rows; "" for one set of images.
        teacher: Name of the row whose network gives the training labels; "" for the labels of the data.
    """

    title: str
    metric: str
    paper: str
    overrides: str
    tuned_overrides: str = ""
    sam: str = ""
    sgd: str = ""
    sam_top5: str = ""
    sgd_top5: str = ""
    conditions: str = ""
    subfolder: str = ""
    teacher: str = ""

    @property
    def name(self) -> str:
        """The row's name. A run with this value of the key ``paper`` belongs to the row, whatever its settings."""
        choices = [value for key, value in _pairs(self.overrides) if key not in ("experiment", "paper")]
        return "-".join([self.paper, *choices])

    @property
    def optimizers(self) -> list[str]:
        """The optimizers that the paper has a number for; without numbers the optimizer that the overrides choose."""
        numbers = [name for name, number in (("sgd", self.sgd), ("sam", self.sam)) if number]
        return numbers or ["sgd" if "optimizer=sgd" in self.overrides.split() else "sam"]

    def number(self, optimizer: str) -> str:
        """Return the number as printed, with the top-5 error after a slash where there is one; "" without a number."""
        first, top5 = (self.sam, self.sam_top5) if optimizer == "sam" else (self.sgd, self.sgd_top5)
        return f"{first} / {top5}" if top5 else first

    def command(self, optimizer: str) -> list[str]:
        """Return the overrides of the row with its tuned values, for one of its optimizers."""
        words = [word for word in self.overrides.split() if not word.startswith("optimizer=")]
        tuned = [word for word in self.tuned_overrides.split() if optimizer == "sam" or not word.startswith("rho=")]
        return [*words, f"optimizer={optimizer}", *tuned]

    def matches(self, config: ExperimentConfig) -> bool:
        """Return whether a run belongs to this row."""
        if config.paper == self.name:
            return True
        return config.paper == self.paper and not self.missing_choices(config)

    def missing_choices(self, config: ExperimentConfig) -> list[str]:
        """Return the row's choices and conditions, as overrides, for which a run has other values."""
        values, choices = config.flat(), _pairs(f"{self.overrides} {self.conditions}")
        return [
            f"{key}={value}" for key, value in choices if key != "experiment" and not _has_value(values, key, value)
        ]

    def tuning_differences(self, config: ExperimentConfig) -> str:
        """Return the tuned overrides that a run has other values for; "" where it has none."""
        values, sam = config.flat(), isinstance(config.optimizer, SamConfig)
        pairs = [(key, value) for key, value in _pairs(self.tuned_overrides) if sam or key != "rho"]
        names = {"rho": "optimizer.rho", "lr": "optimizer.base.lr"}
        return " ".join(f"{key}={value}" for key, value in pairs if float(values[names[key]]) != float(value))


def load_tables() -> dict[str, list[Row]]:
    """Return the rows of each table in numbers.yaml, in its order; a table's own entries hold for all its rows."""
    tables = yaml.safe_load(NUMBERS.read_text(encoding="utf-8"))
    return {name: [Row(**table | row) for row in table.pop("rows")] for name, table in tables.items()}


def load_rows() -> list[Row]:
    """Return the rows of all tables."""
    return [row for table in load_tables().values() for row in table]


def describe_target(config: ExperimentConfig, overrides: Sequence[str] = ()) -> str:
    """Return the paper's number for a run in one line; "" for a run of no experiment of the paper.

    Args:
        config: Settings of the run.
        overrides: Overrides of the user. Those that change the result and are not part of the row are listed.
    """
    if not config.paper:
        return ""
    rows = load_rows()
    row = next((row for row in rows if row.matches(config)), None)
    if row is None:
        return f"no number for these settings; {_describe_nearest(rows, config)}"
    numbers = ", ".join(f"{name.upper()} {row.number(name)}" for name in ("sam", "sgd") if row.number(name))
    tuning, others = row.tuning_differences(config), _other_overrides(row, config, overrides)
    hint = f"; the row uses {tuning}: add it to the command" if tuning else ""
    differences = f"; the row does not use {others[:200]}" if others else ""
    return f"{row.title}: {numbers or 'no number'}{hint}{differences}"


def _describe_nearest(rows: Sequence[Row], config: ExperimentConfig) -> str:
    """Return what to add to the command for the rows that differ least from a run."""
    missing = [row.missing_choices(config) for row in rows if f"{row.paper}.".startswith(f"{config.paper}.")]
    if not missing:
        return f"no row of the tables is named {config.paper}"
    fewest = min(map(len, missing))
    nearest = list(dict.fromkeys(" ".join(words) for words in missing if len(words) == fewest))
    return f"the nearest {'row uses' if len(nearest) == 1 else 'rows use'} {', or '.join(nearest)}"


def _other_overrides(row: Row, config: ExperimentConfig, overrides: Sequence[str]) -> str:
    """Return the overrides that change the result and are not part of the row."""
    known = {key for key, _ in _pairs(f"{row.overrides} {row.tuned_overrides} {row.conditions}")}
    no_effect = {
        name
        for name, facts, _ in walk(config)
        if not facts.changes_run or facts.effect == "rounding" or not facts.in_reports or facts.path
    }
    ignored = known | {"seed", "optimizer"} | no_effect
    return " ".join(word for word in overrides if word.lstrip("+~").partition("=")[0] not in ignored)


def _pairs(overrides: str) -> list[tuple[str, str]]:
    """Split ``key=value key=value``."""
    return [(key, value) for key, _, value in (word.partition("=") for word in overrides.split())]


def _has_value(values: Mapping[str, Any], key: str, value: str) -> bool:
    """Return whether settings by dotted key have the value that an override chooses."""
    if key in ("data", "noise"):
        return str(values.get(f"{key}._target_")).endswith(f".{value}")
    if key == "optimizer":
        return bool(values.get("optimizer.name") == value)
    if key == "augment":
        if value == "mixup":  # with any alpha: the paper reports the best of four
            return values.get("augment.mixup") is not None
        return all(values.get(name, accepted[0]) in accepted for name, accepted in AUGMENT_VALUES[value].items())
    try:
        return float(values[key]) == float(value)
    except (KeyError, TypeError, ValueError):
        return str(values.get(key)).lower() == value
