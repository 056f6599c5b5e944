"""Policies against torchvision; their draws depend on seed, epoch and example only."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from sam_runner.config.data import AugmentConfig
from sam_runner.data.augment.augmentation import draw_table, zero_square
from sam_runner.data.augment.policy import apply_policy, build_policy
from sam_runner.data.normalisation import Normalisation
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed
from tests.data.test_loader import images_by_index, make_loader, random_set

FILL = [120.0, 110.0, 100.0]
TORCHVISION = {
    "cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=FILL),
    "svhn": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.SVHN, fill=FILL),
    "imagenet": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=FILL),
    "randaugment": lambda: v2.RandAugment(3, 7, fill=FILL),
    "trivialaugment": lambda: v2.TrivialAugmentWide(fill=FILL),
}
IDENTITY = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def random_images(count=12, channels=3, side=10):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8))


def make_augmentation(name):
    return AugmentConfig(policy=name, num_ops=3, magnitude=7)


@pytest.mark.parametrize("name", TORCHVISION)
def test_an_image_equals_torchvisions_result(name):
    indices = [5, 3, 900, 0, 7, 8, 1, 2, 4, 6, 9, 10]
    results = apply_policy(random_images(), build_policy(make_augmentation(name), FILL), 11, 2, indices)
    transform = TORCHVISION[name]()
    for image, index, result in zip(random_images(), indices, results, strict=True):
        torch.manual_seed(derive_seed(11, "policy", 2, index))
        assert torch.equal(result, transform(image))
    assert not torch.equal(results, random_images())


def test_an_image_does_not_depend_on_its_batch_and_the_global_stream_is_left_alone():
    policy = build_policy(make_augmentation("cifar10"), FILL)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    together = apply_policy(random_images(), policy, 1, 3, range(12))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    alone = torch.cat([apply_policy(random_images()[[index]], policy, 1, 3, [index]) for index in reversed(range(12))])
    assert torch.equal(alone.flip(0), together)
    for other in ((2, 3), (1, 4)):
        assert not torch.equal(apply_policy(random_images(), policy, *other, range(12)), together)


def test_none_is_no_policy_and_grey_images_have_one():
    assert build_policy(AugmentConfig(), FILL) is None
    for name in TORCHVISION:
        grey = apply_policy(random_images(channels=1), build_policy(make_augmentation(name), [77.0]), 0, 0, range(12))
        assert grey.shape == (12, 1, 10, 10) and grey.dtype == torch.uint8
    with pytest.raises(InputError, match=r"augment\.policy=cifar10.*not 2"):
        build_policy(make_augmentation("cifar10"), [0.0, 0.0])


def count_transformations(monkeypatch, name, count):
    """How often each transformation is chosen for `count` images."""
    policy, chosen = build_policy(make_augmentation(name), FILL), []
    monkeypatch.setattr(
        type(policy),
        "_apply_image_or_video_transform",
        lambda self, image, transform_id, *_, **__: (chosen.append(transform_id), image)[1],
    )
    apply_policy(torch.zeros(1, 3, 2, 2, dtype=torch.uint8).expand(count, -1, -1, -1), policy, 0, 0, range(count))
    return policy, Counter(chosen)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_sub_policies_are_chosen_alike_and_with_their_probabilities(name, monkeypatch):
    count = 2500
    policy, chosen = count_transformations(monkeypatch, name, count)
    expected = Counter()
    for pair in policy._policies:
        for transform_id, probability, _ in pair:
            expected[transform_id] += probability / len(policy._policies)
    assert set(chosen) <= set(expected)
    for transform_id, rate in expected.items():  # one image may get the same transformation twice
        assert abs(chosen[transform_id] - count * rate) <= 4 * (2 * count * rate) ** 0.5, transform_id


@pytest.mark.parametrize(("name", "each"), [("trivialaugment", 1), ("randaugment", 3)])
def test_transformations_are_chosen_alike(name, each, monkeypatch):
    count = 2000
    _, chosen = count_transformations(monkeypatch, name, count)
    assert chosen.total() == each * count
    rate = 1 / len(chosen)
    assert len(chosen) == 14
    assert all(
        abs(got - each * count * rate) < 4 * (each * count * rate * (1 - rate)) ** 0.5 for got in chosen.values()
    )


def test_the_policy_comes_after_crop_and_flip_and_before_cutout():
    data = random_set(side=12)
    basic = {"pad": 2, "flip": True}
    plain = images_by_index(make_loader(data, augmentation=AugmentConfig(**basic), normalisation=IDENTITY, seed=3), 1)
    augmentation = AugmentConfig(**basic, policy="svhn", cutout=4)
    result = images_by_index(make_loader(data, augmentation=augmentation, normalisation=IDENTITY, seed=3), 1)
    policy, table = build_policy(augmentation, [0.0, 0.0, 0.0]), draw_table(3, 1, len(data))
    for index, image in plain.items():
        pixels = (image * 255).round().to(torch.uint8)[None]
        expected = apply_policy(pixels, policy, 3, 1, [index]).float() / 255
        expected = zero_square(expected, table[[index], 3:5], 4)[0]
        torch.testing.assert_close(result[index], expected, rtol=0, atol=1e-6)


def test_the_fill_is_the_mean_of_the_set():
    loader = make_loader(random_set(), augmentation=make_augmentation("trivialaugment"))
    means = loader._stream._loader.dataset._policy.fill
    expected = random_set().images_NCHW.double().mean((0, 2, 3)).tolist()
    assert means == [round(mean) for mean in expected]


def test_evaluation_has_no_policy():
    assert make_loader(random_set())._stream is None


@pytest.mark.parametrize("start", [1, 4])
def test_epoch_from_a_start_is_the_tail_of_the_epoch(start):
    loader = make_loader(random_set(), augmentation=AugmentConfig(pad=1, flip=True, policy="randaugment"), seed=4)
    whole, tail = list(loader.epoch(2)), list(loader.epoch(2, start=start))
    assert [torch.equal(a.images, b.images) for a, b in zip(whole[start:], tail, strict=True)] == [True] * (5 - start)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(whole, loader.epoch(1), strict=True))


@pytest.mark.dist
def test_images_in_memory_do_not_depend_on_the_number_of_workers():
    data, augmentation = random_set(), AugmentConfig(pad=1, flip=True, policy="cifar10", cutout=2)
    alone, many = (make_loader(data, augmentation=augmentation, num_workers=number) for number in (0, 2))
    for epoch in (0, 1, 1):
        for one, other in zip(alone.epoch(epoch), many.epoch(epoch), strict=True):
            assert torch.equal(one.images, other.images)
