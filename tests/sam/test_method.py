"""The interface of methods: what the step passes to a method, and what it does with the answers."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.sam import cuda_graph
from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.methods import KStep, Plain, RandomDirection, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from tests.oracles.methods import Alternate, Drift, drift_weights

LR, RHO, COUNT = 0.2, 0.3, 12


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def batches(count=7):
    draws = torch.Generator().manual_seed(1)
    inputs = [torch.randn(COUNT, 6, generator=draws, dtype=torch.float64) for _ in range(count)]
    return [(part, torch.arange(COUNT) % 4) for part in inputs]


def build(method, *, model=None, num_chunks=1, scaler=None, momentum=0.0, fused=True, **options):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum, fused=fused)
    objective = Objective(model, F.cross_entropy, num_chunks=num_chunks, batch_size=COUNT, scaler=scaler)
    return SamStep(objective, optimizer, method, **options)


def follow(step, first=0, rho=RHO):
    for number, (inputs, targets) in enumerate(batches()):
        if number >= first:
            step(Batch(inputs, targets), rho, number)
    return vector(step.objective.params)


def vector(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("scale", [None, 2.0**8])
def test_a_method_that_uses_all_hooks_equals_its_reference(groups, num_chunks, scale):
    """Both gradients of `combine` are means over groups, times the loss scale; the state is not scaled."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    size = None if groups == 1 else COUNT // groups
    step = build(Drift(), num_chunks=num_chunks, scaler=scaler, group_size=size, fused=scale is None)
    expected = drift_weights(network(), batches(), groups=groups, rho=RHO, lr=LR)
    assert torch.allclose(follow(step), expected, rtol=0, atol=1e-10)
    assert step.method.state["mean"][0].abs().sum() > 0


def test_the_state_of_a_method_is_saved_and_restored_to_the_bit():
    expected = build(Drift(), momentum=0.9)
    first = build(Drift(), momentum=0.9)
    for number, (inputs, targets) in enumerate(batches()[:4]):
        first(Batch(inputs, targets), RHO, number)
    saved = copy.deepcopy((first.objective.model.state_dict(), first.optimizer.state_dict(), first.method.state_dict()))
    second = build(Drift(), momentum=0.9)
    addresses = [tensor.data_ptr() for tensor in second.method.state["mean"]]
    for part, state in zip((second.objective.model, second.optimizer, second.method), saved, strict=True):
        part.load_state_dict(state)
    assert torch.equal(follow(second, first=4), follow(expected))
    assert [tensor.data_ptr() for tensor in second.method.state["mean"]] == addresses


@pytest.mark.parametrize("method", [Sam(), KStep(2), SecondOrder(), RandomDirection(0), Plain()])
def test_methods_without_state_save_nothing_and_refuse_the_state_of_others(method):
    step = build(method)
    follow(step)
    assert method.state_dict() == {}
    with pytest.raises(ValueError, match=rf"\['mean'\], the method {method.name} has \[\]"):
        method.load_state_dict(build(Drift()).method.state_dict())


@pytest.mark.parametrize("scale", [None, 2.0**8])
def test_a_step_that_is_not_finite_leaves_the_state(scale):
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    step = build(Drift(), scaler=scaler, fused=scale is None)
    (inputs, targets), *_ = batches()
    step(Batch(inputs, targets), RHO, 0)
    before, weights = vector(step.method.state["mean"]), vector(step.objective.params)
    assert not step(Batch(inputs * torch.nan, targets), RHO, 1).finite.all()
    assert torch.equal(vector(step.method.state["mean"]), before)
    assert torch.equal(vector(step.objective.params), weights)


def test_staged_state_of_a_step_that_raised_is_not_written_by_the_next():
    step = build(Drift())
    step.method.staged["mean"] = [torch.full_like(param, torch.nan) for param in step.objective.params]
    (inputs, targets), *_ = batches()
    step(Batch(inputs, targets), RHO, 0)
    assert vector(step.method.state["mean"]).isfinite().all()


class Short(Drift):
    """A method that leaves out the last tensor of one of its lists."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def perturb(self, grads, group):
        eps = super().perturb(grads, group)
        if self.part == "dot":
            group.context.dot(eps.direction, eps.direction[:-1])
        return replace(eps, direction=eps.direction[:-1]) if self.part == "eps" else eps

    def accumulate(self, group):
        if self.part != "gradient":
            return super().accumulate(group)
        _, grads = group.gradient()
        return group.add_gradient(grads[:-1])

    def combine(self, final, first, context):
        super().combine(final, first, context)
        if self.part == "state":
            self.staged["mean"].pop()


@pytest.mark.parametrize("part", ["eps", "gradient", "dot", "state"])
def test_a_method_that_leaves_out_a_parameter_is_refused(part):
    step, (inputs, targets) = build(Short(part)), batches()[0]
    with pytest.raises(ValueError, match="zip"):
        step(Batch(inputs, targets), RHO, 0)


def test_a_saved_state_of_another_length_is_refused():
    step = build(Drift())
    saved = {"mean": step.method.state_dict()["mean"][:-1]}
    with pytest.raises(ValueError, match="zip"):
        step.method.load_state_dict(saved)


@pytest.mark.parametrize("method", [Drift(), Alternate(), Plain(), KStep(2), SecondOrder(), RandomDirection(0)])
def test_rho_zero_is_the_base_optimizer_whatever_the_method(method):
    step = build(method, momentum=0.9)
    assert torch.equal(follow(step, rho=0.0), follow(build(Sam(), momentum=0.9), rho=0.0))
    assert all(not tensor.any() for tensors in method.state.values() for tensor in tensors)


def test_plain_makes_one_pass_whatever_rho_is():
    assert torch.equal(follow(build(Plain())), follow(build(Sam()), rho=0.0))


@pytest.mark.parametrize("options", [{}, {"group_size": 5}, {"num_chunks": 3}])
def test_a_pass_that_the_method_leaves_out_makes_the_step_a_plain_one(options):
    """The gradient at w becomes the final one; in the other steps it is SAM's."""
    ours, sam, plain = build(Alternate(), **options), build(Sam(), **options), build(Plain(), **options)
    for number, (inputs, targets) in enumerate(batches()):
        other = plain if number % 2 else sam
        other.objective.model.load_state_dict(ours.objective.model.state_dict())
        measured, expected = (step(Batch(inputs, targets), RHO, number) for step in (ours, other))
        assert torch.allclose(vector(ours.objective.params), vector(other.objective.params), rtol=0, atol=1e-14)
        assert float(measured.eps_norm) == pytest.approx(float(expected.eps_norm))
        assert float(measured.loss_perturbed) == pytest.approx(float(expected.loss_perturbed), rel=1e-12)
        if not options:
            assert float(measured.grad_norm) == pytest.approx(float(expected.grad_norm), rel=1e-12)


def test_an_unused_parameter_stays_without_a_gradient_when_the_second_pass_is_left_out():
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    step = build(Alternate(), model=model)
    (inputs, targets), *_ = batches()
    step(Batch(inputs, targets), RHO, 1)
    assert model.unused.grad is None


@pytest.mark.parametrize("method", [Drift(), Alternate(), Sam(), KStep(3), SecondOrder(), RandomDirection(0), Plain()])
def test_passes_is_the_number_of_gradients_that_a_step_evaluates(method):
    step, calls = build(method), []
    step.objective.model.register_forward_hook(lambda *_: calls.append(1))
    for number, (inputs, targets) in enumerate(batches()):
        calls.clear()
        step(Batch(inputs, targets), RHO, number)
        if not isinstance(method, Alternate):
            assert len(calls) == method.passes(number)
        assert len(calls) <= method.passes(number)


def test_kinds_of_steps_are_recorded_apart_and_replay_with_state(monkeypatch):
    monkeypatch.setattr(cuda_graph, "NUM_WARM_UP_STEPS", 1)
    captured = CapturedStep(build(Drift()), EagerRecorder())
    assert torch.allclose(follow(captured), follow(build(Drift())), rtol=0, atol=1e-7)
    assert {(name, ascends) for _, name, ascends in captured._recordings} == {("drift", True), ("drift", False)}


def test_a_method_that_decides_on_the_host_is_not_recorded(caplog):
    captured = CapturedStep(build(Alternate()), EagerRecorder())
    assert torch.equal(follow(captured), follow(build(Alternate())))
    assert "the number of the step decides on the host" in caplog.text


class Returning(Sam):
    name, combines = "returning", True

    def combine(self, final, first, context):
        return [a + b for a, b in zip(final, first, strict=True)]


def test_a_gradient_that_combine_returns_is_refused():
    with pytest.raises(TypeError, match="combine of method returning returns a value: change `final` in place"):
        follow(build(Returning()))


def test_a_step_without_its_number_is_refused():
    with pytest.raises(ValueError, match="drift needs the number"):
        build(Drift())(Batch(*batches()[0]), RHO)


def test_a_pass_after_a_first_backward_is_refused():
    class Backwards(Sam):
        def accumulate(self, group):
            group.backward()
            group.gradient()

    with pytest.raises(RuntimeError, match=r"begin with Group\.gradient"):
        build(Backwards())(Batch(*batches()[0]), RHO)


def test_all_passes_and_evaluations_of_a_group_see_the_same_masks():
    class Evaluating(Sam):
        def accumulate(self, group):
            stats = super().accumulate(group)
            self.again = group.evaluate().loss
            return stats

    model = nn.Sequential(network(), nn.Dropout(0.5))
    step = build(Evaluating(), model=model)
    stats = step(Batch(*batches()[0]), 1e-30)
    assert torch.equal(stats.loss, stats.loss_perturbed)
    assert torch.equal(stats.loss, step.method.again)
