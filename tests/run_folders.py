"""Run folders as `sam-train` leaves them, written without training."""

import json

import yaml

from sam_runner.config.experiment import ExperimentConfig
from tests.helpers import config_of

CONFIGS = {name: config_of(f"optimizer={name}", "epochs=3").to_dict() for name in ("sgd", "sam")}


def lay(
    folder, *, optimizer="sam", rho=0.05, seed=0, accuracy=0.9, status="finished", error="", epochs=3, final=None,
    result=None, environment=None, **settings,
):  # fmt: skip
    """Write a run of the default problem; `settings` replaces top-level settings and whole groups."""
    config = json.loads(json.dumps(CONFIGS[optimizer])) | {"seed": seed, "rho": rho, **settings}
    if optimizer == "sam":
        config["optimizer"]["rho"] = rho
    return leave(
        folder, config, accuracy=accuracy, status=status, error=error, epochs=epochs, result=result,
        environment=environment, **(final or {}),
    )  # fmt: skip


def leave(
    folder, config, *, accuracy, status="finished", error="", epochs=3, result=None, environment=None, **final
):  # fmt: skip
    """Write a run of the settings `config`, a dict or an `ExperimentConfig`; SAM's runs have a loss gap.

    `final` are further metrics, `result` further entries of result.json, `environment` those of environment.json.
    """
    config = config.to_dict() if isinstance(config, ExperimentConfig) else config
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.log").write_text("")
    gap = {"train/loss_gap": 0.1} if "rho" in config["optimizer"] else {}
    rows = [
        {
            "step": 10 * e,
            "epoch": e,
            "train/loss": 1 / e,
            "test/accuracy": accuracy * e / epochs,
            "test/nll": 1.0,
            **gap,
        }
        for e in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "status.json").write_text(json.dumps({"status": status, "error": error}))
    if status == "finished":
        final |= {"test/accuracy": accuracy, "test/nll": 1 - accuracy}
        whole = {"status": "finished", "seed": config["seed"], "final": final, **(result or {})}
        (folder / "result.json").write_text(json.dumps(whole))
    if environment:
        (folder / "environment.json").write_text(json.dumps(environment))
    return folder
