"""The pages of docs/tutorial.md, docs/howto/ and docs/explanation/ run: every command and snippet, in order, in a
folder of its own.

A block without a language has commands, a block ``text`` after it what they print. A block ``python`` or ``yaml`` that
begins with ``# path`` is that file; any other block ``python`` is executed. Commands of this program run in this
process.
"""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys

import numpy
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from scripts.pages.site_hooks import list_commands
from tests.helpers import CALLS, command
from tests.test_docs import ROOT, join_lines

COMMANDS = list_commands()
SHORT = ["epochs=1", "max_steps=3", "batch_size=16"]  # in place of what a page trains, where its numbers are not shown
NOT_RUN = {  # beginnings of commands that need more than this machine; tests/test_docs.py checks them all the same
    "pip ": "installs",
    "docker ": "needs docker",
    "sam-train -m hydra/launcher=submitit_slurm": "needs a cluster",
    "sam-train -m hydra/launcher=ray": "needs the extra ray",
    "sam-train -m hydra/launcher=submitit_local": "tests/sweeps/test_launchers.py runs the launcher",
    "sam-train -m hydra/sweeper=optuna": "tests/sweeps/test_launchers.py runs the sweeper",
    "torchrun --nproc-per-node 8": "needs eight GPUs",
    "sam-train data=image_folder data.root=FOLDER data.image_size=224 model=resnet50": "downloads weights",
}
WHOLE = ("fine_tune", "resume", "debug_nan")  # pages whose commands train as long as they say: seconds
SLOW = ("choose_rho", "debug_nan", "label_noise", "several_gpus", "sweep", "tutorial")
PAGES = [*sorted((ROOT / "docs/howto").glob("*.md")), *sorted((ROOT / "docs/explanation").glob("*.md"))]
PAGES.append(ROOT / "docs/tutorial.md")


def read_blocks(path):
    """The blocks of a page: (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def reason_not_to_run(line):
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


class Reader:
    """Somebody who types what a page says, in an empty folder."""

    def __init__(self, folder, monkeypatch, *, is_short):
        self.folder, self.monkeypatch, self.is_short = folder, monkeypatch, is_short
        self.scope = {"__name__": "__page__"}
        self.images = folder / "FOLDER"
        self.printed, self.codes = "", []
        monkeypatch.chdir(folder)

    def read(self, path):
        for language, text in read_blocks(path):
            name = re.match(r"# ([\w./]+\.\w+)\n", text)
            if language in ("python", "yaml") and name:
                file = self.folder / name[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            elif language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(text, str(path), "exec"), self.scope)
                self.printed, self.codes = printed.getvalue(), []
            elif language == "text":
                self.compare(text)
            elif not language:
                self.printed, self.codes = "", []
                for line in join_lines(text.splitlines()):
                    if line.strip() and not reason_not_to_run(line):
                        self.type(line.strip())

    def compare(self, text):
        """Every line of a page's output is one that was printed, apart from its numbers; ``...`` leaves lines out."""
        if self.printed:
            printed = {without_numbers(line) for line in self.printed.splitlines()}
            wanted = [line for line in text.splitlines() if line.strip() not in ("", "...")]
            assert not [line for line in wanted if without_numbers(line) not in printed], self.printed
        if text.startswith("error:"):
            assert self.codes[-1] != 0
            self.codes.pop()
        assert not any(self.codes), self.printed
        self.codes = []

    def type(self, line):
        assert not any(self.codes), self.printed
        if line.startswith("export "):
            for name, value in (word.split("=", 1) for word in shlex.split(line)[1:]):
                self.set(name, value)
            return
        words = shlex.split(line)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            self.set(*words.pop(0).split("=", 1))
        program, *arguments = [word.replace("=FOLDER", f"={self.images}") for word in words]
        if any("FOLDER" in word for word in words) and not self.images.exists():
            write_photos(self.images)
        if program == "ls":
            self.printed += "\n".join(sorted(path.name for path in (self.folder / arguments[0]).iterdir()))
            self.codes.append(0)
        elif program == "torchrun":
            words = {"cwd": self.folder, "module": "torch.distributed.run", "env": {"PYTHONPATH": str(ROOT)}}
            self.note(command(*arguments, **words))
        else:
            self.call(program, arguments)

    def note(self, done):
        self.printed += done.stdout + done.stderr
        self.codes.append(done.returncode)

    def set(self, name, value):
        self.monkeypatch.setenv(name, value)
        if name == "PYTHONPATH":
            self.monkeypatch.syspath_prepend(str(self.folder / value))

    def call(self, program, arguments):
        """Run a command of this program in this process."""
        if program == "sam-train" and self.is_short:
            arguments = [*arguments, *SHORT, *(["sweep.jobs=1"] if "-m" in arguments else [])]
        elif "-m" in arguments:
            self.note(command(*arguments, cwd=self.folder, timeout=1700, env={"PYTHONPATH": str(ROOT)}))
            return
        GlobalHydra.instance().clear()
        self.monkeypatch.setattr(sys, "argv", [program, *arguments])
        self.monkeypatch.setenv("SAM_RUNNER_STARTED", f"call{next(CALLS)}")
        self.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
            code = importlib.import_module(COMMANDS[program]).main()
        self.note(subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue()))


def without_numbers(line):
    """A line without its numbers, the machine in a file's name, and runs of spaces and dashes."""
    line = re.sub(r"tfevents\.\S+", "tfevents", line)
    line = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "N", line)
    return re.sub(r"[\s-]+", " ", line).strip()


def write_photos(folder):
    """Two classes of 40 images each, of odd sizes."""
    random = numpy.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 256, (40 + number % 7, 50, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


LONG = (pytest.mark.slow, pytest.mark.timeout(1800))  # the tutorial trains nineteen networks


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=LONG if path.stem in SLOW else (), id=path.stem) for path in PAGES]
)
def test_a_page_runs_as_it_is_written(path, tmp_path, monkeypatch):
    reader = Reader(tmp_path, monkeypatch, is_short=path.stem not in (*WHOLE, "tutorial"))
    modules = set(sys.modules)
    reader.read(path)
    assert not any(reader.codes), reader.printed
    for name in {name for name in sys.modules if name.startswith("my_")} - modules:
        del sys.modules[name]


def test_commands_that_are_not_run_are_on_a_page():
    blocks = [text.splitlines() for path in PAGES for language, text in read_blocks(path) if not language]
    text = "\n".join(line for block in blocks for line in join_lines(block))
    assert not [start for start in NOT_RUN if not re.search(rf"^{re.escape(start)}", text, re.M)]


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= named
    assert named <= pages | {"index.md", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
