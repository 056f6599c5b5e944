"""Rules of the method and its base optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sam_runner.config.optimizer import METHODS
from sam_runner.config.optimizer.around import AeSamConfig, AroundConfig, GsamConfig
from sam_runner.config.optimizer.base import AdamWConfig, RMSpropConfig, SgdConfig
from sam_runner.config.optimizer.method import RadiusConfig
from sam_runner.config.optimizer.perturbation import EsamConfig, MomentumSamConfig, SamConfig
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig

BASE_OF_OPTION = {"adamw": AdamWConfig, "rmsprop": RMSpropConfig}  # options of optimizer= with one base optimizer


def check_base_optimizer(config: "ExperimentConfig", overrides: Sequence[str]) -> None:
    """Refuse optimizer=adamw and optimizer=rmsprop with another base optimizer, which would train instead."""
    words = dict(word.lstrip("+~").split("=", 1) for word in overrides if "=" in word)
    option = words.get("optimizer", "")
    if option in BASE_OF_OPTION and not isinstance(config.optimizer.base, BASE_OF_OPTION[option]):
        raise InputError(
            f"optimizer={option} does not train with the base optimizer {config.optimizer.base.target}\n"
            "  use optimizer=none for this base optimizer alone, or optimizer=sam for SAM with it"
        )


def check_radius(config: "ExperimentConfig", typed: set[str]) -> None:
    """Check rho and the settings that belong to it."""
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


def check_momentum(config: "ExperimentConfig", _: set[str]) -> None:
    """Require momentum for MomentumSAM."""
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


def check_betas(config: "ExperimentConfig", _: set[str]) -> None:
    """Require two betas of AdamW."""
    base = config.optimizer.base
    if isinstance(base, AdamWConfig) and len(base.betas) != 2:
        raise InputError(
            f"optimizer.base.betas={list(base.betas)} are not two numbers\n"
            "  give two, like optimizer.base.betas=[0.9,0.999]"
        )


def check_ascent(config: "ExperimentConfig", typed: set[str]) -> None:
    """Check SAM's ascent steps and the second-order term."""
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


def check_random_direction(config: "ExperimentConfig", _: set[str]) -> None:
    """Require the settings that a random direction needs."""
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
    require_all(needed, "optimizer.direction=random", "optimizer.direction=gradient")


def check_recording(config: "ExperimentConfig", _: set[str]) -> None:
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


def require_all(needed: dict[str, bool], setting: str, alternative: str) -> None:
    """Refuse `setting` for the first condition that is not met, and name `alternative`, which has no conditions."""
    for condition, is_met in needed.items():
        if not is_met:
            raise InputError(f"{setting} needs {condition}\n  or use {alternative}")
