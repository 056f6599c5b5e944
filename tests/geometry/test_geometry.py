"""Hessian-vector products, eigenvalues, trace and density against dense Hessians and closed forms, in float64."""

import copy

import pytest
import torch
from torch import nn

from sam_runner.geometry.density import density_of_probes
from sam_runner.geometry.lanczos import asymmetry, largest_eigenvalues, quadrature
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.geometry.trace import estimate_trace, random_signs
from sam_runner.sam.batch import Batch
from sam_runner.utils.errors import TrainingError
from sam_runner.utils.seeding import make_generator
from tests.geometry import problems

CASES = [(name, mode) for name in ("mlp", "batchnorm", "conv") for mode in ("train", "eval")]


def moment(density, order, count):
    """The sum of the powers of `count` eigenvalues: 1 gives the trace, 2 the squared Frobenius norm."""
    return count * float((density.weights * density.nodes**order).sum())


def columns(loss):
    unit = torch.eye(len(loss), dtype=torch.float64)
    return torch.stack(loss.hessian_products(list(unit)))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_loss_gradient_and_hessian_equal_the_dense_ones(name, mode):
    network = problems.networks()[name]
    before = copy.deepcopy(network.state_dict())
    value, gradient, hessian = problems.dense(network, mode, weight_decay=0.3)
    loss = problems.mean_loss(network, mode, weight_decay=0.3)
    found, slope = loss.gradient(loss.weights)
    torch.testing.assert_close(torch.tensor([found, loss.value(loss.weights)]), value.float().expand(2))
    assert abs(found - float(value)) < 1e-12 and abs(loss.value(loss.weights) - float(value)) < 1e-12
    torch.testing.assert_close(slope, gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(columns(loss), hessian, rtol=1e-9, atol=1e-11)
    one = torch.linspace(-1, 1, len(loss), dtype=torch.float64)
    torch.testing.assert_close(loss.hessian_products([one])[0], hessian @ one, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training and all(param.grad is None for param in network.parameters())


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_eigenvalues_trace_and_density_equal_those_of_the_dense_hessian(name, mode):
    network = problems.networks()[name]
    _, _, hessian = problems.dense(network, mode)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    loss = problems.mean_loss(network, mode)

    def product(vector):
        return loss.hessian_products([vector])[0]

    found = largest_eigenvalues(product, torch.ones_like(loss.weights), 5, tolerance=1e-8)
    assert found.converged
    torch.testing.assert_close(torch.tensor(found.values), exact[:5].float(), rtol=1e-6, atol=1e-9)
    own = columns(loss)
    trace = estimate_trace(lambda vs: [own @ v for v in vs], loss.weights, 3 * len(loss))
    assert trace.value == pytest.approx(float(hessian.trace()), rel=1e-9) and trace.standard_error == 0
    density = density_of_probes(lambda v: own @ v, list(torch.eye(len(loss), dtype=torch.float64)), 3)
    assert moment(density, 1, len(loss)) == pytest.approx(float(hessian.trace()), rel=1e-9)
    assert moment(density, 2, len(loss)) == pytest.approx(float(hessian.square().sum()), rel=1e-9)


def test_a_linear_model_with_squared_loss_has_its_closed_form():
    """L = mean 1/2 (x.w - y)^2: the Hessian is X^T X / N, the gradient X^T (X w - y) / N."""
    generator = torch.Generator().manual_seed(2)
    X, y = torch.randn(9, 4, generator=generator).double(), torch.randn(9, generator=generator).double()
    model = nn.Linear(4, 1, bias=False).double()
    loss = MeanLoss(
        model, lambda out, target: (out[:, 0] - target).square().mean() / 2, Batch(X, y), chunk_size=2,
        dtype=torch.float64,
    )  # fmt: skip
    hessian = X.T @ X / 9
    torch.testing.assert_close(columns(loss), hessian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.gradient(loss.weights)[1], X.T @ (X @ loss.weights - y) / 9)
    found = largest_eigenvalues(lambda v: loss.hessian_products([v])[0], torch.ones(4).double(), 4)
    exact = torch.linalg.svdvals(X).square() / 9
    torch.testing.assert_close(torch.tensor(found.values).double(), exact, rtol=1e-6, atol=0)


def test_lanczos_returns_repeated_eigenvalues_and_restarts():
    A, values = problems.matrix(120)
    for start in (torch.ones(120).double(), A @ torch.ones(120).double()):
        found = largest_eigenvalues(lambda v: A @ v, start, 4, tolerance=1e-6, max_basis=12)
        assert found.converged and found.num_products > 12
        torch.testing.assert_close(torch.tensor(found.values).double(), values[:4], rtol=1e-6, atol=0)
        assert max(found.residuals) <= 9e-6
    diagonal = torch.tensor([1.0, 4.0]).double()
    assert largest_eigenvalues(lambda v: diagonal * v, torch.ones(2).double(), 2).values == pytest.approx([4, 1])
    for spectrum in ([2.0] * 8, [1.0] + [5.0] * 7, [5.0] * 2 + [1.0] * 6, [0.0] * 8):
        A = torch.tensor(spectrum).double()
        found = largest_eigenvalues(lambda v, A=A: A * v, torch.ones(8).double(), 3)
        assert found.converged and found.values == pytest.approx(sorted(spectrum)[:-4:-1], abs=1e-12)
    with pytest.raises(ValueError, match="accepted are 1 to 2"):
        largest_eigenvalues(lambda v: v, torch.ones(2), 3)


@pytest.mark.parametrize("largest", [0.3, 78.0])
def test_lanczos_does_not_stop_at_the_null_space(largest):
    """A random start in many dimensions is nearly in the null space, and its products nearly the smallest vector."""
    diagonal = torch.zeros(200_000)
    diagonal[5], diagonal[9] = -345.0, largest
    start = torch.where(torch.rand(len(diagonal), generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    found = largest_eigenvalues(lambda v: diagonal * v, start, 1)
    assert found.converged and found.values == pytest.approx([largest], rel=1e-4)


def signs(n):
    return torch.where(torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("top", [[1.0] * 9, [1.0, 1.0], [1.0, 0.5, 0.5, 0.5]], ids=len)
def test_lanczos_finds_copies_that_the_products_of_one_start_do_not_see(top):
    bulk = 0.3 * torch.rand(200, generator=torch.Generator().manual_seed(1))
    diagonal = torch.cat([torch.tensor(top), bulk, torch.zeros(2000)])
    found = largest_eigenvalues(lambda v: diagonal * v, signs(len(diagonal)), 5)
    assert found.converged and found.values == pytest.approx(diagonal.sort()[0].flip(0)[:5].tolist(), abs=1e-3)


def test_small_eigenvalues_beside_a_large_one_are_exact_to_a_few_percent():
    """lambda_max / lambda_5 of a Hessian with one outlier; a bound relative to lambda_max would allow any value."""
    bulk = torch.rand(2000, generator=torch.Generator().manual_seed(1)) / 100
    diagonal = torch.cat([torch.ones(1), bulk, torch.zeros(8000)])
    found = largest_eigenvalues(lambda v: diagonal * v, signs(len(diagonal)), 5)
    assert found.converged and found.values == pytest.approx(diagonal.sort()[0].flip(0)[:5].tolist(), rel=0.1)


def test_eigenvalues_and_density_of_a_saturated_network_do_not_underflow():
    """A network with huge logits has eigenvalues such as 1e-25, whose squares are 0 in float32."""
    diagonal = torch.cat([torch.linspace(1, 2, 30), torch.zeros(300)])
    start = signs(len(diagonal))
    found = largest_eigenvalues(lambda v: diagonal * 1e-25 * v, start, 3)
    assert found.converged and found.values == pytest.approx([2e-25, 57 / 29 * 1e-25, 56 / 29 * 1e-25], rel=1e-3)
    density = density_of_probes(lambda v: diagonal * 1e-25 * v, [start], 20)
    assert moment(density, 1, len(diagonal)) == pytest.approx(45e-25, rel=1e-4)


def test_asymmetry_is_the_error_of_the_products():
    A, _ = problems.matrix(400)
    units = [torch.randn(400, generator=torch.Generator().manual_seed(s)).double().sign() / 20 for s in (0, 1)]
    assert asymmetry(lambda v: A @ v, *units) < 1e-12
    wrong = (
        A + 0.1 * torch.linalg.matrix_norm(A) * torch.randn(400, 400, generator=torch.Generator().manual_seed(2)) / 400
    )
    assert 0.01 < asymmetry(lambda v: wrong @ v, *units) < 1
    assert asymmetry(lambda v: 0 * v, *units) == 0


def test_too_few_products_are_said_to_be_too_few():
    A, _ = problems.matrix()
    found = largest_eigenvalues(lambda v: A @ v, torch.ones(30).double(), 4, max_products=5)
    assert not found.converged and found.num_products == 5


def test_lanczos_stays_orthogonal_in_float32():
    """Without re-orthogonalisation the largest eigenvalue of a wide spectrum appears several times."""
    values = torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 199)])
    nodes, weights = quadrature(lambda v: values * v, torch.ones(200), 60)
    assert int((nodes > 999).sum()) == 1 and float(weights[nodes > 999].sum()) == pytest.approx(1 / 200, rel=1e-4)


def test_quadrature_is_exact_for_polynomials():
    A, _ = problems.matrix()
    v = torch.linspace(1, 2, 30).double()
    nodes, weights = quadrature(lambda u: A @ u, v, 3)
    power = v / v.norm()
    for order in range(6):
        exact = float(v / v.norm() @ power)
        assert float((weights * nodes**order).sum()) == pytest.approx(exact, rel=1e-9)
        power = A @ power


def test_hutch_is_unbiased_and_its_standard_error_is_true():
    A, values = problems.matrix(60)
    found = [estimate_trace(lambda vs: [A @ v for v in vs], torch.ones(60).double(), 30, seed=s) for s in range(60)]
    errors = torch.tensor([trace.value - float(values.sum()) for trace in found])
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 60**0.5
    claimed = torch.tensor([trace.standard_error for trace in found]).square().mean().sqrt()
    assert 0.7 < float(errors.std() / claimed) < 1.4
    low_rank = torch.diag(torch.tensor([5.0, -3.0] + [0.0] * 58)).double()
    exact = estimate_trace(lambda vs: [low_rank @ v for v in vs], torch.ones(60).double(), 9)
    assert exact.value == pytest.approx(2, abs=1e-9) and exact.standard_error < 1e-9


def test_density_of_random_probes_estimates_the_moments():
    A, values = problems.matrix(60)
    probes = random_signs(40, torch.ones(60).double(), make_generator(0, "density"))
    found = density_of_probes(lambda v: A @ v, list(probes), 20)
    assert float(found.weights.sum()) == pytest.approx(1)
    exact = [float(values.sum()), float(values.square().sum())]
    spread = [2 * ((A**power - torch.diag(torch.diag(A**power))).square().sum() / 40) ** 0.5 for power in (1,)]
    assert abs(moment(found, 1, 60) - exact[0]) < 4 * float(spread[0])
    assert moment(found, 2, 60) == pytest.approx(exact[1], rel=0.3)
    grid, curve = found.smooth(4001)
    assert float(torch.trapezoid(curve, grid)) == pytest.approx(1, abs=1e-3)
    assert 60 * float(torch.trapezoid(curve * grid, grid)) == pytest.approx(moment(found, 1, 60), rel=0.01)


def test_reestimated_statistics_are_those_of_the_examples():
    """One chunk: normalising by re-estimated statistics differs from "train" only in the variance's N / (N - 1)."""
    network = problems.networks()["batchnorm"]
    for module in network:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(50.0)
    loss = problems.mean_loss(network, "reestimate", chunk_size=100)
    x = network[1](examples_flat := problems.examples().inputs.flatten(1))
    assert len(examples_flat) == 14
    unit = (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    logits = network[4](network[3](unit * network[2].weight + network[2].bias))
    exact = problems.cross_entropy(logits, problems.examples().targets)
    assert loss.value(loss.weights) == pytest.approx(exact.item(), rel=1e-12)
    with pytest.raises(ValueError, match="no derivatives"):
        loss.gradient(loss.weights)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_reestimated_statistics_are_means_over_chunks(kind):
    layers = kind(2, track_running_stats=True), nn.Flatten(), nn.Linear(32, 3)
    network, batch = nn.Sequential(*layers).double(), problems.examples()
    loss = problems.mean_loss(network, "reestimate")  # chunks of 5, 5 and 4 examples
    found = loss.value(loss.weights)
    chunks = batch.inputs.tensor_split(3)
    axes = (0, 2, 3) if kind is nn.BatchNorm2d else (2, 3)
    network[0].running_mean.copy_(torch.stack([part.mean((0, 2, 3)) for part in chunks]).mean(0))
    variances = [part.var(axes).reshape(-1, 2).mean(0) for part in chunks]
    network[0].running_var.copy_(torch.stack(variances).mean(0))
    expected = problems.cross_entropy(network.eval()(batch.inputs), batch.targets)
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_scores_of_other_examples_and_of_clones_and_parts():
    network = problems.networks()["conv"]
    loss = problems.mean_loss(network, "eval")
    batch = problems.examples()
    own, other = loss.scores(loss.weights, [Batch(batch.inputs[:4], batch.targets[:4])])
    logits = network.eval()(batch.inputs).detach()
    right = (logits.argmax(1) == batch.targets).double()
    assert own.accuracy == float(right.mean()) and other.accuracy == float(right[:4].mean())
    assert other.loss == pytest.approx(float(problems.cross_entropy(logits[:4], batch.targets[:4])))
    assert loss.part(0, 4).value(loss.weights) == pytest.approx(other.loss)
    loss = problems.mean_loss(network, "train")
    shifted, value = loss.weights + 0.1, loss.value(loss.weights)
    assert loss.clone().value(loss.weights) == value != loss.value(shifted)
    assert loss.value(loss.weights) == value


@pytest.mark.parametrize("wrap", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_norm_is_refused_since_its_second_derivative_in_torch_is_wrong(wrap):
    v, g = torch.eye(3, 4).double().requires_grad_() + 1, torch.ones(3, 1).double().requires_grad_()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):  # once this passes, the refusal can go
        torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, 0).square().square(), (v, g))
    network = nn.Sequential(nn.Flatten(), wrap(nn.Linear(32, 3).double()))
    with torch.no_grad():
        network(problems.examples().inputs)
    loss = problems.mean_loss(network)
    with pytest.raises(TrainingError, match=r"second derivatives.*weight_norm is wrong"):
        loss.hessian_products([loss.weights])


def test_a_product_that_is_not_finite_is_an_error():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.power = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x + self.power.abs().pow(1.5)

    loss = problems.mean_loss(nn.Sequential(nn.Flatten(), nn.Linear(32, 3), Layer()).double())
    assert bool(loss.gradient(loss.weights)[1].isfinite().all())
    with pytest.raises(TrainingError, match="product is not finite"):
        loss.hessian_products([loss.weights])


class Noisy(nn.Module):
    """Dropout in every mode."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


def test_a_network_that_is_random_in_evaluation_mode_is_refused():
    network = nn.Sequential(nn.Flatten(), Noisy(), nn.Linear(32, 3)).double()
    with pytest.raises(TrainingError, match="its loss is random"):
        problems.mean_loss(network).require_repeatable()
    for network in problems.networks().values():
        for mode in ("train", "eval", "reestimate"):
            problems.mean_loss(network, mode).require_repeatable()


def test_fixed_state_is_what_the_loss_depends_on_besides_the_weights():
    network = problems.networks()["batchnorm"]
    network[1].weight.requires_grad_(False)
    statistics = {"2.running_mean", "2.running_var"}
    for mode in ("train", "reestimate"):
        assert set(problems.mean_loss(network, mode).fixed_state) == {"1.weight"}
    assert set(problems.mean_loss(network, "eval").fixed_state) == {"1.weight"} | statistics
    loss = problems.mean_loss(network)
    assert loss.shares_examples(problems.mean_loss(network, "eval"))
    batch = problems.examples()
    assert not loss.shares_examples(problems.mean_loss(network, batch=Batch(batch.inputs, batch.targets.flip(0))))
