"""What fine-tuning rests on: weights put into a network, its head, frozen statistics of batch norm."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.build import parameter_groups
from sam_runner.models.frozen_batchnorm import freeze_batchnorm
from sam_runner.models.pretrained import find_head, load_weights
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.errors import InputError

CLASSES = 4


def small(num_classes=CLASSES, seed=1):
    torch.manual_seed(seed)
    model = SmallCNN(num_classes, 1, width=4)
    for name, values in model.named_buffers():
        if "running" in name:
            values.uniform_(-0.1, 0.1) if "mean" in name else values.uniform_(0.5, 2)
    return model


def batch():
    torch.manual_seed(4)
    return Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % CLASSES)


def test_all_weights_and_buffers_go_over():
    model, state = small(seed=2), small().state_dict()
    said = load_weights(model, state, "here", CLASSES)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert said == f"{sum(value.numel() for value in state.values()):,} weights from here"


def test_a_head_is_taken_whole_or_not_at_all():
    state = small(num_classes=9).state_dict()
    state["head.0.bias"] = torch.full((CLASSES,), 5.0)
    model = small(seed=2)
    before = copy.deepcopy(model.head.state_dict())
    assert load_weights(model, state, "here", CLASSES).endswith("; the head head.0 is fresh")
    assert all(torch.equal(before[key], value) for key, value in model.head.state_dict().items())
    assert torch.equal(model.features[0].weight, state["features.0.weight"])
    del state["head.0.weight"], state["head.0.bias"]
    assert "fresh" in load_weights(model, state, "here", CLASSES)


def test_every_key_that_does_not_fit_is_named():
    model, state = small(seed=2), small().state_dict()
    before = copy.deepcopy(model.state_dict())
    state["odd"] = state.pop("features.0.weight")
    state["features.3.weight"] = torch.zeros(2, 2)
    with pytest.raises(InputError) as caught:
        load_weights(model, state, "here", CLASSES)
    assert str(caught.value).splitlines() == [
        "model.weights=here does not fit the model",
        "  missing: features.0.weight (4, 1, 3, 3)",
        "  not in the model: odd (4, 1, 3, 3)",
        "  features.3.weight: (2, 2) given, (4, 4, 3, 3) needed",
    ]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_many_keys_that_do_not_fit_are_counted():
    with pytest.raises(InputError) as caught:
        load_weights(small(), {"head.0.weight": torch.zeros(4, 8), "head.0.bias": torch.zeros(4)}, "here", CLASSES)
    lines = str(caught.value).splitlines()
    assert len(lines) == 14
    assert lines[-1] == "  and 12 more"


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


def test_a_step_of_the_head_is_as_much_longer_as_its_rate():
    """SGD without momentum: the weights move by the rate times the gradient, which is the same for both."""
    moves = []
    for head_lr in (None, 0.7):
        model = small()
        before = copy.deepcopy(model.state_dict())
        groups = parameter_groups({"head_lr": head_lr}, model, CLASSES)
        SamStep(Objective(model, F.cross_entropy), torch.optim.SGD(groups, lr=0.1))(batch(), 0.05)
        moves.append([model.state_dict()[key] - before[key] for key in before if "weight" in key])
    for slow, fast in zip(moves[0][:-1], moves[1][:-1], strict=True):
        assert torch.equal(slow, fast)
    torch.testing.assert_close(moves[1][-1], 7 * moves[0][-1], rtol=1e-4, atol=1e-6)


def test_frozen_statistics_stay_and_normalise():
    model, before = small(), small().eval()
    assert freeze_batchnorm(model) == 4
    model.train()
    step = SamStep(
        Objective(model, F.cross_entropy, num_chunks=2, batch_size=16),
        torch.optim.SGD(model.parameters(), lr=0.1),
        group_size=8,
    )
    stats = step(batch(), 0.05)
    torch.testing.assert_close(stats.outputs, before(batch().inputs), rtol=0, atol=1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before.buffers(), model.buffers(), strict=True))
    assert not torch.equal(before.features[1].weight, model.features[1].weight)


def test_a_copy_of_a_frozen_network_is_frozen_itself():
    model = small()
    freeze_batchnorm(model)
    copied = copy.deepcopy(model)
    copied.train()
    layer = copied.features[1]
    assert not layer.training
    assert layer.train() is layer
    assert copied.features[0].training
