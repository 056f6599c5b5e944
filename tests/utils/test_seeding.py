"""Random streams: derived seeds never change, streams are independent, states can be replayed."""

import hashlib
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sam_runner.utils.seeding import RngState, derive_seed, find_generators, make_generator, seed_everything

CPU = torch.device("cpu")


def draw_globally():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((0,), 5_254_295_370_254_170_289),
        ((0, "order", 0), 1_864_822_792_221_289_227),
        ((1, "label noise"), 5_912_063_622_279_384_044),
        ((2**63 - 1, "augmentation", 199), 246_665_838_712_817_393),
    ],
)
def test_derived_seeds_never_change(keys, value):
    assert derive_seed(*keys) == value


def test_derived_seed_is_half_of_the_first_eight_bytes_of_sha256():
    assert derive_seed(3, "order", 7) == int(hashlib.sha256(b"(3, 'order', 7)").hexdigest()[:16], 16) // 2


def test_every_key_changes_the_seed():
    keys = [
        (seed, purpose, epoch) for seed in range(10) for purpose in ("order", "augmentation") for epoch in range(50)
    ]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_keys_do_not_run_together():
    assert len({derive_seed(*keys) for keys in [(1, 23), (12, 3), (123,), (1, "23"), (1, 2, 3), (1, "2, 3")]}) == 6


def test_stream_does_not_depend_on_what_others_draw():
    expected = torch.rand(8, generator=make_generator(5, "order", 1))
    other = make_generator(5, "order", 2)
    torch.rand(100, generator=other)
    torch.manual_seed(99)
    assert torch.equal(torch.rand(8, generator=make_generator(5, "order", 1)), expected)


def test_generator_leaves_the_global_stream_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    torch.rand(10, generator=make_generator(0, "order"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [(0, "order", 1), (0, "augmentation", 0), (1, "order", 0)])
def test_streams_are_uncorrelated(other):
    count = 10_000
    first = torch.rand(count, generator=make_generator(0, "order", 0), dtype=torch.float64).numpy()
    second = torch.rand(count, generator=make_generator(*other), dtype=torch.float64).numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / count**0.5


def test_seed_everything_repeats_all_three_global_streams():
    seed_everything(4, "training")
    first = draw_globally()
    seed_everything(4, "initialisation")
    other = draw_globally()
    seed_everything(4, "training")
    assert draw_globally() == first
    assert all(before != after for before, after in zip(first, other, strict=True))


def test_seed_everything_takes_the_largest_seed():
    seed_everything(2**63 - 1, "training")
    assert 0 <= draw_globally()[1] < 1


def test_replay_repeats_dropout_masks():
    x = torch.ones(1000)
    torch.manual_seed(1)
    state = RngState.capture(CPU)
    first, second = F.dropout(x), F.dropout(x)
    state.restore(CPU)
    assert torch.equal(F.dropout(x), first)
    assert torch.equal(F.dropout(x), second)
    assert not torch.equal(first, second)


def test_captured_state_is_not_moved_by_later_draws():
    torch.manual_seed(2)
    state = RngState.capture(CPU)
    expected = torch.rand(5)
    torch.rand(5000)
    state.restore(CPU)
    assert torch.equal(torch.rand(5), expected)
    assert state.cuda is None


def test_generators_are_found_in_lists_dictionaries_and_objects():
    class Augmentation:
        def __init__(self, generator):
            self.generator = generator

    first, second, third = random.Random(0), np.random.default_rng(0), torch.Generator()
    loop = [first]
    loop.append(loop)
    attributes = [loop, {"a": (second, first)}, Augmentation(third), random.SystemRandom(), "text", None, torch.ones(2)]
    assert find_generators(attributes) == [first, third, second]
