"""Any model, any loss: structures of inputs, targets and outputs, against plain references in float64."""

import copy
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch, batch_signature, join_outputs
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.objective import Objective, call_model
from sam_runner.sam.step import SamStep
from tests.oracles.plain_sam import sam_weights

COUNT, LENGTH, WORDS, LR = 6, 5, 11, 0.3


class LanguageModel(nn.Module):
    """A causal transformer; returns logits and its own loss, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(WORDS, 8), nn.Embedding(LENGTH, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, WORDS)

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        hidden = self.words(input_ids) + self.places(torch.arange(length))
        hidden = self.block(hidden, src_mask=future, src_key_padding_mask=attention_mask == 0)
        logits = self.head(hidden)
        counts = attention_mask[:, 1:].to(logits.dtype)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
        return {"logits": logits, "loss": ((losses * counts).sum(1) / counts.sum(1)).mean()}


class Regression(nn.Module):
    """Two inputs, a mean and a log-variance as outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(3, 7), nn.Linear(2, 7), nn.Linear(7, 2)

    def forward(self, first, second):
        both = self.head(torch.tanh(self.first(first) + self.second(second)))
        return both[:, 0], both[:, 1]


def own_loss(outputs, _):
    return outputs["loss"]


def gaussian(outputs, targets):
    mean, log_variance = outputs
    return (log_variance + (targets["y"] - mean) ** 2 / log_variance.exp()).mean() / 2


def text(draws):
    """Sequences of different lengths: every example has at least two words."""
    lengths = torch.randint(2, LENGTH + 1, (COUNT, 1), generator=draws)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": torch.randint(0, WORDS, (COUNT, LENGTH), generator=draws), "attention_mask": mask}, None


def points(draws):
    def normal(*shape):
        return torch.randn(COUNT, *shape, generator=draws, dtype=torch.float64)

    return (normal(3), normal(2)), {"y": normal()}


CASES = {"language model": (LanguageModel, own_loss, text), "regression": (Regression, gaussian, points)}


@pytest.fixture(params=CASES)
def case(request):
    make, loss, draw = CASES[request.param]
    draws = torch.Generator().manual_seed(1)
    return make().double(), loss, [draw(draws) for _ in range(4)]


def reference(model, loss, pairs, rho, size):
    """Return the weights after the same steps by `sam_weights`, with groups sliced here."""
    batches = []
    for inputs, targets in pairs:
        cut = slice_of(inputs, targets)
        ends = range(0, COUNT, size)
        batches.append([(cut(start, start + size), len(range(COUNT)[start : start + size])) for start in ends])

    def of_weights(weights, inputs, targets):
        arguments = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        return loss(torch.func.functional_call(model, weights, *arguments), targets)

    return sam_weights(model, of_weights, batches, rho=rho, lr=LR)


def slice_of(inputs, targets):
    def cut(start, end):
        if isinstance(inputs, dict):
            return {name: tensor[start:end] for name, tensor in inputs.items()}, None
        return tuple(tensor[start:end] for tensor in inputs), {"y": targets["y"][start:end]}

    return cut


def train(model, loss, pairs, rho, *, wrap=lambda step: step, fused=None, group_size=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=fused)
    step = wrap(SamStep(Objective(model, loss, batch_size=COUNT, **options), optimizer, group_size=group_size))
    stats = [step(Batch(*pair), rho) for pair in pairs]
    return torch.cat([param.detach().flatten() for param in model.parameters()]), stats


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("rho", [0.1, 0.7])
def test_training_equals_a_plain_reference(case, group_size, num_chunks, rho):
    model, loss, pairs = case
    expected = reference(copy.deepcopy(model), loss, pairs, rho, group_size or COUNT)
    weights, stats = train(model, loss, pairs, rho, group_size=group_size, num_chunks=num_chunks)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-10)
    assert all(entry.loss_perturbed > entry.loss for entry in stats)


def test_rho_zero_is_the_base_optimizer_to_the_bit(case):
    model, loss, pairs = case
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=LR)
    for inputs, targets in pairs:
        optimizer.zero_grad()
        outputs = plain(**inputs) if isinstance(inputs, dict) else plain(*inputs)
        loss(outputs, targets).backward()
        optimizer.step()
    weights, _ = train(model, loss, pairs, 0.0)
    assert torch.equal(weights, torch.cat([param.detach().flatten() for param in plain.parameters()]))


@pytest.mark.parametrize("options", [{}, {"num_chunks": 2}, {"group_size": 4}])
def test_outputs_have_the_structure_of_the_model_and_the_order_of_the_batch(case, options):
    model, loss, pairs = case
    expected = call_model(copy.deepcopy(model), pairs[0][0])
    _, (stats,) = train(model, loss, pairs[:1], 0.1, **options)
    if isinstance(expected, dict):
        assert torch.allclose(stats.outputs["logits"], expected["logits"])
        assert float(stats.outputs["loss"]) == pytest.approx(expected["loss"].item(), rel=1e-12)
    else:
        assert all(torch.allclose(a, b) for a, b in zip(stats.outputs, expected, strict=True))
        assert not any(output.requires_grad for output in stats.outputs)


def test_captured_steps_copy_the_whole_structure(case):
    model, loss, pairs = case
    twin = copy.deepcopy(model)
    pairs = pairs * 2
    recorded = []

    def wrap(step):
        recorded.append(CapturedStep(step, EagerRecorder()))
        return recorded[0]

    weights, _ = train(model, loss, pairs, 0.1, wrap=wrap, fused=True)
    expected, _ = train(twin, loss, pairs, 0.1, fused=True)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-6)
    assert len(recorded[0]._recordings) == 1


def test_floating_point_outputs_reach_the_loss_in_float32_and_others_unchanged():
    seen = []

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs):
            logits = self.layer(inputs)
            return {"logits": logits, "prediction": [logits.argmax(1)], "note": "text"}

    def loss(outputs, targets):
        seen.append((outputs["logits"].dtype, outputs["prediction"][0].dtype, outputs["note"]))
        return F.cross_entropy(outputs["logits"], targets)

    model = Half()
    objective = Objective(model, loss, autocast_dtype=torch.bfloat16)
    SamStep(objective, torch.optim.SGD(model.parameters()))(Batch(torch.randn(4, 3), torch.zeros(4).long()), 0.1)
    assert seen == [(torch.float32, torch.int64, "text")] * 2


def test_a_loss_for_each_example_is_refused():
    model = nn.Linear(3, 2)
    objective = Objective(model, lambda outputs, _: outputs.sum(1))
    with pytest.raises(ValueError, match=r"0-dim tensor.*shape \(4,\)"):
        SamStep(objective, torch.optim.SGD(model.parameters()))(Batch(torch.randn(4, 3), None), 0.1)


def test_how_the_model_is_called():
    def model(*arguments, **named):
        return arguments, named

    assert call_model(model, 1) == ((1,), {})
    assert call_model(model, [1, 2]) == (([1, 2],), {})
    assert call_model(model, (1, 2)) == ((1, 2), {})
    assert call_model(model, {"a": 1}) == ((), {"a": 1})
    assert call_model(model, ({"a": 1},)) == (({"a": 1},), {})


def test_a_batch_is_split_along_the_first_axis_of_every_tensor():
    inputs = {"a": torch.arange(5), "b": [torch.arange(10).view(5, 2), "same"]}
    parts = Batch(inputs, None, weight=0.5).split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.weight for part in parts] == [1.0] * 3
    assert parts[1].inputs["a"].tolist() == [2, 3]
    assert parts[2].inputs["b"][0].tolist() == [[8, 9]]
    assert all(part.inputs["b"][1] == "same" and part.targets is None for part in parts)
    whole = Batch(inputs, None)
    assert whole.split(None) == [whole] and whole.split(5) == [whole]


@pytest.mark.parametrize("odd", [torch.tensor(1.0), torch.zeros(4)])
def test_tensors_without_the_axis_of_examples_cannot_be_split(odd):
    with pytest.raises(ValueError, match="first axis of every tensor"):
        Batch(torch.zeros(6, 2), {"odd": odd}).split(3)


def test_a_batch_without_tensors_is_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        len(Batch({"a": 1}, None))


def test_the_number_of_examples_is_that_of_the_first_tensor():
    assert len(Batch(None, torch.zeros(3))) == 3
    assert len(Batch({"a": torch.zeros(4, 2)}, torch.zeros(4))) == 4


def test_outputs_of_parts_are_joined():
    parts = [
        {
            "x": torch.zeros(2, 3),
            "loss": torch.tensor(1.0),
            "kernel": torch.ones(7),
            "count": torch.tensor(2),
            "s": "a",
        },
        {
            "x": torch.ones(1, 3),
            "loss": torch.tensor(4.0),
            "kernel": torch.zeros(7),
            "count": torch.tensor(1),
            "s": "b",
        },
    ]
    joined = join_outputs(parts, [2, 1])
    assert joined["x"].sum(1).tolist() == [0, 0, 3]
    assert float(joined["loss"]) == pytest.approx(2)
    assert joined["kernel"].tolist() == [1] * 7
    assert (int(joined["count"]), joined["s"]) == (2, "a")
    with pytest.raises(ValueError, match="different structures"):
        join_outputs([torch.zeros(2), {"x": torch.zeros(1)}], [2, 1])
    with pytest.raises(ValueError, match="zip"):
        join_outputs([torch.zeros(2), torch.zeros(1)], [2])


@dataclass(frozen=True)
class Outputs:
    """Outputs that PyTorch's pytree does not know."""

    logits: Any = None
    states: Any = None


class Entries(dict):
    """A dictionary that pytree does not know."""


@dataclass
class Both(OrderedDict):
    """A dataclass whose given fields are also entries, as Hugging Face's ``ModelOutput``; pytree does not know it."""

    logits: Any = None
    states: Any = None

    def __post_init__(self):
        self.update({name: value for name, value in vars(self).items() if value is not None})


CONTAINERS = [Outputs, Entries, SimpleNamespace, Both]


def entry(outputs, name):
    return outputs[name] if isinstance(outputs, dict) else getattr(outputs, name)


class Wrapped(nn.Module):
    """A linear network that returns its logits in an object."""

    def __init__(self, container):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.container = nn.Linear(3, 2), container

    def forward(self, inputs):
        logits = self.layer(inputs)
        return self.container(logits=logits, states=(logits + 1, None))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("options", [{}, {"num_chunks": 3, "batch_size": 6}, {"autocast_dtype": torch.bfloat16}])
def test_outputs_in_an_object_are_those_of_the_whole_batch(container, options):
    model = Wrapped(container)
    types = set()

    def loss(outputs, targets):
        types.add(entry(outputs, "logits").dtype)
        return F.cross_entropy(entry(outputs, "logits"), targets)

    batch = Batch(torch.randn(6, 3), torch.arange(6) % 2)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast_dtype" in options):
        expected = model.layer(batch.inputs).float().detach()
    step = SamStep(Objective(model, loss, **options), torch.optim.SGD(model.parameters(), lr=0.1))
    outputs = step(batch, rho=0.05).outputs
    assert type(outputs) is container
    found = [entry(outputs, "logits"), entry(outputs, "states")[0]]
    for tensor, wanted in zip(found, [expected, expected + 1], strict=True):
        assert not tensor.requires_grad
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-2 if options.get("autocast_dtype") else 1e-6)
    assert entry(outputs, "states")[1] is None
    assert types == {torch.float32}
    if container is Both:
        assert outputs["logits"] is outputs.logits


def test_objects_in_inputs_or_targets_cannot_be_split():
    batch = Batch(torch.zeros(4, 3), Outputs(torch.zeros(4)))
    with pytest.raises(ValueError, match="cannot split the Outputs in inputs or targets: give a dict or a tuple"):
        batch.split(2)


def test_a_mapping_of_inputs_is_passed_as_keyword_arguments():
    model = Wrapped(dict)
    inputs = UserDict(inputs=torch.ones(4, 3))
    objective = Objective(model, lambda outputs, _: outputs["logits"].mean(), num_chunks=2, batch_size=4)
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=0.1))
    assert step(Batch(inputs, None), rho=0.05).outputs["logits"].shape == (4, 2)


def test_signatures_tell_shapes_dtypes_and_structures_apart():
    batch = Batch({"a": torch.zeros(2, 3)}, torch.zeros(2))
    assert batch_signature(batch) == batch_signature(Batch({"a": torch.ones(2, 3)}, torch.ones(2)))
    others = [
        Batch({"a": torch.zeros(3, 3)}, torch.zeros(3)),
        Batch({"a": torch.zeros(2, 3).double()}, torch.zeros(2)),
        Batch({"b": torch.zeros(2, 3)}, torch.zeros(2)),
        Batch({"a": torch.zeros(2, 3)}, None),
    ]
    assert len({batch_signature(entry) for entry in [batch, *others]}) == 5
