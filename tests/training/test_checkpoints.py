"""Checkpoints: damaged ones are detected, named and ignored, and their code never runs."""

import hashlib
import json
import logging
import pickle
import random
import zipfile
from contextlib import suppress

import pytest
import torch
from torch import nn

from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.utils import manifest as manifest_module
from sam_runner.utils.errors import InputError
from sam_runner.utils.safe_load import holds_only_tensors


def make_state(number):
    return {"model": {"w": torch.full((4,), float(number))}, "optimizer": {}}


def save(checkpoints, step, *, is_best=False, epoch=1):
    return checkpoints.save(step, make_state(step), is_best=is_best, epoch=epoch)


def save_steps(folder, steps):
    """Save checkpoints of some steps; return their folder and the path of the last."""
    checkpoints = CheckpointFolder(folder)
    for step in steps:
        path = save(checkpoints, step)
    return checkpoints, path


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def names_of(*steps):
    return [f"step-{step:08d}.{suffix}" for step in steps for suffix in ("json", "pt")]


def flip_bit(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def write_with_manifest(folder, content, step=9, **changes):
    """Write a checkpoint with arbitrary content and a matching manifest."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    path.write_bytes(content)
    manifest = {
        "format": manifest_module.FORMAT, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "is_best": False, "is_kept": False, **changes,
    }  # fmt: skip
    signed = {**manifest, "check": manifest_module._checksum(manifest)}
    path.with_suffix(".json").write_text(json.dumps(signed))
    return path


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_round_trip_of_model_and_optimizer(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": None},
        "progress": {"epoch": 1, "final": {"test/accuracy": 0.5}},
    }
    CheckpointFolder(tmp_path / "checkpoints").save(7, state, is_best=False)
    loaded = CheckpointFolder(tmp_path / "checkpoints").load_latest()
    assert all(torch.equal(loaded["model"][name], value) for name, value in model.state_dict().items())
    for index, values in optimizer.state_dict()["state"].items():
        assert torch.equal(loaded["optimizer"]["state"][index]["momentum_buffer"], values["momentum_buffer"])
    assert loaded["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(loaded["rng"]["cpu"], torch.get_rng_state())
    assert loaded["progress"] == state["progress"]
    assert loaded["step"] == 7


def test_file_loads_with_weights_only(tmp_path):
    _, path = save_steps(tmp_path, [3])
    loaded = torch.load(path, weights_only=True)
    assert {"model", "optimizer", "step"} <= loaded.keys()


def test_manifest_gives_size_and_sha256(tmp_path):
    _, path = save_steps(tmp_path, [3])
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["bytes"] == path.stat().st_size
    assert path.name == "step-00000003.pt"


def test_same_state_gives_the_same_bytes_at_any_path(tmp_path):
    paths = [save(CheckpointFolder(tmp_path / name), 3) for name in ("a", "another")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_no_checkpoint_yet(tmp_path):
    assert CheckpointFolder(tmp_path / "checkpoints").load_latest() is None
    with pytest.raises(InputError, match="no best checkpoint"):
        CheckpointFolder(tmp_path / "checkpoints").load_best()


def test_latest_is_the_highest_step(tmp_path):
    checkpoints, _ = save_steps(tmp_path, [9, 10, 200])
    assert checkpoints.load_latest()["step"] == 200


def test_last_two_and_best_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    for step in range(1, 6):
        save(checkpoints, step, is_best=step == 2)
    assert list_names(tmp_path) == names_of(2, 4, 5)
    assert checkpoints.load_best()["model"]["w"].tolist() == [2.0] * 4
    assert checkpoints.load_latest()["model"]["w"].tolist() == [5.0] * 4


def test_old_best_goes_when_a_better_one_comes(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    for step in range(1, 7):
        save(checkpoints, step, is_best=step in (2, 6))
    assert list_names(tmp_path) == names_of(5, 6)
    assert checkpoints.load_best()["step"] == 6


@pytest.mark.parametrize("keep", [1, 3])
def test_number_kept_is_an_option(tmp_path, keep):
    checkpoints = CheckpointFolder(tmp_path, keep=keep)
    for step in range(1, 6):
        save(checkpoints, step)
    assert len(list(tmp_path.glob("*.pt"))) == len(list(tmp_path.glob("*.json"))) == keep


def test_every_truncation_falls_back_to_the_previous_checkpoint(tmp_path):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    content = path.read_bytes()
    for length in sorted({0, 1, len(content) - 1, *range(0, len(content), 13)}):
        path.write_bytes(content[:length])
        assert checkpoints.load_latest()["step"] == 1


def test_single_bit_flips_fall_back_to_the_previous_checkpoint(tmp_path):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 40):
        path.write_bytes(flip_bit(content, bit))
        assert checkpoints.load_latest()["step"] == 1
    path.write_bytes(content)
    assert checkpoints.load_latest()["step"] == 2


def test_damage_is_named_in_the_log(tmp_path, caplog):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    path.write_bytes(flip_bit(path.read_bytes(), 1000))
    with caplog.at_level(logging.WARNING):
        checkpoints.load_latest()
    assert str(path) in caplog.text
    assert "sha256" in caplog.text


def test_missing_file_falls_back_to_the_previous_checkpoint(tmp_path):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    path.unlink()
    assert checkpoints.load_latest()["step"] == 1


def test_truncated_manifest_falls_back_to_the_previous_checkpoint(tmp_path):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    manifest = path.with_suffix(".json")
    content = manifest.read_bytes()
    for length in range(len(content.rstrip())):
        manifest.write_bytes(content[:length])
        assert checkpoints.load_latest()["step"] == 1


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"format": "1"}', '{"format": null}', '{"bytes": null}'])
def test_manifest_of_another_shape_falls_back_to_the_previous_checkpoint(tmp_path, content):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    changed = json.loads(path.with_suffix(".json").read_text())
    given = json.loads(content)
    path.with_suffix(".json").write_text(json.dumps({**changed, **given} if isinstance(given, dict) else given))
    assert checkpoints.load_latest()["step"] == 1


def test_only_damaged_checkpoints_are_an_input_error(tmp_path):
    checkpoints, _ = save_steps(tmp_path, [1, 2])
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        checkpoints.load_latest()
    assert str(tmp_path) in str(caught.value)
    assert "damaged" in str(caught.value)


def test_damaged_best_is_an_input_error(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    path = save(checkpoints, 1, is_best=True)
    path.write_bytes(flip_bit(path.read_bytes(), 999))
    with pytest.raises(InputError, match=r"(?s)none of 1 checkpoints can be used.*sha256.*train the run again"):
        checkpoints.load_best()
    save(checkpoints, 2)
    with pytest.raises(InputError, match=r"(?s)none of 1 checkpoints can be used.*use --checkpoint last"):
        checkpoints.load_best()


@pytest.mark.parametrize("in_torch_file", [True, False])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, in_torch_file):
    marker, source = tmp_path / "ran", tmp_path / "source"
    value = {"model": Exploit(marker), "optimizer": {}, "step": 9}
    if in_torch_file:
        torch.save(value, source)
    else:
        source.write_bytes(pickle.dumps(value, protocol=2))
    pickle.loads(pickle.dumps(value))["model"].close()
    assert marker.exists()
    marker.unlink()
    write_with_manifest(tmp_path / "checkpoints", source.read_bytes())
    with pytest.raises(InputError, match="refused"):
        CheckpointFolder(tmp_path / "checkpoints").load_latest()
    assert not marker.exists()


def test_best_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker, source = tmp_path / "ran", tmp_path / "source"
    torch.save({"model": Exploit(marker)}, source)
    write_with_manifest(tmp_path / "checkpoints", source.read_bytes(), is_best=True)
    with pytest.raises(InputError, match="refused"):
        CheckpointFolder(tmp_path / "checkpoints").load_best()
    assert not marker.exists()


@pytest.mark.parametrize("value", [[1, 2], {"model": {}}, torch.zeros(3)])
def test_plain_values_that_are_no_state_are_refused(tmp_path, value):
    source = tmp_path / "source"
    torch.save(value, source)
    write_with_manifest(tmp_path / "checkpoints", source.read_bytes())
    with pytest.raises(InputError, match="not a checkpoint"):
        CheckpointFolder(tmp_path / "checkpoints").load_latest()


def test_newer_format_is_refused(tmp_path):
    source = tmp_path / "source"
    torch.save({**make_state(9), "step": 9}, source)
    write_with_manifest(tmp_path / "checkpoints", source.read_bytes())
    assert CheckpointFolder(tmp_path / "checkpoints").load_latest() is not None
    write_with_manifest(tmp_path / "checkpoints", source.read_bytes(), format=manifest_module.FORMAT + 1)
    with pytest.raises(InputError) as caught:
        CheckpointFolder(tmp_path / "checkpoints").load_latest()
    assert f"format {manifest_module.FORMAT + 1}" in str(caught.value)
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize(("number", "other"), [(1, "an older"), (manifest_module.FORMAT + 1, "a newer")])
@pytest.mark.parametrize("load", [CheckpointFolder.load_latest, CheckpointFolder.load_best])
def test_another_format_is_refused_with_the_version_to_use(tmp_path, number, other, load):
    path = save(CheckpointFolder(tmp_path), 1, is_best=True).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))
    message = f"written in format {number}, this version reads {manifest_module.FORMAT}; use {other} version"
    with pytest.raises(InputError, match=message):
        load(CheckpointFolder(tmp_path))


def test_keep_epochs_are_never_deleted(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep_epochs=[2, 5])
    for epoch in range(1, 8):
        save(checkpoints, 10 * epoch, epoch=epoch)
    assert list_names(tmp_path) == names_of(20, 50, 60, 70)


def test_the_end_of_an_epoch_is_newer_than_its_last_batch_and_does_not_overwrite_it(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    within = save(checkpoints, 7, epoch=None)
    content = within.read_bytes()
    end = checkpoints.save(7, {**make_state(8)}, epoch=1)
    assert within != end
    assert within.read_bytes() == content
    assert torch.equal(checkpoints.load_latest()["model"]["w"], torch.full((4,), 8.0))


def test_any_change_of_a_manifest_is_found(tmp_path):
    path = save(CheckpointFolder(tmp_path), 1).with_suffix(".json")
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        path.write_bytes(flip_bit(content, bit))
        assert manifest_module.check_manifest(path) is not None or json.loads(path.read_text()) == json.loads(content)


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\nbytearray\n(I400000000\ntR.",
        b"c__builtin__\nbytearray\n(I400000000\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\tbytearray\x93.",
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_before_torch_reads_it(tmp_path, content, monkeypatch):
    with zipfile.ZipFile(tmp_path / "evil", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    write_with_manifest(tmp_path / "checkpoints", (tmp_path / "evil").read_bytes())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(InputError, match="refused"):
        CheckpointFolder(tmp_path / "checkpoints").load_latest()


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({**make_state(9), "step": 9}, tmp_path / "good")
    with (
        zipfile.ZipFile(tmp_path / "good") as good,
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    assert holds_only_tensors(tmp_path / "good")
    assert not holds_only_tensors(tmp_path / "bomb")
    write_with_manifest(tmp_path / "checkpoints", (tmp_path / "bomb").read_bytes())
    with pytest.raises(InputError, match="refused"):
        CheckpointFolder(tmp_path / "checkpoints").load_latest()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.bool])
def test_tensors_of_every_type_are_accepted(tmp_path, dtype):
    torch.save(
        {"a": torch.ones(3).to(dtype), "b": nn.Parameter(torch.ones(2)).data, "c": [1, 2.5, None, "x", (True,)]},
        tmp_path / "f",
    )
    assert holds_only_tensors(tmp_path / "f")


def test_crash_before_the_manifest_leaves_the_previous_checkpoint_in_use(tmp_path, monkeypatch):
    checkpoints, _ = save_steps(tmp_path, [1, 2])

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 3)
    assert (tmp_path / "step-00000003.pt").is_file()
    assert checkpoints.load_latest()["step"] == 2
    save(checkpoints, 4)
    assert checkpoints.load_latest()["step"] == 4
    assert not (tmp_path / "step-00000003.pt").exists()


def test_crash_before_the_manifest_leaves_the_previous_best(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    save(checkpoints, 1, is_best=True)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(manifest_module, "write_json", crash)
        save(checkpoints, 2, is_best=True)
    assert checkpoints.load_latest()["step"] == checkpoints.load_best()["step"] == 1


def test_a_state_that_cannot_be_saved_leaves_no_file(tmp_path):
    checkpoints, _ = save_steps(tmp_path, [1])
    before = list_names(tmp_path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoints.save(2, {**make_state(2), "hook": lambda: None}, is_best=True, epoch=1)
    assert list_names(tmp_path) == before
    assert checkpoints.load_latest()["step"] == 1


def test_saving_a_step_again_replaces_a_damaged_file(tmp_path):
    checkpoints, path = save_steps(tmp_path, [1, 2])
    path.write_bytes(b"")
    save(checkpoints, 2)
    assert checkpoints.load_latest()["step"] == 2
