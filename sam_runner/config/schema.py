"""The typed configuration: what keys there are and of which type. Imports no torch.

Hydra fills these classes from conf/ and the command line, which checks names and types. A group typed Any takes the
class that its option names as ``/schema/...``; an option without one (your own) is checked against what its
``_target_`` accepts.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore

from sam_runner.config.data_schema import (
    Augment,
    Data,
    Human,
    ImageFolder,
    Published,
    Rated,
    Relabelled,
    Svhn,
    Symmetric,
    Synthetic,
    Target,
)
from sam_runner.config.model_schema import MODELS

Precision = Enum("Precision", ["auto", "fp64", "fp32", "tf32", "bf16", "fp16"])
Compile = Enum("Compile", {"off": "off", "default": "default", "max-autotune": "max-autotune", "graph": "graph"})
Parallel = Enum("Parallel", ["ddp", "fsdp"])
OnNonfinite = Enum("OnNonfinite", ["stop", "skip"])
OnError = Enum("OnError", {"continue": "continue", "stop": "stop"})
Ascent = Enum("Ascent", ["sphere", "projected"])
Direction = Enum("Direction", ["gradient", "random"])
RhoSchedule = Enum("RhoSchedule", ["constant", "linear", "cosine"])


@dataclass
class Base(Target):
    """Keys of every base optimizer."""

    lr: float
    weight_decay: float


@dataclass
class Sgd(Base):
    """Keys of optimizer/base=sgd."""

    momentum: float
    nesterov: bool


@dataclass
class AdamW(Base):
    """Keys of optimizer/base=adamw."""

    betas: list[float]
    eps: float


@dataclass
class RMSprop(Base):
    """Keys of optimizer/base=rmsprop."""

    momentum: float
    alpha: float
    eps: float


@dataclass
class Plain:
    """Keys of optimizer=sgd; see `sam_runner.sam.step.SamStep`."""

    m: int | None
    weight_decay_in_loss: bool
    base: Any


@dataclass
class Sam(Plain):
    """Keys of optimizer=sam."""

    rho: float
    p: float
    direction: Direction
    ascent_steps: int
    ascent: Ascent
    second_order: bool
    sync_perturbation: bool
    rho_schedule: RhoSchedule
    rho_final: float
    rho_warmup_epochs: float


@dataclass
class Schedule(Target):
    """Keys of every learning-rate schedule."""

    warmup_epochs: float


@dataclass
class Decay(Schedule):
    """Keys of the schedules that end at a fraction of the start."""

    final_factor: float


@dataclass
class StepDecay(Schedule):
    """Keys of schedule=step."""

    milestones: list[float]
    gamma: float


@dataclass
class Checkpoint:
    """When to save, and what to keep; see `sam_runner.training.checkpoints.CheckpointFolder`."""

    every_steps: int | None
    every_seconds: float | None
    min_interval: float
    keep: int
    keep_epochs: list[int]


@dataclass
class Sweep:
    """How a sweep goes on."""

    on_error: OnError


@dataclass
class Root:
    """Top-level keys."""

    rho: float
    lr: float
    weight_decay: float
    head_lr: float | None
    epochs: int
    max_steps: int | None
    batch_size: int
    accumulate: int
    label_smoothing: float
    ema_decay: float | None
    grad_clip: float | None
    freeze_batchnorm_stats: bool
    seed: int
    device: str
    precision: Precision
    channels_last: bool | str
    compile: Compile
    deterministic: bool
    world_size: int
    parallel: Parallel
    sync_batchnorm: bool
    rank_timeout: float
    on_nonfinite: OnNonfinite
    log_every: int
    eval_every: int
    checkpoint: Checkpoint
    run_dir: str | None
    sweep_name: str
    sweep: Sweep
    paper: str | None
    dry_run: bool
    data: Any
    noise: Any
    augment: Augment
    model: Any
    optimizer: Any
    schedule: Any


SCHEMAS: dict[str, type] = {
    "data/digits": Data, "data/synthetic": Synthetic, "data/published": Published, "data/svhn": Svhn,
    "noise/relabelled": Relabelled, "data/image_folder": ImageFolder,
    "noise/none": Target, "noise/symmetric": Symmetric, "noise/human": Human, "noise/rated": Rated,
    **MODELS,
    "optimizer/plain": Plain, "optimizer/sam": Sam, "base/sgd": Sgd, "base/adamw": AdamW, "base/rmsprop":
    RMSprop, "schedule/cosine": Decay, "schedule/linear": Decay, "schedule/constant": Schedule, "schedule/step":
    StepDecay, "augment": Augment,
}  # fmt: skip


def register_schemas() -> None:
    """Make the classes known to Hydra as the group ``schema``, apart from the groups that people choose from."""
    store = ConfigStore.instance()
    store.store(group="schema", name="root", node=Root, package="_global_")
    for path, node in SCHEMAS.items():
        group, _, name = f"schema/{path}".rpartition("/")
        store.store(group=group, name=name, node=node)
