"""A Markdown table of finished runs: python scripts/table.py FOLDER... [metric].

One row for each combination of the settings in which the runs differ, apart from the seed: mean over seeds, half-width
of the 95% interval (Student's t), and the values.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from omegaconf import OmegaConf
from scipy.stats import t

from sam_runner.run_folder import finished_result, flat

IGNORED = {"seed", "run_dir", "sweep_name", "rho"}


def runs_below(folders):
    """(settings, result) of every finished run."""
    for path in sorted(path for folder in folders for path in Path(folder).rglob("result.json")):
        result = finished_result(path.parent)
        if result is not None:
            settings = flat(OmegaConf.to_container(OmegaConf.load(path.parent / "config.yaml")))
            yield {"optimizer": "sam" if "optimizer.rho" in settings else "sgd", **settings}, result


def table(runs, metric):
    """Lines of the table."""
    texts = [{key: json.dumps(value) for key, value in settings.items()} for settings, _ in runs]
    keys = [key for key in sorted(set().union(*texts)) if key not in IGNORED]
    keys = [
        key for key in keys if len({text[key] for text in texts if key in text}) > 1
    ]  # a key of one value tells nothing
    rows = defaultdict(list)
    for text, (_, result) in zip(texts, runs, strict=True):
        rows[tuple(text.get(key, "-").strip('"') for key in keys)].append(result["final"][metric])
    yield "| " + " | ".join([*keys, metric, "95% interval", "n", "values"]) + " |"
    yield "|" + " --- |" * (len(keys) + 4)
    for row, values in sorted(rows.items()):
        half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        shown = ", ".join(f"{value:.3f}" for value in values)
        yield "| " + " | ".join([*row, f"{mean(values):.3f}", f"± {half:.3f}", str(len(values)), shown]) + " |"


if __name__ == "__main__":
    metrics = [word for word in sys.argv[1:] if not Path(word).exists()]
    found = list(runs_below([word for word in sys.argv[1:] if Path(word).exists()]))
    if not found:
        sys.exit("usage: table.py FOLDER... [metric]; no finished runs found")
    print("\n".join(table(found, metrics[0] if metrics else "test/accuracy")))
