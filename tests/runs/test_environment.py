"""environment.json: what a run was trained with."""

import subprocess

import pytest

from sam_runner.runs import environment
from sam_runner.utils.files import read_json


@pytest.mark.parametrize(
    ("changed", "expected"), [("docs/page.md", False), ("sam_runner/step.py", True), ("conf/a.yaml", True)]
)
def test_only_changes_of_the_code_and_its_options_count(tmp_path, monkeypatch, changed, expected):
    for name in ("sam_runner/runs", "docs", "conf", "run"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / changed).write_text("new")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "sam_runner" / "runs" / "environment.py"))
    environment.write_environment(tmp_path / "run", "cpu", "fp32")
    assert read_json(tmp_path / "run" / "environment.json")["git_changes"] is expected
