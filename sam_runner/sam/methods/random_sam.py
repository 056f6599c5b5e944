"""SAM in randomly chosen steps: SS-SAM (Zhao, Zhang and Hu, 2022, arXiv 2203.09962)."""

import torch

from sam_runner.sam.method import Method
from sam_runner.sam.methods.around import SomeSteps
from sam_runner.utils.seeding import make_generator


class RandomSam(SomeSteps):
    """Step t is SAM's with probability p_t = start + (end - start) t / (T - 1), drawn from (seed, t).

    All processes draw alike and a resumed run repeats the draws. The linear schedule is one of those that descriptions
    by others name; it was not checked against the paper. Source of the default: p = 0.5 in all steps makes 1.5
    passes a step, the mean with which the paper's abstract reports SAM's accuracy. The authors' code of a later version
    (JustNobody0204/Submission-AAAI2023) has a constant p, 0.6 in its example.

    Args:
        start: Probability in the first step, in [0, 1].
        end: Probability in the last step, in [0, 1].
        total_steps: T, number of steps of the training.
        seed: Seed of the draws.
        around: The method of the chosen steps. Default: SAM.
    """

    name = "random_sam"

    def __init__(
        self, start: float = 0.5, end: float = 0.5, *, total_steps: int, seed: int, around: Method | None = None
    ) -> None:
        super().__init__(around)
        self.start, self.end, self.total_steps, self.seed = start, end, total_steps, seed

    def is_chosen(self, number: int) -> bool:
        """Draw for a step."""
        fraction = min(number / max(self.total_steps - 1, 1), 1.0)
        probability = self.start + (self.end - self.start) * fraction
        draw = torch.rand((), generator=make_generator(self.seed, "random_sam", number))
        return float(draw) < probability
