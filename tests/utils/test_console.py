"""Output under every kind of stdout, stderr and working folder."""

import os
import subprocess
import sys
import textwrap

import pytest

from sam_runner.commands import evaluate, report, train, verify
from sam_runner.utils.console import format_duration, print_error
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, require_writable, write_json
from sam_runner.utils.yaml import read_yaml
from tests.helpers import config_of, invoke

PROGRAM = """
import os, sys
sys.argv = ["program"]
from sam_runner.commands.exit_codes import run_command
from sam_runner.utils.console import print_error
import logging
def command(arguments):
    for word in ("naïve 猫", "bytes \\udcef"):
        logging.getLogger("sam_runner").info(word)
        print(word)
        print_error(word)
    with open("file", "w") as file:
        assert file.fileno() > 2, file.fileno()
        file.write("done")
    return 0
sys.exit(run_command(command))
"""


@pytest.mark.parametrize("redirection", ["", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_command_ends_well_whatever_its_output_is(tmp_path, redirection, encoding):
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$PROGRAM" {redirection}'],
        cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding, "PROGRAM": textwrap.dedent(PROGRAM)},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "done")
    printed = done.stdout.decode(encoding)
    if ">&-" not in redirection.replace("2>&-", ""):
        assert printed.count("na") == 2
        assert printed.count("\\udcef") == 2
        assert ("猫" in printed) == (encoding == "utf-8")


def test_an_empty_error_is_printed(capsys):
    print_error("")
    assert capsys.readouterr().err == "error: \n"


@pytest.mark.parametrize("entry", [train.main, evaluate.main, verify.main, report.main])
def test_a_deleted_working_folder_is_named(tmp_path, monkeypatch, capsys, entry):
    (tmp_path / "gone").mkdir()

    def delete_and_run():
        (tmp_path / "gone").rmdir()
        return entry()

    done = invoke(monkeypatch, capsys, tmp_path / "gone", "x", entry=delete_and_run)
    monkeypatch.chdir(tmp_path)
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "  change to another folder: cd ~")


@pytest.mark.parametrize("words", [["-m", "seed=0,1"], ["run_dir=outputs/run", "model.width=4", "epochs=1"]])
def test_a_working_folder_without_place_for_outputs_is_named(tmp_path, monkeypatch, capsys, words):
    (tmp_path / "outputs").touch()
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written to"):
        require_writable(tmp_path / "outputs" / "sweeps" / "x")
    assert not (tmp_path / "outputs").exists()


def test_bytes_that_are_not_utf8_survive_json_and_yaml(tmp_path):
    name = os.fsdecode(b"na\xefve")
    write_json(tmp_path / "x.json", {"path": name})
    assert read_json(tmp_path / "x.json") == {"path": name}
    (tmp_path / "x.yaml").write_text('path: "na\\uDCEFve"')
    assert read_yaml(tmp_path / "x.yaml") == {"path": name}


def test_a_run_folder_whose_name_is_not_utf8_is_refused():
    name = os.fsdecode(b"na\xefve")
    with pytest.raises(InputError, match="not UTF-8"):
        config_of(f"run_dir='{name}'")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (2.54, "2.5 s"), (9.96, "10 s"), (59.6, "1 min"), (89, "1 min 29 s"), (720, "12 min"),
        (3599.6, "1 h"), (5340, "1 h 29 min"), (3600 * 3.54, "3 h 32 min"), (86400 * 2.1, "2.1 days"),
    ],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (720, "12 min"), (5340, "89 min"), (3600 * 3.54, "3.5 h"), (86400 * 2.1, "2.1 days")],
)
def test_rough_durations_have_about_two_digits(seconds, text):
    assert format_duration(seconds, is_rough=True) == text
