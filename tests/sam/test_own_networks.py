"""What a network, a loss and an optimizer may be for a step, and what is refused."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_runner.sam.batch import Batch, part_sizes
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.methods import KStep, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.errors import TrainingError
from tests.oracles.awkward_networks import Hidden, Tempered
from tests.oracles.methods import Drift
from tests.oracles.problems import mean_output


def network(*widths):
    torch.manual_seed(0)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def batch(count=12, features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, features, generator=generator).double(), torch.arange(count) % 3)


def sgd(params, lr=0.1, **options):
    return torch.optim.SGD(params, lr=lr, **options)


def algorithm_1(model, params, examples, rho, loss=F.cross_entropy, lr=0.1):
    """Move `params` by one SAM step with SGD."""

    def gradient():
        return torch.autograd.grad(loss(model(examples.inputs), examples.targets), params)

    grads, before = gradient(), [param.detach().clone() for param in params]
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param += rho * grad / norm
    grads = gradient()
    with torch.no_grad():
        for param, weight, grad in zip(params, before, grads, strict=True):
            param.copy_(weight - lr * grad)


def equal(first, second):
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(first, second, strict=True))


# memory of gradients


class ViewOfInput(torch.autograd.Function):
    """w . x, whose gradient is a view of x itself."""

    @staticmethod
    def forward(ctx, weight, inputs):
        ctx.save_for_backward(inputs)
        return inputs @ weight

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return inputs.view(-1), None


class ReturnsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, inputs):
        return ViewOfInput.apply(self.weight, inputs)[:, None]


def test_a_gradient_that_is_a_view_of_the_input_is_not_overwritten():
    model, inputs = ReturnsInput(), torch.tensor([[3.0, 0.0, 4.0]], dtype=torch.float64)
    step = SamStep(Objective(model, mean_output), sgd(model.parameters()), grad_clip=1.0)
    for _ in range(2):
        step(Batch(inputs, None), 0.5)
    assert inputs.tolist() == [[3.0, 0.0, 4.0]]
    assert model.weight.tolist() == pytest.approx([1 - 0.2 * 0.6, 1, 1 - 0.2 * 0.8], abs=1e-6)


def test_shared_gradients_are_clipped_once():
    row, column = (nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((1, 4), (4, 1)))
    model = nn.Module()
    model.row, model.column = row, column
    model.forward = lambda inputs: inputs * (row.flatten() + column.flatten())
    ones = torch.ones(2, 4, dtype=torch.float64)
    SamStep(Objective(model, mean_output), sgd(model.parameters(), lr=1.0), grad_clip=0.1)(Batch(ones, None), 0.5)
    step = 0.1 / math.sqrt(8)  # eight equal gradients, of length 0.1 together
    assert row.detach().flatten().tolist() == pytest.approx([1 - step] * 4, abs=1e-6)
    assert column.detach().flatten().tolist() == pytest.approx([1 - step] * 4, abs=1e-6)


# parameters of the optimizer and of the network


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", ["thawed", "added", "frozen"])
def test_parameters_that_change_after_construction(how, fused):
    model = network(5, 7, 3)
    optimizer = sgd(model[2].parameters() if how == "added" else model.parameters(), fused=fused, momentum=0.5)
    model[0].requires_grad_(how == "frozen")
    step = SamStep(Objective(model, F.cross_entropy), optimizer)
    model[0].requires_grad_(how != "frozen")
    if how == "added":
        optimizer.add_param_group({"params": list(model[0].parameters())})
    expected = copy.deepcopy(model)
    algorithm_1(expected, [param for param in expected.parameters() if param.requires_grad], batch(), 0.5)
    step(batch(), 0.5)
    assert equal(model.parameters(), expected.parameters())


def test_the_weights_of_a_loss_are_perturbed_with_the_others():
    model, loss = network(5, 7, 3), Tempered()
    pair = copy.deepcopy(nn.ModuleList([model, loss]))
    algorithm_1(pair[0], list(pair.parameters()), batch(), 0.5, loss=pair[1])
    SamStep(Objective(model, loss), sgd([loss.temperature, *model.parameters()]))(batch(), 0.5)
    assert equal([*model.parameters(), loss.temperature], pair.parameters())


class NormalisingLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3).double()
        self.register_buffer("shift", torch.zeros(()).double())

    def forward(self, outputs, targets):
        self.shift = 0.9 * self.shift + 0.1 * outputs.detach().mean()
        return F.cross_entropy(self.bn(outputs) - self.shift * torch.arange(3), targets)


def test_the_state_of_a_loss_is_that_of_the_pass_at_w():
    found = []
    for rho in (0.0, 0.3):
        model, loss = network(5, 3), NormalisingLoss()
        SamStep(Objective(model, loss), sgd(model.parameters()))(batch(), rho)
        found.append(loss.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_parameters_outside_of_the_optimizer_are_constants_and_keep_their_gradients():
    model = network(5, 7, 3)
    expected, body = copy.deepcopy(model), model[0].weight
    algorithm_1(expected, list(expected[2].parameters()), batch(), 0.5)
    body.grad = torch.ones_like(body)
    kept = body.grad
    SamStep(Objective(model, F.cross_entropy), sgd(model[2].parameters()), group_size=12)(batch(), 0.5)
    assert body.grad is kept
    assert torch.equal(kept, torch.ones_like(body))
    assert model[0].bias.grad is None
    assert equal(model.parameters(), expected.parameters())


def test_a_method_with_state_refuses_other_parameters():
    model = network(5, 7, 3)
    model[0].requires_grad_(False)
    step = SamStep(Objective(model, F.cross_entropy), sgd(model.parameters()), Drift())
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="state of method drift"):
        step(batch(), 0.5, 0)


def complex_network():
    return nn.Linear(5, 3, dtype=torch.complex64)


def overlapping_network():
    model = network(4, 4)
    model.other = nn.Parameter(model[0].weight.data[1:])
    return model


def expanded_network():
    model = network(4, 4)
    model.other = nn.Parameter(torch.ones(1).double().expand(4))
    return model


def network_with_its_part():
    """A span of memory that starts before another one and ends behind it."""
    model = network(4, 4)
    model.row, model.column = (nn.Parameter(model[0].weight.data[index]) for index in (0, (slice(None), 3)))
    model[0] = nn.Linear(4, 4).double()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (expanded_network, "elements of other share memory"),
        (network_with_its_part, "row and column overlap in memory"),
        (complex_network, "weight is complex"),
        (lambda: nn.LazyLinear(3), "weight is not initialised"),
        (overlapping_network, "overlap in memory"),
        (nn.Flatten, "no parameters"),
    ],
)
def test_networks_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Objective(make(), F.cross_entropy)


class Following(nn.Module):
    """Holds a moving average of its inputs as a parameter without gradient."""

    def __init__(self, how):
        super().__init__()
        self.how, self.mean = how, nn.Parameter(torch.zeros(3).double(), requires_grad=False)

    def forward(self, inputs):
        if self.how == "in place":
            with torch.no_grad():
                self.mean.lerp_(inputs.detach().mean(0), 0.1)
        elif self.how == "data":
            self.mean.data.lerp_(inputs.detach().mean(0), 0.1)
        elif self.how == "replaced":
            self.mean = nn.Parameter(self.mean + inputs.detach().mean(0), requires_grad=False)
        return inputs - self.mean


@pytest.mark.parametrize("how", ["in place", "data", "replaced"])
def test_a_parameter_that_is_state_is_refused_where_a_second_pass_would_change_it(how):
    model = nn.Sequential(network(5, 3), Following(how))
    step = SamStep(Objective(model, F.cross_entropy), sgd(model[0].parameters()))
    assert step(batch(), 0.0).finite.all()
    before = [param.detach().clone() for param in model[0].parameters()]
    with pytest.raises(TrainingError, match=r"changes the parameter 1\.mean.*\n.*register_buffer"):
        step(batch(), 0.5)
    assert equal(model[0].parameters(), before)


class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3).double())

    def forward(self, inputs):
        self.scale = nn.Parameter(self.scale.detach().clamp(max=1))
        return inputs * self.scale


def test_a_trained_parameter_that_a_pass_replaces_is_refused():
    model = nn.Sequential(network(5, 3), Replacing())
    step = SamStep(Objective(model, F.cross_entropy), sgd(model.parameters()))
    with pytest.raises(TrainingError, match=r"replaces the parameter 1\.scale, so the optimizer does not train"):
        step(batch(), 0.5)


class Halving(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network(5, 3)

    def forward(self, inputs):
        return self.network(inputs.mul_(0.5))


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (Halving, F.cross_entropy),
        (lambda: network(5, 3), lambda outputs, targets: F.cross_entropy(outputs, targets.clamp_(max=1))),
    ],
    ids=["inputs", "targets"],
)
def test_a_pass_that_changes_the_batch_of_the_next_one_is_refused(make, loss):
    model = make()
    step = SamStep(Objective(model, loss), sgd(model.parameters()))
    assert step(batch(), 0.0).finite.all()  # one pass
    with pytest.raises(TrainingError, match=r"changes its inputs or targets in place[\s\S]*x = x\.clone\(\)"):
        step(batch(), 0.05)


def test_inputs_may_be_a_structure_that_checks_its_parts():
    sequence = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    model = nn.RNN(2, 4)
    step = SamStep(Objective(model, lambda outputs, _: outputs[0].data.square().mean()), sgd(model.parameters()))
    assert step(Batch({"input": sequence}, None), 0.05).finite.all()


def test_a_parameter_that_is_not_trained_may_be_read():
    model = nn.Sequential(network(5, 3), Following("never"))
    model[1].mean.data[0] = math.nan
    step = SamStep(Objective(model, lambda outputs, _: outputs[:, 1].mean()), sgd(model[0].parameters()))
    assert step(batch(), 0.5).finite.all()


def test_optimizers_that_are_refused():
    model = network(5, 3)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        SamStep(Objective(model, F.cross_entropy), sgd([frozen]))
    other = nn.Parameter(torch.ones(2).double())
    with pytest.raises(ValueError, match="depends on no parameter"):
        SamStep(Objective(model, F.cross_entropy), sgd([other]))(batch(), 0.0)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_radius_must_be_a_finite_number_of_at_least_zero(rho):
    model = network(5, 3)
    step = SamStep(Objective(model, F.cross_entropy), sgd(model.parameters()))
    with pytest.raises(ValueError, match="is not a radius"):
        step(batch(), rho)


# state of the network


class GrowingTable(nn.Module):
    """A cache as long as the longest input, whose length is an attribute; as rotary embeddings have it."""

    def __init__(self):
        super().__init__()
        self.length, self.gain = 0, nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("table", torch.zeros(0, 1, dtype=torch.float64), persistent=False)

    def forward(self, inputs):
        if self.length < len(inputs):
            self.length = len(inputs)
            self.register_buffer("table", torch.ones(self.length, 1, dtype=torch.float64), persistent=False)
        return inputs * self.gain * self.table[: len(inputs)]


def test_a_cache_that_the_first_pass_extends_is_used_by_the_second():
    model = nn.Sequential(nn.Linear(5, 3).double(), GrowingTable())
    step = SamStep(Objective(model, F.cross_entropy), sgd(model.parameters()))
    for count in (4, 12):
        assert step(batch(count), 0.5).finite.all()
        assert len(model[1].table) == count


class RangeNorm(nn.BatchNorm1d):
    """A batch norm of one's own that reads its running mean in training."""

    def forward(self, inputs):
        outputs = inputs - self.running_mean
        self.running_mean = self.running_mean * 0.9 + inputs.detach().mean(0) * 0.1
        return outputs


def test_a_batch_norm_of_ones_own_reads_the_same_statistics_in_all_passes():
    model = nn.Sequential(nn.Linear(5, 3), RangeNorm(3)).double()
    model[1].running_mean += 1
    step = SamStep(Objective(model, F.cross_entropy), sgd(model.parameters(), lr=0.0))
    expected, x = model[1].running_mean.clone(), model[0](batch().inputs).detach()
    stats = step(batch(), 1e-30)
    assert torch.equal(stats.loss, stats.loss_perturbed)
    assert torch.allclose(model[1].running_mean, 0.9 * expected + 0.1 * x.mean(0), rtol=0, atol=1e-12)


def test_a_skipped_step_restores_all_buffers():
    model = nn.Sequential(nn.Linear(5, 4), Hidden()).double()
    step = SamStep(Objective(model, lambda o, _: o.mean() * math.inf), sgd(model.parameters()), keep_statistics=True)
    assert not step(batch(), 0.5).finite.all()
    assert model[1].state is None


def test_a_network_that_replaces_a_buffer_is_not_recorded(caplog):
    model = nn.Sequential(nn.Linear(5, 4), Hidden()).double()
    step = CapturedStep(SamStep(Objective(model, mean_output), sgd(model.parameters(), fused=True)), EagerRecorder())
    step(batch(), 0.5)
    assert "replaces a buffer" in caplog.text


def test_an_ascent_whose_norm_overflows_is_not_finite():
    """The gradient at w is 1, that at w + eps 1e30: its square is not a float32 number."""

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, inputs):
            return (self.w + 5e29 * self.w.clamp(min=0).square()).sum().expand(len(inputs), 1)

    model = Steep()
    stats = SamStep(Objective(model, mean_output), sgd(model.parameters()), KStep(2))(
        Batch(torch.ones(1, 1), None), 1.0
    )
    assert not stats.finite.all()
    assert model.w.tolist() == [0, 0]


# second order


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, inputs):
        return self.head(self.attention(inputs, inputs, inputs, need_weights=False)[0].mean(1))


def numerical_gradient(function, params, size=1e-6):
    """Central differences of a function of the parameters."""
    result = []
    for param in params:
        grad, flat = torch.zeros_like(param), param.data.view(-1)
        for index in range(flat.numel()):
            values = []
            for sign in (1, -1):
                flat[index] += sign * size
                values.append(function())
                flat[index] -= sign * size
            grad.view(-1)[index] = (values[0] - values[1]) / (2 * size)
        result.append(grad)
    return result


def second_order_problem(kind):
    torch.manual_seed(0)
    if kind == "attention":
        return Attention(), Batch(torch.randn(4, 3, 6).double(), torch.arange(4) % 3)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double(), batch()


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("kind", ["attention", "batch norm"])
def test_second_order_with_attention_and_with_batch_norm_in_micro_batches(kind, chunks):
    model, examples = second_order_problem(kind)
    twin = copy.deepcopy(model)
    params = list(twin.parameters())

    def loss():
        parts = zip(examples.inputs.chunk(chunks), examples.targets.chunk(chunks), strict=True)
        with sdpa_kernel(SDPBackend.MATH):
            return sum(F.cross_entropy(twin(x), y) for x, y in parts) / chunks

    def perturbed_loss():
        grads = torch.autograd.grad(loss(), params)
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        before = [param.data.clone() for param in params]
        for param, grad in zip(params, grads, strict=True):
            param.data += 0.3 * grad / norm
        value = loss().item()
        for param, old in zip(params, before, strict=True):
            param.data.copy_(old)
        return value

    before = [param.detach().clone() for param in model.parameters()]
    objective = Objective(model, F.cross_entropy, num_chunks=chunks, batch_size=len(examples))
    SamStep(objective, sgd(model.parameters(), lr=1.0), SecondOrder())(examples, 0.3)
    steps = [old - param.detach() for old, param in zip(before, model.parameters(), strict=True)]
    for step, expected in zip(steps, numerical_gradient(perturbed_loss, params), strict=True):
        assert torch.allclose(step, expected, rtol=0, atol=1e-7)


# parts of one example


@pytest.mark.parametrize(
    ("count", "size", "min_size", "sizes"),
    [
        (9, 4, 1, [4, 4, 1]),
        (9, 4, 2, [3, 3, 3]),
        (10, 3, 2, [3, 3, 2, 2]),
        (10, 4, 2, [4, 4, 2]),
        (3, 2, 2, [2, 1]),
        (4, None, 2, [4]),
        (4, 4, 2, [4]),
    ],
)
def test_sizes_of_parts(count, size, min_size, sizes):
    assert part_sizes(count, size, min_size) == sizes
    assert [len(part) for part in batch(count).split(size, min_size=min_size)] == sizes


@pytest.mark.parametrize("options", [{"group_size": 4}, {"chunks": 3}])
def test_a_remainder_of_one_example_is_split_evenly_where_batch_norm_cannot_normalise_it(options):
    chunks = options.get("chunks", 1)
    plain, normalised = network(5, 4, 3), network(5, 4, 3)
    normalised[1] = nn.BatchNorm1d(4, dtype=torch.float64)
    for model, count in ((plain, 3), (normalised, 3)):
        seen = []
        model.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        objective = Objective(model, F.cross_entropy, num_chunks=chunks, batch_size=12)
        state = torch.get_rng_state()
        step = SamStep(objective, sgd(model.parameters()), group_size=options.get("group_size"))
        assert step(batch(9), 0.5).finite.all()
        assert torch.equal(torch.get_rng_state(), state)
        assert sorted(seen)[-count:] == ([4, 4, 4] if model is plain else [3, 3, 3])


# compiled networks


def test_a_compiled_network_leaves_its_buffers_to_the_first_pass():
    models = [nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, forward in ((models[0], None), (models[1], torch.compile(models[1], backend="eager"))):
        step = SamStep(Objective(model, F.cross_entropy, forward=forward), sgd(model.parameters()))
        for seed in range(2):
            step(batch(seed=seed), 0.5)
    assert equal(models[0].state_dict().values(), models[1].state_dict().values())
