"""What keys mean together: which exclude each other, need each other, or have no effect; see `sam_runner.config.validation`."""

import re
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from sam_runner.config.data_rules import DATA_RULES
from sam_runner.config.schema import AdamW, Ascent, Compile, Direction, Parallel, Precision, RhoSchedule
from sam_runner.utils.errors import InputError


def _ranks(cfg: DictConfig, typed: set[str]) -> None:
    """Keys of data-parallel training."""
    if "world_size" in typed:
        raise InputError(
            f"world_size={cfg.world_size} is for torchrun to set\n"
            f"  use torchrun --nproc-per-node {cfg.world_size} -m sam_runner ..."
        )
    if cfg.batch_size < cfg.world_size:
        raise InputError(f"batch_size={cfg.batch_size} is smaller than the number of processes, {cfg.world_size}")
    if cfg.sync_batchnorm and cfg.world_size == 1:
        raise InputError("sync_batchnorm has no effect with one process\n  use torchrun, or leave it out")
    if cfg.parallel == Parallel.fsdp:
        _shards(cfg)
    if not cfg.optimizer.get("sync_perturbation"):
        return
    if cfg.optimizer.m is not None:
        raise InputError("optimizer.sync_perturbation=true makes one group of the batch\n  leave optimizer.m out")
    if cfg.optimizer.second_order:
        raise InputError("optimizer.second_order=true needs optimizer.sync_perturbation=false")


def _shards(cfg: DictConfig) -> None:
    """What weights in shards cannot do (sam_runner.distributed.sharding)."""
    optimizer = cfg.optimizer
    needed = {
        "torchrun with several processes": cfg.world_size > 1,
        "optimizer.direction=gradient": optimizer.get("direction") != Direction.random,
        "optimizer.sync_perturbation=true": optimizer.get("sync_perturbation", True),
        "optimizer.p=2": optimizer.get("p", 2) == 2,
        "optimizer.m=null": optimizer.m is None,
        "optimizer.weight_decay_in_loss=false": not optimizer.weight_decay_in_loss,
        "ema_decay=null": cfg.ema_decay is None,
        "compile=off": cfg.compile == Compile.off,
        "channels_last=auto or false": cfg.channels_last is not True,
        "precision other than fp16": cfg.precision != Precision.fp16,
    }
    for name, met in needed.items():
        if not met:
            raise InputError(f"parallel=fsdp needs {name}\n  or use parallel=ddp")


def _batch_parts(cfg: DictConfig, _: set[str]) -> None:
    for key in ("accumulate", "optimizer.m"):
        value = OmegaConf.select(cfg, key)
        if value is not None and value > cfg.batch_size:
            raise InputError(f"{key}={value} is larger than batch_size={cfg.batch_size}")


def _accumulate(cfg: DictConfig, typed: set[str]) -> None:
    m = cfg.optimizer.m if "m" in cfg.optimizer else None
    if "accumulate" in typed and m is not None and cfg.accumulate > 1 and -(-cfg.batch_size // cfg.accumulate) >= m:
        raise InputError(f"accumulate={cfg.accumulate} has no effect: groups of optimizer.m={m} images are no larger")


def _aliases(cfg: DictConfig, typed: set[str]) -> None:
    """A top-level key and what it stands for, both typed and different."""
    for key, full in (
        ("rho", "optimizer.rho"),
        ("lr", "optimizer.base.lr"),
        ("weight_decay", "optimizer.base.weight_decay"),
    ):
        if {key, full} <= typed and cfg[key] != OmegaConf.select(cfg, full):
            values = f"{key}={cfg[key]:g} and {full}={OmegaConf.select(cfg, full):g}"
            raise InputError(f"{values} were both given\n  leave one out")


def _epochs(cfg: DictConfig, _: set[str]) -> None:
    for key in ("schedule.warmup_epochs", "optimizer.rho_warmup_epochs"):
        value = OmegaConf.select(cfg, key)
        if value is not None and value >= cfg.epochs:
            raise InputError(f"{key}={value:g} leaves none of epochs={cfg.epochs}\n  it must be smaller than epochs")


def _ascent(cfg: DictConfig, typed: set[str]) -> None:
    optimizer = cfg.optimizer
    if "rho" not in optimizer:
        return
    if optimizer.second_order and optimizer.ascent_steps > 1:
        raise InputError("optimizer.second_order=true needs optimizer.ascent_steps=1")
    if optimizer.second_order and cfg.compile != Compile.off:
        raise InputError(
            "optimizer.second_order=true differentiates twice, which torch.compile cannot\n  use compile=off"
        )
    if optimizer.ascent == Ascent.projected and optimizer.p != 2:
        raise InputError(f"optimizer.ascent=projected needs optimizer.p=2, not {optimizer.p:g}")
    if "optimizer.ascent" in typed and optimizer.ascent_steps == 1:
        raise InputError("optimizer.ascent has no effect with optimizer.ascent_steps=1")
    if "optimizer.rho_final" in typed and optimizer.rho_schedule == RhoSchedule.constant:
        raise InputError(
            "optimizer.rho_final has no effect with optimizer.rho_schedule=constant\n  use linear or cosine"
        )


def _random_direction(cfg: DictConfig, _: set[str]) -> None:
    """What needs eps along the gradient, or has no meaning without."""
    optimizer = cfg.optimizer
    if optimizer.get("direction") != Direction.random:
        return
    needed = {
        "optimizer.p=2": optimizer.p == 2,
        "optimizer.ascent_steps=1": optimizer.ascent_steps == 1,
        "optimizer.second_order=false": not optimizer.second_order,
        "optimizer.sync_perturbation=false (it is the same on all processes)": not optimizer.sync_perturbation,
        "compile other than graph (it is drawn anew in each step)": cfg.compile != Compile.graph,
    }
    for name, met in needed.items():
        if not met:
            raise InputError(f"optimizer.direction=random needs {name}\n  or use optimizer.direction=gradient")


def _betas(cfg: DictConfig, _: set[str]) -> None:
    betas = OmegaConf.select(cfg, "optimizer.base.betas")
    if OmegaConf.get_type(cfg.optimizer.base) is AdamW and len(betas) != 2:
        raise InputError(
            f"optimizer.base.betas={list(betas)} are not two numbers\n  like optimizer.base.betas=[0.9,0.999]"
        )


def _layout(cfg: DictConfig, _: set[str]) -> None:
    if isinstance(cfg.channels_last, str) and cfg.channels_last != "auto":
        raise InputError(f"channels_last={cfg.channels_last} is not known\n  accepted: true, false, auto")


def _device(cfg: DictConfig, _: set[str]) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", cfg.device):
        raise InputError(f"device={cfg.device} is not known\n  accepted: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if cfg.device == "cpu" and cfg.precision == Precision.tf32:
        raise InputError("precision=tf32 is a format of CUDA devices\n  use precision=fp32")


RULES: tuple[Callable[[DictConfig, set[str]], None], ...] = (
    _ranks,
    _batch_parts,
    _accumulate,
    _aliases,
    _epochs,
    _ascent,
    _random_direction,
    _device,
    _layout,
    _betas,
    *DATA_RULES,
)
