"""What a run logs, read back as TensorBoard reads it."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from sam_runner.runs.logging import Tracker


def read_events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def scalars_of(folder, tag):
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def rows_of(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def event_files(folder):
    return [path for path in folder.rglob("*") if "tfevents" in path.name]


def log_steps(tracker, steps, scale=1.0):
    """One row for each step, and the length of metrics.jsonl after each."""
    sizes = []
    for step in steps:
        tracker.scalars(step, 1, {"train/loss": step * scale})
        tracker.timing(step, {"time/images_per_second": 100.0 + step})
        sizes.append(tracker.flush())
    return sizes


def hparams_of(folder, tag):
    content = read_events(folder).SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def test_scalars_reach_tensorboard_and_the_file(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(10, 1, {"train/loss": 0.5, "lr": 0.1})
    tracker.scalars(20, 2, {"train/loss": 0.25, "test/accuracy": 0.75})
    tracker.close()
    assert scalars_of(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]
    assert scalars_of(tmp_path, "test/accuracy") == [(20, 0.75)]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"step": 10, "epoch": 1, "train/loss": 0.5, "lr": 0.1}\n'
        b'{"step": 20, "epoch": 2, "train/loss": 0.25, "test/accuracy": 0.75}\n'
    )


def test_metrics_keep_every_digit(tmp_path):
    value = 1 / 3 + 1e-16
    tracker = Tracker(tmp_path)
    tracker.scalars(1, 1, {"train/loss": value})
    tracker.close()
    assert rows_of(tmp_path)[0]["train/loss"] == value


def test_timing_stays_out_of_the_metrics(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.timing(7, {"time/images_per_second": 123.0})
    tracker.close()
    assert rows_of(tmp_path, "timing.jsonl") == [{"step": 7, "time/images_per_second": 123.0}]
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert scalars_of(tmp_path, "time/images_per_second") == [(7, 123.0)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_image_keeps_its_pixels(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    picture = torch.from_numpy(pixels) if dtype == torch.uint8 else torch.from_numpy(pixels).float() / 255
    tracker = Tracker(tmp_path)
    tracker.image("train/images", picture, 4)
    tracker.close()
    (event,) = read_events(tmp_path).Images("train/images")
    assert event.step == 4
    read = np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).transpose(2, 0, 1)
    assert np.abs(read.astype(int) - pixels).max() <= (0 if dtype == torch.uint8 else 1)


def test_hparams_are_in_the_same_run(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(3, 1, {"test/accuracy": 0.5})
    tracker.image("train/images", torch.zeros(3, 4, 4), 0)
    settings = {"rho": 0.05, "batch_size": 128, "nesterov": True, "model": "resnet20", "max_steps": None}
    tracker.hparams(settings, {"test/accuracy": 0.5})
    tracker.close()
    assert len(event_files(tmp_path)) == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    started = hparams_of(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    assert [started[name].number_value for name in ("rho", "batch_size", "nesterov")] == [0.05, 128, 1]
    assert [started[name].string_value for name in ("model", "max_steps")] == ["resnet20", "None"]
    experiment = hparams_of(tmp_path, "_hparams_/experiment").experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["test/accuracy"]
    assert scalars_of(tmp_path, "test/accuracy") == [(3, 0.5)]


def test_flush_gives_the_length_of_the_metrics(tmp_path):
    tracker = Tracker(tmp_path)
    assert tracker.flush() == 0
    for size in log_steps(tracker, [1]):
        assert size == (tmp_path / "metrics.jsonl").stat().st_size > 0
    tracker.close()


def test_rows_are_on_disk_after_flush_without_close(tmp_path):
    tracker = Tracker(tmp_path)
    log_steps(tracker, [1, 2])
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    assert [step for step, _ in scalars_of(tmp_path, "train/loss")] == [1, 2]
    tracker.close()


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_restart_drops_what_came_after_the_cut(tmp_path, cut):
    interrupted = Tracker(tmp_path)
    interrupted.image("train/images", torch.zeros(3, 4, 4), 0)
    sizes = [0, *log_steps(interrupted, range(1, 6), scale=-1.0)]
    interrupted.close()
    again = Tracker(tmp_path, cut, sizes[cut])
    log_steps(again, range(cut + 1, 8))
    again.close()
    expected = [(step, -float(step) if step <= cut else float(step)) for step in range(1, 8)]
    assert scalars_of(tmp_path, "train/loss") == expected
    assert [(row["step"], row["train/loss"]) for row in rows_of(tmp_path)] == expected
    assert [step for step, _ in scalars_of(tmp_path, "time/images_per_second")] == list(range(1, 8))


def test_restart_from_the_beginning_starts_afresh(tmp_path):
    for scale in (-1.0, 1.0):
        tracker = Tracker(tmp_path)
        tracker.image("train/images", torch.zeros(3, 4, 4), 0)
        log_steps(tracker, [1, 2], scale)
        tracker.close()
    assert scalars_of(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert [event.step for event in read_events(tmp_path).Images("train/images")] == [0]
    assert [row["train/loss"] for row in rows_of(tmp_path)] == [1.0, 2.0]


def test_restart_without_new_rows_leaves_none_after_the_cut(tmp_path):
    interrupted = Tracker(tmp_path)
    sizes = log_steps(interrupted, range(1, 6))
    interrupted.close()
    Tracker(tmp_path, 2, sizes[1]).close()
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    assert [step for step, _ in scalars_of(tmp_path, "train/loss")] == [1, 2]


def test_restart_keeps_the_timing_of_earlier_steps(tmp_path):
    interrupted = Tracker(tmp_path)
    size = log_steps(interrupted, [1, 2])[-1]
    interrupted.close()
    again = Tracker(tmp_path, 2, size)
    log_steps(again, [3])
    again.close()
    assert [row["step"] for row in rows_of(tmp_path, "timing.jsonl")] == [1, 2, 3]


def test_restart_keeps_the_image_of_step_zero(tmp_path):
    interrupted = Tracker(tmp_path)
    interrupted.image("train/images", torch.zeros(3, 4, 4), 0)
    sizes = log_steps(interrupted, [1, 2])
    interrupted.close()
    again = Tracker(tmp_path, 1, sizes[0])
    log_steps(again, [2])
    again.close()
    assert [event.step for event in read_events(tmp_path).Images("train/images")] == [0]


def test_resumed_metrics_are_the_bytes_of_a_run_without_interruption(tmp_path):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = Tracker(tmp_path / "whole")
    log_steps(whole, range(1, 6))
    whole.close()
    interrupted = Tracker(tmp_path / "resumed")
    sizes = log_steps(interrupted, range(1, 5))
    interrupted.close()
    again = Tracker(tmp_path / "resumed", 2, sizes[1])
    log_steps(again, range(3, 6))
    again.close()
    expected = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == expected


def test_metrics_shorter_than_the_checkpoint_says_are_not_filled_with_zeros(tmp_path):
    tracker = Tracker(tmp_path)
    size = log_steps(tracker, [1, 2])[-1]
    tracker.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    again = Tracker(tmp_path, 2, size)
    log_steps(again, [3])
    again.close()
    assert [row["step"] for row in rows_of(tmp_path)] == [3]


def test_a_restart_within_the_same_second_is_read_after_what_it_continues(tmp_path, monkeypatch):
    counter = iter([9, 10])  # as text, 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: next(counter)))
    for number in range(2):
        tracker = Tracker(tmp_path, 2 * number, 0)
        for step in (2 * number + 1, 2 * number + 2):
            tracker.scalars(step, 1, {"train/loss": float(step)})
        tracker.close()
    assert scalars_of(tmp_path, "train/loss") == [(step, float(step)) for step in (1, 2, 3, 4)]
