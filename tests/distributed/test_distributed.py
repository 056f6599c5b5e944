"""`DistributedContext` in one process, with the messages of other ranks simulated."""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_runner.config.data import AugmentConfig
from sam_runner.data.image_sets import ImageSet
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext, floating_point_buffers
from sam_runner.distributed.sharding import full_state, is_sharded, to_local
from sam_runner.distributed.torchrun import read_world_size
from sam_runner.sam.batch_statistics import RunningStatistics
from sam_runner.sam.step import Passes, StepStats
from sam_runner.training.builders.run import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics import SUMS, TrainMeter
from sam_runner.training.state import restore_state
from sam_runner.utils.console import exit_immediately
from sam_runner.utils.errors import InputError, MissingDataError, RankError, TrainingError
from tests.helpers import TINY, config_of, train_tiny

TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip


def test_collectives_of_one_process_return_their_argument():
    tensor = torch.arange(4.0)
    assert SINGLE_PROCESS.local_part(tensor) is tensor
    assert SINGLE_PROCESS.all_reduce_sum(tensor) is tensor
    assert SINGLE_PROCESS.all_reduce_and(tensor) is tensor
    assert SINGLE_PROCESS.all_reduce_max(3, 1) == (3, 1)
    assert SINGLE_PROCESS.all_gather("x") == ["x"]
    assert SINGLE_PROCESS.on_main(lambda: 5) == SINGLE_PROCESS.on_all(lambda: 5) == 5
    assert SINGLE_PROCESS.batch_weight(7, 7) == 1
    error = ValueError("x")
    assert SINGLE_PROCESS.attribute_error(error) is error


@given(st.integers(1, 40), st.integers(1, 8))
def test_parts_are_the_whole_and_weights_have_mean_one(length, count):
    batch = torch.arange(length)
    parts = [DistributedContext(rank, count).local_part(batch) for rank in range(count)]
    assert torch.equal(torch.cat(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    weights = [DistributedContext(rank, count).batch_weight(len(part), length) for rank, part in enumerate(parts)]
    assert sum(weights) / count == pytest.approx(1)
    values = batch.double().square()
    means = [values[part].mean() * weight for part, weight in zip(parts, weights, strict=True) if len(part)]
    assert float(sum(means)) / count == pytest.approx(float(values.mean()))


def make_image_set(length):
    labels = torch.arange(length) % 2
    return ImageSet(torch.zeros(length, 1, 4, 4, dtype=torch.uint8), labels, ("a", "b"), labels)


def make_loader(length, rank, count, augmentation, **options):
    return ImageLoader(
        make_image_set(length), batch_size=6, normalisation=Normalisation((0.5,), (0.5,)), device=torch.device("cpu"),
        augmentation=augmentation, context=DistributedContext(rank, count), **options,
    )  # fmt: skip


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_train_on_the_batches_of_one_process(count, start):
    expected = list(make_loader(23, 0, 1, AugmentConfig(), seed=5).epoch(3, start))
    ranks = [list(make_loader(23, rank, count, AugmentConfig(), seed=5).epoch(3, start)) for rank in range(count)]
    for number, batch in enumerate(expected):
        parts = [batches[number] for batches in ranks]
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
        assert {part.global_batch_size for part in parts} == {len(batch.indices)}


def test_a_last_batch_of_fewer_images_than_ranks_is_left_out():
    assert [len(make_loader(20, 0, count, AugmentConfig())) for count in (1, 2, 3)] == [4, 4, 3]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_ranks_evaluate_every_image_once(count):
    seen = [batch.indices for rank in range(count) for batch in make_loader(23, rank, count, None).epoch()]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(23))


@pytest.mark.parametrize("uses", [1, 2])
def test_mean_of_ranks_statistics_is_that_of_all_images(uses):
    """Two ranks have 5 and 3 images; momentum is 0.1, the statistics begin with mean 0 and variance 1."""
    batch = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers = []
    for rank, part in enumerate((batch[:5], batch[5:])):
        layer = torch.nn.BatchNorm1d(3).double()
        statistics = RunningStatistics(layer)
        weight = DistributedContext(rank, 2).batch_weight(len(part), 8)
        with (
            statistics.single_statistics_update(1, weight),
            statistics.accumulate_statistics(len(part)),
            torch.no_grad(),
        ):
            for _ in range(uses):
                layer(part)
        layers.append(layer)
    mean = torch.stack([layer.running_mean for layer in layers]).mean(0)
    variance = torch.stack([layer.running_var for layer in layers]).mean(0)
    kept = 0.9**uses
    assert torch.allclose(mean, (1 - kept) * batch.mean(0), rtol=0, atol=1e-12)
    expected = kept + (1 - kept) * (5 * batch[:5].var(0) + 3 * batch[5:].var(0)) / 8
    assert torch.allclose(variance, expected, rtol=0, atol=1e-12)


def test_sums_of_ranks_are_those_of_one_process():
    def make_stats(loss, norm, logits):
        return StepStats(
            torch.tensor(loss), torch.tensor(loss + 1), torch.tensor(norm), torch.tensor(norm), logits,
            torch.ones(4, dtype=torch.bool), False, Passes(2, 2, 2),
        )  # fmt: skip

    logits, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    expected = TrainMeter(torch.device("cpu"))
    expected.add(make_stats((3 * 1.0 + 1 * 5.0) / 4, (3 * 2.0 + 1 * 6.0) / 4, logits), labels, labels)
    parts = [(slice(0, 3), 1.0, 2.0), (slice(3, 4), 5.0, 6.0)]
    sums = dict.fromkeys(SUMS, 0.0)
    for part, loss, norm in parts:
        meter = TrainMeter(torch.device("cpu"))
        share = len(labels[part]) / 4
        meter.add(make_stats(loss, norm, logits[part]), labels[part], labels[part], share)
        sums = {name: sums[name] + value for name, value in meter.read_and_reset().items()}
    assert sums == pytest.approx(expected.read_and_reset())


def test_each_rank_continues_from_its_own_sums(tmp_path):
    """If the first rank had the sums of all, the order of the additions and the last digits would change."""
    words = ("optimizer=sgd", "max_steps=3", "log_every=50")
    state = CheckpointFolder(train_tiny(tmp_path / "run", *words) / "checkpoints").load_latest()
    first, second = ([dict.fromkeys(SUMS, value), dict.fromkeys(SUMS, value + 1)] for value in (2.0, 4.0))
    run = build_run(config_of(*TINY, *words))
    buffers = floating_point_buffers(run.networks)
    state["ranks"] = [{**state["ranks"][0], "buffers": buffers, "sums": sums} for sums in (first, second)]
    progress = restore_state(replace(run, context=DistributedContext(1, 2)), state)
    assert progress.sums_of_rank() == second
    progress.return_to_before_end()
    meter = TrainMeter(torch.device("cpu"), progress.window_sums, DistributedContext(1, 2))
    assert meter.read() == dict.fromkeys(SUMS, 5.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"RANK": None}, "RANK"), ({"WORLD_SIZE": "x"}, "numbers"), ({"MASTER_PORT": None}, "MASTER_PORT"),
     ({"LOCAL_RANK": "-1"}, "numbers")],
)  # fmt: skip
def test_missing_variables_are_named(changes, message):
    environment = {key: value for key, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        read_world_size(environment)


def test_world_size_is_that_of_torchrun():
    assert read_world_size({}) == read_world_size({"WORLD_SIZE": "1"}) == 1
    assert read_world_size(TORCHRUN) == 2


class MemoryStore:
    """A dictionary with the methods of torch's key-value store."""

    def __init__(self):
        self.entries = {}

    def set(self, key, value):
        self.entries[key] = value.encode()

    def get(self, key):
        return self.entries[key]

    def check(self, keys):
        return all(key in self.entries for key in keys)

    def add(self, key, number):
        self.entries[key] = self.entries.get(key, 0) + number
        return self.entries[key]


def test_every_rank_reports_the_first_error(monkeypatch):
    monkeypatch.setattr("sam_runner.distributed.context.ERROR_WAIT", 0.2)
    store = MemoryStore()
    contexts = [DistributedContext(rank, 3, store=store, timeout=7) for rank in range(3)]
    own = contexts[1].attribute_error(KeyError("x"))
    other = contexts[0].attribute_error(RuntimeError("[gloo] Connection closed by peer"))
    assert isinstance(own, RankError)
    assert (own.is_local, other.is_local) == (True, False)
    assert str(own) == str(other) == "rank 1: KeyError: 'x'"


def test_a_rank_that_does_not_respond_is_named(monkeypatch):
    monkeypatch.setattr("sam_runner.distributed.context.ERROR_WAIT", 0.2)
    store = MemoryStore()
    store.set("waiting/2", "")
    error = DistributedContext(0, 3, store=store, timeout=7).attribute_error(
        RuntimeError("Timed out waiting 7000ms for recv")
    )
    assert str(error).startswith("rank 1 does not respond")
    assert "rank_timeout=7" in str(error)


@pytest.mark.parametrize("error", [InputError("two\nlines"), TrainingError("x")])
def test_messages_for_users_are_complete(error):
    assert str(DistributedContext(1, 2, store=MemoryStore()).attribute_error(error)) == f"rank 1: {error}"


def test_a_subclass_of_input_error_is_an_input_error_on_every_rank(monkeypatch):
    def gather(values, value, group):
        values[:] = [value, None]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)

    def call():
        raise MissingDataError("no data\n  give data")

    with pytest.raises(InputError, match="no data\n  give data"):
        DistributedContext(0, 2).on_all(call)


def test_a_full_state_is_not_changed():
    layer = torch.nn.BatchNorm1d(2)
    state = layer.state_dict()
    full = full_state(state)
    assert full.keys() == state.keys()
    assert full._metadata == state._metadata
    assert all(full[name] is state[name] for name in state)
    assert not is_sharded(layer.weight)
    assert to_local(layer.weight) is layer.weight


def test_a_rank_whose_rank_0_was_killed_says_so_without_a_traceback(capsys, monkeypatch):
    """Rank 0 holds the store, so nothing can be read from it then."""

    class LostStore:
        def set(self, key, value):
            raise RuntimeError("Broken pipe")

    context = DistributedContext(1, 2, store=LostStore(), timeout=7)
    error = context.attribute_error(RuntimeError("[gloo] Connection reset by peer"))
    assert isinstance(error, RankError)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    exit_immediately(error)
    assert capsys.readouterr().err == (
        "error: rank 1 has lost the other ranks: rank 0 was killed, or its machine does not respond\n"
    )
