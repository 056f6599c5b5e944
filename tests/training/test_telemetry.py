"""Telemetry: what it logs equals an independent computation, and it changes no bit of the run."""

import json

import pytest
import torch
from torch import nn

from sam_runner.geometry.lanczos import Eigenvalues
from sam_runner.runs.folder import read_config, write_config
from sam_runner.runs.load import restore_run
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.training import telemetry
from sam_runner.training.telemetry import Telemetry, measure_step
from sam_runner.utils.errors import InputError
from tests.helpers import config_of, read_rows, train_tiny
from tests.oracles.awkward_networks import Once

TELEMETRY = ("telemetry.every=2", "telemetry.curvature_epochs=1")


def rows(folder, tag):
    return [row for row in read_rows(folder) if tag in row]


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sam", "optimizer.m=8", "ema_decay=0.9"),
        ("optimizer=sam", "optimizer.ascent_steps=2", "accumulate=2"),
        ("optimizer=sam", "optimizer.second_order=true"),
        ("optimizer=sgd",),
    ],
    ids=lambda words: words[-1],
)
def test_a_run_has_the_same_bits_with_and_without(tmp_path, overrides):
    measured = TELEMETRY[1:] if overrides == ("optimizer=sgd",) else TELEMETRY
    plain = restore_run(train_tiny(tmp_path / "plain", "epochs=1", *overrides), "last")
    other = restore_run(train_tiny(tmp_path / "measured", "epochs=1", *overrides, *measured), "last")
    for (name, one), two in zip(plain.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    states = [run.step.optimizer.state_dict()["state"] for run in (plain, other)]
    assert all(torch.equal(states[0][k]["momentum_buffer"], states[1][k]["momentum_buffer"]) for k in states[0])
    found = rows(tmp_path / "measured", "telemetry/cosine")
    assert [row["step"] for row in found] == ([] if overrides == ("optimizer=sgd",) else [2, 4, 6])
    for row in found:
        shares = [value for tag, value in row.items() if "eps_share" in tag]
        assert sum(shares) == pytest.approx(1) and len(shares) > 1
        assert -1 <= row["telemetry/cosine"] < 1
    assert [row["epoch"] for row in rows(tmp_path / "measured", "telemetry/lambda_max")] == [1]
    configs = [read_config(tmp_path / name) for name in ("plain", "measured")]
    assert configs[0].fingerprint() == configs[1].fingerprint()
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("plain", "measured")]
    kept = {tag: value for tag, value in results[1]["final"].items() if not tag.startswith("telemetry")}
    assert kept == results[0]["final"]


@pytest.mark.parametrize(
    ("every", "measurable", "expected"),
    [
        (2, {1, 2, 3, 4, 5, 6, 7}, [2, 4, 6]),
        (2, {1, 3, 5, 7}, [3, 5, 7]),  # every second step has one pass
        (3, {1, 2, 5, 9, 10}, [5, 9]),  # steps 3 and 4, 6 to 8 are left out; one measurement stands for 6
        (4, {11, 12}, [11, 12]),
    ],
)
def test_a_measurement_stays_due_until_a_step_can_be_measured(every, measurable, expected):
    telemetry, measured, found = Telemetry(every=every), 0, []
    for step in range(1, 13):
        if telemetry.measures_step(step, measured) and step in measurable:
            measured = step
            found.append(step)
    assert found == expected


INTERVAL = ("optimizer=interval", "optimizer.interval=4", "telemetry.every=2", "log_every=1")


def test_steps_with_one_pass_are_neither_measured_nor_part_of_the_sharpness(tmp_path):
    """Steps 1, 5 and 9 have a second pass."""
    train_tiny(tmp_path / "run", *INTERVAL)
    assert [row["step"] for row in rows(tmp_path / "run", "telemetry/cosine")] == [5, 9]
    logged = [row for row in rows(tmp_path / "run", "train/loss_gap") if "train/accuracy" in row]
    assert [row["step"] for row in logged] == [1, 5, 6, 9, 12]  # 6 and 12 end epochs
    assert logged[2]["train/loss_gap"] == pytest.approx((logged[0]["train/loss_gap"] + logged[1]["train/loss_gap"]) / 2)
    assert all(row["train/eps_norm"] == pytest.approx(0.05, rel=1e-5) for row in logged)


@pytest.mark.parametrize("end", [2, 5, 6, 8])
def test_a_run_that_is_made_longer_has_the_rows_of_a_long_one(tmp_path, end):
    """The end of a run can be at a measured step, within an epoch, and where a measurement is due."""
    constant = ("schedule=constant", *INTERVAL)
    train_tiny(tmp_path / "long", *constant)
    train_tiny(tmp_path / "run", *constant, f"max_steps={end}")
    train_tiny(tmp_path / "run", *constant)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "long" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("m", [None, 2])
def test_measurements_equal_a_computation_by_hand(m):
    """Least squares in float64: g, eps and g_SAM of each group in closed form."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(6, 3, generator=generator).double()
    y = torch.randn(6, 1, generator=generator).double()
    model = nn.Sequential(nn.Linear(3, 1)).double()
    W, b = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    objective = Objective(model, lambda out, target: (out - target).square().mean() / 2)
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=0.1), group_size=m)
    _, found = measure_step(step, Batch(X, y), 0.3, 0)
    inputs = torch.cat([X, torch.ones(6, 1).double()], 1)
    w, g, g_sam = torch.cat([W.flatten(), b]), 0, 0
    groups = [slice(0, 6)] if m is None else [slice(0, 2), slice(2, 4), slice(4, 6)]
    for group in groups:
        A, target = inputs[group], y[group, 0]

        def slope(at, A=A, target=target):
            return A.T @ (A @ at - target) / len(A)

        eps = 0.3 * slope(w) / slope(w).norm()
        g, g_sam = g + slope(w) / len(groups), g_sam + slope(w + eps) / len(groups)
    cosine = float(g @ g_sam / g.norm() / g_sam.norm())
    rest = g_sam - (g_sam @ g) / (g @ g) * g
    assert found["telemetry/cosine"] == pytest.approx(cosine, rel=1e-12)
    assert found["telemetry/orthogonal"] == pytest.approx(float(rest.norm() / g_sam.norm()), rel=1e-9)
    assert found["telemetry/eps_share/0"] == pytest.approx(1)


def test_shares_of_modules_are_those_of_eps():
    """Two factors a and b of one product: eps has the direction of the gradient, so its shares are those of g."""

    class Factor(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))

        def forward(self, x):
            return x * self.weight

    model = nn.Sequential(Factor(2.0), Factor(3.0))
    objective = Objective(model, lambda out, target: (out - target).mean())
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.ones(1, 1, dtype=torch.float64)
    _, found = measure_step(step, Batch(x, x), 0.1, 0)  # g = (3, 2)
    assert found["telemetry/eps_share/0"] == pytest.approx(9 / 13, rel=1e-12)
    assert found["telemetry/eps_share/1"] == pytest.approx(4 / 13, rel=1e-12)


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(InputError, match="one pass"):
        config_of("optimizer=sgd", "telemetry.every=5")
    with pytest.raises(InputError, match="one pass"):
        config_of("optimizer=momentum_sam", "telemetry.every=5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"telemetry.curvature_epochs measures in one process.*sync_batchnorm"):
        config_of("optimizer=sam", "telemetry.curvature_epochs=1", "sync_batchnorm=true")
    with pytest.raises(InputError, match=r"does not work with compile=capture\n  use compile=off"):
        config_of("optimizer=sam", "telemetry.every=5", "compile=capture", "optimizer.second_order=true")
    config_of("optimizer=sam", "telemetry.every=5", "compile=off", "optimizer.second_order=true")


def test_a_run_from_before_the_setting_is_read(tmp_path):
    """A setting without an effect on the numbers may be missing in config.yaml."""
    config = config_of("optimizer=sam")
    write_config(tmp_path, config)
    text = (tmp_path / "config.yaml").read_text()
    before = text[: text.index("telemetry:")] + text[text.index("checkpoint:") :]
    (tmp_path / "config.yaml").write_text(before)
    assert read_config(tmp_path) == config


def test_a_network_without_second_derivatives_trains_on(caplog):
    """lambda_max is left out with a warning."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), Once())
    batch = Batch(torch.ones(6, 1, 2, 2), torch.arange(6) % 3)
    assert Telemetry(curvature_epochs=1, config=config_of(), subset=batch).lambda_max(model) == {}
    assert "no lambda_max: a Hessian-vector product needs second derivatives" in caplog.text


def test_a_lambda_max_that_has_not_converged_is_told(caplog, monkeypatch):
    found = Eigenvalues([1.0], [0.25], 300, converged=False)
    monkeypatch.setattr(telemetry, "largest_eigenvalues", lambda *args, **options: found)
    batch = Batch(torch.ones(6, 1, 2, 2), torch.arange(6) % 3)
    measured = Telemetry(curvature_epochs=1, config=config_of(), subset=batch)
    assert measured.lambda_max(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))) == {"telemetry/lambda_max": 1.0}
    assert "lambda_max is exact to 0.25 only" in caplog.text

    class Noisy(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x)

    random = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), Noisy())
    caplog.clear()
    assert measured.lambda_max(random) == {} and "its loss is random" in caplog.text
