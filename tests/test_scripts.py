"""The scripts beside the program."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def finished_run(folder, optimizer, seed, accuracy):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nrun_dir: {folder}\noptimizer:\n  {optimizer}\n  m: null\nlr: 0.1\n"
    )
    (folder / "result.json").write_text(json.dumps({"status": "finished", "final": {"test/accuracy": accuracy}}))


def test_the_table_has_a_row_per_setting_with_mean_and_students_interval(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 0.7)):
        finished_run(tmp_path / f"sam{seed}", "rho: 0.1", seed, accuracy)
    finished_run(tmp_path / "sgd0", "base: {}", 0, 0.5)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "table.py", tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "| optimizer | test/accuracy | 95% interval | n | values |",
        "| --- | --- | --- | --- | --- |",
        "| sam | 0.800 | ± 0.248 | 3 | 0.800, 0.900, 0.700 |",  # 4.3027 * 0.1 / sqrt(3)
        "| sgd | 0.500 | ± nan | 1 | 0.500 |",
    ]


def test_an_unfinished_run_is_no_row(tmp_path):
    finished_run(tmp_path / "a", "rho: 0.1", 0, 0.8)
    result = tmp_path / "a" / "result.json"
    result.write_text(result.read_text().replace("finished", "running"))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "table.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no finished runs" in done.stderr
