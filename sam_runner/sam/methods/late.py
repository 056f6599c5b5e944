"""SAM in the last part of training only, or in the first (Zhou et al., 2024, arXiv 2410.10373, Section 3)."""

from typing import Literal

from sam_runner.sam.method import Method
from sam_runner.sam.methods.around import SomeSteps


class Late(SomeSteps):
    """The last round(fraction T) of T steps are SAM's, or with ``part="first"`` the first ones.

    Andriushchenko and Flammarion (arXiv 2206.06232) study both orders too. Source of the default: 0.2 is ours and gives
    the same cost as `LookSam` and `Interval`. The authors' script (zzp1012/SAM-in-Late-Phase) has the last 10 of 160
    epochs.

    Args:
        fraction: Fraction of the steps that are SAM's, in [0, 1]. 1 is SAM, 0 is exactly the base optimizer.
        part: "last" or "first".
        total_steps: T, number of steps of the training.
        around: The method of the chosen steps. Default: SAM.
    """

    name = "late"

    def __init__(
        self,
        fraction: float = 0.2,
        part: Literal["last", "first"] = "last",
        *,
        total_steps: int,
        around: Method | None = None,
    ) -> None:
        super().__init__(around)
        self.fraction, self.part, self.total_steps = fraction, part, total_steps

    def is_chosen(self, number: int) -> bool:
        """Return whether the step is in the part."""
        count = round(self.fraction * self.total_steps)
        return number < count if self.part == "first" else number >= self.total_steps - count
