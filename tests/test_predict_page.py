"""The commands of docs/predict.md run, in their order and in one folder."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from PIL import Image

from sam_runner.inference.image_files import make_reader
from tests.helpers import invoke
from tests.test_docs import ROOT, join_lines

PAGE = ROOT / "docs/predict.md"
SCRIPTS = dict(re.findall(r'^(sam-\w+) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M))


def write_digits(folder):
    """Three grey images of each of two digits, of several sizes."""
    draws = np.random.default_rng(0)
    for name in ("3", "7"):
        (folder / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(draws.integers(0, 256, (8 + 6 * index, 8 + 7 * index)).astype(np.uint8)).save(
                folder / name / f"{index}.png"
            )


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    write_digits(tmp_path / "photos")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 5
    has_onnx = find_spec("onnxruntime") is not None  # the extra export
    for language, block in blocks:
        if language == "python":
            if has_onnx or "onnx" not in block:
                scope = {}
                exec(compile(block, PAGE.name, "exec"), scope)
                if "pixels" in scope:
                    read = make_reader((1, 8, 8), eval_crop_ratio=1.0)("photos/3/1.png").numpy()
                    assert np.abs(read[0].astype(int) - np.asarray(scope["pixels"], int)).max() <= 1
                else:
                    assert len(scope.get("probabilities", scope.get("logits"))) == 5
            continue
        for line in join_lines(block.splitlines()):
            program, *words = shlex.split(line)
            if "data.root=CIFAR10" in words:  # the study of human labels needs its images
                continue
            module, _, name = SCRIPTS[program].partition(":")
            done = invoke(monkeypatch, capsys, tmp_path, *words, entry=getattr(resolve_name(module), name))
            expected = 0 if has_onnx or "onnx" not in line else 2
            assert done.returncode == expected, (line, done.stderr)
            for file in re.findall(r"--out (\S+)", line):
                assert Path(tmp_path, file).is_file(), line
