"""What a run would do, without doing it: `dry_run=true`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sam_runner.paper.rows import target
from sam_runner.training.state import Run


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass: 2 per multiply-add of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode  # and Triton with it

    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    return int(counter.get_total_flops())


def passes_per_step(settings: Mapping[str, Any]) -> int:
    """Forward-backward passes of one step: at w, and with rho > 0 after each ascent step."""
    optimizer = settings["optimizer"]
    return 1 + int(optimizer["ascent_steps"]) if optimizer.get("rho", 0.0) > 0 else 1


def data_in_words(run: Run) -> str:
    """How many images each set has, and how many training labels the noise has changed."""
    loaders = {"train": run.train, **run.evaluations}
    counts = ", ".join(f"{loader.num_examples:,} {name}" for name, loader in loaders.items())
    corrupted = int((run.train.labels != run.train.clean_labels).sum())
    noise = f", {corrupted:,} training labels corrupted ({corrupted / run.train.num_examples:.2%})" if corrupted else ""
    return f"{counts} images, {len(run.classes)} classes{noise}"


def describe(settings: Mapping[str, Any], run: Run, folder: Path, typed: Sequence[str]) -> str:
    """The plan, a line each, of a run for which `typed` was typed."""
    optimizer, batch_size = settings["optimizer"], settings["batch_size"]
    flops = forward_flops(run.model, run.train.shape)
    passes = passes_per_step(settings)
    total = 3 * passes * flops * batch_size * run.max_steps  # a backward pass costs two forward passes
    batch = f"{batch_size} images"
    batch += f" in groups of {optimizer['m']}" if optimizer["m"] else ""
    batch += f", at most {-(-batch_size // settings['accumulate'])} a pass" if settings["accumulate"] > 1 else ""
    along = " in a random direction" if optimizer.get("direction") == "random" else ""
    sam = f"SAM with rho {optimizer['rho']:g}{along}, " if passes > 1 else ""
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    objective = run.step.objective
    precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[objective.autocast_dtype]
    rows = {
        "data": f"{settings['data']['_target_']}: {data_in_words(run)}",
        "model": f"{settings['model']['_target_']}: {num_parameters:,} parameters, "
        f"{flops / 1e6:,.1f} MFLOPs forward per image",
        "optimizer": f"{sam}{optimizer['base']['_target_']}, {passes} passes a step",
        "batch": batch,
        "steps": f"{run.max_steps:,} in all, {len(run.train):,} an epoch, {settings['epochs']} epochs",
        "compute": f"{total:.3g} FLOPs for training",
        "device": f"{objective.device}, {precision}"
        + ("" if settings["compile"] == "off" else f", compile={settings['compile']}"),
        "folder": str(folder),
    }
    paper = target(settings, typed)
    rows |= {"paper": paper} if paper else {}
    head = "plan (dry run: nothing is trained or written)"
    return "\n".join([head, *(f"  {name:10} {text}" for name, text in rows.items())])
