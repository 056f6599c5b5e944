"""From settings to the objects of a run."""

import inspect
import json
import os
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sam_runner.config.instantiate import construct, locate
from sam_runner.data.augment.augmentation import Augmentation
from sam_runner.data.image_sets import Images, ImageSet, Splits, hold_out, subsample
from sam_runner.data.loader import IMAGENET, Loader, Normalisation
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import is_sharded, shard
from sam_runner.models.build import build_model, is_channels_last, parameter_groups, weights_dtype
from sam_runner.sam.cuda_graph import CapturedStep
from sam_runner.sam.method import Method
from sam_runner.sam.methods import KStep, Plain, RandomDirection, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.training.compiler_free_optimizers import avoid_compiler_import
from sam_runner.training.rates import build_lr, build_rho
from sam_runner.training.state import Run
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import automatic_device, automatic_precision, decoding_workers, set_up
from sam_runner.utils.seeding import derive_seed, seed_everything

Settings = Mapping[str, Any]
EVAL_BATCH = 512


def device_of(settings: Settings, ranks: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """The device to train on; of several processes on a machine each has its own GPU.

    Raises:
        InputError: Where a CUDA device is asked for that does not exist.
    """
    name = settings["device"]
    if name == "auto":
        name = automatic_device(os.environ.get("SAM_RUNNER_CELL"), torch.cuda.device_count())
    if ranks.world_size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"device={name} is one GPU for {ranks.world_size} processes\n  use device=cuda")
        if torch.cuda.device_count() < ranks.local_world_size:
            raise InputError(
                f"{ranks.local_world_size} processes on a machine with {torch.cuda.device_count()} CUDA devices\n"
                "  use torchrun --nproc-per-node with that number, or device=cpu"
            )
        return torch.device("cuda", ranks.local_rank)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name} is not known\n  accepted: auto, cpu, cuda, cuda:0, cuda:1, ...") from error
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise InputError(
            f"device={name}: found {torch.cuda.device_count()} CUDA devices\n  use device=cpu or device=auto"
        )
    return device


def precision_of(settings: Settings, device: torch.device) -> tuple[str, str]:
    """The precision, fp32, tf32, bf16 or fp16, and where it was chosen for the device, why."""
    if settings["precision"] == "tf32" and device.type != "cuda":
        raise InputError(f"precision=tf32 is a format of CUDA devices, this is {device}\n  use precision=fp32")
    return (settings["precision"], "") if settings["precision"] != "auto" else automatic_precision(device)


# The graphs that torch.compile would make by itself know one place for the weights; here they have two.
COMPILE_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "graph": "default"}
AUTOCAST = {"fp64": None, "fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@lru_cache(maxsize=1)
def _loaded(node: str) -> Splits:
    """The set that a JSON text describes; kept, since the cells of a sweep mostly share one."""
    splits: Splits = construct(json.loads(node), "data")
    return splits


def build_data(settings: Settings) -> Splits:
    """Training set with its noise, held-out set and test set."""
    data = dict(settings["data"])
    held_out, used = data.pop("val_fraction", 0.0), data.pop("train_fraction", 1.0)
    drop_last, noisy = data.pop("drop_last", True), data.pop("val_labels", "clean") == "noisy"
    splits, node = _loaded(json.dumps(data, sort_keys=True)), settings["noise"]
    supplied = {"num_classes": len(splits.train.classes), "seed": settings["seed"]}
    taken = inspect.signature(locate(node["_target_"])).parameters
    if "all_labels" in taken:  # by place in the whole set
        splits = splits.relabelled(construct(node, "noise", all_labels=splits.train.labels, **supplied))
    splits = subsample(hold_out(splits, held_out, noisy=noisy), used)
    train = splits.train
    if drop_last and len(train) < settings["batch_size"]:
        raise InputError(
            f"batch_size={settings['batch_size']} is larger than the training set of {len(train)} images, and "
            "data.drop_last=true leaves incomplete batches out\n  use a smaller batch_size or data.drop_last=false"
        )
    pad, side = settings["augment"]["pad"], min(train.shape[1:])
    if settings["augment"]["crop_scale_min"] is not None and isinstance(train, ImageSet):
        raise InputError(
            "augment.crop_scale_min cuts parts out of image files, these are in memory\n  set data.storage=disk"
        )
    if settings["augment"]["pad_mode"] == "reflect" and pad >= side:
        raise InputError(f"augment.pad={pad} must be smaller than the images' side of {side} pixels to reflect")
    if settings["augment"]["cutout"] > side:
        raise InputError(f"augment.cutout={settings['augment']['cutout']} covers images of {side} pixels whole")
    if "all_labels" in taken:
        return splits
    splits = splits.relabelled(_noisy_labels(train, node, taken, supplied))
    if noisy and splits.validation is not None:
        supplied["seed"] = derive_seed(settings["seed"], "held-out label noise")
        labels = _noisy_labels(splits.validation, node, taken, supplied)
        splits = replace(splits, validation=splits.validation.relabelled(labels))
    return splits


def _noisy_labels(part: Images, node: Settings, taken: Container[str], supplied: Settings) -> torch.Tensor:
    """The labels of one split after noise that is a function of its labels, or of its images too."""
    if "images_NCHW" in taken:
        if not isinstance(part, ImageSet):
            raise InputError(f"noise {node['_target_']} needs the images in memory\n  set data.storage=memory")
        supplied = {**supplied, "images_NCHW": part.images_NCHW}
    labels: torch.Tensor = construct(node, "noise", labels=part.labels, **supplied)
    return labels


def build_optimizer(settings: Settings, model: nn.Module, num_classes: int) -> torch.optim.Optimizer:
    """The base optimizer over all parameters that require gradients."""
    node = dict(settings["optimizer"]["base"])
    if settings["optimizer"]["weight_decay_in_loss"]:
        node["weight_decay"] = 0.0
    params = [param for param in model.parameters() if param.requires_grad]
    groups = parameter_groups(settings, model, num_classes)
    _require_base_optimizer(node["_target_"])
    if _takes_fused(node) and all(param.is_floating_point() and not is_sharded(param) for param in params):
        node["fused"] = True
    if settings["compile"] == "off":
        avoid_compiler_import(locate(node["_target_"]))  # type: ignore[arg-type]
    optimizer: torch.optim.Optimizer = construct(node, "optimizer.base", params=groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _takes_fused(node: Settings) -> bool:
    """Whether torch has the optimizer's step as one kernel, and nobody has chosen otherwise."""
    parameters = inspect.signature(locate(node["_target_"])).parameters
    return (
        "fused" in parameters and not {"fused", "foreach", "differentiable"} & set(node) and not node.get("dampening")
    )


def _require_base_optimizer(name: str) -> None:
    """Refuse what is no optimizer, or one that cannot be given a gradient."""
    kind = locate(name)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        raise InputError(f"optimizer.base._target_={name} is no optimizer of torch.optim")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if (closure is not None and closure.default is closure.empty) or issubclass(kind, torch.optim.SparseAdam):
        raise InputError(f"{name} cannot be a base optimizer: it needs a closure or sparse gradients")


def build_step(
    settings: Settings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype | None,
    device: torch.device,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> SamStep | CapturedStep:
    """The optimizer step; one of plain training is SAM's with rho 0."""
    options = settings["optimizer"]
    smoothing = settings["label_smoothing"]
    mode = settings["compile"]
    if mode == "graph" and device.type != "cuda":
        mode = "off"
    forward: Any = model if mode == "off" else torch.compile(model, mode=COMPILE_MODES[mode], dynamic=False)
    parallel: dict[str, Any] = {"ranks": ranks}
    if ranks.world_size > 1 and settings["parallel"] == "ddp":
        forward = _parallel(forward, device)
        parallel["no_sync"] = forward.no_sync
    objective = Objective(
        model,
        lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=smoothing),
        forward=forward,
        autocast_dtype=dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        num_chunks=settings["accumulate"],
        batch_size=-(-settings["batch_size"] // ranks.world_size),
        weight_decay=options["base"]["weight_decay"] if options["weight_decay_in_loss"] else 0.0,
        **parallel,
    )
    step = SamStep(
        objective,
        optimizer,
        build_method(options, settings["seed"]),
        group_size=options["m"],
        grad_clip=settings["grad_clip"],
        keep_statistics=settings["on_nonfinite"] == "skip",
    )
    return CapturedStep(step) if settings["compile"] == "graph" else step


def build_method(options: Settings, seed: int) -> Method:
    """Return the method that the optimizer's options describe."""
    if "rho" not in options:
        return Plain()
    if options["direction"] == "random":
        return RandomDirection(seed)
    p, sync = options["p"], options["sync_perturbation"]
    if options["second_order"]:
        return SecondOrder(p)
    if options["ascent_steps"] > 1:
        is_projected = options["ascent"] == "projected"
        return KStep(options["ascent_steps"], projected=is_projected, p=p, sync_perturbation=sync)
    return Sam(p, sync_perturbation=sync)


def _parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model whose gradients become their means over the ranks while they are made; buffers stay a rank's own."""
    accepted = inspect.signature(DistributedDataParallel.__init__).parameters
    kept = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"  # before torch 2.13
    options: dict[str, Any] = {kept: False}
    return DistributedDataParallel(model, [device.index] if device.type == "cuda" else None, **options)


def _sharded(settings: Settings, ranks: DistributedContext) -> bool:
    return ranks.world_size > 1 and bool(settings["parallel"] == "fsdp")


def build_loaders(
    settings: Settings,
    splits: Splits,
    device: torch.device,
    channels_last: bool,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> tuple[Loader, dict[str, Loader]]:
    """Batches to train on, and those of the sets to evaluate by name."""
    train, workers = splits.train, settings["data"].get("num_workers")
    common: dict[str, Any] = {
        "normalisation": Normalisation.of(train.images_NCHW) if isinstance(train, ImageSet) else IMAGENET,
        "device": device,
        "channels_last": channels_last,
        "num_workers": decoding_workers(device, ranks.local_world_size) if workers is None else workers,
        "dtype": weights_dtype(settings["precision"]),
    }
    loader = Loader(
        train,
        batch_size=settings["batch_size"],
        augmentation=Augmentation(**settings["augment"]),
        seed=settings["seed"],
        drop_last=settings["data"].get("drop_last", True),
        ranks=ranks,
        **common,
    )
    sets = {"test": splits.test} | ({} if splits.validation is None else {"validation": splits.validation})
    # Sharded weights come together for all ranks at once, so all of them evaluate every batch.
    common["ranks"] = SINGLE_PROCESS if _sharded(settings, ranks) else ranks
    return loader, {name: Loader(part, batch_size=EVAL_BATCH, **common) for name, part in sets.items()}


def build_run(settings: Settings, ranks: DistributedContext = SINGLE_PROCESS) -> Run:
    """Everything that is trained and evaluated.

    Args:
        settings: Plain, resolved, validated.
        ranks: The processes that train together; each builds such a run.

    Raises:
        InputError: Where the settings cannot be used.
    """
    device = device_of(settings, ranks)
    precision, _ = precision_of(settings, device)
    set_up(device, tf32=precision == "tf32", deterministic=settings["deterministic"])
    dtype = AUTOCAST[precision]
    splits = build_data(settings)
    model = build_model(settings, splits, device)
    if _sharded(settings, ranks):
        shard(model)
    optimizer = build_optimizer(settings, model, len(splits.train.classes))
    step = build_step(settings, model, optimizer, dtype, device, ranks)
    loader, evaluations = build_loaders(settings, splits, device, is_channels_last(settings, model), ranks)
    total_steps = min(settings["epochs"] * len(loader), settings["max_steps"] or 2**62)
    decay = settings["ema_decay"]
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
    seed_everything(settings["seed"], "training", *([ranks.rank] if ranks.rank else []))  # dropout differs by rank
    return Run(
        model=model,
        step=step,
        train=loader,
        evaluations=evaluations,
        classes=splits.train.classes,
        lr=build_lr(settings, total_steps, len(loader)),
        rho=build_rho(settings, total_steps, len(loader)),
        epochs=settings["epochs"],
        max_steps=total_steps,
        log_every=settings["log_every"],
        eval_every=settings["eval_every"],
        ema=averaged,
        skip_nonfinite=settings["on_nonfinite"] == "skip",
        data_digest=splits.digest(),
        ranks=ranks,
    )
