"""The answers of docs/results.md: that of each study, whose text is in its YAML file, and that of the page."""

from collections.abc import Sequence

import jinja2

from sam_runner.reports.aggregate import Estimate
from scripts.pages.results_tables import Block, format_estimate, is_above
from scripts.studies.evidence import PLAIN_FIT, Study

LAST, EARLY = "final/test/accuracy", "best/test/accuracy"  # columns of the CSV files


class Answers:
    """What the text of an answer can use: numbers of a study's blocks, as text with the digits that the page gives.

    A block is named as in its study ("worst"), a block of another study with that study ("length/epochs5").

    Args:
        blocks: The blocks of the study that have runs.
        others: Blocks of all studies.
    """

    def __init__(self, blocks: Sequence[Block], others: Sequence[Block] = ()) -> None:
        self._own = [block.name for block in blocks]
        self._blocks = {f"{block.study.name}/{block.name}": block for block in others}
        self._blocks |= {block.name: block for block in blocks}

    def has(self, block: str, arm: str) -> bool:
        """Whether a block has final runs of an arm."""
        return block in self._blocks and arm in self._blocks[block].arms

    def acc(self, block: str, arm: str) -> str:
        """Mean test accuracy in the last epoch."""
        return self._percent(block, arm, LAST, 1)

    def fit(self, block: str, arm: str) -> str:
        """Part of the training labels that the arm predicts in the last epoch."""
        return self._percent(block, arm, "final/train/accuracy", 0)

    def plain_fit(self, block: str, arm: str) -> str:
        """Part of the training labels that the last weights predict without augmentation; "" where it is not known."""
        known = self._blocks[block].estimate(arm, PLAIN_FIT).n
        return self._percent(block, arm, PLAIN_FIT, 1) if known else ""

    def memorised(self, block: str, arm: str) -> str:
        """Part of the wrong labels that the arm predicts in the last epoch."""
        return self._percent(block, arm, "final/train/memorised", 0)

    def nll(self, block: str, arm: str) -> str:
        """Mean negative log-likelihood of the test set in the last epoch."""
        return f"{self._blocks[block].estimate(arm, 'final/test/nll').mean:.2f}"

    def nll_difference(self, block: str, arm: str, other: str) -> str:
        """Negative log-likelihood of arm minus other in the last epoch, with its interval; below 0 arm is better."""
        return format_estimate(self._blocks[block].difference(arm, other, "final/test/nll"), 1.0, 2, signed=True)

    def value(self, block: str, arm: str) -> str:
        """The setting that the arm's search chose, as "rho = 0.1"."""
        return self._blocks[block].value(arm).replace("=", " = ")

    def gain(self, block: str, arm: str, other: str) -> str:
        """Test accuracy of arm minus other in the last epoch, in points with its interval."""
        return format_estimate(self._blocks[block].difference(arm, other, LAST), signed=True)

    def early_gain(self, block: str, arm: str, other: str) -> str:
        """`gain` with early stopping."""
        return format_estimate(self._blocks[block].difference(arm, other, EARLY), signed=True)

    def gain_between(self, block: str, arm: str, other_block: str, other: str) -> str:
        """`gain` over an arm of another block that has the same data and network."""
        values, others = self._blocks[block].column(arm, LAST), self._blocks[other_block].column(other, LAST)
        return format_estimate(Block.pair(values, others), signed=True)

    def times(self, block: str, arm: str, other_block: str, other: str) -> str:
        """Gradients that a run of an arm evaluates divided by those of another block's arm."""
        gradients = "gradient_evaluations"
        cost, others = (
            self._blocks[name].column(of, gradients).mean() for name, of in ((block, arm), (other_block, other))
        )
        return f"{cost / others:.0f}"

    def compared(self, arm: str, other: str) -> list[str]:
        """Names of the blocks that have both arms."""
        return [name for name in self._own if self.has(name, arm) and self.has(name, other)]

    def above(self, arm: str, other: str) -> list[str]:
        """Names of the blocks where the interval of `gain` lies above 0."""
        return [name for name in self.compared(arm, other) if is_above(self._last(name, arm, other))]

    def below(self, arm: str, other: str) -> list[str]:
        """Names of the blocks where the interval of `gain` lies below 0."""
        return [name for name in self.compared(arm, other) if is_above(self._last(name, other, arm))]

    def clear(self, name: str) -> str:
        """The arms whose gain over their baseline has an interval without 0, with this gain, the largest first."""
        block, found = self._blocks[name], {}
        for arm in block.arms:
            if arm != block.baseline(arm):
                found[arm] = block.difference(arm, block.baseline(arm), LAST)
        clear_of_0 = {arm: gain for arm, gain in found.items() if gain.contains_zero is False}
        ordered = sorted(clear_of_0, key=lambda arm: -clear_of_0[arm].mean)
        return ", ".join(f"{arm} ({format_estimate(clear_of_0[arm], signed=True)})" for arm in ordered) or "none"

    def low_fit(self, name: str, share: float) -> str:
        """The arms that predict less than a share of their training labels in the last epoch."""
        block = self._blocks[name]
        return ", ".join(arm for arm in block.arms if block.estimate(arm, "final/train/accuracy").mean < share)

    def _last(self, name: str, arm: str, other: str) -> Estimate:
        return self._blocks[name].difference(arm, other, LAST)

    def _percent(self, block: str, arm: str, metric: str, digits: int) -> str:
        return f"{100 * self._blocks[block].estimate(arm, metric).mean:.{digits}f}%"


def write_answer(
    study: Study, blocks: Sequence[Block], environment: jinja2.Environment, others: Sequence[Block] = ()
) -> str:
    """Return the answer of a study; its text in the YAML file is a template with the methods of `Answers`."""
    answers = Answers(blocks, others)
    known = {name: getattr(answers, name) for name in dir(answers) if not name.startswith("_")}
    return environment.from_string(study.content["answer"]).render(known)


def summarise(blocks: Sequence[Block]) -> str:
    """Answer for all studies how often SAM gains over its baseline, SGD or AdamW; each line is a paragraph."""
    pairs = [(block, arm) for block in blocks for arm in block.sam_arms()]
    wrong = [(block, arm) for block, arm in pairs if block.estimate(block.baseline(arm), "final/train/memorised").n]
    groups = {"With wrong labels": wrong, "With true labels": [pair for pair in pairs if pair not in wrong]}
    found = [summarise_group(name, group) for name, group in groups.items() if group]
    return "\n".join([*found, *summarise_crops(blocks)])


def summarise_group(name: str, pairs: Sequence[tuple[Block, str]]) -> str:
    """Say how often SAM's gain over its baseline is clear: at equal epochs, with early stopping and at equal cost."""
    equal, early = (
        [block.difference(arm, block.baseline(arm), metric) for block, arm in pairs] for metric in (LAST, EARLY)
    )
    cost = list(filter(None, (block.gain_at_cost(arm) for block, arm in pairs)))
    ends = sorted(equal, key=lambda gain: gain.mean)
    span = " to ".join(format_estimate(gain, signed=True) for gain in (*ends[:1], *ends[1:][-1:]))
    at_cost = f" It is clear over SGD with twice the epochs (equal cost) in {count_clear(cost)}." if cost else ""
    return (
        f"{name}, SAM's gain over its baseline is clear in {count_clear(equal)} comparisons at equal epochs ({span} "
        f"points), and in {count_clear(early)} if both stop early.{at_cost}"
    )


def summarise_crops(blocks: Sequence[Block]) -> list[str]:
    """Say how SGD with crops and flips compares with SAM without and with them; nothing if no block has both."""

    def list_gains(arm: str, other: str) -> str:
        found = [block for block in blocks if {arm, other} <= set(block.arms)]
        gains = (
            f"{format_estimate(block.difference(arm, other, LAST), signed=True)} ({block.name})" for block in found
        )
        return " and ".join(gains)

    crops, both = list_gains("sgd-crops", "sam"), list_gains("sam-crops", "sgd-crops")
    if not crops:
        return []
    text = (
        "Of the runs with wrong labels only the arms whose names end in crops have crops and flips. In the study of "
        f"human label noise SGD with crops and flips minus SAM without them is {crops} points."
    )
    return [f"{text} If both have them, SAM minus SGD is {both} points." if both else text]


def count_clear(gains: Sequence[Estimate]) -> str:
    """Return in how many comparisons the interval lies above 0, as "7 of 10"."""
    return f"{sum(map(is_above, gains))} of {len(gains)}"
