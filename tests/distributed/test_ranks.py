"""Steps on several ranks equal steps of one process whose groups are the ranks' parts of the batch."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sam_runner.distributed.context import DistributedContext
from sam_runner.distributed.sharding import full_state, is_sharded, shard_model
from sam_runner.sam.objective import Batch, Objective
from sam_runner.sam.step import SamStep

pytestmark = pytest.mark.dist
STEPS, BATCH = 5, 16


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 5)).double()


def make_batches():
    draws = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(BATCH, 1, 8, 8, generator=draws, dtype=torch.float64), torch.arange(BATCH) % 5)
        for _ in range(STEPS)
    ]


def train_weights(model, objective, share, **options):
    """Return the weights after `STEPS` steps on the examples `share` of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    step = SamStep(objective, optimizer, **options)
    for number, batch in enumerate(make_batches()):
        step(Batch(*(tensor[share] for tensor in (batch.images, batch.labels))), 0.1, number)
    return torch.cat([value.flatten() for value in full_state(model.state_dict()).values()])


def train_alone(**options):
    model = make_network()
    return train_weights(model, Objective(model, F.cross_entropy), slice(None), **options)


def run_rank(number, count, port, queue, sharded, options):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    model, parallel = make_network(), {}
    if sharded:
        shard_model(model, min_unit_params=100)  # two units
        assert all(is_sharded(param) for param in model.parameters())
    else:
        wrapped = DistributedDataParallel(model)
        parallel = {"forward": wrapped, "no_sync": wrapped.no_sync}
    objective = Objective(model, F.cross_entropy, ranks=DistributedContext(number, count), **parallel)
    share = slice(number * BATCH // count, (number + 1) * BATCH // count)
    queue.put((number, train_weights(model, objective, share, **options).tolist()))
    distributed.destroy_process_group()


def require_ranks_equal(expected, count, sharded=False, **options):
    """Train on `count` processes and compare the weights of each with `expected`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    processes = mp.spawn(run_rank, (count, port, queue, sharded, options), nprocs=count, join=False)
    weights = dict(queue.get() for _ in range(count))
    processes.join()
    assert sorted(weights) == list(range(count))
    for values in weights.values():
        assert torch.allclose(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_equal_one_process_with_groups_of_a_ranks_images(count):
    require_ranks_equal(train_alone(group_size=BATCH // count), count)


def test_a_synchronised_ascent_equals_one_process_with_one_group():
    expected = train_alone()
    require_ranks_equal(expected, 2, sync_perturbation=True)
    assert not torch.allclose(train_alone(group_size=BATCH // 2), expected, rtol=0, atol=1e-6)  # the cases differ


def test_a_random_direction_is_the_same_on_all_ranks():
    require_ranks_equal(train_alone(direction_seed=3), 2, direction_seed=3)


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_shards_equal_one_process(grad_clip):
    expected = train_alone(grad_clip=grad_clip)
    require_ranks_equal(expected, 2, sharded=True, sync_perturbation=True, grad_clip=grad_clip)
