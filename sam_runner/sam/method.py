"""The interface of a method: what SAM and its variants decide in one step.

`sam_runner.sam.step.SamStep` does what all methods share. A `Method` answers three questions:

1. where: the perturbation eps, from gradient, weights, state and step number (`Method.perturb`);
2. how: the gradient for the base optimizer, from g and g_eps (`Method.combine`);
3. when: which steps make a second pass, and with which rho (`Method.radius`).

g is the gradient at w, g_eps the gradient at w + eps. A method with other passes than one at w and one at w + eps
overrides `Method.accumulate`. A method that changes only *how* or *when* can take another method as an argument. That
method answers the other questions, and both share one ``state``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sam_runner.distributed.sharding import distribute_like, is_sharded, to_local
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Evaluation, Objective
from sam_runner.sam.parameter_swap import swapped_parameters
from sam_runner.sam.perturbation import Perturbation, norm_of, perturbed_parameters
from sam_runner.utils.errors import TrainingError
from sam_runner.utils.seeding import RngState


@dataclass(frozen=True)
class StepContext:
    """What is the same for all groups of one step.

    Attributes:
        objective: L_B and its gradient.
        optimizer: The base optimizer.
        rho: Radius of this step, from `Method.radius`; 0-dim tensor on the device while a CUDA graph is recorded.
        number: Number of the step in its run, from 0; None if the caller gave none.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    rho: float | Tensor
    number: int | None

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters w."""
        return self.objective.params

    @property
    def loss_scale(self) -> Tensor:
        """The loss scale of the step's gradients: 0-dim, on the device, dtype of the parameters; 1 without a scaler."""
        one = torch.ones((), dtype=self.params[0].dtype, device=self.objective.device)
        return self.objective.scaler.scale(one)

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the 2-norm, 0-dim, of all tensors as one vector; over all shards."""
        return norm_of(tensors, self.objective.shards)

    def dot(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the inner product, 0-dim, of two lists of tensors as one vector each; over all shards."""
        products = [(a * b).sum() for a, b in zip(first, second, strict=True)]
        return self.objective.shards.all_reduce_sum(torch.stack(products).sum())


class GroupStats(NamedTuple):
    """Statistics of one group's passes, as device tensors.

    Attributes:
        evaluation: Loss and outputs of the first pass.
        loss_perturbed: L_B(w + eps), 0-dim; the loss of the first pass if there is no second one.
        grad_norm: ||g||_2 times the loss scale, 0-dim; None if the method computed the final gradient but not g.
        eps_norm: ||eps||_2, 0-dim.
    """

    evaluation: Evaluation
    loss_perturbed: Tensor
    grad_norm: Tensor | None
    eps_norm: Tensor


class Group:
    """One group of a batch (m examples, or all) and the passes that a method makes on it.

    Only the first pass updates the buffers. All passes start from the same buffers and draw the same random numbers,
    e.g. dropout masks, from torch, Python, NumPy and generators that are attributes of modules.

    Attributes:
        used: A flag per parameter, set by `gradient`: False if the pass did not use it.
        is_averaged: Whether ``.grad`` is a mean over the ranks after this group.
        on_perturbation: Function that is called with each eps before the passes at w + eps; None: none.

    Args:
        context: The step.
        batch: Examples of the group.
        share: Weight of the group's gradient in the step's gradient: examples of the group divided by examples of the
            batch, times the weight of the batch.
        is_first: Whether it is the first group of the step.
        is_last: Whether it is the last group of the step, whose `backward` averages ``.grad`` over the ranks.
        sync: Whether `gradient` returns the mean over the ranks.
        gradient_sum: Running sum of share * g over the groups, one tensor per parameter; empty before the first group.
            None if the method does not use `combine`.
    """

    def __init__(
        self,
        context: StepContext,
        batch: Batch,
        share: float,
        *,
        is_first: bool,
        is_last: bool,
        sync: bool,
        gradient_sum: list[Tensor] | None,
    ) -> None:
        self.context = context
        self.batch = batch
        self.share = share
        self.is_averaged = False
        self.used: list[bool] = []
        self.is_first = is_first
        self.on_perturbation: Callable[[Perturbation], None] | None = None
        self._is_last = is_last
        self._sync = sync
        self._gradient_sum = gradient_sum
        self._rng: RngState | None = None
        self._has_begun = False
        self._writes: list[int] = []

    def gradient(self, *, create_graph: bool = False, shaken: bool = False) -> tuple[Evaluation, list[Tensor]]:
        """Return L_B and its gradient (times the loss scale) at the current weights.

        Args:
            create_graph: See `Objective.gradient`.
            shaken: See `Objective.gradient`.

        Raises:
            TrainingError: If an earlier pass of the group has changed inputs or targets in place.
            RuntimeError: If the group's first pass was not made by this function.
        """
        objective = self.context.objective
        if not self._has_begun:
            self._rng = RngState.capture(objective.device, objective.generators)
        is_first = self._begin_pass()
        evaluation, grads, self.used = objective.gradient(
            self.batch, update_statistics=is_first, create_graph=create_graph, shaken=shaken, reduce=self._sync
        )
        if is_first:
            self._sum_gradient(grads)
        return evaluation, grads

    def backward(self, batch: Batch | None = None) -> Evaluation:
        """Add the gradient of L_B at the current weights to ``.grad``, as part of the step's final gradient.

        A method whose first pass is `backward` must not make another pass.

        Args:
            batch: Examples to differentiate instead of the whole group; the gradient keeps the group's share. A pass on
                fewer examples draws fewer random numbers, so the random state is restored after it. The next group then
                draws the same numbers as without this pass.
        """
        objective = self.context.objective
        before = None if batch is None else RngState.capture(objective.device, objective.generators)
        is_first = self._begin_pass()
        self.is_averaged = self._is_last
        evaluation = objective.backward(
            self.batch if batch is None else batch, self.share, update_statistics=is_first, reduce=self._is_last
        )
        if before is not None:
            before.restore(objective.device, objective.generators)
        return evaluation

    def evaluate(self) -> Evaluation:
        """Return loss and outputs of the group at the current weights, without gradient; see `Objective.evaluate`.

        A method whose first pass is `evaluate` must not make another pass.
        """
        self._begin_pass()
        return self.context.objective.evaluate(self.batch)

    def add_gradient(self, grads: list[Tensor]) -> None:
        """Add the gradient of the latest call of `gradient` to ``.grad``, as part of the step's final gradient.

        The step averages ``.grad`` over the ranks if needed. Parameters that are not `used` keep their ``.grad``.

        Args:
            grads: One tensor per parameter, times the loss scale.
        """
        share = 1.0 if self._sync else self.share
        self.is_averaged = self._sync
        for param, grad, is_used in zip(self.context.params, grads, self.used, strict=True):
            if not is_used:
                continue
            if param.grad is None and not is_sharded(param):
                param.grad = grad * share
                continue
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            to_local(param.grad).add_(grad, alpha=share)

    @contextmanager
    def at(self, eps: Perturbation, *, keep: bool = False) -> Iterator[None]:
        """Make the passes inside the context at w + eps.

        Args:
            eps: The perturbation. Without `keep`, w + eps overwrites its tensors, and its list of tensors is emptied.
            keep: Keep `eps` for use after the context, at the price of a copy of the weights in memory.
        """
        if self.on_perturbation is not None:
            self.on_perturbation(eps)
        params = self.context.params
        values = list(perturbed_parameters(params, eps, in_place=not keep))
        if not keep:
            eps.direction.clear()
        with swapped_parameters(params, values):
            del values
            yield

    def _begin_pass(self) -> bool:
        """Return whether this is the group's first pass; if not, restore the random state of the first pass."""
        if not self._has_begun:
            self._has_begun, self._writes = True, self.batch.count_writes()
            return True
        if self.batch.count_writes() != self._writes:
            raise TrainingError(
                "the network or the loss changes its inputs or targets in place, so the next pass would get the changed"
                " ones\n  let it change a copy: x = x.clone()"
            )
        if self._rng is None:
            raise RuntimeError(
                "the first pass was not made by Group.gradient, so no other pass is possible: begin with Group.gradient"
            )
        self._rng.restore(self.context.objective.device, self.context.objective.generators)
        return False

    def _sum_gradient(self, grads: list[Tensor]) -> None:
        if self._gradient_sum is None:
            return
        share = 1.0 if self._sync else self.share
        grads = [grad.detach() for grad in grads]
        if self._gradient_sum:
            torch._foreach_add_(self._gradient_sum, grads, alpha=share)
        else:
            self._gradient_sum.extend(torch._foreach_mul(grads, share))


class Method:
    """Base class of all methods; it defines Algorithm 1 without the choice of eps.

    State. A method that remembers something creates lists of tensors in `prepare`, stores them in ``self.state`` by
    name, and reads them in its hooks. New values go into ``self.staged``. `commit` writes them into the state in place
    if the step is finite. So checkpoints contain the state, a resumed run restores it bit for bit, and a CUDA graph
    reads it at fixed addresses.

    Attributes:
        name: Name of the method in settings and reports.
        combines: Whether the step keeps g besides g_eps and calls `combine`. This takes memory of the size of the
            weights, and in data-parallel training a message of that size.
        descends_along_g: Whether g is a term of the final gradient. If so, networks with random branches (Shake-Shake,
            ShakeDrop) are refused: the final gradient needs new random scales in the backward pass, and g
            is computed with those of the forward pass.
        needs_number: Whether the caller must give the number of the step.
        data_decide: Whether the number of passes of a step depends on the data; `passes` and `cost` are then maxima.
        sync_perturbation: In data-parallel training, whether all ranks share one eps, from the mean gradient over all
            their examples. This takes a message of the size of the weights. If not, each rank has its own eps, as in
            the paper.
        capture_blocker: Why a CUDA graph cannot record the method; empty if it can.
        shard_blocker: Why the method does not work with sharded parameters (FSDP); empty if it does. FSDP's gradients
            are means over the ranks, so a method that computes eps from g needs ``sync_perturbation``.
        state: Lists of tensors by name. Tensors made by ``[torch.zeros_like(param) for param in params]`` have the
            shapes of the parameters, also of sharded ones.
        staged: New values of entries of ``state``, of the same lengths and (local) shapes. If one is not finite, the
            step is skipped.
    """

    name: ClassVar[str]
    combines: bool = False
    descends_along_g: bool = False
    needs_number: bool = False
    data_decide: bool = False
    sync_perturbation: bool = False
    capture_blocker: str = ""
    shard_blocker: str = ""

    def __init__(self) -> None:
        self.state: dict[str, list[Tensor]] = {}
        self.staged: dict[str, list[Tensor]] = {}

    def prepare(self, objective: Objective) -> None:
        """Create the state; `SamStep` calls this once. A method without state does nothing here.

        Args:
            objective: Gives the parameters (``objective.params``) and the model.
        """

    def radius(self, rho: float | Tensor, number: int | None, lr: float) -> float | Tensor:
        """Return the radius of step `number`, decided on the host before the first pass; 0: one pass, at w.

        Args:
            rho: Radius that the schedule gives, > 0. (With rho 0 the base optimizer makes the step alone.)
            number: Number of the step in its run, from 0; None if the caller gave none.
            lr: Learning rate of the first parameter group.
        """
        return rho

    def passes(self, number: int) -> int:
        """Return how many gradients step `number` evaluates at rho > 0; the maximum if the data decide."""
        return 2

    def cost(self, number: int) -> tuple[float, float]:
        """Return the forward passes and the backward passes over the batch of step `number` at rho > 0."""
        return self.passes(number), self.passes(number)

    def accumulate(self, group: Group) -> GroupStats:
        """Make the passes of one group at rho > 0, and add its final gradient to ``.grad``.

        Raises:
            ValueError: If `perturb` returns None for a network with random branches (see ``descends_along_g``).
        """
        first, grads = group.gradient()
        eps = self.perturb(grads, group)
        if eps is None:
            if group.context.objective.has_random_branches:
                raise ValueError(
                    f"{self.name} descends along g in a step, but its class declares descends_along_g = False\n"
                    "  set it to True; networks with random branches are then refused before training"
                )
            group.add_gradient(grads)
            return GroupStats(first, first.loss, group.context.norm(grads), torch.zeros_like(first.loss))
        del grads  # frees the gradient if eps has its own memory
        with group.at(eps):
            perturbed = group.backward()
        return GroupStats(first, perturbed.loss, eps.grad_norm, eps.norm)

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation | None:
        """Return eps for one group; None makes no second pass and uses `grads` as the group's final gradient.

        Args:
            grads: g times the loss scale, one tensor per parameter (local shards of sharded ones). The method may
                overwrite them, also with eps.
            group: The group; ``group.context`` has weights, rho and step number. `Group.at` and `Group.gradient`
                evaluate further gradients. All ranks must make the same number of passes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define perturb or accumulate")

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Change the gradient for the base optimizer in place.

        If ``combines``, it is called once in each step that gets rho > 0, also if `radius` has returned 0. Both
        gradients are means over all groups and ranks, times the loss scale; one tensor per parameter (local shards of
        sharded ones).

        Args:
            final: g_eps, or the only gradient of a step with one pass. Write the result into it.
            first: g, which may be overwritten; None if the step made no pass by `Group.gradient`.
            context: The step.
        """

    def commit(self, finite: Tensor, context: StepContext) -> None:
        """Write the staged state after the base optimizer's step.

        Args:
            finite: Which of `sam_runner.sam.step.CHECKED` are finite, bool, (4,). If one is not, nothing is written.
            context: The step.
        """
        if not self.staged:
            return
        write = finite.all()
        for name, values in self.staged.items():
            for old, new in zip(self.state[name], values, strict=True):
                to_local(old).copy_(torch.where(write, to_local(new), to_local(old)))
        self.staged.clear()

    def state_tensors(self, name: str) -> list[Tensor]:
        """Return an entry of the state to read; local shards of sharded tensors."""
        return [to_local(tensor) for tensor in self.state[name]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; empty for a method without state."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict` bit for bit. Its tensors are whole, also those of sharded parameters.

        Raises:
            ValueError: If the entries are not those of this method.
        """
        if state.keys() != self.state.keys():
            raise ValueError(f"the saved state has {sorted(state)}, the method {self.name} has {sorted(self.state)}")
        for name, values in state.items():
            for tensor, value in zip(self.state[name], values, strict=True):
                to_local(tensor).copy_(to_local(distribute_like(value, tensor)))
