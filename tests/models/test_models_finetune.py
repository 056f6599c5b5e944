"""Fine-tuning: loading weights, finding the head, its learning rate, frozen batch-norm statistics."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.build import parameter_groups
from sam_runner.models.frozen_batchnorm import freeze_batchnorm
from sam_runner.models.pretrained import OTHER_NETWORK, find_head, load_weights
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.errors import InputError

CLASSES = 4


def make_model(num_classes=CLASSES, seed=1):
    """Return a small network with random batch-norm statistics."""
    torch.manual_seed(seed)
    model = SmallCNN(num_classes, 1, width=4)
    for name, values in model.named_buffers():
        if "running" in name:
            values.uniform_(-0.1, 0.1) if "mean" in name else values.uniform_(0.5, 2)
    return model


def make_batch():
    torch.manual_seed(4)
    return Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % CLASSES)


def test_all_weights_and_buffers_are_loaded():
    model, state = make_model(seed=2), make_model().state_dict()
    message = load_weights(model, state, "source", CLASSES)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert message == f"{sum(value.numel() for value in state.values()):,} weights from source"


def test_a_head_is_loaded_completely_or_not_at_all():
    state = make_model(num_classes=9).state_dict()
    state["head.0.bias"] = torch.full((CLASSES,), 5.0)
    model = make_model(seed=2)
    before = copy.deepcopy(model.head.state_dict())
    assert load_weights(model, state, "source", CLASSES).endswith("; the head head.0 is newly initialised")
    assert all(torch.equal(before[key], value) for key, value in model.head.state_dict().items())
    assert torch.equal(model.features[0].weight, state["features.0.weight"])
    del state["head.0.weight"], state["head.0.bias"]
    assert "newly initialised" in load_weights(model, state, "source", CLASSES)


def test_every_key_that_does_not_fit_is_named():
    model, state = make_model(seed=2), make_model().state_dict()
    before = copy.deepcopy(model.state_dict())
    state["odd"] = state.pop("features.0.weight")
    state["features.3.weight"] = torch.zeros(2, 2)
    with pytest.raises(InputError) as caught:
        load_weights(model, state, "source", CLASSES)
    assert str(caught.value).splitlines() == [
        "model.weights=source does not fit the model",
        "  missing: features.0.weight (4, 1, 3, 3)",
        "  not in the model: odd (4, 1, 3, 3)",
        "  features.3.weight: (2, 2) given, (4, 4, 3, 3) needed",
        OTHER_NETWORK,
    ]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_counters_of_batch_norm_may_be_missing():
    state = {name: value for name, value in make_model().state_dict().items() if "num_batches" not in name}
    assert len(state) < len(make_model().state_dict())
    model = make_model(seed=2)
    load_weights(model, state, "old.pt", CLASSES)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    model, state = make_model(seed=2), make_model().state_dict()
    state["features.0.weight"].view(-1)[0] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"weights.pt has values that are not finite\n  features\.0\.weight \(4, 1"):
        load_weights(model, state, "weights.pt", CLASSES)
    assert all(torch.equal(model.state_dict()[key], entry) for key, entry in before.items())


def test_a_buffer_may_be_infinite_but_not_nan():
    model, state = make_model(seed=2), make_model().state_dict()
    model.register_buffer("mask", torch.zeros(2))
    load_weights(model, state | {"mask": torch.tensor([0, -math.inf])}, "source", CLASSES)
    assert model.mask.tolist() == [0, -math.inf]
    with pytest.raises(InputError, match="not finite\n  mask"):
        load_weights(model, state | {"mask": torch.tensor([0, math.nan])}, "source", CLASSES)


def test_auxiliary_classifiers_are_left_out():
    model, state = make_model(seed=2), make_model().state_dict()
    load_weights(
        model, state | {"AuxLogits.fc.weight": torch.zeros(9, 2), "aux2.fc.bias": torch.zeros(9)}, "a", CLASSES
    )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Positions(nn.Module):
    """A network with a position embedding for some number of patches, as a ViT."""

    def __init__(self, patches):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, 2))
        self.head = nn.Linear(2, CLASSES)


def test_positions_of_another_image_size_are_answered_with_the_setting():
    with pytest.raises(InputError, match=r"pos_embed: \(1, 5, 2\) given, \(1, 9, 2\) needed\n.* data\.image_size"):
        load_weights(Positions(9), Positions(5).state_dict(), "vit.pt", CLASSES)


def test_many_keys_that_do_not_fit_are_counted():
    with pytest.raises(InputError) as caught:
        load_weights(
            make_model(), {"head.0.weight": torch.zeros(4, 8), "head.0.bias": torch.zeros(4)}, "source", CLASSES
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 15
    assert lines[-2] == "  and 8 more"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (SmallCNN(7, 3, width=7), "head.0"),  # its convolutions have seven outputs too
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1), nn.Flatten()), "1"),
    ],
)
def test_the_head_is_the_last_layer_with_an_output_for_each_class(model, name):
    assert find_head(model, 7) == name
    with pytest.raises(InputError, match="no layer with 11 outputs"):
        find_head(model, 11)


def test_a_step_of_the_head_is_proportional_to_its_rate():
    """With SGD without momentum the weights move by the rate times the gradient, which is equal in both runs."""
    moves = []
    for head_lr in (None, 0.7):
        model = make_model()
        before = copy.deepcopy(model.state_dict())
        groups = parameter_groups(model, CLASSES, head_lr)
        SamStep(Objective(model, F.cross_entropy), torch.optim.SGD(groups, lr=0.1))(make_batch(), 0.05)
        moves.append([model.state_dict()[key] - before[key] for key in before if "weight" in key])
    for slow, fast in zip(moves[0][:-1], moves[1][:-1], strict=True):
        assert torch.equal(slow, fast)
    torch.testing.assert_close(moves[1][-1], 7 * moves[0][-1], rtol=1e-4, atol=1e-6)


def test_frozen_statistics_stay_and_normalise():
    model, before = make_model(), make_model().eval()
    assert freeze_batchnorm(model) == 4
    model.train()
    step = SamStep(
        Objective(model, F.cross_entropy, num_chunks=2, batch_size=16),
        torch.optim.SGD(model.parameters(), lr=0.1),
        group_size=8,
    )
    stats = step(make_batch(), 0.05)
    torch.testing.assert_close(stats.outputs, before(make_batch().inputs), rtol=0, atol=1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before.buffers(), model.buffers(), strict=True))
    assert not torch.equal(before.features[1].weight, model.features[1].weight)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_frozen_network_is_frozen_itself(make_copy):
    model = make_model()
    freeze_batchnorm(model)
    copied = make_copy(model)
    copied.train()
    layer = copied.features[1]
    assert not layer.training
    assert layer.train() is layer
    assert copied.features[0].training
