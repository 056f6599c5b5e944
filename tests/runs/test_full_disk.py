"""Full disks, read-only and locked folders, unusual names."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from sam_runner.commands import landscape
from tests.helpers import TINY, command, invoke, train_tiny
from tests.training.test_loop import equal_states

OPTIONS = (*TINY, "optimizer=sam", "checkpoint.every_steps=1")


def equal_outcomes(first, second):
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (first, second)]
    return equal_states(first, second) and metrics[0] == metrics[1]


@contextmanager
def limit_file_size(limit):
    """Limit the size in bytes of files that this process writes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("reference") / "run", *OPTIONS)


def test_a_full_disk_before_a_longer_run_has_its_settings_names_the_command_that_was_typed(
    tmp_path, monkeypatch, capsys
):
    train_tiny(tmp_path / "run", "epochs=1")
    with limit_file_size(50):  # the new config.yaml does not fit
        done = invoke(monkeypatch, capsys, tmp_path, "resume=run", "epochs=2")
    assert done.returncode in (1, 2) and "then repeat the command" in done.stderr, done.stderr


@pytest.mark.parametrize("part", ["checkpoint", "first file", "numbers"])
def test_a_full_disk_is_reported_and_the_run_continues_later(part, reference, tmp_path, monkeypatch, capsys):
    """With space again, the same command continues to the bit."""
    size = next((reference / "checkpoints").glob("step-*.pt")).stat().st_size
    limit = {"checkpoint": size - 100, "first file": 50, "numbers": 900}[part]
    with limit_file_size(limit):
        done = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=run")
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    has_begun = (tmp_path / "run" / "config.yaml").is_file()
    assert ("continue the run: sam-train resume=run" if has_begun else "then repeat the command") in done.stderr
    assert not list(tmp_path.rglob("*.tmp.*"))
    again = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=run")
    assert again.returncode == 0, again.stderr
    assert equal_outcomes(tmp_path / "run", reference)


def test_a_full_disk_is_reported_by_an_analysis_and_its_results_are_complete_later(
    reference, tmp_path, monkeypatch, capsys, drawn_plots
):
    words = [reference, "--examples", "16", "--points", "3", "--line-points", "3", "--out", tmp_path / "out"]
    with limit_file_size(2000):  # the tables fit, the plots do not
        done = invoke(monkeypatch, capsys, tmp_path, *words, entry=landscape.main)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: File too large: ")
    assert "free some space and repeat the command" in done.stderr
    again = invoke(monkeypatch, capsys, tmp_path, *words, entry=landscape.main)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "landscape-surface.html").is_file()


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(reference, tmp_path, monkeypatch, capsys):
    """A small file system is full in the middle of the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = next((reference / "checkpoints").glob("step-*.pt")).stat().st_size
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={(3 * size + 120_000) // 4096 * 4096}", "tmpfs", disk],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        (disk / "ballast").write_bytes(bytes(int(1.3 * size)))
        done = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=disk/run")
        assert done.returncode == 1, done.stderr
        assert "No space left" in done.stderr or "full" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 20
        (disk / "ballast").unlink()
        again = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=disk/run")
        assert again.returncode == 0, again.stderr
        assert equal_outcomes(disk / "run", reference)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_event_file_that_cannot_be_written_is_one_warning(reference, tmp_path, monkeypatch, capfd):
    """TensorBoard writes in a thread of its own, whose traceback Python would print."""
    from tensorboard.summary.writer import record_writer

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)
    done = invoke(monkeypatch, capfd, tmp_path, *OPTIONS, "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("logger=tensorboard") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, capsys):
    place = tmp_path / "place"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:  # without the right to mount, and then without the rights of root too
        place.chmod(0o555)
    try:
        done = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=place/run")
        assert done.returncode == 2, done.stderr
        assert "place/run cannot be created" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", place], check=True)
        else:
            place.chmod(0o755)


@pytest.mark.slow
def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_goes_on(
    reference, tmp_path, monkeypatch, capsys
):
    first = subprocess.Popen(
        [sys.executable, "-m", "sam_runner", *OPTIONS, "run_dir=run"], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoints").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)  # so that it does not end before the second starts
    try:
        second = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=run")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, stderr = first.communicate(timeout=60)
    assert second.returncode == 2, second.stderr
    assert f"in use by process {first.pid}" in second.stderr
    assert first.returncode == 0, stderr
    assert equal_outcomes(tmp_path / "run", reference)


@pytest.mark.parametrize("name", ["ünï kódé 文", "a=b, {x}'s", "x" * 200])
def test_unusual_names_work(name, tmp_path, monkeypatch, capsys):
    place = tmp_path / ("Ordner mit Ümläuten" if name != "x" * 200 else "o")
    place.mkdir()
    quoted = name.replace("'", "\\'")
    words = [*TINY, "optimizer=sam", "epochs=1", f"run_dir='{quoted}/run'"]
    if name.isascii():
        done = invoke(monkeypatch, capsys, place, *words)
    else:  # a new process: Python chooses its encoding at the start
        done = command(*words, cwd=place, env={"LC_ALL": "C", "LANG": "C"})
    assert done.returncode == 0, done.stderr
    assert json.loads((place / name / "run" / "result.json").read_text())["status"] == "finished"


def test_a_name_that_hydra_cannot_read_is_used_as_it_is_typed(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "run_dir=a{b")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["a{b"]


def test_a_value_that_hydra_cannot_read_says_how_to_quote(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "lr=a{b")
    assert done.returncode == 2
    assert "lr='a{b'" in done.stderr
    assert not os.listdir(tmp_path)


def test_many_long_settings_in_a_sweep_make_a_name_that_fits(tmp_path, monkeypatch, capsys):
    done = invoke(
        monkeypatch, capsys, tmp_path, "-m", *TINY, "optimizer=sam", "epochs=1", "seed=0,1",
        "optimizer.base.momentum=0.9000000000000001",
        "optimizer.rho_warmup_epochs=0.0", "label_smoothing=0.0000000000000001",
        "schedule.warmup_epochs=0.0000000000000000000000000001", "sweep_name=wide",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = [path.name for path in (tmp_path / "outputs" / "sweeps" / "wide").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    assert max(map(len, jobs)) <= 120
