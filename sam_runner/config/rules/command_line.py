"""Settings that the user typed and that have no effect, which is usually a mistake."""

from dataclasses import fields
from typing import TYPE_CHECKING

from sam_runner.config.optimizer.around import GsamConfig
from sam_runner.config.optimizer.method import AscentConfig, OptimizerConfig, RadiusConfig
from sam_runner.config.optimizer.perturbation import SamConfig
from sam_runner.config.schedule import ScheduleConfig
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig


def check_command_line(config: "ExperimentConfig", typed: set[str], multirun: bool) -> None:
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
