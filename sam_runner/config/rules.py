"""Rules between settings: which exclude each other, need each other, or have no effect together."""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from sam_runner.config.data import (
    ArchiveConfig,
    DataConfig,
    HuggingFaceConfig,
    HumanNoiseConfig,
    ImageFolderConfig,
    ImageListConfig,
    LabelFileConfig,
)
from sam_runner.config.keys import walk
from sam_runner.config.optimizer import (
    METHODS,
    AdamWConfig,
    AeSamConfig,
    AroundConfig,
    AscentConfig,
    EsamConfig,
    GsamConfig,
    MomentumSamConfig,
    OptimizerConfig,
    RadiusConfig,
    RMSpropConfig,
    SamConfig,
    SgdConfig,
)
from sam_runner.config.schedule import ScheduleConfig
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig

NO_HELD_OUT_IMAGES = "data.val_labels=noisy has no effect without held-out images\n  add data.val_fraction=0.1"


def check_rules(config: "ExperimentConfig", typed: set[str], *, multirun: bool) -> None:
    """Raise InputError for the first rule that is broken.

    Args:
        config: Settings of the right types and ranges.
        typed: Dotted names of the settings that the user typed.
        multirun: Whether the run is a job of a sweep.
    """
    for rule in RULES:
        rule(config, typed)
    _check_command_line(config, typed, multirun)


def _check_command_line(config: "ExperimentConfig", typed: set[str], multirun: bool) -> None:
    """Refuse typed settings without effect; for a job of a sweep, check only `run_dir` and `sweep.batch_seeds`."""
    if not _is_utf8(config.run_dir or ""):
        raise InputError(
            f"run_dir={config.run_dir!r} contains bytes that are not UTF-8; TensorBoard cannot write there\n"
            "  give another run_dir"
        )
    if multirun:
        _check_joint_seeds(config)
        return
    if "rho" in typed and not isinstance(config.optimizer, RadiusConfig):
        raise InputError(
            "rho has no effect with this optimizer, which makes one pass\n  use optimizer=sam, or leave rho out"
        )
    if (
        "telemetry.every" in typed
        and config.telemetry.every is not None
        and not isinstance(config.optimizer, AscentConfig)
    ):
        raise InputError(
            "telemetry.every has no effect with this optimizer, which makes one pass\n"
            "  use optimizer=sam, or leave telemetry.every out"
        )
    _check_zero_radius(config, typed)
    _check_smallest_radius(config, typed)
    if "sweep_name" in typed:
        raise InputError("sweep_name has no effect without -m\n  name the folder of a single run with run_dir=FOLDER")
    if "search" in typed:
        raise InputError("search has no effect without -m: it is a sweep\n  use sam-train -m search=...")
    if "dry_run_tflops" in typed and not config.dry_run:
        raise InputError("dry_run_tflops has no effect without dry_run=true\n  leave it out")
    for name in ("sweep.on_error", "sweep.jobs", "sweep.batch_seeds", "sweep.verbose"):
        if name in typed:
            raise InputError(f"{name} has no effect without -m\n  leave it out")
    if "run_dir" in typed and config.run_dir == "":
        raise InputError("run_dir is empty\n  give a folder, or leave it out")


def _check_joint_seeds(config: "ExperimentConfig") -> None:
    """Refuse settings that do not work with joint passes of several seeds."""
    excluded = [f"compile={config.compile}"] * (config.compile != "off")
    if isinstance(config.optimizer, SamConfig) and config.optimizer.second_order:
        excluded.append("optimizer.second_order=true")
    if config.sweep.batch_seeds > 1 and excluded:
        raise InputError(
            f"sweep.batch_seeds={config.sweep.batch_seeds} does not work with {excluded[0]}\n  use sweep.batch_seeds=1"
        )


def _check_zero_radius(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse typed settings of the perturbation if rho is 0. A sweep over rho may have them."""
    if not isinstance(config.optimizer, RadiusConfig) or config.optimizer.rho != 0:
        return
    names = {f"optimizer.{field.name}" for field in fields(config.optimizer)} - {
        f"optimizer.{field.name}" for field in fields(OptimizerConfig)
    }
    for name in sorted(names & typed - {"optimizer.rho"}):
        raise InputError(
            f"{name} has no effect with rho=0: the step makes one pass\n  set rho above 0, or leave {name} out"
        )


def _check_smallest_radius(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse a typed smallest radius of GSAM if the learning rate, which the radius follows, does not fall."""
    if not isinstance(config.optimizer, GsamConfig):
        return
    schedule = config.schedule
    is_constant = schedule.target in ScheduleConfig.targets and schedule.warmup_epochs == 0
    if "optimizer.rho_min" in typed and (is_constant or schedule.smallest_factor >= 1):
        raise InputError(
            "optimizer.rho_min has no effect: the radius follows the learning rate, which does not fall\n"
            "  use a schedule that falls, such as schedule=cosine with schedule.final_factor=0, or leave "
            "optimizer.rho_min out"
        )


def _is_utf8(text: str) -> bool:
    """Return whether a text has no surrogates: Python puts them for bytes of a path that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_processes(config: "ExperimentConfig", typed: set[str]) -> None:
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


def _check_single_process(config: "ExperimentConfig", typed: set[str]) -> None:
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
    _require_all(needed, "parallel=fsdp", "parallel=ddp")


def _require_all(needed: dict[str, bool], setting: str, alternative: str) -> None:
    """Refuse `setting` for the first condition that is not met, and name `alternative`, which has no conditions."""
    for condition, is_met in needed.items():
        if not is_met:
            raise InputError(f"{setting} needs {condition}\n  or use {alternative}")


def _check_batch_parts(config: "ExperimentConfig", typed: set[str]) -> None:
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


def _check_aliases(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse different values for a top-level setting (rho) and the setting that it stands for (optimizer.rho)."""
    values = config.flat() if len(typed) > 1 else {}
    for name, facts, value in walk(config) if values else ():
        if facts.alias in values and {name, facts.alias} <= typed and value != values[facts.alias]:
            raise InputError(
                f"{name}={value:g} and {facts.alias}={values[facts.alias]:g} were both given\n  leave one out"
            )


def _check_warmup(config: "ExperimentConfig", _: set[str]) -> None:
    warmups = {"schedule.warmup_epochs": config.schedule.warmup_epochs}
    if isinstance(config.optimizer, RadiusConfig):
        warmups["optimizer.rho_warmup_epochs"] = config.optimizer.rho_warmup_epochs
    for name, value in warmups.items():
        if value >= config.epochs:
            raise InputError(
                f"{name}={value:g} is not smaller than epochs={config.epochs}\n  use fewer epochs of warm-up"
            )


def _check_ascent(config: "ExperimentConfig", typed: set[str]) -> None:
    sam = config.optimizer
    if not isinstance(sam, SamConfig):
        return
    if sam.second_order and sam.ascent_steps > 1:
        raise InputError(
            f"optimizer.second_order=true needs optimizer.ascent_steps=1, not {sam.ascent_steps}\n"
            "  or use optimizer.second_order=false"
        )
    if sam.second_order and config.uses_compiler:
        raise InputError(
            "optimizer.second_order=true differentiates twice, which torch.compile does not support\n  use compile=off"
        )
    if sam.ascent == "projected" and sam.p != 2:
        raise InputError(
            f"optimizer.ascent=projected needs optimizer.p=2, not {sam.p:g}\n  or use optimizer.ascent=sphere"
        )
    if "optimizer.ascent" in typed and sam.ascent_steps == 1:
        raise InputError(
            "optimizer.ascent has no effect with optimizer.ascent_steps=1\n"
            "  add optimizer.ascent_steps=2, or leave optimizer.ascent out"
        )


def _check_radius(config: "ExperimentConfig", typed: set[str]) -> None:
    optimizer = config.optimizer
    if not isinstance(optimizer, RadiusConfig):
        return
    if "optimizer.rho_final" in typed and optimizer.rho_schedule == "constant":
        raise InputError(
            "optimizer.rho_final has no effect with optimizer.rho_schedule=constant\n"
            "  use optimizer.rho_schedule=linear or cosine, or leave optimizer.rho_final out"
        )
    _check_foreign_radius(optimizer, typed)
    if isinstance(optimizer, GsamConfig) and optimizer.rho_min > optimizer.rho > 0:
        raise InputError(
            f"optimizer.rho_min={optimizer.rho_min:g} is larger than rho={optimizer.rho:g}\n"
            "  use a smaller optimizer.rho_min or a larger rho"
        )


def _check_foreign_radius(optimizer: RadiusConfig, typed: set[str]) -> None:
    """Refuse a rho from a file if the command line chooses a method whose default rho is not SAM's.

    The files of the group experiment set a rho that suits SAM. Methods with another default need another one.
    """
    if not {"optimizer", "optimizer/around"} & typed or {"rho", "optimizer.rho"} & typed:
        return
    around = optimizer.around.name if isinstance(optimizer, AroundConfig) else "sam"
    name, option = (optimizer.name, "optimizer") if around == "sam" else (around, "optimizer/around")
    defaults = {kind.name: kind.rho for kind in METHODS if issubclass(kind, RadiusConfig)}
    default = defaults.get(name, SamConfig.rho)
    if optimizer.rho not in (0, default) and default != SamConfig.rho:
        raise InputError(
            f"a file sets rho={optimizer.rho:g}, which may not suit {option}={name}: its default is {default:g}\n"
            f"  give the value: rho={default:g}, or rho={optimizer.rho:g} to keep that of the file"
        )


def _check_momentum(config: "ExperimentConfig", _: set[str]) -> None:
    base = config.optimizer.base
    if not isinstance(config.optimizer, MomentumSamConfig):
        return
    if isinstance(base, SgdConfig | RMSpropConfig) and base.momentum == 0:
        raise InputError(
            "optimizer=momentum_sam needs a base optimizer with momentum\n  use optimizer.base.momentum=0.9"
        )
    if isinstance(base, AdamWConfig) and base.betas[:1] == (0.0,):
        raise InputError(
            f"optimizer=momentum_sam needs momentum, and optimizer.base.betas={list(base.betas)} has none\n"
            "  use optimizer.base.betas=[0.9,0.999]"
        )


def _check_recording(config: "ExperimentConfig", _: set[str]) -> None:
    """Refuse methods that a CUDA graph cannot record."""
    if not config.records_step:
        return
    if isinstance(config.optimizer, AeSamConfig):
        raise InputError(
            f"optimizer=ae_sam decides on the CPU in each step, which compile={config.compile} does not support\n"
            "  use compile=off"
        )
    if isinstance(config.optimizer, EsamConfig) and config.optimizer.beta < 1:
        raise InputError(
            f"optimizer=esam draws weights anew in each step, which compile={config.compile} does not support\n"
            "  use optimizer.beta=1"
        )


def _check_random_direction(config: "ExperimentConfig", _: set[str]) -> None:
    sam = config.optimizer
    if not isinstance(sam, SamConfig) or sam.direction != "random":
        return
    needed = {
        "optimizer.p=2": sam.p == 2,
        "optimizer.ascent_steps=1": sam.ascent_steps == 1,
        "optimizer.second_order=false": not sam.second_order,
        "optimizer.sync_perturbation=false (the direction is the same on all processes)": not sam.sync_perturbation,
        "compile other than graph and capture (the direction is drawn anew in each step)": not config.records_step,
    }
    _require_all(needed, "optimizer.direction=random", "optimizer.direction=gradient")


def _check_telemetry(config: "ExperimentConfig", _: set[str]) -> None:
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


def _check_betas(config: "ExperimentConfig", _: set[str]) -> None:
    base = config.optimizer.base
    if isinstance(base, AdamWConfig) and len(base.betas) != 2:
        raise InputError(
            f"optimizer.base.betas={list(base.betas)} are not two numbers\n"
            "  give two, like optimizer.base.betas=[0.9,0.999]"
        )


def _check_device(config: "ExperimentConfig", _: set[str]) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", config.device):
        raise InputError(f"device={config.device} is not known\n  accepted: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if config.device == "cpu" and config.precision == "tf32":
        raise InputError("precision=tf32 is a format of CUDA devices\n  use precision=fp32")


def _check_image_files(config: "ExperimentConfig", _: set[str]) -> None:
    own_data = type(config.data) is DataConfig and config.data.target not in DataConfig.targets
    has_files = isinstance(config.data, ImageFolderConfig | ImageListConfig) or own_data
    if config.augment.crop_scale_min is not None and not has_files:
        raise InputError(
            "augment.crop_scale_min needs image files: it crops them while they are decoded\n"
            "  use data=image_folder data.storage=disk, or another augment than inception"
        )


def _check_normalisation(config: "ExperimentConfig", _: set[str]) -> None:
    if config.data.normalisation == "weights" and config.model.weights is None:
        raise InputError(
            "data.normalisation=weights needs model.weights\n  add model.weights, or use data.normalisation=set"
        )


def _check_download(config: "ExperimentConfig", typed: set[str]) -> None:
    if "data.url" in typed and isinstance(config.data, ArchiveConfig) and not config.data.download:
        raise InputError("data.url has no effect with data.download=false\n  add data.download=true")


def _check_held_out_labels(config: "ExperimentConfig", _: set[str]) -> None:
    if config.data.val_labels != "noisy":
        return
    own_data = config.data.target not in DataConfig.targets and type(config.data) is DataConfig
    may_have_validation = own_data or isinstance(config.data, ImageFolderConfig | ImageListConfig | HuggingFaceConfig)
    if not config.data.val_fraction and not may_have_validation:  # for the others see `require_held_out_images`
        raise InputError(NO_HELD_OUT_IMAGES)
    has_own_noise = config.data.val_fraction and (own_data or isinstance(config.data, ImageListConfig))
    if config.noise.target == "sam_runner.data.noise.none" and not has_own_noise:
        raise InputError(
            "data.val_labels=noisy has no effect with noise=none\n  choose a noise, or use data.val_labels=clean"
        )
    if isinstance(config.noise, LabelFileConfig):
        raise InputError(
            "data.val_labels=noisy: the file of noise=relabelled has no labels for held-out images\n"
            "  use data.val_labels=clean"
        )


def _check_selection_metric(config: "ExperimentConfig", _: set[str]) -> None:
    metric = config.early_stopping.metric
    if metric.startswith("validation_ema/") and config.ema_decay is None:
        raise InputError(
            f"early_stopping.metric={metric} needs a moving average of the weights\n"
            f"  add ema_decay=0.999, or use {metric.replace('_ema', '')}"
        )


def _check_augment(config: "ExperimentConfig", typed: set[str]) -> None:
    augment = config.augment
    if "augment.pad_mode" in typed and augment.pad == 0:
        raise InputError("augment.pad_mode has no effect with augment.pad=0\n  give augment.pad too")
    if "augment.cutout_per_batch" in typed and augment.cutout == 0:
        raise InputError("augment.cutout_per_batch has no effect with augment.cutout=0\n  give augment.cutout too")
    for name in ("augment.num_ops", "augment.magnitude"):
        if name in typed and augment.policy != "randaugment":
            raise InputError(f"{name} has no effect without RandAugment\n  use augment=randaugment")
    if augment.mixup is not None and augment.cutmix is not None:
        raise InputError("augment.mixup and augment.cutmix exclude each other\n  set one of them to null")


def _describe_absent(path: str) -> str:
    """Say why a folder does not exist: name the nearest existing folder around it and a folder of a similar name."""
    wanted = Path(os.path.expanduser(path)).absolute()
    if os.path.exists(wanted):  # unlike Path.exists it accepts names that are too long
        return ": it is a file"
    parent = next(folder for folder in wanted.parents if os.path.isdir(folder))
    name = wanted.relative_to(parent).parts[0]
    others = [entry.name for entry in parent.iterdir() if entry.is_dir()] if os.access(parent, os.R_OK) else []
    similar = get_close_matches(name, others, 1)
    return f": {parent} has no folder {name}" + (f"\n  did you mean {parent / similar[0]}?" if similar else "")


def require_files(config: "ExperimentConfig") -> None:
    """Raise InputError if a package, data folder, or file of paths or labels is missing; torch is not imported."""
    for name in config.logger:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise InputError(f"logger={name} needs the package {name}\n  pip install {name}")
    if (
        isinstance(config.data, ImageFolderConfig)
        and not config.dry_run
        and not os.path.isdir(os.path.expanduser(config.data.root))
    ):
        raise InputError(
            f"data.root={config.data.root} is not a folder{_describe_absent(config.data.root)}\n"
            "  expected: <root>/<class>/*.jpg, or <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg"
        )
    if isinstance(config.data, HuggingFaceConfig) and not os.path.isdir(os.path.expanduser(config.data.root)):
        raise InputError(f"data.root={config.data.root} is not a folder\n  give the folder of the data set")
    if isinstance(config.data, ImageListConfig) and not os.path.isfile(os.path.expanduser(config.data.file)):
        raise InputError(
            f"data.file={config.data.file} is not a file\n  expected: a CSV file with the columns path and label"
        )
    if isinstance(config.noise, LabelFileConfig | HumanNoiseConfig):
        file = config.noise.file
        if not os.path.isfile(os.path.expanduser(file)):
            raise InputError(f"noise.file={file} is not a file\n  give the path of the file of labels")


RULES: tuple[Callable[["ExperimentConfig", set[str]], None], ...] = (
    _check_processes,
    _check_batch_parts,
    _check_aliases,
    _check_warmup,
    _check_radius,
    _check_momentum,
    _check_recording,
    _check_ascent,
    _check_random_direction,
    _check_telemetry,
    _check_device,
    _check_betas,
    _check_image_files,
    _check_normalisation,
    _check_download,
    _check_held_out_labels,
    _check_selection_metric,
    _check_augment,
    _check_single_process,
)
