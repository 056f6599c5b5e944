"""What the paper reports for a run: the rows of paper.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_runner.runs.folder import flat

NUMBERS = Path(__file__).with_name("numbers.yaml")
RESULTLESS = {  # keys that may be typed beside a row's words, and the number is still the one for it
    "seed", "device", "precision", "compile", "channels_last", "deterministic", "accumulate", "run_dir", "sweep_name",
    "dry_run", "log_every", "eval_every", "data.root", "data.download", "data.num_workers", "rank_timeout", "optimizer",
    "paper",
}  # fmt: skip
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

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run of these settings is one of this row."""
        if settings["paper"] == self.name:
            return True
        if settings["paper"] != self.paper:
            return False
        values = flat(settings)
        chosen = _pairs(f"{self.words} {self.given}")
        return all(_is(values, key, value) for key, value in chosen if key != "experiment")

    def untuned(self, settings: Mapping[str, Any]) -> str:
        """What of `typed` a run has otherwise, "" where nothing."""
        values, sam = flat(settings), "rho" in settings["optimizer"]
        pairs = [(key, value) for key, value in _pairs(self.typed) if sam or key != "rho"]
        here = {"rho": "optimizer.rho", "lr": "optimizer.base.lr"}
        return " ".join(f"{key}={value}" for key, value in pairs if float(values[here[key]]) != float(value))


def tables() -> dict[str, list[Row]]:
    """All of paper.yaml, in its order: rows by table; what a table has beside its rows holds for each of them."""
    read = yaml.safe_load(NUMBERS.read_text(encoding="utf-8"))
    return {name: [Row(**table | row) for row in table.pop("rows")] for name, table in read.items()}


def rows() -> list[Row]:
    """Those of all tables."""
    return [row for table in tables().values() for row in table]


def target(settings: Mapping[str, Any], typed: Sequence[str] = ()) -> str:
    """What the paper reports for these settings in a line, "" where they are of no experiment.

    Args:
        settings: Of the run.
        typed: As ``key=value``; what is not of the row and changes the result is told.
    """
    if not settings["paper"]:
        return ""
    row = next((row for row in rows() if row.fits(settings)), None)
    if row is None:
        return "no number for this choice"
    numbers = ", ".join(f"{name.upper()} {row.number(name)}" for name in ("sam", "sgd") if row.number(name))
    numbers = numbers or "no number"
    untuned = row.untuned(settings)
    return (
        f"{row.title}: {numbers}"
        + (f"; the row has {untuned} here, which has to be typed" if untuned else "")
        + _beside(row, typed)
    )


def _beside(row: Row, typed: Sequence[str]) -> str:
    """What was typed that the row does not have."""
    its_own = {key for key, _ in _pairs(f"{row.words} {row.typed} {row.given}")} | RESULTLESS
    others = [word for word in typed if word.lstrip("+~").partition("=")[0] not in its_own]
    return f"; not with {' '.join(others)[:200]}" if others else ""


def _pairs(words: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (word.partition("=") for word in words.split())]


def _is(values: Mapping[str, Any], key: str, value: str) -> bool:
    """Whether flat settings have what ``key=value`` chooses."""
    if key in ("data", "noise"):
        return str(values.get(f"{key}._target_")).endswith(f".{value}")
    if key == "optimizer":
        return ("optimizer.rho" in values) == (value == "sam")
    if key == "augment":
        if value == "mixup":  # with any alpha: the paper takes the best of four
            return values.get("augment.mixup") is not None
        return all(values.get(name, wanted[0]) in wanted for name, wanted in AUGMENT[value].items())
    try:
        return float(values[key]) == float(value)
    except (KeyError, TypeError, ValueError):
        return str(values.get(key)).lower() == value
