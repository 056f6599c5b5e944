"""SAM in every k-th step, the base optimizer in the others (the baseline SAM-k of Liu et al., arXiv 2203.02714)."""

from sam_runner.sam.method import Method
from sam_runner.sam.methods.around import SomeSteps


class Interval(SomeSteps):
    """Steps 0, k, 2k, ... are SAM's.

    Default of k: 5, as LookSAM's.

    Args:
        interval: k, >= 1. k = 1 is SAM.
        around: The method of the chosen steps. Default: SAM.
    """

    name = "interval"

    def __init__(self, interval: int = 5, around: Method | None = None) -> None:
        super().__init__(around)
        self.interval = interval

    def is_chosen(self, number: int) -> bool:
        """Return whether k divides the number."""
        return number % self.interval == 0
