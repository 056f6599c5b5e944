"""The training objective L_B(w) of a batch, and its gradient.

`Objective` does everything between a batch and a gradient: autocast, loss scale, micro-batches, weight decay in the
loss, and updates of the running statistics. `sam_runner.sam.method` decides at which weights it is evaluated.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.gradient_average import GradientAverage
from sam_runner.distributed.sharding import is_sharded, to_local
from sam_runner.sam.batch import Batch, join_outputs, map_tensors
from sam_runner.sam.batch_statistics import RunningStatistics
from sam_runner.sam.network.constants import constants_stay
from sam_runner.sam.network.gradient_memory import own_gradients
from sam_runner.sam.network.second_derivatives import explain_missing_derivative, require_second_derivatives
from sam_runner.sam.network.trained_parameters import require_supported
from sam_runner.sam.random_branches import find_random_branches, true_gradient
from sam_runner.utils.errors import find_memory_error, first_line
from sam_runner.utils.seeding import RngState, find_generators

SECOND_ORDER = (
    "the second-order term",
    "use optimizer.second_order=false (in Python: Sam instead of SecondOrder)",
)


class Evaluation(NamedTuple):
    """L_B at some weights.

    Attributes:
        loss: Mean loss of the batch without weight decay, 0-dim, detached.
        outputs: What the model returned, detached, in the order of the batch; logits (N, C) for a classifier.
            `sam_runner.sam.batch.join_outputs` joins the outputs of micro-batches.
    """

    loss: Tensor
    outputs: Any


@dataclass
class Work:
    """Numbers of examples that passes have evaluated, counted on the host.

    Attributes:
        gradient: Examples in gradient evaluations. Each gradient takes a forward and a backward pass.
        forward: Examples in forward passes.
        backward: Examples in backward passes. A second derivative counts as three backward passes: one through the
            forward pass, and two through the backward pass, which has twice as many operations.
    """

    gradient: int = 0
    forward: int = 0
    backward: int = 0


def call_model(forward: Callable[..., Any], inputs: Any) -> Any:
    """Call `forward` with the inputs of a batch, as `torch.func.functional_call` does.

    A tuple holds positional arguments, a dict keyword arguments; anything else is the only argument. To pass a tuple or
    dict as the only argument, wrap it in a tuple: ``(inputs,)``.
    """
    if isinstance(inputs, tuple):
        return forward(*inputs)
    if isinstance(inputs, dict):
        return forward(**inputs)
    return forward(inputs)


class Objective:
    """L_B(w) of a model: its gradient as tensors (`gradient`) or added to ``.grad`` (`backward`).

    Args:
        model: The network in training mode. w are its parameters that require gradients, until a `SamStep` sets w to
            the parameters that its optimizer trains. Parameters should be float32 or float64. At rho 0.05 the
            perturbation of a network with 36 M weights is 8e-6 per weight, which bfloat16 weights would lose to
            rounding.
        loss: Maps (outputs, targets) to the mean loss of the examples, 0-dim; any other result raises ValueError in the
            first pass. The loss gets floating-point tensors in the outputs promoted to at least float32. Buffers and
            generators of a loss that is a module are treated as those of the model.
        forward: Callable to use instead of the model in all passes, e.g. the compiled model, called by `call_model`.
            None: the model.
        autocast_dtype: bfloat16 or float16 for mixed precision; None: no autocast.
        scaler: Loss scaler for float16; None: no loss scale.
        num_chunks: Number of micro-batches per full batch (gradient accumulation), >= 1.
        batch_size: Number of examples of a full batch. Needed if `num_chunks` > 1, for the size of a micro-batch.
        context: The processes that train together; default: this process only. All get the parameters and buffers of
            rank 0. The objective averages the gradients itself, so the model must not be wrapped in DDP.
        weight_decay: lambda of the term lambda/2 ||w||^2, biases included, which every pass adds to the loss, as in the
            paper's code (flax_training.py); 0 if the base optimizer decays the weights.

    Attributes:
        model: The network.
        params: w.
        device: Device of the parameters.
        chunk_size: Largest number of examples of a micro-batch, or None.
        generators: Random generators that are attributes of the modules of model and loss. All passes of a group draw
            the same numbers from them.
        work: Examples that the passes of the latest step have evaluated.

    Raises:
        ValueError: If the model has no parameters, if they are complex, uninitialised, overlap in memory or are on
            several devices, or if `num_chunks` is below 1 or lacks `batch_size`.
        TypeError: If `model` is not a network, `loss` cannot be called, or `autocast_dtype` is not accepted.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        *,
        forward: Callable[..., Any] | None = None,
        autocast_dtype: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        num_chunks: int = 1,
        batch_size: int | None = None,
        context: DistributedContext = SINGLE_PROCESS,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module) or not callable(loss):
            raise TypeError(
                f"Objective needs a network and a function, not {type(model).__name__} and {type(loss).__name__}: "
                "Objective(model, loss) with loss(outputs, targets)"
            )
        _require_precision(autocast_dtype)
        if num_chunks < 1:
            raise ValueError(f"num_chunks={num_chunks}: accepted are 1, 2, ...")
        if num_chunks > 1 and batch_size is None:
            raise ValueError(f"num_chunks={num_chunks} needs batch_size, the number of examples of a full batch")
        self.model = model
        self._model_params = list(model.parameters())
        if not self._model_params:
            raise ValueError("the model has no parameters")
        self._accepts_one: bool | None = None
        self._has_checked_constants = False
        self._outside: list[nn.Parameter] = []
        self.params = [param for param in self._model_params if param.requires_grad]
        require_supported(model, self._model_params)
        self.device = self._model_params[0].device
        stateful = nn.ModuleList([model, loss]) if isinstance(loss, nn.Module) else model
        self.generators = find_generators(value for module in stateful.modules() for value in vars(module).values())
        self.statistics = RunningStatistics(stateful)
        self._random_branches = find_random_branches(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False) if scaler is None else scaler
        self._forward = model if forward is None else forward
        self._loss = loss
        self.autocast_dtype = autocast_dtype
        self.chunk_size = None if num_chunks == 1 or batch_size is None else -(-batch_size // num_chunks)
        self.context = context
        self.shards = context if is_sharded(self._model_params[0]) else SINGLE_PROCESS
        self._average: GradientAverage | None = None
        if self._averages:
            context.broadcast([*self._model_params, *stateful.buffers()])
            self._average = GradientAverage(self.params, context)
        self._weight_decay = weight_decay
        self.work = Work()
        self._num_examples = 0

    @property
    def _averages(self) -> bool:
        """Whether this class averages the gradients over the ranks; FSDP averages those of sharded parameters."""
        return self.context.world_size > 1 and self.shards.world_size == 1

    @property
    def communicates_in_passes(self) -> bool:
        """Whether all ranks communicate in every pass, so that they must make equally many passes."""
        return self.shards.world_size > 1 or (self.context.world_size > 1 and self.statistics.has_synchronised_layers)

    @property
    def has_random_branches(self) -> bool:
        """Whether the model has random branches (Shake-Shake, ShakeDrop).

        In such a model the backward pass for g, the gradient for eps, uses the random scales of its forward pass. The
        backward pass for the final gradient uses other random scales.
        """
        return bool(self._random_branches)

    def train_parameters(self, params: list[nn.Parameter]) -> None:
        """Set w to the given parameters: those of the model in its order, then all others (e.g. those of the loss).

        Other parameters of the model are constants: they are not perturbed, and their ``.grad`` stays.

        Args:
            params: All parameters that an optimizer trains, those of the loss included.

        Raises:
            ValueError: If a parameter is not supported, see `Objective`.
        """
        require_supported(self.model, params)
        given = {id(param) for param in params}
        inside = {id(param) for param in self._model_params}
        before = list(map(id, self.params))
        outside = [param for param in params if id(param) not in inside]
        self.params = [param for param in self._model_params if id(param) in given] + outside
        if self._averages and list(map(id, self.params)) != before:
            self.context.broadcast(outside)
            self._average = GradientAverage(self.params, self.context)
        self._outside = [param for param in self._model_params if id(param) not in given]
        self._has_checked_constants = False

    def keep_other_gradients(self) -> AbstractContextManager[None]:
        """Restore ``.grad`` of the model's parameters that are not in w."""
        return _keep_gradients([param for param in self._outside if param.requires_grad or param.grad is not None])

    def chunks(self, batch: Batch) -> list[Batch]:
        """Split `batch` into micro-batches."""
        return self.split(batch, self.chunk_size)

    def split(self, batch: Batch, size: int | None) -> list[Batch]:
        """Split `batch` into parts of `size` examples.

        If the last part would have one example and the model cannot evaluate one (batch norm), all parts have about the
        same size instead. With sharded weights this needs an earlier call of `accepts_one_example` by all processes.
        """
        has_single = size is not None and len(batch) > size > 1 and len(batch) % size == 1
        # With sharded weights all processes would have to try one example together, so none tries it here.
        is_known = self._accepts_one is not None or self.shards.world_size == 1
        is_even = has_single and is_known and not self.accepts_one_example(batch)
        return batch.split(size, min_size=2 if is_even else 1)

    def accepts_one_example(self, batch: Batch) -> bool:
        """Return whether the model in training mode can be evaluated for one example.

        Batch norm needs more than one value per channel. A model with batch norm is tried; any other can be evaluated.

        Args:
            batch: One example or more of the kind that the model is trained with.
        """
        if not self.statistics.normalises_by_batch:
            return True
        if self._accepts_one is None:
            self._accepts_one = True
            state = RngState.capture(self.device, self.generators)
            try:
                with torch.no_grad(), self.statistics.discard_updates():
                    call_model(self.model, batch.split(1)[0].inputs)
            except ValueError as error:
                self._accepts_one = "more than 1 value per channel" not in str(error)
            finally:
                state.restore(self.device, self.generators)
        return self._accepts_one

    def evaluate(self, batch: Batch) -> Evaluation:
        """Return loss and outputs of `batch` at the current weights, without gradient; no buffer changes.

        The model stays in training mode, so batch norm normalises by the batch.
        """
        chunks, parts = self.chunks(batch), []
        self.work.forward += len(batch)
        with torch.no_grad(), self.statistics.discard_updates():
            for chunk in chunks:
                outputs, loss = self._evaluate(chunk)
                parts.append(Evaluation(loss, outputs))
        return self._join(batch, chunks, parts)

    def example_losses(self, batch: Batch, outputs: Any) -> Tensor:
        """Return the loss of each example without weight decay, (N,); the loss function gets batches of one example.

        Args:
            batch: The examples.
            outputs: What the model returned for them; in every tensor the first axis is that of the examples.

        Raises:
            ValueError: If the loss function cannot be called for one example at a time by `torch.vmap`.
        """

        def of_one(output: Any, target: Any) -> Tensor:
            return self._loss(*map_tensors(lambda leaf: leaf[None], (output, target)))

        try:
            with torch.no_grad():
                losses: Tensor = torch.vmap(of_one)(outputs, batch.targets)
        except (RuntimeError, ValueError) as error:
            if find_memory_error(error):
                raise
            raise ValueError(f"the loss of single examples cannot be computed: {first_line(error)}") from error
        return losses

    def gradient(
        self,
        batch: Batch,
        *,
        update_statistics: bool,
        create_graph: bool = False,
        shaken: bool = False,
        reduce: bool = False,
    ) -> tuple[Evaluation, list[Tensor], list[bool]]:
        """Return L_B, its gradient as tensors, and which parameters the passes used; ``.grad`` does not change.

        Args:
            batch: B; its micro-batches together give one gradient.
            update_statistics: Whether the buffers keep what this pass writes, such as running statistics.
            create_graph: Keep the graph, so that the gradient can be differentiated; `reduce` has no effect then.
            shaken: Whether random branches (Shake-Shake, ShakeDrop) use new random scales in the backward pass, as in
                `backward`. Otherwise they use the scales of the forward pass, which gives the true gradient.
            reduce: Return the mean over the examples of all ranks; otherwise this rank's gradient, as in the paper.

        Raises:
            TrainingError: If the forward pass changes a parameter that is not trained; only the first call checks it.
                With `create_graph` also if an operation of the model has no second derivative.
            ValueError: If the loss is not a 0-dim tensor.

        Returns:
            - The evaluation.
            - The gradient times the loss scale. One tensor per parameter (local shard of a sharded one), in its memory
              format; zero if the passes did not use it. The caller owns the tensors.
            - A flag per parameter, False if the passes did not use it.
        """
        branches = [] if shaken else self._random_branches
        if create_graph:
            total: list[Tensor] = []

            def add_gradient(scaled: Tensor) -> None:
                require_second_derivatives(scaled, *SECOND_ORDER)
                with explain_missing_derivative(*SECOND_ORDER):
                    found = torch.autograd.grad(scaled, self.params, create_graph=True, materialize_grads=True)
                grads = [grad if grad.layout == torch.strided else grad.to_dense() for grad in found]
                total[:] = [old + new for old, new in zip(total, grads, strict=True)] if total else grads

            # The fused attention kernels have no second derivative.
            with true_gradient(branches), sdpa_kernel(SDPBackend.MATH), self._check_constants():
                evaluation = self._make_passes(
                    batch, add_gradient, update_statistics=update_statistics, reduce=False, keep_graph=True
                )
            return evaluation, total, [grad.requires_grad for grad in total]
        with _keep_gradients(self.params):
            share = batch.weight if reduce else 1.0
            with true_gradient(branches), self._check_constants():
                evaluation = self.backward(batch, share, update_statistics=update_statistics, reduce=reduce)
            used = [param.grad is not None for param in self.params]
            found = [to_local(torch.zeros_like(param) if param.grad is None else param.grad) for param in self.params]
        return evaluation, found, used

    def backward(self, batch: Batch, share: float, *, update_statistics: bool, reduce: bool) -> Evaluation:
        """Add `share` times the gradient of L_B (times the loss scale) to ``.grad``.

        Args:
            batch: B; its micro-batches together give one gradient.
            share: Factor of the gradient.
            update_statistics: See `gradient`.
            reduce: Replace ``.grad``, earlier summands included, by its mean over the ranks. The communication overlaps
                with the backward pass of the last micro-batch.
        """

        def add_gradient(scaled: Tensor) -> None:
            (scaled if share == 1 else scaled * share).backward()
            own_gradients(self.params)

        return self._make_passes(batch, add_gradient, update_statistics=update_statistics, reduce=reduce)

    def differentiate_again(self, outputs: list[Tensor], factors: list[Tensor]) -> list[Tensor | None]:
        """Backpropagate a second time, through functions of the gradient that the latest call of `gradient` returned.

        That call must have had ``create_graph=True``.

        Args:
            outputs: Functions of that gradient.
            factors: Factors of `outputs`, of the same shapes.

        Returns:
            The gradient of the sum of `outputs` times `factors`; for each parameter a tensor, or None if it is zero.

        Raises:
            TrainingError: If an operation of the model has no second derivative.
        """
        self.work.backward += 3 * self._num_examples
        # Not autograd.grad: it would silently leave out the terms of functions marked once_differentiable.
        with (
            _keep_gradients(self.params),
            explain_missing_derivative(*SECOND_ORDER),
            self.statistics.recompute_from(self.statistics.copy_group_start()),
        ):
            torch.autograd.backward(outputs, factors)
            return [param.grad for param in self.params]

    def _check_constants(self) -> AbstractContextManager[None]:
        """Check that a pass changes no constant parameter; only in the first call of `gradient`."""
        if self._has_checked_constants:
            return nullcontext()
        self._has_checked_constants = True
        return constants_stay(self.model, self.params)

    def average_gradients(self) -> None:
        """Replace ``.grad`` by its mean over the ranks, unless `backward` with ``reduce=True`` has already done so."""
        with self._average_during_backward():
            pass

    def _average_during_backward(self) -> AbstractContextManager[None]:
        """Average ``.grad`` over the ranks during the backward pass inside the context."""
        return nullcontext() if self._average is None else self._average.during_backward()

    def _make_passes(
        self,
        batch: Batch,
        differentiate: Callable[[Tensor], None],
        *,
        update_statistics: bool,
        reduce: bool,
        keep_graph: bool = False,
    ) -> Evaluation:
        """Make a forward and a backward pass for each micro-batch; return the evaluation of the batch.

        Args:
            batch: The batch.
            differentiate: Makes a backward pass from the micro-batch's part of L_B, times the loss scale.
            update_statistics: See `backward`.
            reduce: See `backward`.
            keep_graph: Whether the graphs of the passes are needed afterwards.
        """
        chunks, parts, statistics = self.chunks(batch), [], self.statistics
        self._num_examples = len(batch)
        self.work.gradient += len(batch)
        self.work.forward += len(batch)
        self.work.backward += len(batch)
        if update_statistics:
            statistics.begin_group()
        with nullcontext() if update_statistics else statistics.discard_updates():
            for number, chunk in enumerate(chunks, 1):
                share = len(chunk) / len(batch)
                start = statistics.copy_start()
                update = statistics.accumulate_statistics(len(chunk), keep_graph=keep_graph)
                with update if update_statistics else nullcontext():
                    outputs, loss = self._evaluate(chunk)
                objective = loss + self._penalty() if self._weight_decay else loss
                if share != 1:
                    objective = objective * share
                average = self._average_during_backward() if reduce and number == len(chunks) else nullcontext()
                with average, statistics.recompute_from(start):
                    differentiate(self.scaler.scale(objective))
                parts.append(Evaluation(loss.detach(), map_tensors(Tensor.detach, outputs)))
        return self._join(batch, chunks, parts)

    def _evaluate(self, chunk: Batch) -> tuple[Any, Tensor]:
        # Each pass has its own autocast context. In a shared one, the pass at w + eps would use cached casts of w.
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled):
            outputs = call_model(self._forward, chunk.inputs)
        outputs = map_tensors(_promote, outputs)
        loss = self._loss(outputs, chunk.targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f"the loss must return a 0-dim tensor, the mean over examples, not {kind}")
        return outputs, loss

    def _penalty(self) -> Tensor:
        return self._weight_decay / 2 * torch.stack([param.square().sum() for param in self.params]).sum()

    @staticmethod
    def _join(batch: Batch, chunks: list[Batch], parts: list[Evaluation]) -> Evaluation:
        if len(parts) == 1:
            return parts[0]
        sizes = [len(chunk) for chunk in chunks]
        losses = [part.loss * (size / len(batch)) for part, size in zip(parts, sizes, strict=True)]
        return Evaluation(torch.stack(losses).sum(), join_outputs([part.outputs for part in parts], sizes))


@contextmanager
def _keep_gradients(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Start without ``.grad``, and restore it at the end."""
    before = [param.grad for param in params]
    for param in params:
        param.grad = None
    try:
        yield
    finally:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad


def _require_precision(dtype: object) -> None:
    """Refuse a dtype that `torch.autocast` would refuse only in the first step."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise TypeError(f"autocast_dtype={dtype!r}: accepted are torch.bfloat16, torch.float16 and None")


def _promote(output: Tensor) -> Tensor:
    """Promote a floating-point tensor to at least float32; return other tensors unchanged."""
    if not output.is_floating_point():
        return output
    return output.to(torch.promote_types(output.dtype, torch.float32))
