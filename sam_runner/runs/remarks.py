"""Warnings about settings that are valid and rarely meant; a run logs them when it starts."""

from collections.abc import Sequence

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.data.datasets.cifar import CLASSES_10, CLASSES_100
from sam_runner.training.evaluation import exchanges_weights
from sam_runner.training.state import Run

ADAPTIVE = {  # base optimizers whose steps do not scale with the gradient, and a usual learning rate
    "torch.optim.AdamW": 1e-3,
    "torch.optim.Adam": 1e-3,
    "torch.optim.RMSprop": 1e-3,
}
MAX_LISTED = 10  # pairs of classes in a line


def list_remarks(run: Run, config: ExperimentConfig, overrides: Sequence[str]) -> list[str]:
    """Return a line for each setting that is rarely meant.

    Args:
        run: The run, built from `config`.
        config: The settings.
        overrides: Settings as the user typed them.
    """
    return [*_about_learning_rate(config, overrides), *_about_statistics(run), *_about_classes(run, config)]


def _about_learning_rate(config: ExperimentConfig, overrides: Sequence[str]) -> list[str]:
    target = config.optimizer.base.target
    is_typed = any(word.lstrip("+").startswith(("lr=", "optimizer.base.lr=")) for word in overrides)
    if target not in ADAPTIVE or is_typed or config.optimizer.base.lr != ExperimentConfig().lr:
        return []
    name, usual = target.rpartition(".")[2], ADAPTIVE[target]
    return [f"lr={config.optimizer.base.lr:g} is the default for SGD; {name} usually needs less, such as lr={usual:g}"]


def _about_statistics(run: Run) -> list[str]:
    """Running statistics are those of the weights in training, also where other weights are evaluated."""
    optimizer = run.step.optimizer
    if not (exchanges_weights(optimizer) and run.step.objective.statistics.has_running_statistics):
        return []
    return [
        f"{type(optimizer).__name__} evaluates other weights than it trains, and the running statistics of the"
        " normalisation layers are those of the weights in training: the accuracy can be far too low (use layers"
        " without running statistics, such as GroupNorm, or freeze_batchnorm_stats=true)"
    ]


def _about_classes(run: Run, config: ExperimentConfig) -> list[str]:
    """noise=asymmetric goes by the numbers of CIFAR's classes, whatever the classes of the set are."""
    if config.noise.target != "sam_runner.data.noise.asymmetric" or run.classes in (CLASSES_10, CLASSES_100):
        return []
    pairs = sorted(set(zip(run.train.clean_labels.tolist(), run.train.labels.tolist(), strict=True)))
    changes = [f"{run.classes[clean]} by {run.classes[given]}" for clean, given in pairs if clean != given]
    more = f" and {len(changes) - MAX_LISTED} more" if len(changes) > MAX_LISTED else ""
    listed = ", ".join(changes[:MAX_LISTED])
    return [
        f"noise=asymmetric has CIFAR's similar classes; here it replaces {listed}{more}"
        " (noise=pair or a noise of your own for other sets)"
    ]
