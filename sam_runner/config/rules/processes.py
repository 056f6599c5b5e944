"""Rules of training by one or several processes."""

from typing import TYPE_CHECKING

from sam_runner.config.optimizer.method import AscentConfig
from sam_runner.config.optimizer.perturbation import EsamConfig, SamConfig
from sam_runner.config.rules.method import require_all
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig


def check_processes(config: "ExperimentConfig", typed: set[str]) -> None:
    """Check the settings of training by several processes."""
    if "world_size" in typed:
        raise InputError(
            f"world_size={config.world_size} was given, but torchrun sets it\n"
            f"  use torchrun --nproc-per-node {config.world_size} -m sam_runner ..."
        )
    if config.batch_size < config.world_size:
        raise InputError(
            f"batch_size={config.batch_size} is smaller than the number of processes, {config.world_size}\n"
            f"  accepted: at least {config.world_size}"
        )
    if config.sync_batchnorm and config.world_size == 1:
        raise InputError("sync_batchnorm has no effect with one process\n  use torchrun, or leave sync_batchnorm out")
    if config.parallel == "fsdp":
        _check_sharded_weights(config)
    if not isinstance(config.optimizer, AscentConfig) or not config.optimizer.sync_perturbation:
        return
    if config.optimizer.m is not None:
        raise InputError(
            "optimizer.sync_perturbation=true computes one perturbation for the whole batch, without optimizer.m\n"
            "  leave optimizer.m out"
        )
    if isinstance(config.optimizer, SamConfig) and config.optimizer.second_order:
        raise InputError(
            "optimizer.second_order=true needs optimizer.sync_perturbation=false\n  or use optimizer.second_order=false"
        )


def check_single_process(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse settings that have no effect with one process."""
    for name in ("optimizer.sync_perturbation", "rank_timeout"):
        if name in typed and config.world_size == 1:
            raise InputError(f"{name} has no effect with one process\n  use torchrun, or leave {name} out")
    if "deterministic" in typed and config.deterministic and config.device == "cpu":
        raise InputError("deterministic=true has no effect on a CPU: runs repeat bit for bit there\n  leave it out")


def _check_sharded_weights(config: "ExperimentConfig") -> None:
    """Require the settings that sharded weights need (sam_runner.distributed.sharding)."""
    optimizer = config.optimizer
    sam = optimizer if isinstance(optimizer, SamConfig) else None
    needed = {
        "torchrun with several processes": config.world_size > 1,
        "optimizer.direction=gradient": sam is None or sam.direction == "gradient",
        "optimizer.second_order=false": sam is None or not sam.second_order,
        "optimizer.sync_perturbation=true": not isinstance(optimizer, AscentConfig) or optimizer.sync_perturbation,
        "optimizer.beta=1": not isinstance(optimizer, EsamConfig) or optimizer.beta == 1,
        "optimizer.p=2": sam is None or sam.p == 2,
        "optimizer.m=null": optimizer.m is None,
        "optimizer.weight_decay_in_loss=false": not optimizer.weight_decay_in_loss,
        "ema_decay=null": config.ema_decay is None,
        "compile=off": config.compile == "off",
        "channels_last=auto or false": config.channels_last is not True,
        "precision other than fp16": config.precision != "fp16",
    }
    require_all(needed, "parallel=fsdp", "parallel=ddp")
