"""The loggers of a run, read back as TensorBoard reads them."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from sam_runner.runs.logging.jsonl import JsonlLogger
from sam_runner.runs.logging.tensorboard import TensorboardLogger, tensorboard_tag
from sam_runner.training.metrics_logger import MetricsLoggers
from tests.helpers import read_rows


def open_loggers(folder, start_step=0, num_bytes=0):
    """The loggers of a run that continues after `start_step`, at which metrics.jsonl had `num_bytes`."""
    return MetricsLoggers([JsonlLogger(folder, num_bytes), TensorboardLogger(folder, start_step)])


def read_events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def read_scalars(folder, tag):
    return [(event.step, event.value) for event in read_events(folder).Scalars(tensorboard_tag(tag))]


def list_event_files(folder):
    return [path for path in folder.rglob("*") if "tfevents" in path.name]


def log_steps(loggers, steps, scale=1.0):
    """Log a row for each step and return the length of metrics.jsonl after each."""
    sizes = []
    for step in steps:
        loggers.scalars(step, 1, {"train/loss": step * scale})
        loggers.timing(step, {"time/images_per_second": 100.0 + step})
        sizes.append(loggers.flush()["jsonl"])
    return sizes


def read_hparams(folder, tag):
    content = read_events(folder).SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def test_scalars_reach_tensorboard_and_the_file(tmp_path):
    loggers = open_loggers(tmp_path)
    loggers.scalars(10, 1, {"train/loss": 0.5, "lr": 0.1})
    loggers.scalars(20, 2, {"train/loss": 0.25, "test/accuracy": 0.75})
    loggers.close()
    assert read_scalars(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]
    assert read_scalars(tmp_path, "test/accuracy") == [(20, 0.75)]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"step": 10, "epoch": 1, "train/loss": 0.5, "lr": 0.1}\n'
        b'{"step": 20, "epoch": 2, "train/loss": 0.25, "test/accuracy": 0.75}\n'
    )


def test_metrics_keep_every_digit(tmp_path):
    value = 1 / 3 + 1e-16
    loggers = open_loggers(tmp_path)
    loggers.scalars(1, 1, {"train/loss": value})
    loggers.close()
    assert read_rows(tmp_path)[0]["train/loss"] == value


def test_timing_stays_out_of_the_metrics(tmp_path):
    loggers = open_loggers(tmp_path)
    loggers.timing(7, {"time/images_per_second": 123.0})
    loggers.close()
    assert read_rows(tmp_path, "timing.jsonl") == [{"step": 7, "time/images_per_second": 123.0}]
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert read_scalars(tmp_path, "time/images_per_second") == [(7, 123.0)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_image_keeps_its_pixels(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    picture = torch.from_numpy(pixels) if dtype == torch.uint8 else torch.from_numpy(pixels).float() / 255
    loggers = open_loggers(tmp_path)
    loggers.image("train/images", picture, 4)
    loggers.close()
    (event,) = read_events(tmp_path).Images("train/images")
    assert event.step == 4
    read = np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).transpose(2, 0, 1)
    assert np.abs(read.astype(int) - pixels).max() <= (0 if dtype == torch.uint8 else 1)


def test_hparams_are_in_the_same_run(tmp_path):
    loggers = open_loggers(tmp_path)
    loggers.scalars(3, 1, {"test/accuracy": 0.5})
    loggers.image("train/images", torch.zeros(3, 4, 4), 0)
    settings = {"rho": 0.05, "batch_size": 128, "nesterov": True, "model": "resnet20", "max_steps": None}
    final = {"train/loss": 0.1, "test/nll": 0.2, "test/accuracy": 0.5, "validation/accuracy": 0.6, "rho": 0.05}
    loggers.hparams(settings, final, {"rho"})
    loggers.close()
    assert len(list_event_files(tmp_path)) == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    started = read_hparams(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    assert [started[name].number_value for name in ("rho", "batch_size", "nesterov")] == [0.05, 128, 1]
    assert [started[name].string_value for name in ("model", "max_steps")] == ["resnet20", "None"]
    experiment = read_hparams(tmp_path, "_hparams_/experiment").experiment
    assert [info.name.tag for info in experiment.metric_infos] == [
        "accuracy/test", "accuracy/validation", "loss/test_nll"
    ]  # fmt: skip
    assert {info.name: info.differs for info in experiment.hparam_infos} == {
        name: name == "rho" for name in settings
    }  # fmt: skip
    assert read_scalars(tmp_path, "test/accuracy") == [(3, 0.5)]


def test_flush_gives_the_length_of_the_metrics(tmp_path):
    loggers = open_loggers(tmp_path)
    assert loggers.flush() == {"jsonl": 0, "tensorboard": None}
    for size in log_steps(loggers, [1]):
        assert size == (tmp_path / "metrics.jsonl").stat().st_size > 0
    loggers.close()


def test_rows_are_on_disk_after_flush_without_close(tmp_path):
    loggers = open_loggers(tmp_path)
    log_steps(loggers, [1, 2])
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]
    assert [step for step, _ in read_scalars(tmp_path, "train/loss")] == [1, 2]
    loggers.close()


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_restart_deletes_rows_after_the_checkpoint(tmp_path, cut):
    interrupted = open_loggers(tmp_path)
    interrupted.image("train/images", torch.zeros(3, 4, 4), 0)
    sizes = [0, *log_steps(interrupted, range(1, 6), scale=-1.0)]
    interrupted.close()
    again = open_loggers(tmp_path, cut, sizes[cut])
    log_steps(again, range(cut + 1, 8))
    again.close()
    expected = [(step, -float(step) if step <= cut else float(step)) for step in range(1, 8)]
    assert read_scalars(tmp_path, "train/loss") == expected
    assert [(row["step"], row["train/loss"]) for row in read_rows(tmp_path)] == expected
    assert [step for step, _ in read_scalars(tmp_path, "time/images_per_second")] == list(range(1, 8))


def test_restart_from_the_beginning_deletes_all_rows(tmp_path):
    for scale in (-1.0, 1.0):
        loggers = open_loggers(tmp_path)
        loggers.image("train/images", torch.zeros(3, 4, 4), 0)
        log_steps(loggers, [1, 2], scale)
        loggers.close()
    assert read_scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert [event.step for event in read_events(tmp_path).Images("train/images")] == [0]
    assert [row["train/loss"] for row in read_rows(tmp_path)] == [1.0, 2.0]


@pytest.mark.parametrize("cut", [0, 2])
def test_restart_without_new_rows_deletes_rows_after_the_checkpoint(tmp_path, cut):
    """The next checkpoint gets the new length, or a further restart would keep rows that it has to delete."""
    interrupted = open_loggers(tmp_path)
    sizes = [0, *log_steps(interrupted, range(1, 6))]
    interrupted.close()
    again = open_loggers(tmp_path, cut, sizes[cut])
    assert again.flush()["jsonl"] == sizes[cut]
    again.close()
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, cut + 1))
    assert [step for step, _ in read_scalars(tmp_path, "train/loss")] == list(range(1, cut + 1))


def test_restart_keeps_the_timing_of_earlier_steps(tmp_path):
    interrupted = open_loggers(tmp_path)
    size = log_steps(interrupted, [1, 2])[-1]
    interrupted.close()
    again = open_loggers(tmp_path, 2, size)
    log_steps(again, [3])
    again.close()
    assert [row["step"] for row in read_rows(tmp_path, "timing.jsonl")] == [1, 2, 3]


def test_restart_keeps_the_image_of_step_zero(tmp_path):
    interrupted = open_loggers(tmp_path)
    interrupted.image("train/images", torch.zeros(3, 4, 4), 0)
    sizes = log_steps(interrupted, [1, 2])
    interrupted.close()
    again = open_loggers(tmp_path, 1, sizes[0])
    log_steps(again, [2])
    again.close()
    assert [event.step for event in read_events(tmp_path).Images("train/images")] == [0]


def test_resumed_metrics_are_the_bytes_of_a_run_without_interruption(tmp_path):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = open_loggers(tmp_path / "whole")
    log_steps(whole, range(1, 6))
    whole.close()
    interrupted = open_loggers(tmp_path / "resumed")
    sizes = log_steps(interrupted, range(1, 5))
    interrupted.close()
    again = open_loggers(tmp_path / "resumed", 2, sizes[1])
    log_steps(again, range(3, 6))
    again.close()
    expected = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == expected


def test_metrics_shorter_than_the_checkpoint_says_are_not_filled_with_zeros(tmp_path):
    loggers = open_loggers(tmp_path)
    size = log_steps(loggers, [1, 2])[-1]
    loggers.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    again = open_loggers(tmp_path, 2, size)
    log_steps(again, [3])
    again.close()
    assert [row["step"] for row in read_rows(tmp_path)] == [3]


def test_a_restart_within_the_same_second_is_read_after_the_run_that_it_continues(tmp_path, monkeypatch):
    counter = iter([9, 10])  # as text, 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: next(counter)))
    for number in range(2):
        loggers = open_loggers(tmp_path, 2 * number, 0)
        for step in (2 * number + 1, 2 * number + 2):
            loggers.scalars(step, 1, {"train/loss": float(step)})
        loggers.close()
    assert read_scalars(tmp_path, "train/loss") == [(step, float(step)) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("clock", [1000.9, 1001.0, 940.0, 3.0])
def test_event_files_are_read_in_the_order_of_the_run_whatever_the_clock_says(tmp_path, monkeypatch, clock):
    """A file is named after the second of its creation; a clock set back, or the same second, must not reorder them."""
    for number, now in enumerate((1000.0, clock, clock)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        logger = TensorboardLogger(tmp_path, 2 * number)
        for step in (1, 2):
            logger.scalars(2 * number + step, 1, {"loss": float(2 * number + step)})
        logger.close()
    assert read_scalars(tmp_path, "loss") == [(step, float(step)) for step in range(1, 7)]


def test_settings_with_bytes_that_are_not_utf8_are_logged(tmp_path):
    logger = TensorboardLogger(tmp_path)
    logger.hparams({"data.root": "na\udcefve"}, {"test/accuracy": 1.0})
    logger.close()
    content = next(tmp_path.glob("events*")).read_bytes()
    assert rb"na\udcefve" in content


def test_tensorboard_shows_accuracy_and_loss_first_and_no_two_metrics_have_one_tag():
    metrics = [
        "lr", "rho", "loss_scale", "train/loss", "train/loss_perturbed", "train/loss_gap", "train/accuracy",
        "train/accuracy_clean", "train/memorised", "train/recovered", "train/grad_norm", "train/eps_norm",
        *(f"{name}/{metric}" for name in ("test", "validation")
          for metric in ("accuracy", "accuracy_top5", "nll", "calibration_error")),
    ]  # fmt: skip
    tags = [tensorboard_tag(metric) for metric in metrics]
    assert len({*tags}) == len(metrics)
    groups = sorted({tag.partition("/")[0] for tag in [*tags, "time/images_per_second"]})
    assert groups == ["accuracy", "loss", "loss_gap", "noisy_labels", "norms", "other", "schedule", "time"]
    assert {tag for tag in tags if tag.startswith("accuracy/")} >= {"accuracy/train", "accuracy/test"}
    assert [tensorboard_tag(tag) for tag in ("time/images_per_second", "loss", "mine/new")] == [
        "time/images_per_second", "loss", "mine/new"
    ]  # fmt: skip


def test_facts_are_a_text_that_markdown_shows_as_it_is(tmp_path):
    loggers = open_loggers(tmp_path)
    loggers.text("run", {"command": "sam-train rho=0.1 noise.file=*a_b*<c>", "folder": "na\udcefve\nline"})
    loggers.close()
    (event,) = read_events(tmp_path).Tensors("run/text_summary")
    (text,) = event.tensor_proto.string_val
    assert text.decode() == (
        "- **command:** sam-train rho=0.1 noise.file=\\*a\\_b\\*\\<c\\>\n- **folder:** na\\\\udcefve line"
    )
