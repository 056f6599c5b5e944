"""Rules of the training steps: batches, warm-up, measurements and device."""

import re
from typing import TYPE_CHECKING

from sam_runner.config.keys import walk
from sam_runner.config.optimizer.method import RadiusConfig
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig


def check_batch_parts(config: "ExperimentConfig", typed: set[str]) -> None:
    """Check the sizes of groups and micro-batches."""
    m = config.optimizer.m
    for name, value in (("accumulate", config.accumulate), ("optimizer.m", m)):
        if value is not None and value > config.batch_size:
            raise InputError(
                f"{name}={value} is larger than batch_size={config.batch_size}\n  accepted: at most {config.batch_size}"
            )
    if m is None or "accumulate" not in typed or config.accumulate == 1:
        return
    if -(-config.batch_size // config.accumulate) >= m:
        larger = f", or use accumulate={-(-config.batch_size // (m - 1))} or more" if m > 1 else ""
        raise InputError(
            f"accumulate={config.accumulate} has no effect: groups of optimizer.m={m} images fit into one micro-batch\n"
            f"  leave accumulate out{larger}"
        )


def check_aliases(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse different values for a top-level setting (rho) and the setting that it stands for (optimizer.rho)."""
    values = config.flat() if len(typed) > 1 else {}
    for name, facts, value in walk(config) if values else ():
        if facts.alias in values and {name, facts.alias} <= typed and value != values[facts.alias]:
            raise InputError(
                f"{name}={value:g} and {facts.alias}={values[facts.alias]:g} were both given\n  leave one out"
            )


def check_warmup(config: "ExperimentConfig", _: set[str]) -> None:
    """Require that warm-up ends before the run."""
    warmups = {"schedule.warmup_epochs": config.schedule.warmup_epochs}
    if isinstance(config.optimizer, RadiusConfig):
        warmups["optimizer.rho_warmup_epochs"] = config.optimizer.rho_warmup_epochs
    for name, value in warmups.items():
        if value >= config.epochs:
            raise InputError(
                f"{name}={value:g} is not smaller than epochs={config.epochs}\n  use fewer epochs of warm-up"
            )


def check_telemetry(config: "ExperimentConfig", _: set[str]) -> None:
    """Refuse measurements that are impossible with the other settings."""
    options = config.telemetry
    if options.every is not None and config.records_step:
        raise InputError(
            f"telemetry.every does not work with compile={config.compile}\n"
            "  use compile=off, or leave telemetry.every out"
        )
    if options.curvature_epochs is not None and config.sync_batchnorm:
        raise InputError(
            "telemetry.curvature_epochs measures in one process, but sync_batchnorm=true needs all processes\n"
            "  leave one of the two settings out"
        )
    if options.curvature_epochs is not None and config.parallel == "fsdp":
        raise InputError(
            "telemetry.curvature_epochs needs all weights in one process\n"
            "  use parallel=ddp, or leave telemetry.curvature_epochs out"
        )


def check_selection_metric(config: "ExperimentConfig", _: set[str]) -> None:
    """Require the averaged weights whose metric chooses the best epoch."""
    metric = config.early_stopping.metric
    if metric.startswith("validation_ema/") and config.ema_decay is None:
        raise InputError(
            f"early_stopping.metric={metric} needs a moving average of the weights\n"
            f"  add ema_decay=0.999, or use {metric.replace('_ema', '')}"
        )


def check_device(config: "ExperimentConfig", _: set[str]) -> None:
    """Check the name of the device and its number format."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", config.device):
        raise InputError(f"device={config.device} is not known\n  accepted: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if config.device == "cpu" and config.precision == "tf32":
        raise InputError("precision=tf32 is a format of CUDA devices\n  use precision=fp32")
