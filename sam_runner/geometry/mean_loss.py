"""The mean loss of fixed examples as a function of the weights, with gradient and Hessian-vector products.

Weights, gradients and vectors are flat: 1-D tensors with the numbers of all trained parameters, one parameter after the
other. Examples are evaluated in chunks, whose graphs are freed one after the other, so memory does not grow with the
number of examples.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sam_runner.sam.batch import Batch
from sam_runner.sam.network.second_derivatives import explain_missing_derivative, require_second_derivatives
from sam_runner.utils.errors import TrainingError
from sam_runner.utils.number_format import convert_numbers

BatchNormMode = Literal["train", "eval", "reestimate"]
Loss = Callable[[Any, Tensor], Tensor]
PRODUCT = "a Hessian-vector product"
REPEATABLE = 1e-3  # largest difference of two passes, relative to the largest output; GPUs may round differently


class Score(NamedTuple):
    """Mean loss and accuracy of the examples at some weights.

    Attributes:
        loss: Mean loss.
        accuracy: Fraction of the examples whose largest output is the target's class, in [0, 1]; 0 if the targets are
            no classes.
    """

    loss: float
    accuracy: float


class MeanLoss:
    """L(w) of fixed examples. It works on a copy of the network, so nothing that it does changes the network.

    All layers but normalisation are in evaluation mode: there is no dropout, and random branches have their mean.

    Args:
        model: The network, which maps inputs to logits (N, C); w are its parameters that require gradients.
        loss: Maps (logits, targets) to the mean loss of the examples, 0-dim. `value`, `scores` and `gradient` call it
            with float64 logits: the rises of sharpness can be smaller than the rounding of a loss in float32.
        batch: All examples on the model's device: inputs (N, ...); targets: classes, int64, (N,), or floating-point
            numbers (N, ...).
        chunk_size: Largest number of examples that are evaluated at once, >= 1. The sizes of chunks differ by at most
            1. If batch norm needs two examples, no chunk has one.
        batchnorm: How batch norm and instance norm normalise. "train": by the statistics of each chunk, as a training
            step normalises by those of its batch; L then depends on the chunks. "eval": by the running statistics.
            "reestimate": by running statistics that are computed anew from the examples at each w, as the mean over
            chunks; no derivatives. Layers whose statistics are frozen normalise by the running ones in every mode.
        weight_decay: lambda of a term lambda/2 ||w||^2 in L.
        dtype: dtype of weights, examples and results: float32 or float64.

    Attributes:
        weights: w of the network, (n,).
        num_examples: N.
        chunk_size: See above.

    Raises:
        ValueError: If `batchnorm` is another word, or no parameter requires gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batch: Batch,
        *,
        chunk_size: int,
        batchnorm: BatchNormMode = "train",
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batchnorm not in ("train", "eval", "reestimate"):
            raise ValueError(f"batchnorm={batchnorm!r} is not known: accepted are train, eval, reestimate")
        self._loss, self._weight_decay, self._batchnorm, self.dtype = loss, weight_decay, batchnorm, dtype
        self._use(convert_numbers(copy.deepcopy(model), dtype))
        if not self._params:
            raise ValueError("the model has no parameters that require gradients")
        self.chunk_size = chunk_size
        self._inputs, self._targets = self._convert(batch)
        self.num_examples = len(self._inputs)
        self._chunks = self._split(self._inputs, self._targets)
        self._sizes = [param.numel() for param in self._params]
        self.weights = torch.cat([param.detach().reshape(-1) for param in self._params])

    def __len__(self) -> int:
        """Number n of weights."""
        return len(self.weights)

    @property
    def num_chunks(self) -> int:
        """Number of chunks that the examples are evaluated in."""
        return len(self._chunks)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the network has layers that `batchnorm` has an effect on."""
        return bool(self._norms)

    @property
    def parameters(self) -> list[Tensor]:
        """One tensor for each trained parameter, a view of `weights`."""
        return self.unflatten(self.weights)

    @property
    def fixed_state(self) -> dict[str, Tensor]:
        """The tensors of the network besides w that L depends on, by name: frozen parameters and buffers.

        Running statistics are among them only with batchnorm="eval".
        """
        replaced = [] if self._batchnorm == "eval" else [b for norm in self._norms for b in norm.buffers(recurse=False)]
        left_out = {id(param) for param in self._params} | {id(buffer) for buffer in replaced}
        state = [*self._model.named_parameters(), *self._model.named_buffers()]
        return {name: value for name, value in state if id(value) not in left_out and "num_batches_tracked" not in name}

    def shares_examples(self, other: "MeanLoss") -> bool:
        """Return whether another loss has the same inputs and targets."""
        pairs = (self._inputs, other._inputs), (self._targets, other._targets)
        return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    def part(self, start: int, stop: int) -> "MeanLoss":
        """Return the loss of the examples from `start` to `stop`; it shares the copy of the network."""
        other = copy.copy(self)
        other._inputs, other._targets = self._inputs[start:stop], self._targets[start:stop]
        other.num_examples = len(other._inputs)
        other._chunks = other._split(other._inputs, other._targets)
        return other

    def clone(self) -> "MeanLoss":
        """Return the same loss with its own copy of the network, for another thread; both share the examples."""
        other = copy.copy(self)
        for layer in self._norms:
            layer.track_running_stats = True
        other._use(copy.deepcopy(self._model))
        for layer in self._norms:
            layer.track_running_stats = self._batchnorm != "train"
        return other

    def _use(self, model: nn.Module) -> None:
        """Take a network, and set the modes of its layers."""
        self._model = model
        self._params = [param for param in model.parameters() if param.requires_grad]
        for param in self._params:
            param.data = _contiguous(param.data)  # the parts of a flat vector are
        self._norms: list[Any] = [
            module
            for module in model.train().modules()
            if isinstance(module, _BatchNorm | _InstanceNorm) and module.training and module.running_mean is not None
        ]
        model.eval()
        if self._batchnorm == "train":
            for layer in self._norms:
                layer.train()
                layer.track_running_stats = False  # normalises by the batch and updates nothing

    def _convert(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets: Tensor = batch.targets
        return batch.inputs.to(self.dtype), targets.to(self.dtype) if targets.is_floating_point() else targets

    def _split(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        num_chunks = -(-len(inputs) // self.chunk_size)
        if self._batchnorm != "eval" and self._norms:
            num_chunks = max(1, min(num_chunks, len(inputs) // 2))  # one example has no statistics
        return list(zip(inputs.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True))

    @torch.no_grad()
    def require_repeatable(self) -> None:
        """Require that two passes of the first chunk give the same outputs.

        Raises:
            TrainingError: If they differ, because the network draws random numbers in evaluation mode.
        """
        self._write(self.weights)
        if self._batchnorm == "reestimate":
            self._estimate_statistics()
        first, second = (self._model(self._chunks[0][0]) for _ in range(2))
        if float((first - second).abs().max()) > REPEATABLE * float(first.abs().max()):
            raise TrainingError(
                "the network gives other outputs for the same images in evaluation mode, so its loss is random\n"
                "  draw random numbers only if self.training, as torch.nn.Dropout does"
            )

    def value(self, weights: Tensor) -> float:
        """Return L at the given weights, (n,)."""
        return self.scores(weights)[0].loss

    @torch.no_grad()
    def scores(self, weights: Tensor, others: Sequence[Batch] = ()) -> list[Score]:
        """Return loss and accuracy at the given weights, of these examples and then of other ones.

        Args:
            weights: w, (n,).
            others: Other examples, a test set, say. Re-estimated statistics are always those of these examples.
        """
        self._write(weights)
        if self._batchnorm == "reestimate":
            self._estimate_statistics()
        chunks = [self._chunks, *(self._split(*self._convert(batch)) for batch in others)]
        return [self._score(part, self._penalty(weights)) for part in chunks]

    def _score(self, chunks: Sequence[tuple[Tensor, Tensor]], penalty: float) -> Score:
        loss, num_correct, num_examples = 0.0, 0, 0
        for inputs, targets in chunks:
            logits = self._model(inputs)
            loss += float(self._loss(logits.double(), targets)) * len(inputs)
            if not targets.is_floating_point():
                num_correct += int((logits.argmax(1) == targets).sum())
            num_examples += len(inputs)
        return Score(loss / num_examples + penalty, num_correct / num_examples)

    def _penalty(self, weights: Tensor) -> float:
        return self._weight_decay / 2 * float(weights.double().square().sum()) if self._weight_decay else 0.0

    def gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return L and its gradient, (n,), at the given weights, (n,).

        Raises:
            ValueError: If batchnorm is "reestimate".
        """
        self._require_derivatives()
        self._write(weights)
        result = self._point_gradients()
        value = self._penalty(weights)
        for inputs, targets in self._chunks:
            loss = self._loss(self._model(inputs).double(), targets) * (len(inputs) / self.num_examples)
            loss.backward()
            value += float(loss.detach())
        self._clear_gradients()
        return value, result.add_(weights, alpha=self._weight_decay)

    def hessian_products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return H v, (n,), for each of the vectors, (n,), at the network's weights, by double backward.

        Several vectors share the forward pass and the first backward pass of each chunk.

        Raises:
            TrainingError: If an operation of the network has no second derivative, or a product is not finite.
            ValueError: If batchnorm is "reestimate".
        """
        self._require_derivatives()
        self._write(self.weights)
        parts = [self.unflatten(vector) for vector in vectors]
        results = [torch.zeros_like(self.weights) for _ in vectors]
        for inputs, targets in self._chunks:
            with (
                sdpa_kernel(SDPBackend.MATH),
                explain_missing_derivative(PRODUCT),
            ):
                if inputs.device.type == "cpu":
                    inputs = _contiguous(inputs)  # second derivatives take a third longer with channels_last
                loss = self._loss(self._model(inputs), targets) * (len(inputs) / self.num_examples)
                require_second_derivatives(loss, PRODUCT)
                found = torch.autograd.grad(loss, self._params, create_graph=True, materialize_grads=True)
                outputs = [(grad, index) for index, grad in enumerate(found) if grad.requires_grad]
                for number, (part, result) in enumerate(zip(parts, results, strict=True), 1):
                    self._point_gradients(result)
                    if outputs:
                        # Not autograd.grad: it would leave out functions that are marked once_differentiable. Not the
                        # parts of v as gradients of the outputs: torch would import its compiler, which takes a second.
                        dots = [(grad * part[index]).sum() for grad, index in outputs]
                        torch.stack(dots).sum().backward(retain_graph=number < len(parts))
        self._clear_gradients()
        if not all(bool(result.isfinite().all()) for result in results):
            raise TrainingError(f"{PRODUCT} is not finite: a second derivative of the loss is infinite or not a number")
        return [result.add_(v, alpha=self._weight_decay) for result, v in zip(results, vectors, strict=True)]

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector, (n,), as views with the shapes of the parameters."""
        return [part.view(p.shape) for part, p in zip(vector.split(self._sizes), self._params, strict=True)]

    def _require_derivatives(self) -> None:
        if self._batchnorm == "reestimate":
            raise ValueError("a loss with batchnorm='reestimate' has no derivatives: use train or eval")

    def _estimate_statistics(self) -> None:
        """Write the mean over chunks of the statistics at the present weights into the running statistics."""
        if not self._norms:
            return
        momenta = [layer.momentum for layer in self._norms]
        for layer in self._norms:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        for number, (inputs, _) in enumerate(self._chunks, 1):
            for layer in self._norms:
                if isinstance(layer, _InstanceNorm):
                    layer.momentum = 1 / number  # a cumulative average too: with None torch would not update it
            self._model(inputs)
        for layer, momentum in zip(self._norms, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    def _point_gradients(self, result: Tensor | None = None) -> Tensor:
        """Let ``.grad`` of each parameter be a part of one flat tensor, which backward passes add to."""
        result = torch.zeros_like(self.weights) if result is None else result
        for param, part in zip(self._params, self.unflatten(result), strict=True):
            param.grad = part
        return result

    def _clear_gradients(self) -> None:
        for param in self._params:
            param.grad = None

    @torch.no_grad()
    def _write(self, weights: Tensor) -> None:
        for param, part in zip(self._params, self.unflatten(weights), strict=True):
            param.copy_(part)


def _contiguous(tensor: Tensor) -> Tensor:
    """Return a copy with the strides of a new tensor. `Tensor.contiguous` keeps channels_last with one channel."""
    return tensor.clone(memory_format=torch.contiguous_format)
