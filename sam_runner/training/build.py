"""Build a run from its settings: data, network, base optimizer, step, loaders and schedules.

`build_run` is the one place that turns an `ExperimentConfig` into a `Run`; the other functions build its parts.
"""

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.data import AugmentConfig, DataConfig, NoiseConfig
from sam_runner.config.experiment import EarlyStoppingConfig, ExperimentConfig
from sam_runner.config.instantiate import call_target, instantiate, locate
from sam_runner.config.optimizer import MomentumSamConfig, OptimizerConfig
from sam_runner.data.image_sets import ArraySet, ImageFiles, Images
from sam_runner.data.loader import ImageLoader
from sam_runner.data.noise import noise_needs
from sam_runner.data.normalisation import Normalisation, choose_normalisation
from sam_runner.data.splits import Splits, prepare_splits
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import is_sharded, shard_model
from sam_runner.models.build import (
    build_average,
    build_model,
    is_channels_last,
    parameter_groups,
    place_model,
    published_normalisation,
    weights_dtype,
)
from sam_runner.models.layers.float32_depthwise import compute_depthwise_in_float32
from sam_runner.models.outputs import get_logits
from sam_runner.models.pretrained import require_weights_file
from sam_runner.sam.batch import Batch, part_sizes
from sam_runner.sam.cuda_graph import CapturedStep
from sam_runner.sam.methods.momentum_sam import find_momentum
from sam_runner.sam.network.joint_passes import JointPasses, explain_impossible_passes
from sam_runner.sam.objective import Objective
from sam_runner.sam.optimizer_step import needs_closure
from sam_runner.sam.step import SamStep
from sam_runner.training.build_method import build_method
from sam_runner.training.compiler_free_optimizers import avoid_compiler_import
from sam_runner.training.schedules import build_lr, build_rho
from sam_runner.training.state import Run
from sam_runner.training.subset import NUM_EXAMPLES, fixed_subset
from sam_runner.training.telemetry import OFF, Telemetry
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import choose_device, choose_num_workers, choose_precision, configure_torch
from sam_runner.utils.seeding import derive_seed, make_generator, seed_everything

EVAL_BATCH_SIZE = 512
# torch.compile's own CUDA graphs are off: they need weights at fixed addresses, and in the second pass the parameters
# point to other memory.
COMPILE_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "graph": "default"}
AUTOCAST_DTYPES = {"fp64": None, "fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str, context: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """Return the device to train on. With CUDA each process of a machine has its own GPU.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        context: The processes that train together.

    Raises:
        InputError: If the CUDA device does not exist.
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
    """Return the precision of the passes and, for ``precision=auto``, the reason for it, otherwise "".

    Raises:
        InputError: If the device does not support the format.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision=tf32 is a format of CUDA devices, this is {device}\n  use precision=fp32")
    return (precision, "") if precision != "auto" else choose_precision(device)


@lru_cache(maxsize=1)
def _read_data(target: str, arguments: str) -> Splits:
    """Call the function `target` with `arguments`, a JSON object.

    The result is cached, because the jobs of a sweep usually share a data set.
    """
    splits = call_target(target, json.loads(arguments), "data")
    if not isinstance(splits, Splits):
        raise InputError(
            f"data ({target}) returns a {type(splits).__name__}\n"
            "  return from_dataset(train, test, classes) of sam_runner (docs/own_data.md)"
        )
    return splits


def build_data(data: DataConfig, noise: NoiseConfig, seed: int, whole: Splits | None = None) -> Splits:
    """Return the training set with its label noise, the held-out set and the test set.

    Args:
        data: Settings of the data set.
        noise: Settings of the label noise.
        seed: Seed of the label noise.
        whole: The sets before anything is held out; None calls the function of the data set.
    """
    return prepare_splits(
        whole or _read_data(data.target, json.dumps(data.arguments(), sort_keys=True)),
        partial(instantiate, noise, "noise"),
        needs=noise_needs(locate(noise.target)),
        seed=seed,
        val_fraction=data.val_fraction,
        train_fraction=data.train_fraction,
        val_labels=data.val_labels,
    )


def require_fitting_data(config: ExperimentConfig, train: Images) -> None:
    """Require that the settings fit the training set.

    Raises:
        InputError: If the batch is larger than the set, or an augmentation does not fit the images.
    """
    augment: AugmentConfig = config.augment
    if config.data.drop_last and len(train) < config.batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is larger than the training set of {len(train)} images, and "
            "data.drop_last=true leaves out incomplete batches\n  use a smaller batch_size or data.drop_last=false"
        )
    if isinstance(train, ArraySet):
        _require_augmentable(augment, train)
    side = min(train.shape[1:], default=1)
    if augment.crop_scale_min is not None and not isinstance(train, ImageFiles):
        raise InputError(
            "augment.crop_scale_min needs image files, but the images are in memory\n  set data.storage=disk"
        )
    if augment.pad_mode == "reflect" and augment.pad >= side:
        raise InputError(
            f"augment.pad={augment.pad} is too large for augment.pad_mode=reflect on images of {side} pixels\n"
            f"  accepted: at most {side - 1}, or augment.pad_mode=zero"
        )
    if augment.cutout > side:
        raise InputError(
            f"augment.cutout={augment.cutout} is larger than images of {side} pixels\n  accepted: at most {side}"
        )


def _require_held_out_images(config: ExperimentConfig, splits: Splits) -> None:
    """Refuse early stopping, or a chosen early_stopping.metric, without held-out images or for too few classes."""
    patience, metric = config.early_stopping.patience, config.early_stopping.metric
    is_chosen = metric != EarlyStoppingConfig.metric
    if splits.validation is None and (patience is not None or is_chosen):
        name = f"early_stopping.metric={metric}" if is_chosen else "early_stopping.patience"
        raise InputError(f"{name} needs held-out images, which choose the best epoch\n  add data.val_fraction=0.1")
    if metric.endswith("/accuracy_top5") and len(splits.train.classes) <= 5:
        raise InputError(
            f"early_stopping.metric={metric} needs more than five classes, the data have {len(splits.train.classes)}\n"
            "  use validation/accuracy or validation/nll"
        )


def _require_augmentable(augment: AugmentConfig, train: ArraySet) -> None:
    """Refuse augmentations that the inputs do not permit.

    Floats permit mixup. Floats of shape (C, H, W) also permit crop, flip, cutout, erasing and CutMix.
    """
    accepted = {"mixup"} if train.inputs.dtype.is_floating_point else set()
    if accepted and len(train.shape) == 3:
        accepted |= {"pad", "pad_mode", "flip", "cutout", "cutout_per_batch", "erasing", "cutmix"}
    for entry in fields(augment):
        value = getattr(augment, entry.name)
        if value != entry.default and entry.name not in accepted:
            kind = str(train.inputs.dtype).removeprefix("torch.")
            raise InputError(
                f"augment.{entry.name}={value} cannot be applied to inputs of shape {train.shape}, {kind}\n"
                f"  accepted: {', '.join(f'augment.{name}' for name in sorted(accepted)) or 'augment=none'}"
            )


def build_optimizer(
    options: OptimizerConfig,
    model: nn.Module,
    num_classes: int,
    *,
    head_lr: float | None = None,
    compiled: bool = False,
) -> torch.optim.Optimizer:
    """Return the base optimizer over all parameters that require gradients.

    Args:
        options: Settings of the method. `base` and `weight_decay_in_loss` are used, and the class of `options`, because
            momentum_sam needs a base optimizer with momentum.
        model: The network.
        num_classes: Number of outputs of the network, which identifies its head.
        head_lr: Initial learning rate of the head, or None for the learning rate of the other parameters.
        compiled: Whether the run uses torch.compile; otherwise the import of the compiler is avoided.
    """
    target, arguments = options.base.target, options.base.arguments()
    if options.weight_decay_in_loss:
        arguments["weight_decay"] = 0.0
    params = [param for param in model.parameters() if param.requires_grad]
    groups = parameter_groups(model, num_classes, head_lr)
    _require_base_optimizer(target)
    if "weight_decay" not in inspect.signature(locate(target)).parameters:
        if options.base.weight_decay != 0:
            raise InputError(f"{target} has no weight decay\n  set weight_decay=0")
        del arguments["weight_decay"]
    if _supports_fused(target, arguments) and all(
        param.is_floating_point() and not is_sharded(param) for param in params
    ):
        arguments["fused"] = True
    if not compiled:
        avoid_compiler_import(locate(target))  # type: ignore[arg-type]
    _try_optimizer(target, arguments, needs_momentum=isinstance(options, MomentumSamConfig))
    optimizer: torch.optim.Optimizer = call_target(target, arguments, "optimizer.base", params=groups)
    if callable(getattr(optimizer, "train", None)):  # a schedule-free optimizer
        optimizer.train()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _supports_fused(target: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether torch has a fused step of the optimizer and the user's arguments permit the fused step."""
    parameters = inspect.signature(locate(target)).parameters
    chosen = {"fused", "foreach", "differentiable"} & set(arguments)
    return "fused" in parameters and not chosen and not arguments.get("dampening")


def _require_base_optimizer(target: str) -> None:
    """Require a subclass of torch.optim.Optimizer that needs neither a closure nor sparse gradients."""
    kind = locate(target)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        raise InputError(
            f"optimizer.base._target_={target} is not an optimizer\n"
            "  use a class of torch.optim, such as torch.optim.Adagrad"
        )
    if needs_closure(kind) or issubclass(kind, torch.optim.SparseAdam):
        raise InputError(
            f"optimizer.base._target_={target} needs a closure or sparse gradients\n  use another class of torch.optim"
        )


def _try_optimizer(target: str, arguments: Mapping[str, Any], *, needs_momentum: bool) -> None:
    """Require that an optimizer can take a step with gradients alone; those of torch are tried for momentum only.

    Args:
        target: Class of the optimizer.
        arguments: Its arguments.
        needs_momentum: Whether the optimizer must have momentum after the step.

    Raises:
        InputError: If the step fails, for example because the optimizer needs a closure or second derivatives, or if
            the optimizer must have momentum and has none.
    """
    if target.startswith("torch.optim.") and not needs_momentum:
        return
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = call_target(target, {**arguments}, "optimizer.base", params=[param])
    param.grad = torch.ones_like(param)
    try:
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        optimizer.step()
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"optimizer.base._target_={target} cannot take a step with gradients alone: {reason[0]}\n"
            "  SAM's base optimizer must need no closure, no Hessian and no sparse gradients"
        ) from error
    if needs_momentum and find_momentum(optimizer, param) is None:
        raise InputError(
            f"optimizer=momentum_sam needs momentum, and optimizer.base._target_={target} has none\n"
            "  use optimizer/base=sgd or optimizer/base=adamw"
        )


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
    """Return the optimizer step. Plain training uses the same step with rho = 0.

    Args:
        config: The settings.
        model: The network.
        optimizer: The base optimizer.
        dtype: Type of autocast, or None.
        device: The device of the run.
        total_steps: Number of steps of the training.
        context: The processes that train together.
        joint: Runs joint passes of several runs; None if the run makes its own passes.

    Raises:
        InputError: If the method does not work with the network.
    """
    options, smoothing, mode = config.optimizer, config.label_smoothing, config.compile
    compiled = config.uses_compiler and not (mode == "graph" and device.type != "cuda")
    forward: Any = torch.compile(model, mode=COMPILE_MODES[mode], dynamic=False) if compiled else model
    objective = Objective(
        model,
        lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing),
        forward=(lambda images: get_logits(forward(images))) if joint is None else joint.forward(model),
        autocast_dtype=dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        num_chunks=config.accumulate,
        batch_size=-(-config.batch_size // context.world_size),
        weight_decay=options.base.weight_decay if options.weight_decay_in_loss else 0.0,
        context=context,
    )
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
            "telemetry.every compares g with g_SAM. With random branches (Shake-Shake, ShakeDrop) the backward passes "
            "of the two use different random numbers\n  leave telemetry.every out, or use another network"
        )


def _require_possible_parts(
    config: ExperimentConfig, step: SamStep | CapturedStep, train: Images, num_batches: int
) -> None:
    """Require that the network can be trained with every group and micro-batch of the run.

    Raises:
        InputError: If a group or micro-batch has one image and batch norm would have one value per channel, or if
            processes that communicate in every pass would make different numbers of passes.
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
                f"processes would make {largest} and {smallest} passes for a batch of {total} images, and wait for "
                f"each other: parallel=fsdp and sync_batchnorm=true communicate in every pass (accumulate="
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
    context: DistributedContext = SINGLE_PROCESS,
    normalisation: Normalisation | None = None,
) -> tuple[ImageLoader, dict[str, ImageLoader]]:
    """Return the loader of the training set, and the loaders of the evaluated sets by name.

    Without `normalisation` the mean and standard deviation are chosen by ``data.normalisation``.
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
    config: ExperimentConfig, train: Images, loader: ImageLoader, context: DistributedContext = SINGLE_PROCESS
) -> Telemetry:
    """Return the telemetry of a run. The fixed examples are read only if curvature is measured."""
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
        examples: Two images or other inputs of zeros, as in `build_model`.
        device: The device.

    Returns:
        The network, and whether it has the memory layout channels_last.

    Raises:
        InputError: If the network cannot be built, or does not fit the images or the weights.
    """
    model = build_model(
        config.model,
        num_classes,
        examples,
        seed=config.seed,
        sync_batchnorm=config.sync_batchnorm,
        freeze_batchnorm_stats=config.freeze_batchnorm_stats,
    )
    if device.type == "cpu":
        compute_depthwise_in_float32(model)
    channels_last = is_channels_last(config.channels_last, model, sharded=config.parallel == "fsdp")
    return place_model(model, device, weights_dtype(config.precision), channels_last=channels_last), channels_last


def require_joint_passes(config: ExperimentConfig) -> None:
    """Require that runs with these settings and different seeds can make joint passes.

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
    """Seed the random numbers of the passes; each process has its own dropout.

    With sharded weights all processes must use the same parameters in a pass. Stochastic depth is usually drawn on the
    CPU, so in this case all processes seed the CPU's generators equally.
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
        normalisation: Mean and standard deviation stored in the run folder; None: see `build_loaders`.
        splits: The sets; None reads those of the settings.
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
    _require_held_out_images(config, splits)
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
