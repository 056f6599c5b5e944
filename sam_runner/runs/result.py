"""result.json: what a finished run has reached. A run, also a job of a sweep, is finished once this file says so."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.utils.files import keep_numbers, read_json_object, write_json

if TYPE_CHECKING:
    from sam_runner.training.state import Progress, Run

RESULT = "result.json"
COSTS = ("gradient_evaluations", "images_forward", "images_backward", "training_seconds", "peak_memory_bytes")
TYPES: dict[str, type] = {
    **dict.fromkeys((*COSTS, "images_per_second"), float),
    **dict.fromkeys(("epoch", "step", "num_parameters"), int),
    **dict.fromkeys(("final", "best", "data"), dict),
}


def write_result(folder: Path, config: ExperimentConfig, run: "Run", progress: "Progress") -> dict[str, Any]:
    """Write result.json of a finished run and return its content.

    Args:
        folder: The run folder.
        config: The settings.
        run: The run.
        progress: Its progress at the end.
    """
    result = {
        "status": "finished",
        "seed": config.seed,
        "epoch": progress.epoch,
        "step": progress.step,
        "skipped_steps": progress.step - progress.num_updates + progress.num_nonfinite,
        "final": run.final_metrics(progress),
        "best": progress.best_metrics,
        "best_epoch": progress.best_epoch,
        "stopped_early": run.patience is not None and progress.evaluations_since_best >= run.patience,
        "selected_by": run.selected_by or "last epoch",
        "images_per_second": progress.num_images / progress.training_seconds,
        "gradient_evaluations": progress.gradient_evaluations,
        "images_forward": round(progress.images_forward),
        "images_backward": round(progress.images_backward),
        "training_seconds": progress.training_seconds,
        "peak_memory_bytes": progress.peak_memory_bytes,
        "peak_memory_of": progress.peak_memory_of,
        "fingerprint": config.fingerprint(),
        "data": count_examples(run),
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }
    write_json(folder / RESULT, result)
    return result


def count_examples(run: "Run") -> dict[str, int]:
    """Return the number of images of each set by its name, of ``classes``, and of wrong training labels."""
    wrong = int((run.train.labels != run.train.clean_labels).sum())
    counts = {name: loader.num_examples for name, loader in {"train": run.train, **run.evaluations}.items()}
    return {**counts, "classes": len(run.classes), "wrong_labels": wrong}


def read_finished_result(folder: Path) -> dict[str, Any] | None:
    """Return the content of result.json if the run has finished, else None.

    Entries of a wrong type, metrics that are no finite numbers, and counts that are incomplete are left out.
    """
    result = read_json_object(folder / RESULT, TYPES)
    if result.get("status") != "finished":
        return None
    for name in ("final", "best", "data"):
        result[name] = keep_numbers(result.get(name))
    if not {"train", "classes", "wrong_labels"} <= result["data"].keys():
        del result["data"]
    return result


def summarise_result(result: Mapping[str, Any]) -> str:
    """Return a line with the accuracies, the test likelihood and the speed of a finished run."""
    final = result.get("final", {})
    metrics = [f"{tag} {value:.4f}" for tag, value in final.items() if tag.endswith("/accuracy") or tag == "test/nll"]
    return f"{', '.join(metrics)}, {result.get('images_per_second', 0):,.0f} images/s"
