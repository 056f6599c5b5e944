"""All commands but sam-train have one style: --help, one parser, runs first, and a place in sam-train --help."""

import re
from pkgutil import resolve_name

import pytest

from sam_runner.config.help import help_text
from sam_runner.utils.files import CONF
from tests.helpers import invoke
from tests.test_docs import COMMANDS, ROOT

SCRIPTS = dict(re.findall(r'^(sam-\w+) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M))
OTHERS = sorted(SCRIPTS.keys() - {"sam-train"})


def test_every_command_is_listed_with_its_meaning():
    listed = dict(re.findall(r"^  (sam-\w+) {2,}(\S.*)$", help_text(CONF), re.M))
    assert sorted(listed) == OTHERS == sorted(COMMANDS.keys() - {"sam-train"})


@pytest.mark.parametrize("name", OTHERS)
def test_commands_have_one_style(name, monkeypatch, capsys, tmp_path):
    module, _, function = SCRIPTS[name].partition(":")

    def call(*words):
        return invoke(monkeypatch, capsys, tmp_path, *words, entry=getattr(resolve_name(module), function))

    done = call("--help")
    usage = " ".join(done.stdout.partition("\n\n")[0].split())
    assert done.returncode == 0 and usage.startswith(f"usage: {name} [-h] ")
    options = set(re.findall(r"(?<![\w-])--?[a-z-]+", usage)) - {"-h"}
    assert all(option.startswith("--") for option in options) and not re.search(r"--\w+_", usage)
    required = r"" if name == "sam-status" else r" [A-Z]+"  # it lists outputs/ if no folder is given
    assert re.search(rf"{required} \[[A-Z]+ ...\]$| RUN$", usage), usage
    assert call().returncode == 2
    wrong = call("--no-such-option", "x")
    assert wrong.returncode == 2 and "unknown option --no-such-option" in wrong.stderr
    unlike = call("--qqqq", "x")
    assert "did you mean" not in unlike.stderr and "accepted: --" in unlike.stderr
    missing = call("nowhere", *(("--format", "onnx") if name == "sam-export" else ()))
    assert missing.returncode == 2 and "nowhere" in missing.stderr + missing.stdout
    too_long = call("x" * 5000, *(("--format", "onnx") if name == "sam-export" else ()))
    assert too_long.returncode == 2 and "File name too long" in too_long.stderr
    assert not list(tmp_path.iterdir())
