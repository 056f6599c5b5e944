"""Mixup and CutMix: exact mixing, distribution of lambda, torchvision's boxes, and the loss of mixed labels."""

import math
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from sam_runner.config.data import AugmentConfig
from sam_runner.data.augment.mixing import cutmix_box, mix_batch
from sam_runner.sam.batch import Batch
from sam_runner.training import loop
from sam_runner.training.builders.run import build_run
from sam_runner.training.state import Progress
from tests.data.test_loader import make_loader, random_set
from tests.helpers import TINY, config_of

COUNT = 9


def make_batch(seed=0, side=8):
    """Images that all have different classes, so that the targets identify lambda and the partners."""
    images = torch.randn(COUNT, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(COUNT)


def lambdas_and_partners(targets):
    """Lambda and partner of each example."""
    lambdas = targets.diagonal().clone()
    others = targets - torch.diag(lambdas)
    is_own_partner = others.sum(1) == 0
    return lambdas, torch.where(is_own_partner, torch.arange(COUNT), others.argmax(1))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_is_exact(alpha):
    for number in range(5):
        images, labels = make_batch(number)
        result, targets = mix_batch(images, labels, COUNT, AugmentConfig(mixup=alpha), (0, 1, number))
        lambdas, partners = lambdas_and_partners(targets)
        lam = float(lambdas[partners != labels][0])
        np.testing.assert_allclose(lambdas[partners != labels], lam, rtol=0, atol=1e-12)
        expected = lam * images.numpy() + (1 - lam) * images.numpy()[partners]
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=0, atol=1e-12)
        assert sorted(partners.tolist()) == labels.tolist()


def test_cutmix_is_exact():
    areas = set()
    for number in range(20):
        images, labels = make_batch(number)
        result, targets = mix_batch(images, labels, COUNT, AugmentConfig(cutmix=1.0), (0, 1, number))
        assert torch.equal(images, make_batch(number)[0])  # the input is not modified
        lambdas, partners = lambdas_and_partners(targets)
        has_partner = (partners != labels)[:, None, None, None]
        from_partner = (result == images[partners]) & has_partner
        assert bool(((result == images) | from_partner).all())
        boxes = from_partner[partners != labels]
        assert bool((boxes == boxes[:1, :1]).all())  # one box for the batch and all channels
        box = boxes[0, 0]
        assert torch.equal(box, box.any(1)[:, None] & box.any(0))  # a rectangle
        np.testing.assert_allclose(lambdas[partners != labels], 1 - float(box.double().mean()), rtol=0, atol=1e-12)
        areas.add(int(box.sum()))
    assert len(areas) > 5


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), lam=st.floats(0, 1), data=st.data(),
)  # fmt: skip
def test_boxes_are_torchvisions(height, width, lam, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    reference = v2.CutMix(num_classes=2)
    reference._dist = SimpleNamespace(sample=lambda _: torch.tensor(lam, dtype=torch.float64))
    with mock.patch.object(torch, "randint", side_effect=[torch.tensor([column]), torch.tensor([row])]):
        params = reference.make_params([torch.zeros(2, 3, height, width)])
    box = cutmix_box(height, width, lam, row, column)
    assert (box.left, box.top, box.right, box.bottom) == params["box"]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 32.0])
def test_lambda_has_the_beta_distribution(alpha):
    images, labels = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.tensor([0, 1])
    lambdas, num_swapped = [], 0
    for number in range(3000):
        _, targets = mix_batch(images, labels, 2, AugmentConfig(mixup=alpha), (7, number % 5, number))
        if targets[0, 0] < 1:  # each is the partner of the other
            num_swapped += 1
            lambdas.append(float(targets[0, 0]))
    assert abs(num_swapped - 1500) < 4 * (3000 / 4) ** 0.5
    assert stats.kstest(lambdas, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixing_is_a_function_of_seed_epoch_and_batch():
    state = torch.get_rng_state()
    first = mix_batch(*make_batch(), COUNT, AugmentConfig(mixup=1.0), (1, 2, 3))[1]
    assert torch.equal(mix_batch(*make_batch(), COUNT, AugmentConfig(mixup=1.0), (1, 2, 3))[1], first)
    assert torch.equal(torch.get_rng_state(), state)
    for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3)):
        assert not torch.equal(mix_batch(*make_batch(), COUNT, AugmentConfig(mixup=1.0), key)[1], first)


def test_without_mixing_the_targets_are_the_labels():
    images, labels = make_batch()
    assert mix_batch(images, labels, COUNT, AugmentConfig(), (0, 0, 0)) == (images, labels)
    for examples in make_loader(random_set(), augmentation=AugmentConfig(flip=True)).epoch():
        assert torch.equal(examples.targets, examples.labels)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_loader_mixes_its_augmented_batches(options, channels_last):
    basic = {"pad": 2, "flip": True, "cutout": 3, "cutout_per_batch": True, "erasing": 0.5}
    plain = make_loader(random_set(), augmentation=AugmentConfig(**basic), seed=3)
    loader = make_loader(
        random_set(), augmentation=AugmentConfig(**basic, **options), seed=3, channels_last=channels_last
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for start in (0, 2):
        for number, (expected, result) in enumerate(zip(plain.epoch(2, start), loader.epoch(2, start), strict=True)):
            key = (3, 2, start + number)
            images, targets = mix_batch(expected.images, expected.labels, 4, AugmentConfig(**options), key)
            assert torch.equal(result.images, images)
            assert torch.equal(result.targets, targets)
            assert torch.equal(result.labels, expected.labels)
            assert result.images.is_contiguous(memory_format=layout)


def test_one_cutout_centre_for_a_batch():
    loader = make_loader(
        random_set(40, 1, 8),
        augmentation=AugmentConfig(cutout=3, cutout_per_batch=True),
        batch_size=8,
        dtype=torch.float64,
    )
    holes = []
    for examples in loader.epoch(1):
        same = (examples.images == 0).all(0)
        assert 4 <= int(same.sum()) <= 9
        assert bool(((examples.images == 0) == same).all())
        holes.append(same)
    assert len({tuple(hole.flatten().tolist()) for hole in holes}) > 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_labels_is_the_mix_of_the_losses(smoothing):
    """With smoothing s a target t becomes (1 - s) t + s / C; the loss is linear in the targets."""
    run = build_run(config_of(*TINY, "augment.mixup=1.0", f"label_smoothing={smoothing}", "precision=fp32"))
    examples = next(run.train.epoch(0))
    assert examples.targets.shape == (16, 4)
    evaluation = run.step.objective.evaluate(Batch(examples.images, examples.targets))
    logits = evaluation.outputs.double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = (1 - smoothing) * examples.targets.double().numpy() + smoothing / 4
    assert float(evaluation.loss) == pytest.approx(-(targets * log_probabilities).sum(1).mean(), rel=1e-5)
    assert not math.isclose(float(examples.targets.max(1).values.min()), 1)


def test_groups_and_micro_batches_keep_image_and_target_together():
    images, labels = make_batch()
    parts = Batch(*mix_batch(images, labels, COUNT, AugmentConfig(mixup=1.0), (0, 0, 0))).split(4)
    assert [len(part) for part in parts] == [4, 4, 1]
    assert [tuple(part.targets.shape) for part in parts] == [(4, COUNT), (4, COUNT), (1, COUNT)]


class RecordingStep:
    """A step that records its batches and step numbers."""

    def __init__(self, step):
        self.optimizer, self.objective, self.step = step.optimizer, step.objective, step
        self.batches, self.numbers = [], []

    def __call__(self, batch, rho, number):
        self.batches.append(batch)
        self.numbers.append(number)
        return self.step(batch, rho, number)


def test_the_trainer_learns_the_targets_and_measures_against_the_labels():
    run = build_run(config_of(*TINY, "augment.mixup=1.0", "noise=pair", "noise.rate=0.5", "optimizer=sam"))
    run = replace(run, step=RecordingStep(run.step))
    meter = mock.Mock()
    for examples in run.train.epoch(0):
        loop._train_step(run, meter, examples, Progress())
        assert torch.equal(run.step.batches[-1].targets, examples.targets)
        assert torch.equal(run.step.batches[-1].inputs, examples.images)
        _, labels, clean_labels, share = meter.add.call_args.args
        assert share == 1
        assert torch.equal(labels, examples.labels)
        assert torch.equal(clean_labels, examples.clean_labels)
