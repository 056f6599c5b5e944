"""Networks and optimizers of one's own through whole runs: they work, or one line says why not."""

import copy
import math
import re
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import sam_runner
from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.distributed.sharding import load_full_model_state
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.inference.evaluation import evaluate_runs
from sam_runner.models.build import build_average, require_new_weights
from sam_runner.runs.load import restore_run
from sam_runner.runs.remarks import list_remarks
from sam_runner.runs.start import start_run
from sam_runner.sam.batch import Batch
from sam_runner.training.builders.run import build_run
from sam_runner.training.evaluation import evaluate
from sam_runner.training.loop import _train_step
from sam_runner.training.metrics import TrainMeter
from sam_runner.training.state import Progress
from sam_runner.utils.errors import InputError, TrainingError
from tests.helpers import TINY, compose_config

NAME = "case_networks"
SIZE = 64


def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, num_classes))


def grey(num_classes):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, num_classes))


def coloured(num_classes):
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, num_classes))


def too_small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(49, num_classes))


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, num_classes))


class Answer(nn.Module):
    def __init__(self, num_classes, answer):
        super().__init__()
        self.network, self.answer = linear(num_classes), answer

    def forward(self, images):
        return self.answer(self.network(images))


def in_a_dictionary(num_classes):
    return Answer(num_classes, lambda logits: {"logits": logits, "features": logits.relu()})


def in_a_tuple(num_classes):
    return Answer(num_classes, lambda logits: (logits, logits.relu()))


def in_a_strange_dictionary(num_classes):
    return Answer(num_classes, lambda logits: {"scores": logits})


def normalised(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


def old_weight_norm(num_classes):
    return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(SIZE, num_classes)))


class Root(nn.Module):
    """Logits whose derivative by `scale` is infinite, because `scale` is 0."""

    def __init__(self, num_classes):
        super().__init__()
        self.network, self.scale = linear(num_classes), nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.network(images) + self.scale.abs().sqrt()


class Turned(nn.Module):
    """Turns features by fixed angles, as rotary embeddings do; then the network is one linear map."""

    def __init__(self, num_classes):
        super().__init__()
        self.network = linear(num_classes)
        self.register_buffer("angles", torch.polar(torch.ones(SIZE // 2), torch.linspace(0, 3, SIZE // 2)))

    def forward(self, images):
        turned = torch.view_as_complex(images.reshape(len(images), -1, 2)) * self.angles
        return self.network(torch.view_as_real(turned))


class Volumes(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.flat, self.deep = nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 2)
        self.head = nn.Linear(2, num_classes)

    def forward(self, images):
        return self.head(self.deep(self.flat(images)[:, None]).mean((2, 3, 4)))


class Viewing(nn.Module):
    """Flattens as older code does, which needs NCHW."""

    def __init__(self, num_classes):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2 * 36, num_classes)

    def forward(self, images):
        features = self.features(images)
        return self.head(features.view(len(features), -1))


class Double(nn.Module):
    def __init__(self, num_classes, *, casts):
        super().__init__()
        self.network, self.casts = linear(num_classes).double(), casts

    def forward(self, images):
        return self.network(images.double() if self.casts else images)


def double(num_classes):
    return Double(num_classes, casts=False)


def casting_to_double(num_classes):
    return Double(num_classes, casts=True)


class Neighbours(nn.Module):
    """Mixes pixels by a sparse matrix."""

    def __init__(self, num_classes, *, persistent=False):
        super().__init__()
        self.network, self.bn = linear(num_classes), nn.BatchNorm1d(SIZE)
        self.register_buffer("matrix", torch.eye(SIZE).to_sparse(), persistent=persistent)

    def forward(self, images):
        return self.network(self.bn(torch.sparse.mm(self.matrix, images.flatten(1).T).T))


def stored_neighbours(num_classes):
    return Neighbours(num_classes, persistent=True)


class Remembering(nn.Module):
    """Subtracts the mean of the images that it has seen; the memory grows."""

    def __init__(self, num_classes):
        super().__init__()
        self.network = linear(num_classes)
        self.register_buffer("memory", torch.zeros(0, SIZE))

    def forward(self, images):
        if self.training:
            self.memory = torch.cat([self.memory, images.flatten(1).detach()])
        return self.network(images.flatten(1) - (self.memory.mean(0) if len(self.memory) else 0))


def test_a_buffer_with_two_names_keeps_them_where_its_shape_has_changed():
    def two_names(length):
        model = nn.Module()
        model.register_buffer("first", torch.arange(length))
        model.register_buffer("second", model.first)
        return model

    model = two_names(2)
    load_full_model_state(model, two_names(5).state_dict())
    assert model.first is model.second and torch.equal(model.first, torch.arange(5))


class Forgetting(nn.Module):
    """Subtracts a running mean of its inputs, which checkpoints do not save."""

    def __init__(self, num_classes):
        super().__init__()
        self.network, self.mean = linear(num_classes), torch.zeros(SIZE)

    def forward(self, images):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * images.detach().flatten(1).mean(0)
        return self.network(images.flatten(1) - 10 * self.mean)


class Counting(nn.Module):
    """A network whose state has a number of NumPy."""

    def __init__(self, num_classes):
        super().__init__()
        self.network, self.scale = linear(num_classes), np.float64(2)

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def forward(self, images):
        return self.network(images)


def scripted(num_classes):
    return torch.jit.script(normalised(num_classes))


def partly_asleep(num_classes):
    model = normalised(num_classes)
    model[2].eval()
    return model


def wholly_asleep(num_classes):
    return normalised(num_classes).eval()


class KeptAsleep(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(*normalised(num_classes))
        self[2].eval()

    def train(self, mode=True):
        super().train(mode)
        self[2].eval()
        return self


BODY = nn.Linear(SIZE, 4)


def with_a_common_body(num_classes, *, copies=False):
    return nn.Sequential(nn.Flatten(), copy.deepcopy(BODY) if copies else BODY, nn.Linear(4, num_classes))


def with_a_copied_body(num_classes):
    return with_a_common_body(num_classes, copies=True)


def complex_weights(num_classes):
    model = linear(num_classes)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    return model


def overlapping(num_classes):
    model = linear(num_classes)
    model.transposed = nn.Parameter(model[1].weight.t())
    return model


def frozen(num_classes):
    return linear(num_classes).requires_grad_(False)


class Keeping(nn.Module):
    """A network that keeps a table as long as its longest input."""

    def __init__(self, num_classes):
        super().__init__()
        self.network, self.table = linear(num_classes), torch.zeros(0, 1)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images):
        if len(self.table) < len(images):
            self.table = torch.ones(len(images), 1)
        return self.network(images) * (self.gain * self.table[: len(images)])


class ScheduleFree(torch.optim.Optimizer):
    """SGD that evaluates the running mean of its weights, as schedule-free optimizers do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.is_training = False

    def train(self):
        if not self.is_training:
            self._exchange()
        self.is_training = True

    def eval(self):
        if self.is_training:
            self._exchange()
        self.is_training = False

    def _exchange(self):
        for group in self.param_groups:
            for param in group["params"]:
                mean = self.state[param].get("mean")
                if mean is not None:
                    self.state[param]["mean"], param.data = param.data, mean

    @torch.no_grad()
    def step(self, closure=None):
        assert self.is_training, "call optimizer.train() first"
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * param.grad
                self.state[param].setdefault("mean", param.clone()).lerp_(param, 0.1)


class WithoutLr(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)


class WithStepSize(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"step_size": lr})

    def step(self, closure=None):
        pass


class WithNumpy(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            self.state[param]["norm"] = np.float64(1)
        return super().step()


class HandsOn(torch.optim.AdamW):
    def __init__(self, params, **options):
        super().__init__(params, **options)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(lambda: closure() + 0)


class NeedsHessian(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                torch.autograd.grad(param.grad.sum(), param)


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    module = ModuleType(NAME)
    for name, value in globals().items():
        if getattr(value, "__module__", None) == __name__ and not name.startswith("test_"):
            value.__module__ = NAME
            setattr(module, name, value)
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", NAME)
    yield
    for name in vars(module):
        if getattr(vars(module)[name], "__module__", None) == NAME:
            vars(module)[name].__module__ = __name__


def config_of_own(model="linear", *words, base=None):
    settings = plain_settings(compose_config(*TINY, "optimizer=sam", *words))
    settings["model"] = {"_target_": f"{NAME}.{model}"}
    if base:
        settings["optimizer"]["base"] = {"_target_": base if "." in base else f"{NAME}.{base}"}
        settings["weight_decay"] = settings["optimizer"]["base"]["weight_decay"] = 0.0
        settings["lr"] = settings["optimizer"]["base"]["lr"] = 0.1
    return load_experiment(settings)


def train(folder, *arguments, **options):
    config = replace(config_of_own(*arguments, **options), run_dir=str(folder))
    start_run(config, ())
    return config


@pytest.mark.parametrize(
    ("model", "words"),
    [
        *[(name, []) for name in ("grey", "lazy", "in_a_dictionary", "in_a_tuple", "Keeping", "Volumes", "Viewing")],
        ("Remembering", []),
        ("Turned", ["precision=fp32", "ema_decay=0.9"]),
        ("Neighbours", ["precision=fp32", "on_nonfinite=skip", "ema_decay=0.9"]),
        ("double", ["precision=fp32"]),
        ("double", ["precision=fp64"]),
        ("casting_to_double", ["precision=fp64"]),
        ("wholly_asleep", []),
    ],
)
def test_networks_that_train_and_are_evaluated_again(model, words, tmp_path):
    train(tmp_path / "run", model, *words)
    final = sam_runner.load_run(tmp_path / "run").final
    values = evaluate(restore_run(tmp_path / "run", "last"))
    assert values == {name: final[name] for name in values}


@pytest.mark.parametrize(("model", "is_faster"), [("Viewing", False), ("grey", True)])
def test_channels_last_is_chosen_if_the_network_works_with_it(model, is_faster):
    run = build_run(config_of_own(model))
    weights = next(param for param in run.model.parameters() if param.ndim == 4)
    assert run.train.format_options()["channels_last"] == is_faster
    assert weights.to(memory_format=torch.channels_last).stride() == weights.stride() or not is_faster
    if not is_faster:
        with pytest.raises(InputError, match=r"channels_last=true does not work with case_networks.Viewing: view size"):
            build_run(config_of_own(model, "channels_last=true"))


def test_a_second_run_does_not_train_the_weights_of_the_first():
    for model in ("with_a_common_body", "with_a_copied_body", "with_a_copied_body"):
        require_new_weights(build_run(config_of_own(model)).model, model)
    again = build_run(config_of_own("with_a_common_body"))  # as an evaluation does
    with pytest.raises(InputError, match=r"earlier run of this process has trained \(1.weight\)[\s\S]*copy.deepcopy"):
        require_new_weights(again.model, "with_a_common_body")


@pytest.mark.parametrize(("model", "is_warned"), [("Forgetting", True), ("Remembering", False)])
def test_metrics_that_differ_from_the_logged_ones_are_warned_of(model, is_warned, tmp_path, caplog):
    train(tmp_path / "run", model)
    evaluate_runs([tmp_path / "run"], "last")
    assert ("state of the network that checkpoints do not save" in caplog.text) == is_warned


def test_complex_buffers_keep_their_imaginary_part():
    run = build_run(config_of_own("Turned", "precision=fp64"))
    angles = torch.polar(torch.ones(SIZE // 2), torch.linspace(0, 3, SIZE // 2))
    assert torch.equal(run.model.angles, angles.to(torch.complex128))
    examples = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    loss = MeanLoss(run.model, nn.functional.cross_entropy, examples, chunk_size=2)
    assert torch.equal(loss._model.angles, angles)


def test_the_moving_average_of_whole_numbers_is_their_last_value():
    model = linear(3)
    model.register_buffer("index", torch.arange(100))
    average = build_average(model, 0.9)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module.index, model.index)
    model.index += 1
    average.update_parameters(model)
    assert torch.equal(average.module.index, model.index)


@pytest.mark.parametrize(
    ("model", "is_warned"),
    [("partly_asleep", True), ("wholly_asleep", False), ("KeptAsleep", False), ("normalised", False)],
)
def test_parts_in_evaluation_mode_that_training_wakes_are_warned_of(model, is_warned, caplog):
    run = build_run(config_of_own(model))
    assert ("2 of model case_networks.partly_asleep was in evaluation mode" in caplog.text) == is_warned
    assert run.model.training


def test_old_weight_norm_has_a_moving_average():
    run = build_run(config_of_own("old_weight_norm", "ema_decay=0.9"))
    assert {"test/accuracy", "test_ema/accuracy"} <= evaluate(run).keys()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("coloured", "is for 3 channels, the images have 1"),
        ("too_small", r"does not accept inputs of shape \(1, 8, 8\): .*shapes cannot be multiplied"),
        ("complex_weights", r"complex weights \(phase\)"),
        ("frozen", "no parameter that requires a gradient"),
        ("overlapping", r"model case_networks.overlapping: transposed and 1.weight overlap in memory: use one"),
        ("casting_to_double", r"same dtype[\s\S]*precision=fp64 makes both float64"),
        ("stored_neighbours", r"a checkpoint cannot hold: matrix: torch.Tensor, .*sparse_coo[\s\S]*persistent=False"),
        ("Counting", r"a checkpoint cannot hold: _extra_state: scale: numpy.float64"),
        ("scripted", "has buffers in a module of TorchScript"),
    ],
)
def test_networks_that_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        build_run(config_of_own(model))


def test_outputs_without_logits_are_refused(tmp_path):
    with pytest.raises(InputError, match=r'the model returns dict, not logits[\s\S]*key "logits"'):
        train(tmp_path / "run", "in_a_strange_dictionary")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("NeedsClosure", "with gradients alone"),
        ("NeedsHessian", "with gradients alone"),
        ("WithoutLr", r"WithoutLr has no argument lr\n  add it"),
        ("WithStepSize", r"parameter groups without lr\n  keep"),
        ("WithNumpy", r"a checkpoint cannot hold: state: 0: norm: numpy.float64"),
        ("torch.optim.LBFGS", "closure"),
        ("torch.optim.SparseAdam", "sparse gradients"),
        ("torch.optim.Muon", "Muon only supports 2D parameters"),
    ],
)
def test_optimizers_that_are_refused(base, message):
    with pytest.raises(InputError, match=message):
        build_run(config_of_own("linear", base=base))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_an_optimizer_that_hands_its_arguments_on_gets_the_weight_decay(weight_decay):
    config = config_of_own("linear", base="HandsOn")
    base = replace(config.optimizer.base, weight_decay=weight_decay)
    run = build_run(replace(config, optimizer=replace(config.optimizer, base=base)))
    assert [group["weight_decay"] for group in run.step.optimizer.param_groups] == [weight_decay]


def test_a_schedule_free_optimizer_is_evaluated_at_its_own_weights_and_trained_at_the_others(tmp_path):
    train(tmp_path / "run", "linear", "telemetry.curvature_epochs=1", base="ScheduleFree")
    run = restore_run(tmp_path / "run", "last")
    logged = sam_runner.load_run(tmp_path / "run").final["telemetry/lambda_max"]
    param = next(param for param in run.model.parameters())
    mean, weights = run.step.optimizer.state[param]["mean"].clone(), param.detach().clone()
    seen = []
    run.model.register_forward_hook(lambda *_: seen.append(param.detach().clone()))
    evaluate(run)
    assert not torch.equal(mean, weights)
    assert torch.equal(seen[0], mean)
    assert torch.equal(param, weights)
    network = sam_runner.load_run(tmp_path / "run").model()
    assert torch.equal(next(network.parameters()), mean)
    assert run.telemetry.lambda_max(network)["telemetry/lambda_max"] == logged


@pytest.mark.parametrize(
    ("model", "base", "words", "is_warned"),
    [
        ("normalised", "ScheduleFree", [], True),
        ("normalised", "ScheduleFree", ["freeze_batchnorm_stats=true"], False),
        ("linear", "ScheduleFree", [], False),
        ("normalised", "torch.optim.SGD", [], False),
    ],
)
def test_running_statistics_of_other_weights_than_the_evaluated_ones_are_warned_of(model, base, words, is_warned):
    config = config_of_own(model, *words, base=base)
    remarks = list_remarks(build_run(config), config, ["lr=0.1"])
    assert [text.partition(",")[0] for text in remarks] == (
        ["ScheduleFree evaluates other weights than it trains"] if is_warned else []
    )


def test_a_run_in_tf32_is_restored_on_a_cpu(tmp_path):
    folder = tmp_path / "run"
    train(folder, "linear")
    text = (folder / "config.yaml").read_text()
    gpu_text = re.sub("device: cpu", "device: cuda", re.sub(r"precision: \w+", "precision: tf32", text))
    assert gpu_text != text
    (folder / "config.yaml").write_text(gpu_text)
    assert restore_run(folder, "last", "cpu").step.objective.autocast_dtype is None


@pytest.mark.parametrize(
    ("model", "words", "refused"),
    [
        ("normalised", ["data.num_train=97", "data.drop_last=false"], True),  # the last batch has one image
        ("normalised", ["data.num_train=97", "data.drop_last=true"], False),
        ("normalised", ["optimizer.m=5"], False),  # 5, 5, 5, 1: split evenly
        ("normalised", ["optimizer.m=1"], True),
        ("normalised", ["accumulate=16"], True),
        ("normalised", ["data.num_train=99", "data.drop_last=false", "optimizer.m=2"], True),  # 2, 1
        ("linear", ["data.num_train=97", "data.drop_last=false", "optimizer.m=1"], False),
    ],
)
def test_parts_of_one_image_are_refused_in_the_plan_if_batch_norm_cannot_normalise_them(model, words, refused):
    config = config_of_own(model, *words)
    if refused:
        with pytest.raises(InputError, match="batch norm cannot normalise one image"):
            build_run(config)
    else:
        build_run(config)


@pytest.mark.parametrize(("optimizer", "name"), [("sam", "the gradient at w"), ("sgd", "the final gradient")])
def test_the_message_names_the_first_number_that_is_not_finite(optimizer, name):
    """With SAM a gradient at w that is not finite makes w + eps and its loss NaN, which is not the cause."""
    run, progress = build_run(config_of_own("Root", f"optimizer={optimizer}", "precision=fp32")), Progress()
    meter = TrainMeter(run.step.objective.device, progress.window_sums, run.context)
    with pytest.raises(TrainingError, match=f"^{name} is not finite at step 1"):
        _train_step(run, meter, next(run.train.epoch(0)), progress)


def test_the_moving_average_stays_in_a_step_that_is_left_out(monkeypatch):
    run, progress = build_run(config_of_own("linear", "ema_decay=0.5", "on_nonfinite=skip")), Progress()
    meter, batches = TrainMeter(run.step.objective.device, progress.window_sums, run.context), run.train.epoch(0)
    average = next(run.ema.module.parameters())
    weights = next(run.model.parameters())
    _train_step(run, meter, next(batches), progress)
    expected = weights.detach().clone()
    assert torch.equal(average, expected)
    loss = run.step.objective._loss
    monkeypatch.setattr(run.step.objective, "_loss", lambda *arguments: loss(*arguments) * math.inf)
    with torch.no_grad():
        weights += 1  # so that a movement shows
    _train_step(run, meter, next(batches), progress)
    assert torch.equal(average, expected)
    monkeypatch.undo()
    _train_step(run, meter, next(batches), progress)
    assert torch.allclose(average, (expected + weights) / 2)
