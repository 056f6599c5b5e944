"""Build a run: `build_run` turns an `ExperimentConfig` into a `Run`; the other functions here build parts of it."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.instantiate import is_own
from sam_runner.data.image_sets import ImageFiles, Images
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation, choose_normalisation
from sam_runner.data.splits import Splits
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import shard_model
from sam_runner.models.build import (
    build_average,
    build_model,
    find_refusal,
    is_channels_last,
    place_model,
    published_normalisation,
    weights_dtype,
)
from sam_runner.models.layers.float32_depthwise import compute_depthwise_in_float32
from sam_runner.models.outputs import get_logits
from sam_runner.models.pretrained import require_weights_file
from sam_runner.sam.batch import Batch, part_sizes
from sam_runner.sam.cuda_graph import CapturedStep
from sam_runner.sam.network.joint_passes import JointPasses, explain_impossible_passes
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.training.builders.data import build_data, require_fitting_data, require_held_out_images
from sam_runner.training.builders.method import build_method
from sam_runner.training.builders.optimizer import build_optimizer
from sam_runner.training.schedules import build_lr, build_rho
from sam_runner.training.state import Run
from sam_runner.training.subset import NUM_EXAMPLES, decay_in_loss, fixed_subset
from sam_runner.training.telemetry import OFF, Telemetry
from sam_runner.utils.console import DETAIL
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import choose_device, choose_num_workers, choose_precision, configure_torch
from sam_runner.utils.seeding import derive_seed, make_generator, seed_everything

log = logging.getLogger("sam_runner")
EVAL_BATCH_SIZE = 512
# torch.compile's own CUDA graphs are off: they need weights at fixed addresses, but the second pass stores w + eps in
# other memory.
COMPILE_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "graph": "default"}
AUTOCAST_DTYPES = {"fp64": None, "fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str, context: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """Return the device to train on. If several processes train on CUDA devices, each has its own.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        context: The processes that train together.

    Raises:
        InputError: If the CUDA device does not exist, several processes are to share one, or a machine has fewer CUDA
            devices than processes.
    """
    if name == "auto":
        name = choose_device(os.environ.get("SAM_RUNNER_JOB"), torch.cuda.device_count())
    if context.world_size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"device={name} is one GPU for {context.world_size} processes\n  use device=cuda")
        if torch.cuda.device_count() < context.local_world_size:
            raise InputError(
                f"{context.local_world_size} processes on a machine with {torch.cuda.device_count()} CUDA devices\n"
                "  start at most one process for each CUDA device (torchrun --nproc-per-node), or use device=cpu"
            )
        return torch.device("cuda", context.local_rank)
    device = torch.device(name)
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise InputError(
            f"device={name}: found {torch.cuda.device_count()} CUDA devices\n  use device=cpu or device=auto"
        )
    return device


def resolve_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """Return the precision of the passes, and why ``precision=auto`` chose it ("" for any other setting).

    Raises:
        InputError: If `precision` is "tf32" and the device is not a CUDA device.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision=tf32 is a format of CUDA devices, this is {device}\n  use precision=fp32")
    return (precision, "") if precision != "auto" else choose_precision(device)


def build_step(
    config: ExperimentConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype | None,
    device: torch.device,
    total_steps: int,
    context: DistributedContext = SINGLE_PROCESS,
    joint: JointPasses | None = None,
) -> SamStep | CapturedStep:
    """Return the optimizer step. Training without SAM uses it too, with rho = 0.

    Args:
        config: The settings.
        model: The network.
        optimizer: The base optimizer.
        dtype: dtype of autocast; None: no autocast.
        device: The device of the run.
        total_steps: Number of steps of the training.
        context: The processes that train together.
        joint: Makes one pass for this run and others (``sweep.batch_seeds``); None: the run makes its own passes.

    Raises:
        InputError: If the step cannot train the network, or the method cannot be built or does not work with it.
    """
    options, smoothing, mode = config.optimizer, config.label_smoothing, config.compile
    compiled = config.uses_compiler and not (mode == "graph" and device.type != "cuda")
    forward: Any = torch.compile(model, mode=COMPILE_MODES[mode], dynamic=False) if compiled else model
    try:
        objective = Objective(
            model,
            lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing),
            forward=(lambda images: get_logits(forward(images))) if joint is None else joint.forward(model),
            autocast_dtype=dtype,
            scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
            num_chunks=config.accumulate,
            batch_size=-(-config.batch_size // context.world_size),
            weight_decay=decay_in_loss(config),
            context=context,
        )
    except ValueError as error:
        raise InputError(f"model {config.model.target}: {error}") from error
    method = build_method(config, total_steps)
    try:
        step = SamStep(
            objective,
            optimizer,
            method,
            group_size=options.m,
            grad_clip=config.grad_clip,
            keep_statistics=config.on_nonfinite == "skip",
        )
    except ValueError as error:
        raise InputError(f"optimizer={options.name}: {error}\n  use optimizer=sam, or another network") from error
    return CapturedStep(step) if config.records_step else step


def _require_comparable_gradients(config: ExperimentConfig, step: SamStep | CapturedStep) -> None:
    """Refuse telemetry of a network with random branches."""
    if config.telemetry.every is not None and step.objective.has_random_branches:
        raise InputError(
            "telemetry.every cannot compare g with g_SAM in a network with random branches (Shake-Shake, ShakeDrop): "
            "the two backward passes use different random numbers\n  leave telemetry.every out, or use another network"
        )


def _require_possible_parts(
    config: ExperimentConfig, step: SamStep | CapturedStep, train: Images, num_batches: int
) -> None:
    """Require that the network can be trained with every group and micro-batch of the run.

    Raises:
        InputError: If batch norm would get a group or micro-batch of one image with one value per channel. Also if the
            processes would make different numbers of passes although they communicate in every pass.
    """
    objective, world_size = step.objective, step.objective.context.world_size
    totals = {config.batch_size, min(config.batch_size, len(train) - config.batch_size * (num_batches - 1))}
    sizes = {size for total in totals for size in (-(-total // world_size), total // world_size)} - {0}

    def parts(size: int, min_size: int) -> list[int]:
        groups = part_sizes(size, config.optimizer.m, min_size)
        return [part for group in groups for part in part_sizes(group, objective.chunk_size, min_size)]

    for total in totals if objective.communicates_in_passes else ():
        largest, smallest = (len(parts(size, 1)) for size in (-(-total // world_size), total // world_size))
        if largest != smallest:
            raise InputError(
                f"the processes would make {largest} and {smallest} passes for a batch of {total} images, and wait for "
                "each other: parallel=fsdp and sync_batchnorm=true communicate in every pass (accumulate="
                f"{config.accumulate}, optimizer.m={config.optimizer.m}, {world_size} processes)\n"
                f"  use a batch_size that is a multiple of {world_size} and data.drop_last=true, or leave accumulate "
                "and optimizer.m out"
            )
    if not any(1 in parts(size, 1) for size in sizes):
        return
    image = train.blank(1, weights_dtype(config.precision)).to(objective.device)
    if objective.accepts_one_example(Batch(image, None)):
        return
    for size in sizes:
        if 1 in parts(size, 2):
            raise InputError(
                f"batch norm cannot normalise one image, and a batch of {size} images has a part of one image "
                f"(batch_size={config.batch_size}, {len(train)} images, accumulate={config.accumulate}, "
                f"optimizer.m={config.optimizer.m}, {world_size} processes)\n"
                "  use another batch_size, accumulate or optimizer.m, or data.drop_last=true if it is the last batch"
            )


def build_loaders(
    config: ExperimentConfig,
    splits: Splits,
    device: torch.device,
    channels_last: bool,
    context: DistributedContext,
    normalisation: Normalisation | None,
) -> tuple[ImageLoader, dict[str, ImageLoader]]:
    """Return the loader of the training set, and the loaders of the test and validation sets by name.

    If `normalisation` is None, ``data.normalisation`` chooses the mean and the standard deviation.
    """
    train, workers = splits.train, config.data.num_decoding_workers
    num_processes = context.local_world_size * int(os.environ.get("SAM_RUNNER_JOBS_AT_ONCE", "1"))  # on this machine
    common: dict[str, Any] = {
        "normalisation": normalisation
        or choose_normalisation(
            config.data.normalisation, train, config.model.weights, lambda: published_normalisation(config.model)
        ),
        "device": device,
        "channels_last": channels_last,
        "num_workers": choose_num_workers(device, num_processes) if workers is None else workers,
        "dtype": weights_dtype(config.precision),
    }
    loader = ImageLoader(
        train,
        batch_size=config.batch_size,
        augmentation=config.augment,
        seed=config.seed,
        drop_last=config.data.drop_last,
        context=context,
        **common,
    )
    sets = {"test": splits.test} | ({} if splits.validation is None else {"validation": splits.validation})
    # A forward pass with sharded weights needs all processes, so with fsdp every process evaluates every batch.
    common["context"] = SINGLE_PROCESS if _uses_shards(config, context) else context
    return loader, {name: ImageLoader(part, batch_size=EVAL_BATCH_SIZE, **common) for name, part in sets.items()}


def build_telemetry(
    config: ExperimentConfig, train: Images, loader: ImageLoader, context: DistributedContext
) -> Telemetry:
    """Return the telemetry of a run. The examples for the curvature are read only if the curvature is measured."""
    options = config.telemetry
    if options.every is None and options.curvature_epochs is None:
        return OFF
    needs_subset = options.curvature_epochs is not None and context.is_main
    subset = fixed_subset(train, NUM_EXAMPLES, loader) if needs_subset else None
    return Telemetry(options.every, options.curvature_epochs, config, subset)


def build_network(
    config: ExperimentConfig, num_classes: int, examples: Tensor, device: torch.device
) -> tuple[nn.Module, bool]:
    """Build the network of a run on its device.

    Args:
        config: The settings.
        num_classes: Number of outputs.
        examples: Two inputs of zeros in the shape of the data, see `build_model`.
        device: The device.

    Returns:
        The network, and whether its memory layout is channels_last.

    Raises:
        InputError: If the network cannot be built, or does not fit the images or the weights.
    """
    model = build_model(
        config.model,
        num_classes,
        examples,
        seed=config.seed,
        dtype=weights_dtype(config.precision),
        sync_batchnorm=config.sync_batchnorm,
        freeze_batchnorm_stats=config.freeze_batchnorm_stats,
    )
    if device.type == "cpu":
        compute_depthwise_in_float32(model)
    channels_last = is_channels_last(config.channels_last, model, sharded=config.parallel == "fsdp")
    model = place_model(model, device, channels_last=channels_last)
    if not channels_last or not is_own(config.model.target):
        return model, channels_last
    inputs = examples.to(device)
    if inputs.is_floating_point():
        inputs = inputs.to(weights_dtype(config.precision))
    reason = find_refusal(model, inputs.to(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs)
    if reason is None:
        return model, True
    if config.channels_last is True:
        raise InputError(f"channels_last=true does not work with {config.model.target}: {reason}\n  leave it out")
    log.info("NCHW, since the network does not work with channels_last, which is faster: %s", reason, extra=DETAIL)
    return place_model(model, device, channels_last=False), False


def require_joint_passes(config: ExperimentConfig) -> None:
    """Require that runs with these settings and different seeds can share their passes (``sweep.batch_seeds``).

    Raises:
        InputError: If they cannot.
    """
    device, use_one = resolve_device(config.device), "use sweep.batch_seeds=1"
    splits = build_data(config.data, config.noise, config.seed)
    if isinstance(splits.train, ImageFiles):
        raise InputError(
            f"sweep.batch_seeds needs images in memory, and data.storage=disk keeps them on disk\n  {use_one}"
        )
    model, _ = build_network(config, len(splits.train.classes), splits.train.blank(2, torch.float32), device)
    blank = splits.train.blank(4, weights_dtype(config.precision)).to(device)
    inputs = torch.randn(blank.shape, generator=make_generator(0, "joint passes"), dtype=blank.dtype).to(device)
    if reason := explain_impossible_passes(model, inputs, get_logits):
        name = config.model.target.rpartition(".")[2]
        raise InputError(
            f"sweep.batch_seeds={config.sweep.batch_seeds} does not work with {name}: {reason}\n  {use_one}"
        )


def _uses_shards(config: ExperimentConfig, context: DistributedContext) -> bool:
    return context.world_size > 1 and config.parallel == "fsdp"


def _seed_training(config: ExperimentConfig, context: DistributedContext, device: torch.device) -> None:
    """Seed the random numbers of the passes. Each process has its own, so dropout differs between the processes.

    With sharded weights all processes must use the same layers in a pass. Stochastic depth usually draws the layers on
    the CPU, so the generators of the CPU then have the same seed in all processes.
    """
    keys = [context.rank] if context.rank else []
    is_common = _uses_shards(config, context)
    seed_everything(config.seed, "training", *([] if is_common else keys))
    if is_common and device.type == "cuda":
        torch.cuda.manual_seed(derive_seed(config.seed, "training", *keys))


def build_run(
    config: ExperimentConfig,
    context: DistributedContext = SINGLE_PROCESS,
    normalisation: Normalisation | None = None,
    splits: Splits | None = None,
    joint: JointPasses | None = None,
) -> Run:
    """Build a run: data, network, optimizer step, loaders and schedules.

    Args:
        config: The settings.
        context: The processes that train together; each of them builds the run.
        normalisation: Mean and standard deviation from the run folder; None: see `build_loaders`.
        splits: The image sets; None: those that the settings name are read.
        joint: See `build_step`.

    Raises:
        InputError: If the settings cannot be used.
    """
    device = resolve_device(config.device, context)
    precision, _ = resolve_precision(config.precision, device)
    configure_torch(device, tf32=precision == "tf32", deterministic=config.deterministic)
    dtype = AUTOCAST_DTYPES[precision]
    require_weights_file(config.model.weights)  # before the data are read, which can take long
    splits = splits or build_data(config.data, config.noise, config.seed)
    require_fitting_data(config, splits.train)
    require_held_out_images(config, splits)
    num_classes = len(splits.train.classes)
    model, channels_last = build_network(config, num_classes, splits.train.blank(2, torch.float32), device)
    if _uses_shards(config, context):
        shard_model(model)
    compiled = config.uses_compiler
    optimizer = build_optimizer(config.optimizer, model, num_classes, head_lr=config.head_lr, compiled=compiled)
    loader, evaluations = build_loaders(config, splits, device, channels_last, context, normalisation)
    total_steps = min(config.epochs * len(loader), config.max_steps or 2**62)
    step = build_step(config, model, optimizer, dtype, device, total_steps, context, joint)
    _require_comparable_gradients(config, step)
    _require_possible_parts(config, step, splits.train, len(loader))
    averaged = build_average(model, config.ema_decay) if config.ema_decay else None
    _seed_training(config, context, device)
    return Run(
        model=model,
        step=step,
        train=loader,
        evaluations=evaluations,
        classes=splits.train.classes,
        lr=build_lr(config.schedule, total_steps, len(loader)),
        rho=build_rho(config.optimizer, total_steps, len(loader)),
        epochs=config.epochs,
        max_steps=total_steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
        patience=config.early_stopping.patience,
        metric=config.early_stopping.metric,
        ema=averaged,
        skip_nonfinite=config.on_nonfinite == "skip",
        data_digest=splits.digest(),
        context=context,
        telemetry=build_telemetry(config, splits.train, loader, context),
    )
