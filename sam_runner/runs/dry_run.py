"""The plan of a run, which ``dry_run=true`` prints: data, network, passes, steps and cost."""

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.optimizer import AroundConfig, RadiusConfig, SamConfig
from sam_runner.models.outputs import get_logits
from sam_runner.paper.rows import describe_target
from sam_runner.runs.result import count_examples
from sam_runner.sam.method import Method
from sam_runner.sam.methods import Plain
from sam_runner.training.build import resolve_precision
from sam_runner.training.state import Run
from sam_runner.utils.console import format_count

MAX_COUNTED_STEPS = 10_000


def count_forward_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Count the floating-point operations of the forward pass of one image; a multiply-add counts as two.

    Args:
        model: The network.
        image_shape: Channels, height and width of the image, or the shape of another input.
        dtype: Type of the input; None: of the parameters.
    """
    return _count_flops(model, image_shape, dtype, backward=False)


def count_backward_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Count those of the backward pass: gradients of the trained weights, and of the activations that they need.

    It is about twice the forward pass, less the gradient of the image, and less what frozen layers do not need.
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


def describe_run(config: ExperimentConfig, run: Run, folder: Path, overrides: Sequence[str]) -> str:
    """Return the plan of a run, with one line for each fact.

    Args:
        config: The settings.
        run: The run, before training.
        folder: The run folder that training would use.
        overrides: Settings as the user typed them, to name the differences from the paper's experiment.
    """
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
    steps = f"{run.max_steps:,} in all, {len(run.train):,} per epoch, {format_count(config.epochs, 'epoch')}"
    if run.patience is not None:
        steps += f"; ends after {run.patience} evaluations without a higher validation accuracy"
    rows = {
        "data": f"{config.data.target}: {describe_data(run)}",
        "model": f"{config.model.target}: {num_parameters:,} parameters, {forward / 1e6:,.1f} MFLOPs forward per image",
        "optimizer": f"{describe_method(config)}{options.base.target}, {num_passes}",
        "batch": batch,
        "steps": steps,
        "compute": f"{at_most}{total_flops:.3g} FLOPs for training",
        "device": f"{objective.device}, {precision}{compiled}",
        "folder": str(folder),
    }
    paper = describe_target(config, overrides)
    rows |= {"paper": paper} if paper else {}
    head = "plan (dry run: nothing is trained or written)"
    return "\n".join([head, *(f"  {name:10} {text}" for name, text in rows.items())])


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
