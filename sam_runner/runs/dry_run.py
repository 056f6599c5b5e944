"""The plan of a run, which ``dry_run=true`` prints: data, network, passes, steps and cost."""

import inspect
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_runner.config.experiment import ExperimentConfig, TelemetryConfig
from sam_runner.config.instantiate import locate
from sam_runner.config.keys import REQUIRED
from sam_runner.config.optimizer.around import AroundConfig
from sam_runner.config.optimizer.method import RadiusConfig
from sam_runner.config.optimizer.perturbation import SamConfig
from sam_runner.data.datasets.published_sizes import find_published_size, make_published_splits
from sam_runner.data.noise import noise_needs
from sam_runner.data.normalisation import Normalisation
from sam_runner.distributed.context import DistributedContext
from sam_runner.models.outputs import get_logits
from sam_runner.paper.rows import describe_target
from sam_runner.runs.result import count_examples
from sam_runner.sam.method import Method
from sam_runner.sam.methods import Plain
from sam_runner.training.builders.data import build_data
from sam_runner.training.builders.run import build_run, resolve_precision
from sam_runner.training.state import Run
from sam_runner.utils.console import format_count
from sam_runner.utils.errors import MissingDataError

MAX_COUNTED_STEPS = 10_000


class Plan(NamedTuple):
    """The plan of a run.

    Attributes:
        rows: Its facts by name, as they are printed.
        num_steps: Number of optimizer steps.
        flops: Floating-point operations of training.
        is_bound: Whether `flops` is an upper bound, because the number of passes depends on the data.
    """

    rows: dict[str, str]
    num_steps: int
    flops: float
    is_bound: bool

    def __str__(self) -> str:
        head = "plan (dry run: nothing is trained or written)"
        return "\n".join([head, *(f"  {name:10} {text}" for name, text in self.rows.items())])

    @property
    def facts(self) -> tuple[str, ...]:
        """The rows without the folder, which are equal for runs of the same cost."""
        return tuple(text for name, text in self.rows.items() if name != "folder")


def describe_total(plans: Sequence[Plan]) -> str:
    """Return a line: number of jobs, steps and FLOPs of the plans of a sweep."""
    at_most = "at most " if any(plan.is_bound for plan in plans) else ""
    steps, flops = sum(plan.num_steps for plan in plans), sum(plan.flops for plan in plans)
    return f"in all: {format_count(len(plans), 'job')}, {steps:,} steps, {at_most}{flops:.3g} FLOPs for training"


def count_forward_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Count the floating-point operations of the forward pass of one image; a multiply-add counts as two.

    Args:
        model: The network.
        image_shape: Channels, height and width of the image, or the shape of another input.
        dtype: Type of the input; None: of the parameters.
    """
    return _count_flops(model, image_shape, dtype, backward=False)


def count_backward_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Count the floating-point operations of the backward pass of one image.

    The pass computes the gradients of the trained weights and of the activations that these need. That is about twice
    the forward pass, less the gradient of the image and the gradients that frozen layers do not need.
    """
    forward = count_forward_flops(model, image_shape, dtype)
    return _count_flops(model, image_shape, dtype, backward=True) - forward


def _count_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None, *, backward: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    was_training, had_fast_path = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    parameter = next(model.parameters())
    counter = FlopCounterMode(display=False)
    # The counter knows matrix products and convolutions, and not every fused attention kernel.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.set_grad_enabled(backward), sdpa_kernel(SDPBackend.MATH):
            outputs = model(torch.zeros(1, *image_shape, device=parameter.device, dtype=dtype or parameter.dtype))
            if backward:
                get_logits(outputs).sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
        model.train(was_training)
    return int(counter.get_total_flops())


def describe_data(run: Run) -> str:
    """Return a line with the number of images in each set and of training labels that label noise has changed."""
    counts = count_examples(run)
    classes, corrupted = counts.pop("classes"), counts.pop("wrong_labels")
    sets = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    noise = f", {corrupted:,} training labels corrupted ({corrupted / run.train.num_examples:.2%})" if corrupted else ""
    return f"{sets} images, {classes} classes{noise}"


def plan_run(config: ExperimentConfig, folder: Path, overrides: Sequence[str], context: DistributedContext) -> Plan:
    """Return the plan of a run. Data that are not there get their published size.

    Args:
        config: The settings.
        folder: The run folder that training would use.
        overrides: Settings as the user typed them, to name the differences from the paper's experiment.
        context: The processes that train together.

    Raises:
        InputError: If the settings cannot be used, or the data are not there and no size is published.
    """
    if config.model.weights == REQUIRED:
        config = replace(config, model=replace(config.model, weights=None))
    if getattr(config.data, "download", False):
        config = replace(config, data=replace(config.data, download=False))  # type: ignore[call-arg]
    try:
        return _describe_run(config, build_run(config, context), folder, overrides, "")
    except MissingDataError:
        size = find_published_size(config.data, config.paper)
        if size is None:
            raise
    whole = make_published_splits(size, getattr(config.data, "image_size", None))
    noise = config.noise if noise_needs(locate(config.noise.target)) == "labels" else ExperimentConfig().noise
    splits = build_data(config.data, noise, config.seed, whole)
    normalisation = Normalisation((0.5,) * size.channels, (0.5,) * size.channels)
    # Nothing but the number and the shape of the images is known, and weights change nothing in a plan.
    config = replace(config, telemetry=TelemetryConfig(), model=replace(config.model, weights=None))
    run = build_run(config, context, normalisation, splits)
    return _describe_run(
        config, run, folder, overrides, f" (data: not read, published sizes of {size.title}: {size.source})"
    )


def _describe_run(config: ExperimentConfig, run: Run, folder: Path, overrides: Sequence[str], remark: str) -> Plan:
    options, objective = config.optimizer, run.step.objective
    shape, dtype = run.train.shape, run.train.blank(1, run.train.dtype).dtype
    forward, backward = (count(run.model, shape, dtype) for count in (count_forward_flops, count_backward_flops))
    method = run.step.method if max(run.rho(0), run.rho(run.max_steps - 1)) > 0 else Plain()
    passes, num_forward, num_backward = _mean_cost(method, run.max_steps)
    at_most = "at most " if method.data_decide else ""
    num_passes = f"{at_most}{passes:.3g} {'pass' if passes == 1 else 'passes'} per step"
    total_flops = (num_forward * forward + num_backward * backward) * config.batch_size * run.max_steps
    batch = format_count(config.batch_size, "image")
    batch += f" in groups of {options.m}" if options.m else ""
    batch += f", at most {-(-config.batch_size // config.accumulate)} per pass" if config.accumulate > 1 else ""
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    precision, _ = resolve_precision(config.precision, objective.device)
    compiled = "" if config.compile == "off" else f", compile={config.compile}"
    by_steps = " (max_steps)" if run.max_steps < config.epochs * len(run.train) else ""
    num_epochs = math.ceil(run.max_steps / len(run.train))
    steps = f"{run.max_steps:,} in all{by_steps}, {len(run.train):,} per epoch, {format_count(num_epochs, 'epoch')}"
    if run.patience is not None:
        steps += f"; ends after {run.patience} evaluations without a better {run.selected_by}"
    rows = {
        "data": f"{config.data.target}: {describe_data(run)}{remark}",
        "model": f"{config.model.target}: {num_parameters:,} parameters, {forward / 1e6:,.1f} MFLOPs forward per image",
        "optimizer": f"{describe_method(config)}{options.base.target}, {num_passes}",
        "batch": batch,
        "steps": steps,
        "compute": f"{at_most}{total_flops:.3g} FLOPs for training",
        "time": describe_time(total_flops, config.dry_run_tflops),
        "memory": describe_memory(
            run, [-(-config.batch_size // config.world_size), run.step.objective.chunk_size, options.m]
        ),
        "device": f"{objective.device}, {precision}{compiled}",
        "folder": str(folder),
    }
    paper = describe_target(config, overrides)
    rows |= {"paper": paper} if paper else {}
    return Plan(rows, run.max_steps, total_flops, is_bound=method.data_decide)


def describe_time(flops: float, tflops: float | None) -> str:
    """Return the time of training at a rate of `tflops` 10^12 FLOPs per second, or how to give the rate."""
    if tflops is None:
        return "add dry_run_tflops=N for the time at N TFLOP/s"
    hours = flops / (tflops * 1e12) / 3600
    unit, size = next(
        (unit, size)
        for unit, size in (("days", 24), ("hours", 1), ("minutes", 1 / 60), ("seconds", 1 / 3600))
        if hours >= size or unit == "seconds"
    )
    return f"{hours / size:.3g} {unit} at {tflops:g} TFLOP/s, without data, evaluation and checkpoints"


def describe_memory(run: Run, sizes: Sequence[int | None]) -> str:
    """Return an estimate of the memory of one process on its device: weights and what belongs to them, activations.

    Args:
        run: The run.
        sizes: Numbers of images of a process's batch, a micro-batch and a group, or None.
    """
    objective = run.step.objective
    num_bytes = sum(param.numel() * param.element_size() for param in run.model.parameters())
    parts = {
        "weights": 1,
        "gradient": 1,
        "optimizer": count_state_copies(run.step.optimizer),
        "w + eps": int(max(run.rho(0), run.rho(run.max_steps - 1)) > 0),
        "moving average": int(run.ema is not None),
    }
    copies = sum(parts.values())
    images = min(size for size in sizes if size)
    blank = run.train.blank(2, run.train.dtype).to(objective.device)
    activations = images * count_activation_bytes(run.model, blank, objective.autocast_dtype)
    total = copies * num_bytes + activations
    unit, size = ("GiB", 2**30) if total >= 2**30 else ("MiB", 2**20)
    return (
        f"about {total / size:,.1f} {unit}: {copies * num_bytes / size:,.1f} for {copies} times the weights "
        f"({', '.join(name for name, number in parts.items() if number)}), {activations / size:,.1f} for the "
        f"activations of {format_count(images, 'image')} in a pass; the data set is not counted"
    )


def count_state_copies(optimizer: torch.optim.Optimizer) -> int:
    """Return how many tensors as large as a parameter the optimizer keeps for it, e.g. 1 for SGD with momentum."""
    param = nn.Parameter(torch.ones(2, 3))
    param.grad = torch.ones_like(param)
    own: Any = type(optimizer)
    accepted = inspect.signature(own).parameters.keys() - {"fused"}
    twin = own([param], **{name: value for name, value in optimizer.defaults.items() if name in accepted})
    if callable(getattr(twin, "train", None)):  # a schedule-free optimizer
        twin.train()
    twin.step()
    return sum(isinstance(value, torch.Tensor) and value.shape == param.shape for value in twin.state[param].values())


def count_activation_bytes(model: nn.Module, images: torch.Tensor, autocast_dtype: torch.dtype | None = None) -> float:
    """Count the bytes that a forward pass keeps for the backward pass, for each image of a batch of two.

    The pass changes the running statistics of batch norm.

    Args:
        model: The network, in training mode.
        images: Two images, or two other inputs.
        autocast_dtype: dtype of autocast; None: no autocast.
    """
    weights = {param.untyped_storage().data_ptr() for param in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the memory, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast(images.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        outputs = model(images)
    total = sum(storage.nbytes() for storage in kept.values()) / 2
    del outputs
    return total


def _mean_cost(method: Method, num_steps: int) -> tuple[float, float, float]:
    """Return the mean numbers of gradients, forward passes and backward passes of a step; see `Method`.

    Of more than `MAX_COUNTED_STEPS` steps that many are drawn.
    """
    numbers: Sequence[int] = range(num_steps)
    if num_steps > MAX_COUNTED_STEPS:
        numbers = random.Random(0).sample(numbers, MAX_COUNTED_STEPS)
    forward, backward = zip(*map(method.cost, numbers), strict=True)
    return fmean(map(method.passes, numbers)), fmean(forward), fmean(backward)


def describe_method(config: ExperimentConfig) -> str:
    """Return the name of the method and its radius, "" for the base optimizer alone."""
    options = config.optimizer
    if not isinstance(options, RadiusConfig) or options.rho == 0:
        return ""
    is_random = isinstance(options, SamConfig) and options.direction == "random"
    direction = " in a random direction" if is_random else ""
    around = options.around.name if isinstance(options, AroundConfig) else "sam"
    around = "" if around == "sam" else f" around {around}"
    return f"{options.name}{around} with rho {options.rho:g}{direction}, "
