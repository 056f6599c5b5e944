"""The step as a whole: rho = 0, replayed random numbers, no synchronisation, memory, exchange of optimizer states."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import Asam, KStep, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep


def network(dropout=0.5):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(6 * 36, 5)
    return nn.Sequential(*layers)


def batches(count=5):
    generator = torch.Generator().manual_seed(3)
    return [Batch(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 5) for _ in range(count)]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | options)


def equal_states(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_rho_zero_is_plain_sgd_to_the_bit_with_batch_norm_and_dropout(dtype):
    """The reference is the loop of PyTorch's tutorials; weights, statistics, momentum and generator are compared."""
    plain, ours = network(), network()
    optimizer, base = sgd(plain), sgd(ours)
    torch.manual_seed(7)
    for batch in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logits = plain(batch.inputs)
        F.cross_entropy(logits.float(), batch.targets).backward()
        optimizer.step()
    state = torch.get_rng_state()
    torch.manual_seed(7)
    passes = []
    ours.register_forward_hook(lambda *_: passes.append(1))
    step = SamStep(Objective(ours, F.cross_entropy, autocast_dtype=dtype), base)
    for batch in batches():
        step(batch, 0.0)
    assert equal_states(plain, ours)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(passes) == 5
    momenta = [[entry["momentum_buffer"] for entry in o.state.values()] for o in (optimizer, base)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


def test_both_passes_see_the_same_dropout_masks():
    model = network()
    step = SamStep(Objective(model, F.cross_entropy), sgd(model))
    for batch in batches():
        stats = step(batch, 1e-30)
        assert torch.equal(stats.loss, stats.loss_perturbed)


@pytest.mark.parametrize("options", [{}, {"method": KStep(3)}, {"method": SecondOrder()}, {"group_size": 4}])
def test_the_generator_ends_where_one_pass_leaves_it(options):
    ends = []
    for rho in (0.0, 0.1):
        model = network()
        torch.manual_seed(5)
        SamStep(Objective(model, F.cross_entropy), sgd(model), **options)(batches()[0], rho)
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


def test_groups_have_masks_of_their_own():
    model = network(dropout=0.5)
    torch.manual_seed(1)
    image = torch.randn(1, 1, 8, 8)
    batch = Batch(image.expand(4, -1, -1, -1).contiguous(), torch.zeros(4, dtype=torch.int64))
    stats = SamStep(Objective(model, F.cross_entropy), sgd(model), group_size=2)(batch, 0.1)
    assert not torch.equal(stats.outputs[:2], stats.outputs[2:])


@pytest.mark.parametrize(
    "options", [{}, {"group_size": 4, "grad_clip": 1.0}, {"method": Sam(3.0)}, {"method": KStep(2)}]
)
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_the_step_reads_no_number_off_the_device(options, rho):
    """Reading a tensor as a Python number synchronises with a CUDA device; on a CPU the profile shows it."""
    model = network()
    step = SamStep(Objective(model, F.cross_entropy), sgd(model, fused=True), **options)
    first, second = batches(2)
    step(first, rho)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(second, rho)
    names = {event.name for event in profile.events()}
    assert "aten::convolution_backward" in names
    assert names.isdisjoint({"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"})


def test_sgd_and_sam_states_interchange():
    models = [network(0.0), network(0.0)]
    optimizers = [sgd(model) for model in models]
    for model, optimizer, rho in zip(models, optimizers, (0.0, 0.1), strict=True):
        SamStep(Objective(model, F.cross_entropy), optimizer)(batches()[0], rho)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    assert all(entry.keys() == {"momentum_buffer"} for entry in states[1]["state"].values())
    models[0].load_state_dict(models[1].state_dict())
    optimizers[0].load_state_dict(copy.deepcopy(states[1]))
    for model, optimizer in zip(models, optimizers, strict=True):
        SamStep(Objective(model, F.cross_entropy), optimizer)(batches()[1], 0.1)
    assert equal_states(*models)


def test_at_most_one_extra_copy_of_the_weights_lives_during_the_second_pass():
    model = nn.Sequential(nn.Linear(40, 1000, bias=False), nn.Linear(1000, 40, bias=False))
    size = sum(param.numel() for param in model.parameters())
    step = SamStep(Objective(model, F.mse_loss), sgd(model, momentum=0.0))
    batch = Batch(torch.randn(2, 40), torch.randn(2, 40))
    step(batch, 0.1)
    copies = []

    def forward(images):
        import gc

        gc.collect()
        # By exact type: tensor subclasses of the compiler, left by other tests, have no storage.
        tensors = [entry for entry in gc.get_objects() if type(entry) in (torch.Tensor, nn.Parameter)]
        storages = {entry.untyped_storage().data_ptr(): entry.untyped_storage().nbytes() // 4 for entry in tensors}
        copies.append(sum(count for count in storages.values() if count == 40_000) / size)
        return model(images)

    step.objective._forward = forward
    step(batch, 0.1)
    assert copies[0] == pytest.approx(1, abs=0.1)  # first pass: the weights alone
    assert copies[1] == pytest.approx(
        2, abs=0.1
    )  # second pass: the weights, and w + eps where the gradient was; no gradients, no eps


@pytest.mark.parametrize("options", [{}, {"method": KStep(2)}, {"method": SecondOrder()}, {"group_size": 4}])
def test_the_weights_keep_their_addresses(options):
    model = network()
    step = SamStep(Objective(model, F.cross_entropy), sgd(model), **options)
    before = [param.data_ptr() for param in model.parameters()]
    for batch in batches(3):
        step(batch, 0.1)
        assert [param.data_ptr() for param in model.parameters()] == before


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("skip_first", [False, True])
def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_alone(name, rho, skip_first):
    """Fused optimizers decide on the device. A skipped first step must not leave uninitialised momentum."""
    results = []
    for poisoned in (False, True):
        model = network(0.0)
        momentum = {"momentum": 0.9} if name == "SGD" else {}
        fused = {"fused": True} if name != "RMSprop" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **momentum, **fused)
        step = SamStep(Objective(model, F.cross_entropy), optimizer, keep_statistics=True)
        good = batches(3)
        bad = Batch(good[0].inputs.clone().fill_(torch.nan), good[0].targets)
        sequence = [bad, *good] if skip_first else [good[0], bad, *good[1:]]
        finite = []
        for batch in sequence if poisoned else good:
            finite.append(bool(step(batch, rho).finite.all()))
        assert finite.count(False) == poisoned
        results.append((model, optimizer))
    (plain, first), (ours, second) = results
    assert equal_states(plain, ours)
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


@pytest.mark.parametrize(
    ("number_of_pass", "expected"),
    [(1, [True, False, True, False]), (2, [True, True, True, False])],
)
def test_what_is_not_finite_is_told(number_of_pass, expected):
    model = network(0.0)
    step = SamStep(Objective(model, F.cross_entropy), sgd(model, fused=True))
    passes = []

    def forward(images):
        passes.append(1)
        logits = model(images)
        if len(passes) == number_of_pass:
            logits = logits.clone()
            logits.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), torch.inf))
        return logits

    step.objective._forward = forward
    before = copy.deepcopy(model.state_dict())
    stats = step(batches()[0], 0.1)
    if number_of_pass == 1:
        expected[2] = bool(stats.loss_perturbed.isfinite())  # it is the loss at non-finite weights
    assert stats.finite.tolist() == expected
    names = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in names)


def test_fused_sgd_with_dampening_is_refused():
    model = network()
    optimizer = sgd(model, fused=True, dampening=0.1, nesterov=False)
    with pytest.raises(ValueError, match="dampening"):
        SamStep(Objective(model, F.cross_entropy), optimizer)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adadelta", "Rprop"])
def test_any_base_optimizer_takes_its_step_from_w(name):
    """The reference is the base optimizer with g_SAM as its gradient."""
    model = network(0.0)
    twin = copy.deepcopy(model)
    base = getattr(torch.optim, name)
    step = SamStep(Objective(model, F.cross_entropy), base(model.parameters(), lr=0.01))
    optimizer = base(twin.parameters(), lr=0.01)
    for batch in batches(3):
        before = copy.deepcopy(model.state_dict())
        step(batch, 0.1)
        for param, source in zip(twin.parameters(), model.parameters(), strict=True):
            param.grad = source.grad.clone()
        assert all(torch.equal(param, before[key]) for key, param in twin.named_parameters())
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_a_call_without_a_batch_is_answered_with_the_right_one():
    model = torch.nn.Linear(3, 2)
    step = SamStep(Objective(model, torch.nn.functional.cross_entropy), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"not a Tensor: step\(Batch\(inputs, targets\), rho\)"):
        step(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), 0.05)


def test_misuse_of_the_step_is_answered():
    model = nn.Linear(3, 2)
    good = Objective(model, F.cross_entropy)
    batch = Batch(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(TypeError, match=r"not a Linear: SamStep\(Objective\(model, loss\), optimizer\)"):
        SamStep(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="an instance of a method, not the class Asam"):
        SamStep(good, torch.optim.SGD(model.parameters(), lr=0.1), Asam)
    with pytest.raises(TypeError, match="an instance of a method, not 'asam'"):
        SamStep(good, torch.optim.SGD(model.parameters(), lr=0.1), "asam")
    with pytest.raises(TypeError, match="not function and Linear: Objective"):
        Objective(F.cross_entropy, model)
    with pytest.raises(TypeError, match=r"rho='0\.05' is not a number"):
        SamStep(good, torch.optim.SGD(model.parameters(), lr=0.1))(batch, rho="0.05")
    with pytest.raises(TypeError, match="LBFGS needs a closure"):
        SamStep(good, torch.optim.LBFGS(model.parameters()))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch.no_grad\(\)"):
        SamStep(good, torch.optim.SGD(model.parameters(), lr=0.1))(batch, 0.05)
    with pytest.raises(TypeError, match=r"autocast_dtype='bf16': accepted are torch.bfloat16"):
        Objective(model, F.cross_entropy, autocast_dtype="bf16")
    with pytest.raises(ValueError, match="num_chunks=4 needs batch_size"):
        Objective(model, F.cross_entropy, num_chunks=4)
    with pytest.raises(ValueError, match="num_chunks=0"):
        Objective(model, F.cross_entropy, num_chunks=0, batch_size=4)
    for options in ({"group_size": 0}, {"grad_clip": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*: accepted are"):
            SamStep(good, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize(("loss", "kind"), [(dict, "a dict"), (tuple, "a tuple"), (torch.ones, r"shape \(4,\)")])
def test_a_loss_that_is_no_number_is_answered(loss, kind):
    model = nn.Linear(3, 2)
    objective = Objective(model, lambda outputs, targets: loss(4) if loss is torch.ones else loss())
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=f"the mean over examples, not {kind}"):
        step(Batch(torch.zeros(4, 3), None), 0.05)
