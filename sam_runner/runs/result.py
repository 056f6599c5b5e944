"""result.json: what a finished run has reached. A run, also a job of a sweep, is finished once this file says so."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.utils.files import read_json, write_json

if TYPE_CHECKING:
    from sam_runner.training.state import Progress, Run


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
        "final": progress.last_metrics,
        "best": progress.best_metrics,
        "best_epoch": progress.best_epoch,
        "selected_by": "validation/accuracy" if "validation" in run.evaluations else "last epoch",
        "images_per_second": progress.num_images / progress.training_seconds,
        "fingerprint": config.fingerprint(),
        "data": count_examples(run),
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }
    write_json(folder / "result.json", result)
    return result


def count_examples(run: "Run") -> dict[str, int]:
    """Return the number of images of each set by its name, of ``classes``, and of wrong training labels."""
    wrong = int((run.train.labels != run.train.clean_labels).sum())
    counts = {name: loader.num_examples for name, loader in {"train": run.train, **run.evaluations}.items()}
    return {**counts, "classes": len(run.classes), "wrong_labels": wrong}


def read_finished_result(folder: Path) -> dict[str, Any] | None:
    """Return the content of result.json if the run has finished, else None."""
    result = read_json(folder / "result.json")
    return result if isinstance(result, dict) and result.get("status") == "finished" else None


def find_finished_duplicate(sweep_folder: Path, fingerprint: str) -> Path | None:
    """Return the folder of a finished run of the sweep with the given fingerprint, or None."""
    for path in sorted(sweep_folder.glob("*/result.json")):
        result = read_finished_result(path.parent)
        if result is not None and result.get("fingerprint") == fingerprint:
            return path.parent
    return None
