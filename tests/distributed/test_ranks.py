"""Data-parallel steps: ranks with their own perturbations are groups of one process."""

import copy
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn import functional as F

from sam_runner.distributed import gradient_average
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import full_state, is_sharded, shard_model
from sam_runner.sam import methods as family
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import Plain, RandomDirection, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from tests.oracles.awkward_networks import WIDTH, Linear, Network, Recomputed, Tempered
from tests.oracles.methods import Alternate, Drift

STEPS, BATCH = 5, 16


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 5)).double()


def batches():
    draws = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(BATCH, 1, 8, 8, generator=draws, dtype=torch.float64), torch.arange(BATCH) % 5)
        for _ in range(STEPS)
    ]


def trained(model, objective, share, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    step = SamStep(objective, optimizer, **options)
    for number, batch in enumerate(batches()):
        step(Batch(*(tensor[share] for tensor in (batch.inputs, batch.targets))), 0.1, number)
    return torch.cat([value.flatten() for value in full_state(model.state_dict()).values()])


def rank(number, count, port, queue, options):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    model = network()
    context = DistributedContext(number, count)
    objective = Objective(model, F.cross_entropy, context=context)
    per_rank = BATCH // count
    share = slice(number * per_rank, (number + 1) * per_rank)
    queue.put((number, trained(model, objective, share, **options).tolist()))
    distributed.destroy_process_group()


def sharded_rank(number, count, port, queue, method, grad_clip):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    model = network()
    shard_model(model, min_unit_params=100)  # two units
    assert all(is_sharded(param) for param in model.parameters())
    objective = Objective(model, F.cross_entropy, context=DistributedContext(number, count))
    per_rank = BATCH // count
    share = slice(number * per_rank, (number + 1) * per_rank)
    weights = trained(model, objective, share, method=method, grad_clip=grad_clip)
    if method.state:  # a saved state is whole, and each process restores its shard
        saved = copy.deepcopy(full_state(method.state_dict()))
        method.load_state_dict({name: [2 * tensor for tensor in tensors] for name, tensors in saved.items()})
        for tensors, doubled in zip(saved.values(), full_state(method.state_dict()).values(), strict=True):
            assert all(torch.equal(2 * a, b) for a, b in zip(tensors, doubled, strict=True))
    queue.put((number, weights.tolist()))
    distributed.destroy_process_group()


def weights_of_ranks(count, *arguments, target=rank):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    queue = mp.get_context("fork").SimpleQueue()  # a fork has torch loaded already
    processes = mp.start_processes(target, (count, port, queue, *arguments), count, join=False, start_method="fork")
    while not processes.join():  # raises the error of a process, and ends the others
        pass
    found = dict(queue.get() for _ in range(count))
    return [torch.tensor(found[number], dtype=torch.float64) for number in range(count)]


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_equal_one_process_with_groups_of_a_ranks_images(count):
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None), group_size=BATCH // count)
    for weights in weights_of_ranks(count, {}):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)


def test_a_synchronised_ascent_equals_one_process_with_one_group():
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None))
    local = network()
    other = trained(local, Objective(local, F.cross_entropy), slice(None), group_size=BATCH // 2)
    for weights in weights_of_ranks(2, {"method": Sam(sync_perturbation=True)}):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(other, expected, rtol=0, atol=1e-6)  # or the test shows nothing


def test_a_random_direction_is_one_on_all_ranks():
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None), method=RandomDirection(3))
    for weights in weights_of_ranks(2, {"method": RandomDirection(3)}):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [Drift, Alternate])
def test_methods_with_state_or_without_a_second_pass_equal_one_process_with_groups(method):
    """Both gradients of `combine` are means over ranks, and so is a gradient at w that becomes the final one."""
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None), method=method(), group_size=BATCH // 2)
    for weights in weights_of_ranks(2, {"method": method()}):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)


NETWORKS = {
    "layers that only some ranks use": ["sometimes", "sometimes", "sometimes"],
    "parameters that no rank uses": ["unused", "linear"],
    "sparse gradients, gradients that share memory": ["sparse", "shared gradients", "joined"],
    "two dtypes": ["single", "linear"],
    "parameters in one storage, views": ["flat", "columns", "views"],
    "recomputed": ["recomputed", "recomputed in full"],
    "recomputed with shared weights": ["shared", "tied"],
}


def awkward(names, loss):
    """Return a network and a loss; some gradients come twice in a backward pass for the part `shared`."""
    model = Network([name for name in names if name != "shared"])
    if "shared" in names:
        part = Recomputed(nn.Sequential(Linear(), nn.Tanh()), True)
        model.parts.extend([part, part])
    return model, loss()


def trained_awkward(model, loss, share, context=SINGLE_PROCESS, *, thaws=False, **options):
    """Return all weights after steps with parts of batches; `thaws`: the head is trained from the third step on."""
    seen = []
    objective = Objective(model, loss, num_chunks=2, batch_size=BATCH // 2, context=context)
    params = [param for module in (model, loss) for param in module.parameters()]
    for param in model.head.parameters():
        param.requires_grad_(not thaws)
    step = SamStep(objective, torch.optim.SGD(params, lr=0.2, momentum=0.9, weight_decay=1e-2), **options)
    generator = torch.Generator().manual_seed(2)
    for number in range(4):
        if number == 2:
            for param in model.head.parameters():
                param.requires_grad_(True)
        inputs = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
        step(Batch(inputs[share], (torch.arange(BATCH) % 3)[share]), 0.1, number)
        seen.append(torch.cat([param.detach().double().flatten() for param in params]))
    return torch.stack(seen)


def awkward_rank(number, count, port, queue, names, loss, methods):
    torch.set_num_threads(1)
    gradient_average.BUCKET_BYTES = 200  # several buckets
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    per_rank = BATCH // count
    share = slice(number * per_rank, (number + 1) * per_rank)
    context = DistributedContext(number, count)
    found = [trained_awkward(*awkward(names, loss), share, context, method=make(), thaws=True) for make in methods]
    queue.put((number, torch.stack(found).tolist()))
    distributed.destroy_process_group()


WITHOUT_SECOND_DERIVATIVE = ("recomputed", "recomputed with shared weights")


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, Tempered])
@pytest.mark.parametrize("kind", NETWORKS)
def test_ranks_may_use_different_parameters(kind, loss):
    """Compared with one process whose groups are the ranks' images; the head is trained from the third step on."""
    names = NETWORKS[kind]
    methods = [Sam, Alternate, *([SecondOrder] if kind not in WITHOUT_SECOND_DERIVATIVE else [])]
    ranks = weights_of_ranks(2, names, loss, methods, target=awkward_rank)
    for number, method in enumerate(methods):
        options = {"method": method(), "thaws": True, "group_size": BATCH // 2}
        expected = trained_awkward(*awkward(names, loss), slice(None), **options)
        for weights in ranks:
            close = torch.allclose(weights[number], expected, rtol=0, atol=1e-5 if "single" in names else 1e-10)
            assert close, method.__name__


FAMILY = {
    "asam": family.Asam,
    "fisher_sam": family.FisherSam,
    "friendly_sam": family.FriendlySam,
    "layerwise_sam": family.LayerwiseSam,
    "gsam": lambda: family.Gsam(lr_max=0.2),
    "wsam": family.Wsam,
    "looksam": lambda: family.LookSam(2, around=family.Asam()),
    "esam": lambda: family.Esam(0.6, 0.5, seed=1),
    "momentum_sam": family.MomentumSam,
    "random_sam": lambda: family.RandomSam(total_steps=STEPS, seed=1),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", FAMILY)
def test_the_family_on_ranks_equals_one_process_with_groups(name):
    alone = network()
    objective = Objective(alone, F.cross_entropy)
    expected = trained(alone, objective, slice(None), method=FAMILY[name](), group_size=BATCH // 2)
    for weights in weights_of_ranks(2, {"method": FAMILY[name]()}):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)


@pytest.mark.dist
def test_ae_sam_decides_alike_on_all_ranks_by_the_mean_of_their_norms():
    first, second = weights_of_ranks(2, {"method": family.AeSam(1.0, -1.0, total_steps=STEPS)})
    assert torch.equal(first, second)


SYNCHRONISED = {
    "asam": lambda sync: family.Asam(sync_perturbation=sync),
    "fisher_sam": lambda sync: family.FisherSam(sync_perturbation=sync),
    "friendly_sam": lambda sync: family.FriendlySam(sync_perturbation=sync),
    "layerwise_sam": lambda sync: family.LayerwiseSam(scale_by_weights=True, sync_perturbation=sync),
    "sam_on": lambda sync: family.SamOn("others", sync_perturbation=sync),
    "gsam": lambda sync: family.Gsam(around=Sam(sync_perturbation=sync)),
    "wsam": lambda sync: family.Wsam(around=Sam(sync_perturbation=sync)),
    "looksam": lambda sync: family.LookSam(2, around=Sam(sync_perturbation=sync)),
    "ae_sam": lambda sync: family.AeSam(total_steps=STEPS, around=Sam(sync_perturbation=sync)),
    "momentum_sam": lambda sync: family.MomentumSam(),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", SYNCHRONISED)
@pytest.mark.parametrize("target", [rank, sharded_rank])
def test_the_family_with_one_perturbation_equals_one_process(name, target):
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None), method=SYNCHRONISED[name](False))
    arguments = (SYNCHRONISED[name](True), None) if target is sharded_rank else ({"method": SYNCHRONISED[name](True)},)
    for weights in weights_of_ranks(2, *arguments, target=target):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-6 if name == "ae_sam" else 1e-10)


@pytest.mark.parametrize("grad_clip", [None, 0.05])
@pytest.mark.parametrize("method", [Sam, Drift, Plain])
def test_shards_equal_one_process(method, grad_clip):
    alone = network()
    expected = trained(alone, Objective(alone, F.cross_entropy), slice(None), method=method(), grad_clip=grad_clip)
    common = method() if method is Plain else method(sync_perturbation=True)
    for weights in weights_of_ranks(2, common, grad_clip, target=sharded_rank):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-10)
