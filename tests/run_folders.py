"""Run folders that tests lay down without training."""

import json

from omegaconf import OmegaConf

from tests.helpers import config_of

BASE = {name: config_of(f"optimizer={name}", "epochs=3") for name in ("sgd", "sam")}


def lay(folder, *, optimizer="sam", rho=0.05, seed=0, accuracy=0.9, status="finished", error="", epochs=3, **settings):
    """A run as `sam-train` leaves it, without training."""
    node = json.loads(json.dumps(BASE[optimizer])) | {"seed": seed, "rho": rho, **settings}
    if optimizer == "sam":
        node["optimizer"]["rho"] = rho
    return leave(folder, node, accuracy=accuracy, status=status, error=error, epochs=epochs)


def leave(folder, node, *, accuracy, status="finished", error="", epochs=3, **final):
    """What a run of the settings `node` leaves, with a loss gap where it is one of SAM."""
    seed = node["seed"]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    (folder / "run.log").write_text("")
    gap = {"train/loss_gap": 0.1} if "rho" in node["optimizer"] else {}
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
        (folder / "result.json").write_text(json.dumps({"status": "finished", "seed": seed, "final": final}))
    return folder
