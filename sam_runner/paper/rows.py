"""The numbers that the paper reports, from numbers.yaml, and which of them a run is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.config.optimizer import SamConfig

NUMBERS = Path(__file__).with_name("numbers.yaml")
AUGMENT: dict[str, dict[str, tuple[Any, ...]]] = {  # by the name of an option: key of a flat configuration, its values
    "basic": {"augment.policy": ("none",), "augment.cutout": (0,), "augment.mixup": (None,)},
    "cutout": {"augment.policy": ("none",), "augment.cutout": (16,), "augment.mixup": (None,)},
    "autoaugment": {"augment.policy": ("cifar10", "svhn"), "augment.cutout": (16,), "augment.mixup": (None,)},
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        title: Of the table, with the unit.
        metric: error or accuracy, in %.
        paper: What the experiment sets the key ``paper`` to.
        words: What is typed to choose the row.
        typed: What is tuned for it, ``rho=0.1`` say; the paper's, or where it has none ours.
        sam: As printed: mean, and the 95% interval where there is one; "" without a number.
        sgd: The same of the baseline.
        sam_top5: The top-5 error, where the table has it.
        sgd_top5: The same of the baseline.
        given: Data and noise that the number is for.
        folder: Of its images, below one that has those of all rows.
        labels: Name of the row whose network gives the labels, where it is trained on those.
    """

    title: str
    metric: str
    paper: str
    words: str
    typed: str = ""
    sam: str = ""
    sgd: str = ""
    sam_top5: str = ""
    sgd_top5: str = ""
    given: str = ""
    folder: str = ""
    labels: str = ""

    @property
    def name(self) -> str:
        """What the key ``paper`` says for a run that belongs to this row whatever else it differs in."""
        return "-".join(
            [self.paper, *(value for key, value in _pairs(self.words) if key not in ("experiment", "paper"))]
        )

    @property
    def optimizers(self) -> list[str]:
        """Those of which the paper has a number; where it has none, the one that the words choose."""
        plain = "optimizer=sgd" in self.words.split()
        return [name for name, number in (("sgd", self.sgd), ("sam", self.sam)) if number] or [
            "sgd" if plain else "sam"
        ]

    def number(self, optimizer: str) -> str:
        """As printed, with the top-5 error behind a stroke where there is one; "" without a number."""
        first, top5 = (self.sam, self.sam_top5) if optimizer == "sam" else (self.sgd, self.sgd_top5)
        return f"{first} / {top5}" if top5 else first

    def fits(self, config: ExperimentConfig) -> bool:
        """Whether a run of these settings belongs to this row."""
        if config.paper == self.name:
            return True
        if config.paper != self.paper:
            return False
        values = config.flat()
        chosen = _pairs(f"{self.words} {self.given}")
        return all(_has_value(values, key, value) for key, value in chosen if key != "experiment")

    def untuned(self, config: ExperimentConfig) -> str:
        """Return the entries of `typed` that a run has other values of, "" where it has none."""
        values, sam = config.flat(), isinstance(config.optimizer, SamConfig)
        pairs = [(key, value) for key, value in _pairs(self.typed) if sam or key != "rho"]
        names = {"rho": "optimizer.rho", "lr": "optimizer.base.lr"}
        return " ".join(f"{key}={value}" for key, value in pairs if float(values[names[key]]) != float(value))


def tables() -> dict[str, list[Row]]:
    """All of paper.yaml, in its order: rows by table; what a table has beside its rows holds for each of them."""
    read = yaml.safe_load(NUMBERS.read_text(encoding="utf-8"))
    return {name: [Row(**table | row) for row in table.pop("rows")] for name, table in read.items()}


def rows() -> list[Row]:
    """Those of all tables."""
    return [row for table in tables().values() for row in table]


def describe_target(config: ExperimentConfig, overrides: Sequence[str] = ()) -> str:
    """Return the paper's number for a run in one line, "" where its settings are of no experiment.

    Args:
        config: The settings.
        overrides: What the user typed, as ``key=value``; what changes the result and is not in the row is named.
    """
    if not config.paper:
        return ""
    row = next((row for row in rows() if row.fits(config)), None)
    if row is None:
        return "no number for this choice"
    numbers = ", ".join(f"{name.upper()} {row.number(name)}" for name in ("sam", "sgd") if row.number(name))
    untuned = row.untuned(config)
    hint = f"; the row has {untuned} here, which has to be typed" if untuned else ""
    others = _other_overrides(row, config, overrides)
    beside = f"; not with {others[:200]}" if others else ""
    return f"{row.title}: {numbers or 'no number'}{hint}{beside}"


def _other_overrides(row: Row, config: ExperimentConfig, overrides: Sequence[str]) -> str:
    """Return the overrides that change the result and that the row does not have."""
    ignored = {key for key, _ in _pairs(f"{row.words} {row.typed} {row.given}")} | {"seed", "optimizer"}
    for name, facts, _ in walk(config):
        if facts.effect != "result" or not facts.in_reports or facts.path:
            ignored.add(name)
    ignored.discard("rho")
    if "rho" in row.typed or "rho" in row.words:
        ignored.add("rho")
    return " ".join(word for word in overrides if word.lstrip("+~").partition("=")[0] not in ignored)


def _pairs(words: str) -> list[tuple[str, str]]:
    """Split ``key=value key=value``."""
    return [(key, value) for key, _, value in (word.partition("=") for word in words.split())]


def _has_value(values: Mapping[str, Any], key: str, value: str) -> bool:
    """Whether settings by dotted key have what ``key=value`` chooses."""
    if key in ("data", "noise"):
        return str(values.get(f"{key}._target_")).endswith(f".{value}")
    if key == "optimizer":
        return bool(values.get("optimizer.name") == value)
    if key == "augment":
        if value == "mixup":  # with any alpha: the paper reports the best of four
            return values.get("augment.mixup") is not None
        return all(values.get(name, wanted[0]) in wanted for name, wanted in AUGMENT[value].items())
    try:
        return float(values[key]) == float(value)
    except (KeyError, TypeError, ValueError):
        return str(values.get(key)).lower() == value
