"""All settings of one run (`ExperimentConfig`) and their validation (`load_experiment`).

`load_experiment` turns the settings that Hydra has composed into an `ExperimentConfig`, a frozen dataclass. The rest of
the program reads its attributes. The module imports neither torch nor Hydra.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, get_type_hints

from sam_runner.config.allowed_targets import require_allowed_targets
from sam_runner.config.data import DATA_SETS, NOISES, AugmentConfig, DataConfig, NoiseConfig
from sam_runner.config.keys import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    OPEN_UNIT,
    POSITIVE,
    REQUIRED,
    ROUNDING,
    Range,
    key,
    walk,
)
from sam_runner.config.model import MODELS, PUBLISHED_WEIGHTS, ModelConfig
from sam_runner.config.optimizer import METHODS
from sam_runner.config.optimizer.around import AROUND
from sam_runner.config.optimizer.base import BASES, BaseOptimizerConfig
from sam_runner.config.optimizer.method import OptimizerConfig
from sam_runner.config.rules import check_rules
from sam_runner.config.rules.method import check_base_optimizer
from sam_runner.config.schedule import SCHEDULES, ScheduleConfig
from sam_runner.config.validation import (
    UnknownKeyError,
    build,
    convert,
    describe_unknown_key,
    list_names,
    require_in_range,
)
from sam_runner.utils.errors import InputError

SelectionMetric = Literal[
    "validation/accuracy", "validation/accuracy_top5", "validation/nll", "validation_ema/accuracy", "validation_ema/nll"
]


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings of the group checkpoint.

    The end of an epoch also writes a checkpoint, unless `min_interval` prevents it.
    """

    every_steps: int | None = key(
        "steps between two checkpoints within an epoch; null: none", None, range=AT_LEAST_ONE, effect="none"
    )
    every_seconds: float | None = key(
        "seconds between two checkpoints within an epoch; null: none", 300.0, range=POSITIVE, effect="none"
    )
    min_interval: float = key(
        "an epoch that ends within this many seconds of the last checkpoint is not saved. Exceptions: the last epoch,"
        " the best one on the validation set, and those of keep_epochs and every_epochs",
        1.0,
        range=NOT_NEGATIVE,
        effect="none",
    )
    keep: int = key("number of latest checkpoints to keep besides the best", 2, range=Range(2), effect="none")
    keep_epochs: tuple[int, ...] = key(
        "epochs whose last checkpoint is kept, e.g. [50,100]", (), range=AT_LEAST_ONE, effect="none"
    )
    every_epochs: int | None = key(
        "keep the last checkpoint of every N-th epoch; null: none", None, range=AT_LEAST_ONE, effect="none"
    )


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Settings of the group early_stopping."""

    patience: int | None = key(
        "end the run after this many evaluations without a better early_stopping.metric; needs held-out images. A run"
        " with a patience has the weights of its best epoch at the end, whether it was ended early or not; null: off",
        None,
        range=AT_LEAST_ONE,
        on_resume="the run stops according to the new patience",
        sets_length=True,
        added_later=True,
    )
    metric: SelectionMetric = key(
        "metric of the held-out images that chooses the best epoch and checkpoint: highest accuracy or lowest negative"
        " log-likelihood (nll); validation_ema/...: of the averaged weights (ema_decay)",
        "validation/accuracy",
        added_later=True,
    )


@dataclass(frozen=True)
class TelemetryConfig:
    """Settings of the group telemetry: measurements during training, which do not change the run's numbers."""

    every: int | None = key(
        "every N steps, measure the cosine of g and g_SAM, the part of g_SAM orthogonal to g, and each layer's share of"
        " ||eps||^2. If the step has one pass, the next one with two is measured; null: never",
        None,
        range=AT_LEAST_ONE,
        effect="none",
    )
    curvature_epochs: int | None = key(
        "after every N-th epoch, measure the largest Hessian eigenvalue on 1000 training images (all, if there are"
        " fewer) without augmentation;"
        " null: never",
        None,
        range=AT_LEAST_ONE,
        effect="none",
    )


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep."""

    jobs: int | Literal["auto"] = key(
        "jobs that run at once on this machine and share its cores; auto: one per GPU, or one per core without a GPU;"
        " with device=cuda: one",
        "auto",
        range=AT_LEAST_ONE,
        effect="none",
        in_reports=False,
    )
    batch_seeds: int = key(
        "largest number of jobs that share their passes (torch.func.vmap). Such jobs differ only in the seed, and their"
        " results change by rounding; 1: each job makes its own passes",
        1,
        range=AT_LEAST_ONE,
        effect="none",
        in_reports=False,
    )
    on_error: Literal["continue", "stop"] = key(
        "what to do after a job has failed or its settings were refused; continue: start the other jobs; stop: start no"
        " further job",
        "continue",
        effect="none",
    )
    verbose: bool = key(
        "true: print the epochs of each job; false: if several jobs run at once, print only starts, ends and warnings;"
        " run.log has all lines",
        False,
        effect="none",
        in_reports=False,
    )


@dataclass(frozen=True)
class ExperimentConfig:
    """All settings of a run. The dataclasses of the groups are in the other modules of this folder."""

    schema: ClassVar[str] = "root"
    rho: float = key(
        "radius of the perturbation; the default is that of optimizer=sam, from the paper (section 3). Other methods"
        " have their own",
        0.05,
        range=NOT_NEGATIVE,
        effect="none",
        in_reports=False,
        alias="optimizer.rho",
    )
    lr: float = key(
        "initial learning rate; the default is our choice for the digits (the paper: 0.1 for WRN-28-10, Table 6)",
        0.05,
        range=POSITIVE,
        alias="optimizer.base.lr",
    )
    weight_decay: float = key(
        "weight decay (the paper's Table 6)",
        0.0005,
        range=NOT_NEGATIVE,
        alias="optimizer.base.weight_decay",
    )
    head_lr: float | None = key(
        "initial learning rate of the last layer, for fine-tuning; null: lr", None, range=POSITIVE
    )
    epochs: int = key(
        "passes over the training set",
        20,
        range=AT_LEAST_ONE,
        on_resume="the schedules of learning rate, rho and method follow the new number of epochs",
        sets_length=True,
    )
    max_steps: int | None = key(
        "stop after this many optimizer steps; null: after the last epoch",
        None,
        range=AT_LEAST_ONE,
        on_resume="the schedules of learning rate, rho and method follow the new number of steps",
        sets_length=True,
    )
    batch_size: int = key("images per optimizer step, over all processes", 128, range=AT_LEAST_ONE)
    accumulate: int = key(
        "number of micro-batches per batch, to save memory; batch norm normalises each micro-batch alone",
        1,
        range=AT_LEAST_ONE,
    )
    label_smoothing: float = key("label smoothing of the training loss", 0.0, range=BELOW_ONE)
    ema_decay: float | None = key(
        "decay of an exponential moving average of the weights, e.g. 0.999; null: no average", None, range=OPEN_UNIT
    )
    grad_clip: float | None = key(
        "largest norm of the base optimizer's gradient (the paper's code: 5.0); null: no clipping",
        None,
        range=POSITIVE,
    )
    freeze_batchnorm_stats: bool = key(
        "true: batch norm uses its running statistics and does not update them, as in the paper's fine-tuning (Appendix"
        " C.2)",
        False,
    )
    seed: int = key(
        "seed of initialisation, order, augmentation, dropout, label noise and random directions",
        0,
        range=Range(0, 2**63),
    )
    device: str = key(
        "device to train on: auto, cpu, cuda or cuda:N; auto: a GPU if there is one",
        "auto",
        effect="rounding",
        on_resume=ROUNDING,
        in_reports=False,
    )
    precision: Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"] = key(
        "precision of the passes; auto: bf16 if the device computes in it, otherwise fp16 on a GPU, fp32 on a CPU; "
        "with bf16 on a CPU, depthwise convolutions compute in fp32",
        "auto",
        effect="rounding",
    )
    channels_last: Literal[True, False, "auto"] = key(
        "true: memory layout NHWC; auto: true if the network has 2-D convolutions and works with it, and its weights "
        "are not sharded",
        "auto",
        effect="rounding",
        on_resume=ROUNDING,
    )
    compile: Literal["off", "default", "max-autotune", "graph", "capture"] = key(
        "default, max-autotune: torch.compile; graph: the compiled step as one CUDA graph; capture: the step as one"
        " CUDA graph without torch.compile. A warning says why a step cannot be recorded as a graph",
        "off",
        effect="rounding",
        on_resume=ROUNDING,
    )
    deterministic: bool = key(
        "true: on CUDA, use only algorithms that give the same bits in every run; they are slower",
        False,
        effect="rounding",
        on_resume=ROUNDING,
    )
    world_size: int = key("number of processes that share each batch; torchrun sets it", 1, range=AT_LEAST_ONE)
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp: each process has all weights; fsdp: each process has a part of the weights (FSDP2)", "ddp"
    )
    sync_batchnorm: bool = key(
        "true: batch norm normalises over all processes (CUDA); false: over each process, as the paper's code",
        False,
    )
    rank_timeout: float = key(
        "seconds that the processes of torchrun wait for each other",
        600.0,
        range=POSITIVE,
        effect="none",
        in_reports=False,
    )
    on_nonfinite: Literal["stop", "skip"] = key(
        "if a loss or gradient is not finite; stop: end the run; skip: leave the weights unchanged and continue. With"
        " precision=fp16 the loss scaler skips such steps in both cases",
        "stop",
        on_resume="",
    )
    logger: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = key(
        "where metrics go besides metrics.jsonl, e.g. logger=csv,wandb; csv: metrics.csv; []: nowhere else. wandb and"
        " mlflow read their own environment variables",
        ("tensorboard",),
        effect="none",
        in_reports=False,
    )
    log_every: int = key(
        "steps between two logged rows of training metrics", 50, range=AT_LEAST_ONE, effect="none", in_reports=False
    )
    eval_every: int = key(
        "epochs between two evaluations; the last epoch is always evaluated",
        1,
        range=AT_LEAST_ONE,
        on_resume="other epochs are evaluated from now on; the weights do not change",
        in_reports=False,
    )
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run_dir: str | None = key(
        "folder of a single run; null: outputs/runs/<time>", None, effect="none", in_reports=False
    )
    sweep_name: str = key(
        "name of a sweep, whose folder is outputs/sweeps/<sweep_name>; the same command with the same name runs only"
        " missing jobs. A sweep without a name is named after its start time",
        "unnamed",
        effect="none",
        in_reports=False,
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    paper: str | None = key(
        "rows of the paper's tables to compare the run with; the files of the group experiment set it",
        None,
        effect="none",
        in_reports=False,
    )
    dry_run: bool = key(
        "true: print the plan (parameters, FLOPs, steps, memory) and train nothing. Data that are not there count with"
        " their published sizes",
        False,
        effect="none",
        in_reports=False,
    )
    dry_run_tflops: float | None = key(
        "TFLOP/s that the device reaches in training, to estimate the time in the plan",
        None,
        range=POSITIVE,
        effect="none",
        in_reports=False,
    )
    data: DataConfig = field(default_factory=lambda: DataConfig(_target_=DataConfig.targets[0]))
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(_target_=NoiseConfig.targets[0]))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=lambda: MODELS[0](_target_=MODELS[0].targets[0]))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: SCHEDULES[1](_target_=SCHEDULES[1].targets[0]))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries of plain types, as in config.yaml."""
        return _to_dict(self)

    def flat(self) -> dict[str, Any]:
        """Return the values, of plain types, by dotted name, e.g. ``optimizer.rho``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, _, value in walk(self)}

    def with_absolute_paths(self) -> "ExperimentConfig":
        """Return a copy with absolute paths, which are valid in every working folder."""
        changed: ExperimentConfig = _with_absolute_paths(self)
        return changed

    def fingerprint(self) -> str:
        """Return 12 hex digits of a hash of the settings that affect the numbers of the run.

        Other settings, such as `run_dir`, are left out, so the same run in two folders has one fingerprint.
        """
        defaults = _defaults_added_later()
        values = {
            name: value
            for name, facts, value in walk(self)
            if facts.effect != "none" and not (facts.added_later and value == defaults[name])
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def uses_compiler(self) -> bool:
        """Whether the network is compiled by torch.compile."""
        return self.compile not in ("off", "capture")

    @property
    def records_step(self) -> bool:
        """Whether the step is recorded as a CUDA graph."""
        return self.compile in ("graph", "capture")


@cache
def _defaults_added_later() -> Mapping[str, Any]:
    """Return the defaults, by dotted name, of the settings that runs of earlier versions lack."""
    return {name: value for name, facts, value in walk(ExperimentConfig()) if facts.added_later}


GROUPS: dict[str, Sequence[type[Any]]] = {
    "data": DATA_SETS,
    "noise": NOISES,
    "augment": (AugmentConfig,),
    "model": (ModelConfig, *MODELS),
    "optimizer": METHODS,
    "optimizer.around": AROUND,
    "optimizer.base": (BaseOptimizerConfig, *BASES),
    "schedule": SCHEDULES,
}  # settings classes of each config group (folder of conf/); a shared class, if any, comes first
OPTIONAL_GROUPS = ("optimizer.around",)  # config groups that exist only for some options of the parent group


def settings_classes() -> dict[str, type[Any]]:
    """Return the settings classes by the schema name that files of conf/ use for them."""
    classes: list[type[Any]] = [ExperimentConfig, *(found for classes in GROUPS.values() for found in classes)]
    return {found.schema: found for found in classes if found.schema}


def load_experiment(
    settings: Mapping[str, Any], overrides: Sequence[str] = (), *, multirun: bool = False
) -> ExperimentConfig:
    """Validate a configuration.

    Args:
        settings: Plain values as in config.yaml. Missing settings get their defaults.
        overrides: The ``key=value`` arguments of the command line. Settings in them that have no effect are refused.
        multirun: Whether the run is a job of a sweep. Some rules about settings without effect then do not apply.

    Raises:
        InputError: For the first invalid setting; the message has the accepted values and a suggestion.
    """
    require_allowed_targets(settings)
    try:
        is_plan = settings.get("dry_run") is True  # a plan needs neither data nor weights
        config: ExperimentConfig = build(ExperimentConfig, settings, "", GROUPS, missing_paths=is_plan)
    except UnknownKeyError as error:  # the key may belong to another group
        others = {*ExperimentConfig().flat(), *list_names(settings)} - {error.key}
        raise InputError(describe_unknown_key(error.key, [*error.accepted, *others], error.value)) from error
    typed = {override.lstrip("+~").split("=")[0].split("@")[0] for override in overrides}
    check_rules(config, typed, multirun=multirun)
    check_base_optimizer(config, overrides)
    return config


def check_setting(name: str, value: Any) -> None:
    """Raise InputError if a setting outside the config groups (folders of conf/) has a wrong type or range."""
    for known, facts, _ in walk(ExperimentConfig()):
        if known == name and known.partition(".")[0] not in GROUPS:
            require_in_range(convert(value, find_annotation(name), name), facts, name)


def find_annotation(name: str) -> Any:
    """Return the type annotation of a setting outside the config groups (folders of conf/), by its dotted name."""
    annotation: Any = ExperimentConfig
    for part in name.split("."):
        annotation = get_type_hints(annotation)[part]
    return annotation


def _with_absolute_paths(settings: Any) -> Any:
    changed: dict[str, Any] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            changed[entry.name] = _with_absolute_paths(value)
        elif "key" in entry.metadata and entry.metadata["key"].path and isinstance(value, str) and value != REQUIRED:
            published = value.partition(":")[0] in PUBLISHED_WEIGHTS
            changed[entry.name] = value if published else os.path.abspath(os.path.expanduser(value))
    return replace(settings, **changed)


def _to_dict(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if entry.name == "own_arguments":
            values |= value
        elif is_dataclass(value):
            values[entry.name] = _to_dict(value)
        else:
            values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values
