"""Shake-Shake and ShakeDrop: moments of the random scales, and the gradient of each pass of a SAM step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.layers.shake import ShakeDrop, ShakeShake
from sam_runner.models.pyramidnet import PyramidNet
from sam_runner.models.shake_shake import ShakeShakeNet
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import Gsam, Interval, KStep, Late, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.random_branches import true_gradient
from sam_runner.sam.step import SamStep

KEEP, NUM_DRAWS = 0.7, 40_000


class ReferenceLayer(nn.Module):
    """A shake layer written with detach: its value has the forward scales, its gradient the backward scales."""

    true_gradient = False

    def __init__(self, layer):
        super().__init__()
        self.keep = getattr(layer, "keep", None)

    def forward(self, *branches):
        numbers = torch.rand(2 if self.keep is None else 3, len(branches[0]), 1, 1, 1).to(branches[0].dtype)
        if self.keep is None:
            first, second = branches
            forward_value, backward_value = (number * first + (1 - number) * second for number in numbers)
        else:
            kept = (numbers[0] < self.keep).to(numbers.dtype)
            forward_value, backward_value = (
                (kept + number - kept * number) * branches[0] for number in (numbers[1] * 2 - 1, numbers[2])
            )  # eq. 6
        return forward_value if self.true_gradient else backward_value + (forward_value - backward_value).detach()


def make_reference(model):
    """Return a copy of a network with reference layers in place of its shake layers."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ShakeShake | ShakeDrop):
                setattr(parent, name, ReferenceLayer(child))
    return model


def compute_gradient(reference, batch, weights, *, use_true_gradient, create_graph=False):
    for module in reference.modules():
        if isinstance(module, ReferenceLayer):
            module.true_gradient = use_true_gradient
    torch.manual_seed(3)
    logits = torch.func.functional_call(reference, weights, batch.inputs)
    loss = F.cross_entropy(logits, batch.targets)
    return torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)


def copy_weights(model):
    return {name: param.detach().clone().requires_grad_() for name, param in model.named_parameters()}


def step_gradient(model, batch, rho, number=0, **options):
    """Return the gradient that a step of SGD with lr 1 subtracts."""
    before = [param.detach().clone() for param in model.parameters()]
    objective = Objective(model, F.cross_entropy)
    torch.manual_seed(3)
    SamStep(objective, torch.optim.SGD(model.parameters(), lr=1.0), **options)(batch, rho, number)
    return [old - new for old, new in zip(before, model.parameters(), strict=True)]


@pytest.fixture(params=["shake_shake", "shakedrop"])
def problem(request):
    torch.manual_seed(0)
    make = {
        "shake_shake": lambda: ShakeShakeNet(3, 1, depth=8, width=4),
        "shakedrop": lambda: PyramidNet(3, 1, depth=11, alpha=6, shakedrop=0.8),
    }[request.param]
    model = make().double().train()
    return model, Batch(torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 3)


def require_close(found, expected):
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


def test_a_plain_step_has_the_gradient_of_the_backward_scales(problem):
    model, batch = problem
    reference, weights = make_reference(model), copy_weights(model)
    expected = compute_gradient(reference, batch, weights, use_true_gradient=False)
    other = compute_gradient(reference, batch, weights, use_true_gradient=True)
    assert not torch.allclose(expected[0], other[0], atol=1e-3)
    require_close(step_gradient(model, batch, 0.0), expected)


@pytest.mark.parametrize("ascent_steps", [1, 2])
def test_the_ascent_uses_the_true_gradient_and_the_descent_the_backward_scales(problem, ascent_steps):
    model, batch = problem
    reference, weights = make_reference(model), copy_weights(model)
    perturbed = weights
    for _ in range(ascent_steps):
        grads = compute_gradient(reference, batch, perturbed, use_true_gradient=True)
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        perturbed = {
            name: (param + 0.3 * grad / norm).detach().requires_grad_()
            for (name, param), grad in zip(weights.items(), grads, strict=True)
        }
    expected = compute_gradient(reference, batch, perturbed, use_true_gradient=False)
    require_close(step_gradient(model, batch, 0.3, method=KStep(ascent_steps)), expected)


def test_the_second_order_term_differentiates_the_true_gradient(problem):
    model, batch = problem
    reference, weights = make_reference(model), copy_weights(model)
    grads = compute_gradient(reference, batch, weights, use_true_gradient=True, create_graph=True)
    norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    eps = [0.3 * grad / norm for grad in grads]
    perturbed = {
        name: (param + part).detach().requires_grad_() for (name, param), part in zip(weights.items(), eps, strict=True)
    }
    finals = compute_gradient(reference, batch, perturbed, use_true_gradient=False)
    second_order = torch.autograd.grad(eps, list(weights.values()), finals)
    expected = [final + term for final, term in zip(finals, second_order, strict=True)]
    require_close(step_gradient(model, batch, 0.3, method=SecondOrder()), expected)


@pytest.mark.parametrize("method", [Interval(2), Late(0.2, total_steps=9)])
def test_the_steps_with_one_pass_have_the_gradient_of_the_backward_scales(problem, method):
    model, batch = problem
    expected = compute_gradient(make_reference(model), batch, copy_weights(model), use_true_gradient=False)
    require_close(step_gradient(model, batch, 0.3, 1, method=method), expected)


class OnePass(KStep):
    def perturb(self, grads, group):
        return None


def test_a_method_that_descends_along_the_true_gradient_is_refused(problem):
    model, batch = problem
    with pytest.raises(ValueError, match="interval descends along g too"):
        step_gradient(model, batch, 0.3, method=Interval(2, Gsam()))
    with pytest.raises(ValueError, match=r"k_step descends along g in a step, .* = False"):
        step_gradient(model, batch, 0.3, method=OnePass(1))


def test_both_passes_have_the_same_forward_scales():
    layer, images = ShakeShake(), torch.rand(2, 5, 3, 2, 2)
    torch.manual_seed(1)
    expected = layer(*images)
    torch.manual_seed(1)
    with true_gradient([layer]):
        assert torch.equal(layer(*images), expected)
    assert not layer.true_gradient


def test_an_error_ends_the_use_of_the_true_gradient():
    layer = ShakeShake()
    with pytest.raises(ZeroDivisionError), true_gradient([layer]):
        raise ZeroDivisionError
    assert not layer.true_gradient


@pytest.mark.parametrize("use_true_gradient", [True, False])
def test_shake_shake_has_the_moments_of_uniform_numbers(use_true_gradient):
    torch.manual_seed(0)
    layer, branches = ShakeShake(), torch.zeros(2, NUM_DRAWS, 1, 1, 1).requires_grad_()
    layer.true_gradient = use_true_gradient
    forward = layer(torch.ones(NUM_DRAWS, 1, 1, 1), torch.zeros(NUM_DRAWS, 1, 1, 1)).flatten()
    layer(*branches).sum().backward()
    backward = branches.grad.flatten(1)
    assert torch.allclose(backward.sum(0), torch.ones(NUM_DRAWS))
    for numbers in (forward, backward[0]):
        assert float(numbers.min()) >= 0 and float(numbers.max()) <= 1
        assert abs(float(numbers.mean()) - 0.5) < 4 * (1 / 12 / NUM_DRAWS) ** 0.5
    layer.eval()
    assert torch.equal(layer(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)), torch.full((1, 1, 1, 1), 0.5))


def test_shakedrop_keeps_or_scales_each_example_and_evaluates_to_the_mean():
    torch.manual_seed(0)
    layer, branch = ShakeDrop(KEEP), torch.ones(NUM_DRAWS, 1, 1, 1).requires_grad_()
    forward = layer(branch)
    forward.sum().backward()
    forward, backward = forward.detach().flatten(), branch.grad.flatten()
    kept = forward == 1
    assert torch.equal(kept, backward == 1)
    assert abs(float(kept.double().mean()) - KEEP) < 4 * (KEEP * (1 - KEEP) / NUM_DRAWS) ** 0.5
    for numbers, low in ((forward[~kept], -1.0), (backward[~kept], 0.0)):
        assert low <= float(numbers.min()) < low + 0.01 and 0.99 < float(numbers.max()) <= 1
        assert abs(float(numbers.mean()) - (low + 1) / 2) < 4 * ((1 - low) ** 2 / 12 / len(numbers)) ** 0.5
    expected = layer.eval()(torch.ones(1, 1, 1, 1)).item()
    assert expected == pytest.approx(KEEP)
    assert abs(float(forward.mean()) - expected) < 4 * float(forward.std()) / NUM_DRAWS**0.5


def test_shakedrop_grows_with_depth():
    """The probability to keep the l-th of L branches is 1 - l/L p (the ShakeDrop paper's eq. 3)."""
    model = PyramidNet(10, 3, depth=29, alpha=9, shakedrop=0.5)
    keeps = [module.keep for module in model.modules() if isinstance(module, ShakeDrop)]
    assert keeps == pytest.approx([1 - number / 18 for number in range(1, 10)])
    assert not any(isinstance(module, ShakeDrop) for module in PyramidNet(10, 3, depth=29, alpha=9).modules())


def test_shake_layers_work_in_bfloat16():
    layer, branches = ShakeShake(), torch.rand(2, 4, 3, 2, 2, dtype=torch.bfloat16)
    assert layer(*branches).dtype == torch.bfloat16
    assert ShakeDrop(0.5)(branches[0]).dtype == torch.bfloat16
