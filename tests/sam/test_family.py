"""The SAM family: formulas, identities, and the promises that the step makes for every method."""

import copy
import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.config.experiment import settings_classes
from sam_runner.sam import cuda_graph
from sam_runner.sam import methods as family
from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.method import Group, Method, StepContext
from sam_runner.sam.methods import Plain, Sam
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.seeding import make_generator
from tests.oracles import numpy_family
from tests.oracles.methods import Drift

INPUTS, CLASSES, COUNT, STEPS, RHO = 5, 4, 12, numpy_family.NUM_STEPS, 0.3
RATES = [0.2, 0.2, 0.15, 0.1, 0.1, 0.05]
T = {"total_steps": STEPS}

METHODS = {
    "asam": family.Asam,
    "fisher_sam": family.FisherSam,
    "friendly_sam": family.FriendlySam,
    "sam_on": lambda: family.SamOn("others"),
    "layerwise_sam": family.LayerwiseSam,
    "momentum_sam": family.MomentumSam,
    "esam": family.Esam,
    "gsam": lambda: family.Gsam(rho_min=0.05, lr_max=0.2),
    "gradient_norm": family.GradientNorm,
    "wsam": family.Wsam,
    "wsam coupled": lambda: family.Wsam(decoupled=False),
    "looksam": lambda: family.LookSam(2),
    "interval": lambda: family.Interval(2),
    "random_sam": lambda: family.RandomSam(seed=3, **T),
    "late": lambda: family.Late(0.5, **T),
    "ae_sam": lambda: family.AeSam(**T),
    "looksam around asam": lambda: family.LookSam(2, around=family.Asam()),
    "late around friendly_sam": lambda: family.Late(0.5, around=family.FriendlySam(), **T),
    "ae_sam around gsam": lambda: family.AeSam(around=family.Gsam(), **T),
    "interval around wsam": lambda: family.Interval(2, family.Wsam()),
}

NAMED = [found for found in map(family.__dict__.get, family.__all__) if hasattr(found, "name")]
SETTINGS = {
    schema.removeprefix("optimizer/"): found
    for schema, found in settings_classes().items()
    if schema.startswith("optimizer/")
}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, numpy_family.HIDDEN), nn.Tanh(), nn.Linear(numpy_family.HIDDEN, CLASSES)
    ).double()


def batches(count=STEPS):
    draws = np.random.default_rng(1)
    return [(draws.normal(size=(COUNT, INPUTS)), draws.integers(CLASSES, size=COUNT)) for _ in range(count)]


def tensors(x, y):
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def vector(params):
    return torch.cat([param.detach().flatten() for param in params])


def build(method, *, model=None, momentum=0.0, scaler=None, num_chunks=1, fused=True, **options):
    model = mlp() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES[0], momentum=momentum, fused=fused)
    objective = Objective(model, F.cross_entropy, num_chunks=num_chunks, batch_size=COUNT, scaler=scaler)
    return SamStep(objective, optimizer, method, **options)


def follow(step, *, first=0, last=STEPS, rho=RHO):
    """Take the steps `first` to `last` - 1; return the weights after each."""
    path = []
    for number in range(first, last):
        for group in step.optimizer.param_groups:
            group["lr"] = RATES[number]
        batch, device = tensors(*batches()[number]), step.objective.device
        step(Batch(batch.inputs.to(device), batch.targets.to(device)), rho, number)
        path.append(vector(step.objective.params))
    return path


def problem():
    return numpy_family.Problem(vector(mlp().parameters()).numpy(), batches(), RATES, INPUTS, CLASSES)


def drawn_masks(seed, beta):
    """M of ESAM: a function of (seed, step), drawn tensor by tensor."""
    masks = []
    for number in range(STEPS):
        draws = make_generator(seed, "esam", number)
        parts = [torch.rand(param.shape, generator=draws) < beta for param in mlp().parameters()]
        masks.append(vector(parts).double().numpy())
    return masks


@pytest.mark.parametrize(
    ("method", "oracle", "options"),
    [
        (family.Asam(), numpy_family.asam, {}),
        (family.Asam(0.5), numpy_family.asam, {"eta": 0.5}),
        (family.FisherSam(), numpy_family.fisher_sam, {}),
        (family.FisherSam(9.0), numpy_family.fisher_sam, {"eta": 9.0}),
        (family.FriendlySam(), numpy_family.friendly_sam, {}),
        (family.FriendlySam(0.6, 0.3), numpy_family.friendly_sam, {"sigma": 0.6, "decay": 0.3}),
        (family.LayerwiseSam(), numpy_family.layerwise_sam, {}),
        (family.LayerwiseSam(scale_by_weights=True), numpy_family.layerwise_sam, {"scale_by_weights": True}),
        (family.Gsam(rho_min=0.05, lr_max=0.2), numpy_family.gsam, {"rho_min": 0.05}),
        (family.GradientNorm(), numpy_family.gradient_norm, {}),
        (family.Wsam(), numpy_family.wsam, {}),
        (family.Wsam(0.7, decoupled=False), numpy_family.wsam, {"gamma": 0.7}),
        (family.LookSam(2), numpy_family.looksam, {}),
        (family.LookSam(4, 0.3), numpy_family.looksam, {"k": 4, "alpha": 0.3}),
        (family.Interval(2), numpy_family.interval, {}),
        (family.Late(0.5, **T), numpy_family.late, {}),
        (family.Late(0.3, "first", **T), numpy_family.late, {"fraction": 0.3, "first": True}),
    ],
)
def test_the_path_equals_the_formulas_in_numpy(method, oracle, options):
    expected = problem().path(oracle, RHO, **options)
    for weights, w in zip(follow(build(method)), expected, strict=True):
        assert np.abs(weights.numpy() - w).max() < 1e-10


def test_momentum_sam_equals_its_formula():
    expected = problem().path(numpy_family.momentum_sam, RHO)
    for weights, w in zip(follow(build(family.MomentumSam(), momentum=0.9)), expected, strict=True):
        assert np.abs(weights.numpy() - w).max() < 1e-10


@pytest.mark.parametrize(("beta", "gamma"), [(0.6, 0.5), (1.0, 0.25), (0.4, 1.0)])
def test_esam_equals_its_formulas(beta, gamma):
    expected = problem().path(numpy_family.esam, RHO, masks=drawn_masks(7, beta), beta=beta, gamma=gamma)
    for weights, w in zip(follow(build(family.Esam(beta, gamma, seed=7))), expected, strict=True):
        assert np.abs(weights.numpy() - w).max() < 1e-10


@pytest.mark.parametrize(("start", "end"), [(4.0, -1.0), (-0.5, 3.0)])
def test_ae_sam_equals_its_formulas_and_makes_the_passes_that_it_reports(start, end):
    step, found = build(family.AeSam(start, end, **T)), problem()
    expected = found.path(numpy_family.ae_sam, RHO, start=start, end=end)
    for number, w in enumerate(expected):
        for group in step.optimizer.param_groups:
            group["lr"] = RATES[number]
        stats = step(tensors(*batches()[number]), RHO, number)
        assert np.abs(vector(step.objective.params).numpy() - w).max() < 1e-10
        assert stats.passes.gradient == 1 + found.decisions[number]
    assert step.method.state["moments"][0].tolist() == pytest.approx(found.moments, rel=1e-5)
    assert set(found.decisions) == {True, False}


def test_random_sam_draws_with_its_probability_from_the_seed_and_the_step():
    chosen = [family.RandomSam(0.2, 0.6, total_steps=4000, seed=1).is_chosen(number) for number in range(4000)]
    assert abs(np.mean(chosen) - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 4000)
    assert abs(np.mean(chosen[:1000]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    again = family.RandomSam(0.2, 0.6, total_steps=4000, seed=1)
    assert [again.is_chosen(number) for number in range(100)] == chosen[:100]
    assert [family.RandomSam(total_steps=9, seed=seed).is_chosen(0) for seed in range(9)].count(True) not in (0, 9)


def test_random_sam_is_interval_sam_in_other_steps():
    method, sam = family.RandomSam(seed=3, **T), build(Sam())
    ours = build(method)
    plain = build(Plain())
    for number in range(STEPS):
        other = sam if method.is_chosen(number) else plain
        other.objective.model.load_state_dict(ours.objective.model.state_dict())
        other.optimizer.param_groups[0]["lr"] = RATES[number]
        assert torch.equal(
            follow(ours, first=number, last=number + 1)[0], follow(other, first=number, last=number + 1)[0]
        )
    assert {method.is_chosen(number) for number in range(STEPS)} == {True, False}


IDENTITIES = {  # (method, method that it equals, radius of the latter by that of the former)
    "asam: T = 1": (lambda: family.Asam(1e9), Sam, 1e9),
    "fisher_sam: eta = 0": (lambda: family.FisherSam(0.0), Sam, 1),
    "friendly_sam: sigma = 0": (lambda: family.FriendlySam(0.0), Sam, 1),
    "gsam: alpha = 0": (lambda: family.Gsam(0.0), Sam, 1),
    "gradient_norm: alpha = 0": (lambda: family.GradientNorm(0.0), Plain, 1),
    "gradient_norm: alpha = 1": (lambda: family.GradientNorm(1.0), Sam, 1),
    "wsam: gamma = 1/2": (lambda: family.Wsam(0.5), Sam, 1),
    "wsam: gamma = 1/2, coupled": (lambda: family.Wsam(0.5, decoupled=False), Sam, 1),
    "wsam: gamma = 0": (lambda: family.Wsam(0.0), Plain, 1),
    "esam: beta = gamma = 1": (lambda: family.Esam(1.0, 1.0), Sam, 1),
    "looksam: k = 1": (lambda: family.LookSam(1), Sam, 1),
    "looksam: alpha = 0": (lambda: family.LookSam(2, 0.0), lambda: family.Interval(2), 1),
    "interval: k = 1": (lambda: family.Interval(1), Sam, 1),
    "late: 1": (lambda: family.Late(1.0, **T), Sam, 1),
    "late: 0": (lambda: family.Late(0.0, **T), Plain, 1),
    "late: first 1": (lambda: family.Late(1.0, "first", **T), Sam, 1),
    "random_sam: 1": (lambda: family.RandomSam(1.0, 1.0, seed=0, **T), Sam, 1),
    "random_sam: 0": (lambda: family.RandomSam(0.0, 0.0, seed=0, **T), Plain, 1),
    "ae_sam: c = -1e9": (lambda: family.AeSam(-1e9, -1e9, **T), Sam, 1),
    "ae_sam: c = 1e9": (lambda: family.AeSam(1e9, 1e9, **T), Plain, 1),
}
TO_THE_BIT = {
    "esam: beta = gamma = 1", "looksam: k = 1", "looksam: alpha = 0", "interval: k = 1", "late: 1", "late: 0",
    "late: first 1", "random_sam: 1", "random_sam: 0", "ae_sam: c = -1e9", "gradient_norm: alpha = 1",
}  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("options", [{}, {"group_size": 5, "num_chunks": 4}])
def test_identities(name, options):
    method, other, factor = IDENTITIES[name]
    radius = RHO / factor
    model = mlp()
    if name == "asam: T = 1":  # biases keep T = 1
        model[0].bias = model[2].bias = None
        model[0].register_parameter("bias", None)
    first = follow(build(method(), model=copy.deepcopy(model), **options), rho=radius)
    second = follow(build(other(), model=copy.deepcopy(model), **options))
    for ours, expected in zip(first, second, strict=True):
        if name in TO_THE_BIT:
            assert torch.equal(ours, expected)
        assert torch.allclose(ours, expected, rtol=0, atol=1e-7 if name == "asam: T = 1" else 1e-12)


def perturbed_by(method, model=None, scale=1.0):
    """Return g, eps (one tensor per parameter each) and the statistics of a method's first perturbation."""
    step = build(method, model=model)
    objective = step.objective
    context = StepContext(objective, step.optimizer, RHO, 0)
    batch = tensors(*batches()[0])
    group = Group(context, batch, 1.0, is_first=True, is_last=True, sync=False, gradient_sum=None)
    _, grads = group.gradient()
    kept = [grad.clone() for grad in grads]
    eps = method.perturb(grads, group)
    return kept, eps.tensors(), eps, objective.params


@pytest.mark.parametrize(
    ("method", "length"),
    [
        (family.Asam(0.1), lambda e, g, w: e / (w.abs() + 0.1) if w.ndim > 1 else e),
        (family.FisherSam(4.0), lambda e, g, w: e * (1 + 4 * g**2).sqrt()),
        (family.FriendlySam(), lambda e, g, w: e),
        (family.SamOn("others"), lambda e, g, w: e),
        (family.LayerwiseSam(), lambda e, g, w: e / 2),  # four tensors
        (family.LayerwiseSam(scale_by_weights=True), lambda e, g, w: e / w.norm() / 2),
        (family.Gsam(), lambda e, g, w: e),
        (family.LookSam(), lambda e, g, w: e),
        (family.Esam(1.0), lambda e, g, w: e),
    ],
)
def test_the_perturbation_has_the_length_rho_in_the_methods_norm(method, length):
    g, eps, perturbation, w = perturbed_by(method)
    assert float(vector(map(length, eps, g, w)).norm()) == pytest.approx(RHO, rel=1e-12)
    assert float(perturbation.norm) == pytest.approx(float(vector(eps).norm()), rel=1e-12)
    assert float(perturbation.grad_norm) == pytest.approx(float(vector(g).norm()), rel=1e-12)


def test_esam_is_sams_perturbation_in_the_mean():
    """Over many seeds: 4 standard errors, per weight."""
    _, expected, *_ = perturbed_by(Sam())
    samples = torch.stack([vector(perturbed_by(family.Esam(0.6, seed=seed))[1]) for seed in range(100)])
    error = samples.std(0) / math.sqrt(100)
    assert ((samples.mean(0) - vector(expected)).abs() <= 5 * error + 1e-12).all()


def test_asam_does_not_change_under_a_change_of_scale_of_two_layers():
    """w -> a w in a layer and w -> w / a in the next: the same function, and the same step of it."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(INPUTS, 9, bias=False), nn.ReLU(), nn.Linear(9, CLASSES, bias=False)).double()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight.mul_(8)
        second[2].weight.div_(8)
    _, eps, *_ = perturbed_by(family.Asam(0.0), first)
    _, other, *_ = perturbed_by(family.Asam(0.0), second)
    assert torch.allclose(eps[0] * 8, other[0], rtol=1e-12, atol=0)
    assert torch.allclose(eps[1] / 8, other[1], rtol=1e-12, atol=0)


def norm_network():
    torch.manual_seed(0)
    layers = nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, CLASSES)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("only", ["normalisation", "others"])
def test_sam_on_is_eq_2_of_its_parameters(only):
    g, eps, _, _ = perturbed_by(family.SamOn(only), norm_network())
    inside = [False, False, True, True, True, True, False, False]
    chosen = [is_in == (only == "normalisation") for is_in in inside]
    norm = vector([part for part, keep in zip(g, chosen, strict=True) if keep]).norm()
    for part, e, keep in zip(g, eps, chosen, strict=True):
        assert torch.allclose(e, RHO * part / norm if keep else torch.zeros_like(part), rtol=0, atol=1e-14)


def test_sam_on_finds_normalisation_layers_that_are_not_torchs():
    """By the name of the class; blocks, linear layers and matrices with such a name do not count."""

    class RmsNorm(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))

        def forward(self, x):
            return F.normalize(x) * self.weight

    class NormedLinear(RmsNorm):
        def forward(self, x):
            return F.linear(x, self.weight)

    class NormedHead(nn.Linear):
        pass

    class ConvNormAct(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return super().forward(x) * self.gain

    block = ConvNormAct(nn.Linear(INPUTS, 6), RmsNorm((1, 6))).double()
    model = nn.Sequential(block, NormedLinear((CLASSES, 6)), NormedHead(CLASSES, CLASSES).double())
    _, eps, _, params = perturbed_by(family.SamOn(), model)
    assert [bool(part.any()) for part in eps] == [param is block[1].weight for param in params]


def test_sam_on_refuses_a_network_without_what_it_perturbs():
    with pytest.raises(ValueError, match="has no trained parameters in normalisation layers"):
        build(family.SamOn())
    with pytest.raises(ValueError, match="has only trained parameters in normalisation layers"):
        build(family.SamOn("others"), model=nn.LayerNorm(INPUTS).double())


def peer_path(make, set_up=lambda peer: None):
    """Return the path of an optimizer of pytorch-optimizer with first_step and second_step."""
    model = mlp()
    peer, path = make(model), []
    for x, y in batches():
        batch = tensors(x, y)
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        peer.first_step(zero_grad=True)
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        peer.second_step(zero_grad=True)
        path.append(vector(model.parameters()))
    return path


def constant_path(method, **options):
    step, path = build(method, **options), []
    for number, batch in enumerate(batches()):
        step(tensors(*batch), RHO, number)
        path.append(vector(step.objective.params))
    return path


@pytest.mark.parametrize(("gamma", "decouple"), [(0.9, True), (0.7, False)])
def test_wsam_equals_pytorch_optimizers(gamma, decouple):
    """With momentum, where the decoupled form differs from the coupled one."""
    expected = peer_path(
        lambda model: pytorch_optimizer.WSAM(
            model, model.parameters(), torch.optim.SGD, rho=RHO, gamma=gamma, decouple=decouple, lr=0.2, momentum=0.9
        )
    )
    ours = constant_path(family.Wsam(gamma, decoupled=decouple), momentum=0.9)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(ours, expected, strict=True))


def test_friendly_sam_equals_pytorch_optimizers_from_its_second_step():
    """Their mean starts at the first gradient, ours at 0; a third of the second gradient's weight makes up for that."""
    expected = peer_path(
        lambda model: pytorch_optimizer.FriendlySAM(
            model.parameters(), torch.optim.SGD, rho=RHO, sigma=1.0, lmbda=0.6, lr=0.2
        )
    )
    step = build(family.FriendlySam(1.0, 0.6))
    ours = []
    for number, batch in enumerate(batches()):
        step(tensors(*batch), RHO, number)
        if number == 0:  # the peer's m_0 is g_0; ours (1 - lambda) g_0
            for mean in step.method.state["mean"]:
                mean.div_(0.4)
        ours.append(vector(step.objective.params))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(ours, expected, strict=True))


def test_gsam_equals_pytorch_optimizers():
    model, path = mlp(), []

    class Constant:
        def step(self):
            return RHO

    peer = pytorch_optimizer.GSAM(
        model.parameters(), torch.optim.SGD(model.parameters(), lr=0.2), model, Constant(), alpha=0.4
    )
    for x, y in batches():
        batch = tensors(x, y)
        peer.set_closure(F.cross_entropy, batch.inputs, batch.targets)
        peer.step()
        path.append(vector(model.parameters()))
    ours = constant_path(family.Gsam(0.4))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(ours, path, strict=True))


def test_looksam_of_one_tensor_equals_pytorch_optimizers():
    """pytorch-optimizer decomposes tensor by tensor, so both agree only for a network of one tensor."""

    def linear():
        torch.manual_seed(0)
        return nn.Linear(INPUTS, CLASSES, bias=False).double()

    model, expected = linear(), []
    peer = pytorch_optimizer.LookSAM(model.parameters(), torch.optim.SGD, rho=RHO, k=3, alpha=0.7, lr=0.2)
    for number, (x, y) in enumerate(batches()):
        batch = tensors(x, y)
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        peer.first_step(zero_grad=number % 3 == 0)
        if number % 3 == 0:
            F.cross_entropy(model(batch.inputs), batch.targets).backward()
        peer.second_step(zero_grad=True)
        expected.append(vector(model.parameters()))
    ours = constant_path(family.LookSam(3, 0.7), model=linear())
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_rho_zero_is_the_base_optimizer_to_the_bit(name):
    expected = follow(build(Plain(), momentum=0.9), rho=0.0)
    assert all(map(torch.equal, follow(build(METHODS[name](), momentum=0.9), rho=0.0), expected))


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_has_the_bits(name):
    expected = follow(build(METHODS[name](), momentum=0.9))
    first = build(METHODS[name](), momentum=0.9)
    follow(first, last=3)
    saved = copy.deepcopy((first.objective.model.state_dict(), first.optimizer.state_dict(), first.method.state_dict()))
    second = build(METHODS[name](), momentum=0.9)
    for part, state in zip((second.objective.model, second.optimizer, second.method), saved, strict=True):
        part.load_state_dict(state)
    assert all(map(torch.equal, follow(second, first=3), expected[3:]))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_scale_cancels_and_a_step_that_is_skipped_changes_nothing(name):
    """Powers of two as scale: nearly the same numbers, in the state too."""
    unscaled = build(METHODS[name](), momentum=0.9, fused=False)
    expected = follow(unscaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=3)
    step = build(METHODS[name](), momentum=0.9, fused=False, scaler=scaler)
    follow(step, last=3)
    everything = copy.deepcopy((step.objective.model.state_dict(), step.method.state_dict()))
    bad = tensors(*batches()[3])
    stats = step(Batch(bad.inputs * torch.inf, bad.targets), RHO, 3)
    assert stats.skipped
    assert stats.passes.gradient in (1, 1.5, 2)
    assert all(map(torch.equal, everything[0].values(), step.objective.model.state_dict().values()))
    for before, after in zip(everything[1].values(), step.method.state_dict().values(), strict=True):
        assert all(map(torch.equal, before, after))
    follow(step, first=3)
    assert torch.allclose(vector(step.objective.params), expected[-1], rtol=0, atol=1e-6)
    for key, values in unscaled.method.state.items():
        assert torch.allclose(vector(step.method.state[key]), vector(values), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("number_of_pass", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_an_infinite_gradient_in_one_pass_changes_neither_weights_nor_state(name, number_of_pass, fused):
    """Also where the base optimizer's gradient is finite, and something else is added to the weights or the state."""
    step, passes = build(METHODS[name](), momentum=0.9, fused=fused), []
    follow(step, last=2)

    def forward(inputs):
        passes.append(1)
        outputs = step.objective.model(inputs)
        if len(passes) == number_of_pass and outputs.requires_grad:
            outputs.register_hook(lambda grad: grad * torch.inf)
        return outputs

    model, state = step.objective.model, copy.deepcopy(step.method.state_dict())
    parts = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()["state"]))
    step.objective._forward = forward
    stats = step(tensors(*batches()[2]), RHO, 2)
    if number_of_pass > len(passes) or (number_of_pass == 2 and name == "esam"):  # evaluated without gradient
        return
    assert not stats.finite.all()
    assert all(map(torch.equal, parts[0].values(), model.state_dict().values()))
    for before, after in zip(parts[1].values(), step.optimizer.state_dict()["state"].values(), strict=True):
        assert torch.equal(before["momentum_buffer"], after["momentum_buffer"])
    for before, after in zip(state.values(), step.method.state_dict().values(), strict=True):
        assert all(map(torch.equal, before, after))


def test_a_state_that_overflows_leaves_the_step_out():
    """The gradient is finite, but the square of its norm in the state of AE-SAM is not."""
    step = build(family.AeSam(**T), model=mlp().float())
    moments = step.method.state["moments"][0].clone()
    batch = tensors(*batches()[0])
    batch = Batch(batch.inputs.float(), batch.targets)
    step.objective._loss = lambda outputs, targets: F.cross_entropy(outputs, targets) * 1e15
    before = vector(step.objective.params)
    assert step(batch, RHO, 0).finite.tolist() == [True, True, True, False]
    assert torch.equal(vector(step.objective.params), before)
    assert torch.equal(step.method.state["moments"][0], moments)


class FirstPassOnly(nn.Module):
    """y = w x + b at w <= 1 and w x above, so the pass at w + eps does not use b."""

    def __init__(self):
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return self.w * x + (self.b if float(self.w.detach()) <= 1 else 0)


@pytest.mark.parametrize(
    ("method", "of_b"),
    [(family.GradientNorm(0.8), 0.2), (family.Wsam(0.75, decoupled=False), -2.0), (family.Gsam(0.4), -0.4), (Sam(), 0)],
)
def test_a_parameter_that_only_the_pass_at_w_uses_has_its_part_of_the_final_gradient(method, of_b):
    """g = (1, 1) and g_eps = (1, 0)."""
    step = build(method, model=FirstPassOnly())
    step.objective._loss = lambda outputs, targets: outputs.mean()
    step(Batch(torch.ones(3, 1, dtype=torch.float64), torch.zeros(3)), RHO, 0)
    assert float(step.objective.model.b.detach()) == pytest.approx(1 - RATES[0] * of_b, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_are_those_of_the_whole_batch(name):
    expected = follow(build(METHODS[name](), momentum=0.9))
    path = follow(build(METHODS[name](), momentum=0.9, num_chunks=5))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(path, expected, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_equal_groups_are_one_group(name):
    """A batch of the same six examples twice: each group has the gradient and the perturbation of the batch."""

    def path(step):
        for number, (x, y) in enumerate(batches()):
            step(tensors(np.concatenate([x[:6]] * 2), np.concatenate([y[:6]] * 2)), RHO, number)
        return vector(step.objective.params)

    expected = path(build(METHODS[name](), momentum=0.9))
    assert torch.allclose(path(build(METHODS[name](), momentum=0.9, group_size=6)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_passes_that_a_step_reports_are_those_that_it_makes(name):
    method = METHODS[name]()
    step, forward, backward = build(method, momentum=0.9), [], []

    def count(module, inputs, output):
        forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda grad: backward.append(len(grad)))

    step.objective.model.register_forward_hook(count)
    for number in range(STEPS):
        forward.clear()
        backward.clear()
        passes = step(tensors(*batches()[number]), RHO, number).passes
        assert (passes.forward, passes.backward) == (sum(forward) / COUNT, sum(backward) / COUNT)
        assert passes.gradient == passes.backward <= method.passes(number)


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_step_is_an_eager_one(name, monkeypatch):
    monkeypatch.setattr(cuda_graph, "NUM_WARM_UP_STEPS", 1)
    captured = CapturedStep(build(METHODS[name](), momentum=0.9), EagerRecorder())
    expected = follow(build(METHODS[name](), momentum=0.9))
    path = follow(captured)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(path, expected, strict=True))
    assert bool(captured._recordings) == (not METHODS[name]().capture_blocker)


def test_momentum_sam_needs_momentum():
    step = build(family.MomentumSam())
    step.optimizer.state[step.objective.params[0]]["other"] = torch.zeros(())
    with pytest.raises(ValueError, match="needs a base optimizer with momentum: SGD has none"):
        follow(step)


def test_momentum_sam_with_momentum_0_is_refused():
    with pytest.raises(ValueError, match="needs a base optimizer with momentum: SGD has none"):
        follow(build(family.MomentumSam(), momentum=0.0), last=1)


def test_adams_first_moment_is_its_momentum():
    step = build(family.MomentumSam())
    step.optimizer = torch.optim.Adam(step.objective.params, lr=0.1)
    step = SamStep(step.objective, step.optimizer, family.MomentumSam())
    batch = tensors(*batches()[0])
    assert float(step(batch, RHO, 0).eps_norm) == 0
    moment = vector([step.optimizer.state[param]["exp_avg"] for param in step.objective.params])
    at = vector(step.objective.params) - RHO * moment / moment.norm()
    model = mlp()
    nn.utils.vector_to_parameters(at, model.parameters())
    assert float(step(batch, RHO, 1).loss) == pytest.approx(F.cross_entropy(model(batch.inputs), batch.targets).item())


def test_methods_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="gsam needs the gradient at w, which momentum_sam does not evaluate"):
        follow(build(family.Gsam(around=family.MomentumSam()), momentum=0.9))
    with pytest.raises(ValueError, match="esam makes others"):
        family.AeSam(around=family.Interval(2, family.Esam()), **T)
    with pytest.raises(ValueError, match="late cannot be around looksam: its steps with one pass"):
        family.Late(around=family.LookSam(), **T)


def test_the_other_steps_are_plain_whatever_the_method_inside_combines():
    ours, plain = build(family.Interval(2, Drift())), build(Plain())
    for number in range(STEPS):
        plain.objective.model.load_state_dict(ours.objective.model.state_dict())
        weights, expected = (follow(step, first=number, last=number + 1)[0] for step in (ours, plain))
        assert torch.equal(weights, expected) == (number % 2 == 1 or number % 3 == 2)  # Drift has radius 0 then


@pytest.mark.parametrize(
    "make",
    [family.Gsam, family.GradientNorm, family.Wsam, lambda around: family.AeSam(-1e9, -1e9, around=around, **T)],
    ids=["gsam", "gradient_norm", "wsam", "ae_sam"],
)
def test_a_method_around_friendly_sam_updates_its_mean(make):
    step = build(make(around=family.FriendlySam(decay=0.75)))
    model, batch = mlp(), tensors(*batches()[0])
    F.cross_entropy(model(batch.inputs), batch.targets).backward()
    follow(step, last=1)
    mean = vector(step.method.state["mean"])
    torch.testing.assert_close(mean, 0.25 * vector([param.grad for param in model.parameters()]))


def test_gsam_around_interval_makes_one_pass_in_the_steps_between():
    """Also where rho_min is above 0 and the learning rate below its maximum."""
    step = build(family.Gsam(rho_min=0.05, lr_max=1.0, around=family.Interval(2)))
    assert [step(tensors(*batches()[number]), RHO, number).passes.gradient for number in range(3)] == [2, 1, 2]


def additional_memory():
    """Numbers of the column *additional memory* in docs/family.md, by method; methods of SAM's memory have 0."""
    page = (Path(__file__).parents[2] / "docs" / "family.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (?:[^|\\]|\\.)* \| (\d?) ?\| `rho", page, re.M)
    reused = re.search(r"^\| `looksam` \|.*; additional memory (\d) \|", page, re.M)
    return {name: int(number or 0) for name, number in rows if name != "sam"} | {"looksam": int(reused[1])}


def peak_memory(make, foreach):
    """Largest memory while a network is built and makes two steps, in units of its weights."""
    width, depth = 24, 12
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        layers = (nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width)) for _ in range(depth))
        model = nn.Sequential(*layers)
        how = {"foreach": True} if foreach else {"fused": True}
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3, **how)
        step = SamStep(Objective(model, F.cross_entropy), optimizer, make())
        for number in range(2):
            step(Batch(torch.ones(2, width), torch.zeros(2, dtype=torch.int64)), RHO, number)
    level = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / (4 * sum(param.numel() for param in model.parameters()))


@pytest.mark.parametrize("foreach", [False, True], ids=["fused", "foreach"])
def test_methods_need_the_additional_memory_that_the_page_names(foreach):
    expected, sam = additional_memory(), peak_memory(Sam, foreach)
    assert expected.keys() >= {"asam", "friendly_sam", "gsam", "wsam", "looksam"}
    found = {name: peak_memory(METHODS[name], foreach) - sam for name in expected}
    found["projected"] = peak_memory(lambda: family.KStep(2, projected=True), foreach) - sam
    assert found == pytest.approx(expected | {"projected": 1}, abs=0.4)


def test_the_probability_of_random_sam_stays_at_its_end_after_the_last_step():
    method = family.RandomSam(0.0, 0.5, total_steps=2, seed=0)
    chosen = [method.is_chosen(number) for number in range(1, 401)]
    assert 160 < sum(chosen) < 240


def test_ae_sam_reaches_its_end_in_the_last_of_two_steps():
    step = build(family.AeSam(3e9, -1e9, total_steps=2))
    batch = tensors(*batches()[0])
    assert [step(batch, RHO, number).passes.gradient for number in (0, 1)] == [1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda asam: family.LookSam(1, around=asam),
        lambda asam: family.AeSam(-1e9, -1e9, around=asam, **T),
        lambda asam: family.Interval(1, asam),
        lambda asam: family.GradientNorm(1.0, asam),
    ],
    ids=["looksam", "ae_sam", "interval", "gradient_norm"],
)
def test_a_method_around_asam_that_changes_nothing_is_asam(make):
    path, expected, sam = (follow(build(method))[-1] for method in (make(family.Asam()), family.Asam(), Sam()))
    torch.testing.assert_close(path, expected)
    assert not torch.allclose(expected, sam)


@pytest.mark.parametrize(
    "make", [family.Asam, family.FisherSam, family.FriendlySam, family.LayerwiseSam, family.SamOn, Sam]
)
def test_sharded_weights_need_one_perturbation_of_all_processes(make):
    assert make(sync_perturbation=True).shard_blocker == ""
    assert "sync_perturbation=True" in make().shard_blocker


def test_ae_sam_decides_by_the_mean_over_processes():
    method = family.AeSam(**T)
    two = SimpleNamespace(all_reduce_sum=lambda square: square + 15, world_size=2)  # ||g||^2 is 9 here and 15 there
    objective = SimpleNamespace(context=two, device=torch.device("cpu"))
    context = SimpleNamespace(objective=objective, number=0, loss_scale=torch.tensor(2.0), norm=lambda grads: 6.0)
    method.state["moments"] = [torch.zeros(2)]
    method._decide([], context)
    torch.testing.assert_close(method.staged["moments"][0], torch.tensor([1.2, 0.1 * 10.8**2]))


def test_esam_that_perturbs_all_weights_draws_nothing():
    method = family.Esam(1.0, sync_perturbation=True)
    assert (method.needs_number, method.capture_blocker, method.shard_blocker) == (False, "", "")
    assert "sync_perturbation" in family.Esam(1.0).shard_blocker
    assert family.Esam(0.99).needs_number and family.Esam(0.99).capture_blocker and family.Esam(0.99).shard_blocker


@pytest.mark.parametrize("name", sorted({found.name for found in NAMED} & SETTINGS.keys()))
def test_the_defaults_of_a_class_are_those_of_its_settings(name):
    (method,), settings = [found for found in NAMED if found.name == name], SETTINGS[name]()
    settings = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    parameters = inspect.signature(method).parameters.values()
    defaults = {entry.name: entry.default for entry in parameters if entry.default is not entry.empty}
    shared = (defaults.keys() & settings.keys()) - {"around"}
    assert {key: defaults[key] for key in shared} == {key: settings[key] for key in shared}
    assert shared or name == "momentum_sam", "nothing to compare"


def test_a_loss_that_has_no_single_examples_is_refused():
    model = mlp()
    objective = Objective(
        model, lambda outputs, targets: F.cross_entropy(outputs, targets) if outputs.sum() > 0 else outputs.mean()
    )
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=0.1), family.Esam(1.0))
    with pytest.raises(ValueError, match="the loss of single examples cannot be computed"):
        step(tensors(*batches()[0]), RHO, 0)


def test_single_losses_without_memory_are_no_fault_of_the_loss():
    def loss(outputs, targets):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Objective(mlp(), loss).example_losses(tensors(*batches()[0]), torch.zeros(COUNT, 3))


def test_every_method_is_tested():
    made = {type(make()) for make in METHODS.values()}
    others = {
        family.Around,
        family.SomeSteps,
        family.KStep,
        family.Plain,
        family.RandomDirection,
        Sam,
        family.SecondOrder,
    }
    assert {getattr(family, name) for name in family.__all__} == made | others
    assert all(issubclass(found, Method) for found in made)
