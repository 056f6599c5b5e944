"""Build a method of the optimizer step from its settings."""

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.instantiate import call_target
from sam_runner.config.optimizer.around import (
    AeSamConfig,
    AroundConfig,
    GradientNormConfig,
    GsamConfig,
    IntervalConfig,
    LateConfig,
    LookSamConfig,
    PerturbationConfig,
    RandomSamConfig,
    WsamConfig,
)
from sam_runner.config.optimizer.method import AscentConfig, OptimizerConfig, OwnMethodConfig
from sam_runner.config.optimizer.perturbation import (
    AsamKeys,
    EsamConfig,
    FisherSamKeys,
    FriendlySamKeys,
    LayerwiseSamKeys,
    MomentumSamConfig,
    SamConfig,
    SamOnKeys,
)
from sam_runner.sam import methods
from sam_runner.sam.method import Method
from sam_runner.utils.errors import InputError


def build_method(config: ExperimentConfig, total_steps: int) -> Method:
    """Return the method that the settings describe.

    Args:
        config: The settings.
        total_steps: Number of steps of the training, which some methods' schedules depend on.

    Raises:
        InputError: If a user's own method cannot be built.
    """
    options = config.optimizer
    if isinstance(options, OwnMethodConfig):
        return _build_own(options, config, total_steps)
    if isinstance(options, MomentumSamConfig):
        return methods.MomentumSam()
    if not isinstance(options, AscentConfig):
        return methods.Plain()
    sync = options.sync_perturbation
    if isinstance(options, SamConfig):
        return _build_sam(options, config.seed)
    if isinstance(options, EsamConfig):
        return methods.Esam(options.beta, options.gamma, seed=config.seed, sync_perturbation=sync)
    if isinstance(options, AroundConfig):
        return _build_around(config, options, _build_perturbation(options.around, sync), total_steps)
    return _build_perturbation(options, sync)


def _build_sam(options: SamConfig, seed: int) -> Method:
    if options.direction == "random":
        return methods.RandomDirection(seed)
    if options.second_order:
        return methods.SecondOrder(options.p)
    if options.ascent_steps > 1:
        return methods.KStep(
            options.ascent_steps,
            projected=options.ascent == "projected",
            p=options.p,
            sync_perturbation=options.sync_perturbation,
        )
    return methods.Sam(options.p, sync_perturbation=options.sync_perturbation)


def _build_perturbation(options: OptimizerConfig | PerturbationConfig, sync: bool) -> Method:
    """Return a method that only chooses eps."""
    if isinstance(options, AsamKeys):
        return methods.Asam(options.eta, sync_perturbation=sync)
    if isinstance(options, FisherSamKeys):
        return methods.FisherSam(options.eta, sync_perturbation=sync)
    if isinstance(options, FriendlySamKeys):
        return methods.FriendlySam(options.sigma, options.decay, sync_perturbation=sync)
    if isinstance(options, SamOnKeys):
        return methods.SamOn(options.only, sync_perturbation=sync)
    if isinstance(options, LayerwiseSamKeys):
        return methods.LayerwiseSam(scale_by_weights=options.scale_by_weights, sync_perturbation=sync)
    return methods.Sam(sync_perturbation=sync)


def _build_around(config: ExperimentConfig, options: AroundConfig, around: Method, total_steps: int) -> Method:
    """Return a method around another one."""
    if isinstance(options, GsamConfig):
        lr = options.base.lr
        lowest = lr * config.schedule.smallest_factor
        return methods.Gsam(options.alpha, options.rho_min, lr_max=lr, lr_min=lowest, around=around)
    if isinstance(options, GradientNormConfig):
        return methods.GradientNorm(options.alpha, around)
    if isinstance(options, WsamConfig):
        return methods.Wsam(options.gamma, decoupled=options.decoupled, around=around)
    if isinstance(options, LookSamConfig):
        return methods.LookSam(options.interval, options.alpha, around)
    if isinstance(options, IntervalConfig):
        return methods.Interval(options.interval, around)
    if isinstance(options, RandomSamConfig):
        return methods.RandomSam(options.start, options.end, total_steps=total_steps, seed=config.seed, around=around)
    if isinstance(options, AeSamConfig):
        return methods.AeSam(options.start, options.end, options.decay, total_steps=total_steps, around=around)
    assert isinstance(options, LateConfig)
    return methods.Late(options.fraction, options.part, total_steps=total_steps, around=around)


def _build_own(options: OwnMethodConfig, config: ExperimentConfig, total_steps: int) -> Method:
    """Return a user's own method; it gets the seed, the number of steps and sync_perturbation if it has such arguments.

    Raises:
        InputError: If its target is not a subclass of `Method`, refuses its settings, or ignores sync_perturbation.
    """
    method = call_target(
        options.target,
        options.arguments(),
        "optimizer",
        seed=config.seed,
        total_steps=total_steps,
        sync_perturbation=options.sync_perturbation,
    )
    if not isinstance(method, Method):
        raise InputError(
            f"optimizer._target_={options.target} makes a {type(method).__name__}\n"
            "  it must be a subclass of sam_runner.sam.method.Method (docs/own_method.md)"
        )
    if options.name not in (OwnMethodConfig.name, method.name):
        raise InputError(
            f"optimizer.name={options.name}, but {options.target} is named {method.name}\n"
            f'  write name: {method.name} into its file, or name = "{options.name}" into the class'
        )
    if options.sync_perturbation and not method.sync_perturbation and config.parallel != "fsdp":  # fsdp demands it
        raise InputError(
            f"optimizer.sync_perturbation=true has no effect: {options.target} does not use it\n"
            "  leave it out, or give the constructor the argument sync_perturbation and store it in the method"
        )
    return method
