"""Methods around another method: they change the final gradient or choose the steps, and leave the rest to it."""

from torch import Tensor

from sam_runner.sam.method import Group, GroupStats, Method, StepContext
from sam_runner.sam.methods.sam import Sam
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation, is_zero


class Around(Method):
    """Leaves to another method every decision that a subclass does not override; the two share one state.

    Attributes:
        inner_blocker: Why no other method can be around this one; empty if one can.

    Args:
        around: The other method. Default: SAM with p = 2.

    Raises:
        ValueError: If no method can be around the other one.
    """

    inner_blocker: str = ""

    def __init__(self, around: Method | None = None) -> None:
        super().__init__()
        self.around = around = Sam() if around is None else around
        if isinstance(around, Around) and around.inner_blocker:
            raise ValueError(f"{self.name} cannot be around {around.name}: {around.inner_blocker}")
        self.combines = self.combines or around.combines
        self.descends_along_g = self.descends_along_g or around.descends_along_g
        self.needs_number = self.needs_number or around.needs_number
        self.data_decide = self.data_decide or around.data_decide
        self.sync_perturbation = around.sync_perturbation
        self.capture_blocker = self.capture_blocker or around.capture_blocker
        self.shard_blocker = self.shard_blocker or around.shard_blocker
        self.state, self.staged = around.state, around.staged

    def prepare(self, objective: Objective) -> None:
        """Let the other method create its state."""
        self.around.prepare(objective)

    def radius(self, rho: float | Tensor, number: int | None, lr: float) -> float | Tensor:
        """Return the other method's radius."""
        return self.around.radius(rho, number, lr)

    def passes(self, number: int) -> int:
        """Return the other method's number of gradients."""
        return self.around.passes(number)

    def cost(self, number: int) -> tuple[float, float]:
        """Return the other method's cost."""
        return self.around.cost(number)

    def accumulate(self, group: Group) -> GroupStats:
        """Make the other method's passes."""
        return self.around.accumulate(group)

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation | None:
        """Return the other method's eps."""
        return self.around.perturb(grads, group)

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Combine the gradients as the other method does, in steps in which it perturbs.

        Raises:
            ValueError: If this method needs g and the other one does not evaluate it.
        """
        if first is None and not is_zero(context.rho):
            raise ValueError(f"{self.name} needs the gradient at w, which {self.around.name} does not evaluate")
        if self.around.combines and not is_zero(context.rho):
            self.around.combine(final, first, context)

    def commit(self, finite: Tensor, context: StepContext) -> None:
        """Write the staged state."""
        self.around.commit(finite, context)


class SomeSteps(Around):
    """Makes the other method's step where `is_chosen` is true, otherwise the base optimizer's own step."""

    needs_number = True

    def is_chosen(self, number: int) -> bool:
        """Return whether the other method makes step `number`; decided before the step, without the data."""
        raise NotImplementedError(f"{type(self).__name__} must define is_chosen")

    def radius(self, rho: float | Tensor, number: int | None, lr: float) -> float | Tensor:
        """Return the other method's radius in a chosen step, otherwise 0."""
        assert number is not None
        return self.around.radius(rho, number, lr) if self.is_chosen(number) else 0.0

    def passes(self, number: int) -> int:
        """Return the other method's number of gradients in a chosen step, otherwise 1."""
        return self.around.passes(number) if self.is_chosen(number) else 1

    def cost(self, number: int) -> tuple[float, float]:
        """Return the other method's cost in a chosen step, otherwise that of one gradient."""
        return self.around.cost(number) if self.is_chosen(number) else (1, 1)
