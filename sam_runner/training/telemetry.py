"""Measurements during training that change no number of the run: geometry of a SAM step, largest Hessian eigenvalue."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.geometry.lanczos import largest_eigenvalues
from sam_runner.geometry.trace import random_signs
from sam_runner.sam.batch import Batch
from sam_runner.sam.method import Group, GroupStats, Method, StepContext
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation, is_zero
from sam_runner.sam.step import SamStep, StepStats
from sam_runner.training.subset import subset_loss
from sam_runner.utils.errors import TrainingError, first_line
from sam_runner.utils.seeding import RngState, make_generator

log = logging.getLogger("sam_runner")
TOLERANCE = 1e-3  # of the residual of the largest eigenvalue, relative


@dataclass(frozen=True)
class Telemetry:
    """What a run measures while it trains.

    Attributes:
        every: Number of steps between two measurements of a step; None: none.
        curvature_epochs: Number of epochs between two measurements of the largest eigenvalue; None: none.
        config: Settings of the run.
        subset: Examples of `lambda_max`, or None.
    """

    every: int | None = None
    curvature_epochs: int | None = None
    config: ExperimentConfig | None = None
    subset: Batch | None = None

    def measures_step(self, step: int, measured: int) -> bool:
        """Return whether a measurement is due.

        A measurement is due at each multiple of `every` and stays due until a step can be measured: one with a second
        pass that is not skipped.

        Args:
            step: Number of the step, from 1.
            measured: Number of the last step that was measured; 0: none.
        """
        return self.every is not None and step // self.every > measured // self.every

    def measures_epoch(self, epoch: int) -> bool:
        """Return whether the largest eigenvalue is measured after the epoch with a number from 1."""
        return self.curvature_epochs is not None and epoch % self.curvature_epochs == 0

    def lambda_max(self, model: nn.Module) -> dict[str, float]:
        """Return ``telemetry/lambda_max``, the largest Hessian eigenvalue of the run's loss on the fixed examples.

        It is what ``sam-curvature`` reports with batch norm in training mode. The network and the random state are
        not changed. Where it cannot be computed, a warning says why and the result is empty: training goes on.
        """
        assert self.config is not None and self.subset is not None
        state = RngState.capture(self.subset.inputs.device)
        try:
            loss = subset_loss(self.config, model, self.subset)
            loss.require_repeatable()
            start = random_signs(1, loss.weights, make_generator(0, "lanczos start"))[0]
            found = largest_eigenvalues(lambda v: loss.hessian_products([v])[0], start, 1, tolerance=TOLERANCE)
        except (TrainingError, RuntimeError) as error:  # also torch.OutOfMemoryError
            log.warning("telemetry.curvature_epochs: no lambda_max: %s", first_line(error))
            return {}
        finally:
            state.restore(self.subset.inputs.device)
        if not math.isfinite(found.values[0]):
            log.warning("telemetry.curvature_epochs: no lambda_max: it is not finite")
            return {}
        if not found.converged:
            log.warning("telemetry.curvature_epochs: lambda_max is exact to %.2g only", found.residuals[0])
        return {"telemetry/lambda_max": found.values[0]}


OFF = Telemetry()


def measure_step(step: SamStep, batch: Batch, rho: float, number: int) -> tuple[StepStats, dict[str, float]]:
    """Take a step, bitwise equal to ``step(batch, rho, number)``, and measure it.

    Args:
        step: The step.
        batch: See `SamStep`.
        rho: See `SamStep`.
        number: See `SamStep`.

    Returns:
        The statistics of the step, and the measurements by tag: empty for a step with one pass and for a skipped step.
        Either all processes have measurements or none has. ``telemetry/cosine``: cosine of g and g_SAM.
        ``telemetry/orthogonal``: norm of the part of g_SAM that is orthogonal to g, divided by ||g_SAM||.
        ``telemetry/eps_share/MODULE``: share of ||eps||^2 in the parameters of a module, if eps is not zero. g and
        g_SAM are those of the whole batch over all processes. eps is that of this process and the last ascent step;
        with groups, the mean of their shares.
    """
    step.update_parameters()
    method, radius = step.choose_method(rho, number)
    if is_zero(radius):
        return step.take(batch, method, radius, number), {}
    observed = ObservedMethod(method, len(batch))
    stats = step.take(batch, observed, radius, number)
    return stats, observed.measurements(step.objective) if stats.finite.all() else {}


class ObservedMethod(Method):
    """Another method whose g, g_SAM and eps are measured; for one step.

    Args:
        method: The method, which answers all questions.
        num_examples: Number of examples of the step.
    """

    combines = True  # the step keeps g

    def __init__(self, method: Method, num_examples: int) -> None:
        super().__init__()
        self._method, self._num_examples = method, num_examples
        self.name = method.name  # type: ignore[misc]
        self.needs_number, self.sync_perturbation = method.needs_number, method.sync_perturbation
        self.state, self.staged = method.state, method.staged
        self._squares: Tensor | None = None
        self._products: Tensor | None = None

    def accumulate(self, group: Group) -> GroupStats:
        """Make the passes of the method, and measure its eps."""
        found: list[Tensor] = []

        def measure(eps: Perturbation) -> None:
            squares = torch.stack([(part * eps.scale).double().square().sum() for part in eps.direction])
            found[:] = [group.context.objective.shards.all_reduce_sum(squares)]

        group.on_perturbation = measure
        stats = self._method.accumulate(group)
        if found:
            shares = found[0] / found[0].sum() * (len(group.batch) / self._num_examples)
            self._squares = shares if self._squares is None else self._squares + shares
        return stats

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Measure g and g_SAM, then let the method combine them."""
        if first is not None:
            g_g, g_s, s_s = (context.dot(a, b).double() for a, b in ((first, first), (first, final), (final, final)))
            along = (g_s / g_g).to(final[0].dtype)
            rest = [s - along * g for s, g in zip(final, first, strict=True)]  # 1 - cosine^2 would lose digits
            self._products = torch.stack([g_g, g_s, s_s, context.dot(rest, rest).double()])
        if self._method.combines:
            self._method.combine(final, first, context)

    def commit(self, finite: Tensor, context: StepContext) -> None:
        """Let the method write its state."""
        self._method.commit(finite, context)

    def measurements(self, objective: Objective) -> dict[str, float]:
        """Return the measurements by tag, see `measure_step`; this synchronises with the device."""
        if self._products is None or self._squares is None:
            return {}
        g_g, g_s, s_s, r_r, *shares = torch.cat([self._products, self._squares]).tolist()
        if not (0 < g_g < math.inf and 0 < s_s < math.inf):  # means over the processes
            return {}
        cosine = max(-1.0, min(1.0, g_s / (g_g * s_s) ** 0.5))
        values = {"telemetry/cosine": cosine, "telemetry/orthogonal": min(1.0, (r_r / s_s) ** 0.5)}
        modules = {id(param): name.rpartition(".")[0] for name, param in objective.model.named_parameters()}
        for param, share in zip(objective.params, shares, strict=True) if all(map(math.isfinite, shares)) else ():
            tag = f"telemetry/eps_share/{modules.get(id(param), 'loss') or 'network'}"
            values[tag] = values.get(tag, 0.0) + share
        return values
