"""The answers of docs/results.md: that of each study, whose text is in its YAML file, and that of the page."""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from sam_runner.reports.aggregate import Estimate
from scripts.pages.results_tables import Block, format_estimate, is_above, is_below
from scripts.studies.evidence import Study

LAST, EARLY = "final/test/accuracy", "best/test/accuracy"  # columns of the CSV files
LONGER = "sgd-2x"  # SGD with twice the epochs
GROUPS = ("wrong labels and no augmentation", "wrong labels, crops and flips", "true labels")


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

    def memorised(self, block: str, arm: str) -> str:
        """Part of the wrong labels that the arm predicts in the last epoch."""
        return self._percent(block, arm, "final/train/memorised", 0)

    def nll_difference(self, block: str, arm: str, other: str) -> str:
        """Negative log-likelihood of arm minus other in the last epoch, with its interval; below 0 arm is better."""
        return format_estimate(self._blocks[block].difference(arm, other, "final/test/nll"), 1.0, 2, signed=True)

    def value(self, block: str, arm: str) -> str:
        """The setting that the arm's search chose, as "rho = 0.1"."""
        return self._blocks[block].value(arm).replace("=", " = ")

    def gain(self, block: str, arm: str, other: str) -> str:
        """Test accuracy of arm minus other in the last epoch, in points with its interval."""
        return format_estimate(self._blocks[block].difference(arm, other, LAST), signed=True)

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

    def helps(self, *pairs: Sequence[str]) -> str:
        """Say in a word or two whether the gain of arm over other is clear, for all pairs and blocks that have both."""
        gains = [gain for arm, other in pairs for gain in self._gains(arm, other, LAST).values()]
        above = sum(map(is_above, gains))
        if not gains:
            return "There is no comparison yet."
        if above:
            return "Yes." if above == len(gains) else "In part."
        return "No." if any(map(is_below, gains)) else "This is not shown."

    def say(self, subject: str, arm: str, other: str, *, early: bool = False, numbers: bool = True) -> str:
        """Say in which blocks the gain of arm over other is clear, with the subject of the sentence; "" without blocks.

        The study's `names` are the blocks' names in the sentence.

        Args:
            subject: Such as "SAM's gain over SGD".
            arm: The arm that gains.
            other: The arm that it is compared with.
            early: Whether both stop early.
            numbers: Whether to give the gains, the first of them with its unit.
        """
        gains = self._gains(arm, other, EARLY if early else LAST)
        found: dict[str, list[str]] = {}
        for verdict in ("clear", "not clear", "clearly below 0", "without an interval"):
            if own := [block for block, gain in gains.items() if judge(gain) == verdict]:
                found[verdict] = own
        if not numbers and len(found) == 1 < len(gains):
            (verdict,) = found
            is_pair, number = len(gains) == 2, f"{len(gains)} blocks"
            every, none = ("both blocks", "neither block") if is_pair else (f"all {number}", f"none of the {number}")
            return f"{subject} is " + (f"clear in {none}." if verdict == "not clear" else f"{verdict} in {every}.")
        texts, unit = {}, " points"
        for block in [block for own in found.values() for block in own]:
            number = f" ({format_estimate(gains[block], signed=True)}{unit})" if numbers else ""
            texts[block], unit = self._blocks[block].study.content["names"][block] + number, ""
        parts = [f"{verdict} {enumerate_words([texts[block] for block in own])}" for verdict, own in found.items()]
        return f"{subject} is {enumerate_words(parts, last=', and ')}." if parts else ""

    def share(self, name: str, other: str, *, early: bool = False) -> str:
        """In how many methods of a block the gain over SGD or over longer SGD is clear, as "7 of 10"."""
        block, metric = self._blocks[name], EARLY if early else LAST
        return count_clear([block.difference(arm, other, metric) for arm in self._methods(name)])

    def share_larger(self, name: str, metric: str) -> str:
        """In how many methods of a block the mean of a metric is larger than SGD's, as "7 of 10"."""
        block, methods = self._blocks[name], self._methods(name)
        larger = sum(block.estimate(arm, metric).mean > block.estimate("sgd", metric).mean for arm in methods)
        return f"{larger} of {len(methods)}"

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

    def _methods(self, name: str) -> list[str]:
        return [arm for arm in self._blocks[name].arms if arm not in ("sgd", LONGER)]

    def _gains(self, arm: str, other: str, metric: str) -> dict[str, Estimate]:
        found = {name: self._blocks[name].difference(arm, other, metric) for name in self.compared(arm, other)}
        return {name: gain for name, gain in found.items() if gain.n}

    def _percent(self, block: str, arm: str, metric: str, digits: int) -> str:
        return f"{100 * self._blocks[block].estimate(arm, metric).mean:.{digits}f}%"


def write_answer(
    study: Study, blocks: Sequence[Block], environment: jinja2.Environment, others: Sequence[Block] = ()
) -> str:
    """Return the answer of a study: the template in its YAML file, which has `names` and the methods of `Answers`."""
    answers = Answers(blocks, others)
    known = {name: getattr(answers, name) for name in dir(answers) if not name.startswith("_")}
    return environment.from_string(study.content["answer"]).render(known, names=study.content["names"])


class Group(NamedTuple):
    """The comparisons of SAM with its baseline that have the same kind of labels and of augmentation.

    Attributes:
        name: One of `GROUPS`.
        equal: Gains at equal epochs, by the name of the comparison.
        early: Gains if both stop early.
        cost: Gains over SGD with twice the epochs, where it has been trained.
    """

    name: str
    equal: dict[str, Estimate]
    early: list[Estimate]
    cost: list[Estimate]

    @property
    def span(self) -> str:
        """The smallest and the largest gain at equal epochs."""
        ends = sorted(self.equal.values(), key=lambda gain: gain.mean)
        return " to ".join(format_estimate(gain, signed=True) for gain in (*ends[:1], *ends[1:][-1:]))

    def counts(self) -> list[str]:
        """In how many comparisons gains are clear: at equal epochs, with early stopping, at equal cost; "-" is none."""
        return [count_clear(gains) if gains else "-" for gains in ([*self.equal.values()], self.early, self.cost)]

    def say(self) -> str:
        """Say in how many comparisons the gain at equal epochs is clear, and in which if it is in few of them."""
        clear = {name: gain for name, gain in self.equal.items() if is_above(gain)}
        shares = {len(self.equal): "all comparisons", 1: "one comparison", 0: "no comparison"}
        many = "most comparisons" if 2 * len(clear) > len(self.equal) else "some comparisons"
        gains = [f"{name}, {format_estimate(gain, signed=True)} points" for name, gain in clear.items()]
        listed = f": {'; '.join(gains)}" if 0 < len(clear) <= min(2, len(self.equal) // 2) else ""
        return f"{shares.get(len(clear), many)} with {self.name} ({len(clear)} of {len(self.equal)}{listed})"


def group_comparisons(blocks: Sequence[Block]) -> list[Group]:
    """Return the groups that have comparisons of SAM with its baseline, SGD or AdamW."""
    pairs: dict[str, list[tuple[Block, str]]] = {name: [] for name in GROUPS}
    for block in blocks:
        for arm in block.sam_arms():
            has_wrong = block.estimate(block.baseline(arm), "final/train/memorised").n
            pairs[GROUPS[2] if not has_wrong else GROUPS[block.has_crops(arm)]].append((block, arm))
    return [
        Group(
            name,
            {
                f"{block.study.content['title']}, {block.name}, {arm}": block.difference(arm, block.baseline(arm), LAST)
                for block, arm in found
            },
            [block.difference(arm, block.baseline(arm), EARLY) for block, arm in found],
            [gain for block, arm in found if (gain := block.gain_at_cost(arm))],
        )
        for name, found in pairs.items()
        if found
    ]


def summarise(blocks: Sequence[Block], groups: Sequence[Group]) -> str:
    """Answer for all studies where SAM's gain over its baseline is clear; each line is a paragraph."""
    if not groups:
        return ""
    below = sum(is_below(gain) for group in groups for gain in group.equal.values())
    text = (
        "SAM is clearly better than its baseline in "
        f"{enumerate_words([group.say() for group in groups], ', in ', ', and in ')}, and clearly worse in "
        f"{below or 'none'}. These are comparisons at equal epochs, where SAM costs twice as much."
    )
    return "\n".join([text, *summarise_other_means(blocks)])


def summarise_other_means(blocks: Sequence[Block]) -> list[str]:
    """Say for each study how SAM compares with other means for SGD: crops and flips, and a searched weight decay."""
    studies: dict[str, list[Block]] = {}
    for block in blocks:
        studies.setdefault(block.study.content["title"], []).append(block)
    texts = []
    for title, own in studies.items():
        answers = Answers(own)
        for subject, arm, other in (
            ("the gain of SGD with crops and flips over SAM without them", "sgd-crops", "sam"),
            ("SAM's gain over SGD with a searched weight decay", "sam", "sgd-decay"),
        ):
            if text := answers.say(subject, arm, other):
                texts.append(f"In the study *{title}* {text}")
    return texts


def judge(gain: Estimate) -> str:
    """Return where the 95% interval of a gain lies, as a part of the sentence "the gain is ..."."""
    if gain.n < 2:
        return "without an interval"
    return "clear" if is_above(gain) else "clearly below 0" if is_below(gain) else "not clear"


def enumerate_words(words: Sequence[str], comma: str = ", ", last: str = " and ") -> str:
    """Return "a, b and c"."""
    return last.join(filter(None, [comma.join(words[:-1]), *words[-1:]]))


def count_clear(gains: Sequence[Estimate]) -> str:
    """Return in how many comparisons the interval lies above 0, as "7 of 10"."""
    return f"{sum(map(is_above, gains))} of {len(gains)}"
