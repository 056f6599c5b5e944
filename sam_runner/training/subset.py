"""A fixed part of a training set without augmentation, and the loss of a run on it, for measurements of curvature."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.data.image_sets import Images
from sam_runner.data.loader import ImageLoader
from sam_runner.geometry.mean_loss import BatchNormMode, MeanLoss
from sam_runner.models.outputs import get_logits
from sam_runner.sam.batch import Batch
from sam_runner.utils.seeding import make_generator

NUM_EXAMPLES = 1000


def fixed_subset(images: Images, count: int, like: ImageLoader, dtype: torch.dtype = torch.float32) -> Batch:
    """Return examples of a set, normalised and not augmented, with the labels to learn.

    The examples and their order are the same for every run with the same images; a larger `count` begins with the
    examples of a smaller one. The order is random, so that every chunk of them is a sample of the set.

    Args:
        images: The set.
        count: Number of examples; all of them if there are fewer.
        like: Loader whose normalisation, device and memory format the images get.
        dtype: Number format of the images.
    """
    order = torch.randperm(len(images), generator=make_generator(0, "fixed subset"))
    loader = ImageLoader(images.subset(order[:count]), batch_size=512, **like.format_options() | {"dtype": dtype})
    parts = list(loader.epoch())
    return Batch(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def subset_loss(
    config: ExperimentConfig,
    model: nn.Module,
    batch: Batch,
    *,
    batchnorm: BatchNormMode = "train",
    dtype: torch.dtype = torch.float32,
) -> MeanLoss:
    """Return the loss that a run minimises, of fixed examples: with label smoothing, without augmentation and autocast.

    Weight decay is a term of the loss only with ``optimizer.weight_decay_in_loss=true``. A chunk has as many examples
    as a pass of training: optimizer.m, a micro-batch, or the batch of a process.

    Args:
        config: Settings of the run.
        model: Its network.
        batch: The examples, from `fixed_subset`.
        batchnorm: See `MeanLoss`.
        dtype: See `MeanLoss`.
    """
    smoothing = config.label_smoothing

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    return MeanLoss(
        _Logits(model),
        loss,
        batch,
        chunk_size=examples_of_a_pass(config),
        batchnorm=batchnorm,
        weight_decay=decay_in_loss(config),
        dtype=dtype,
    )


def decay_in_loss(config: ExperimentConfig) -> float:
    """Return lambda of the term lambda/2 ||w||^2 in the loss that a run minimises, 0 without one."""
    return config.optimizer.base.weight_decay if config.optimizer.weight_decay_in_loss else 0.0


def examples_of_a_pass(config: ExperimentConfig) -> int:
    """Return the largest number of examples of a pass of one process in training: those that batch norm normalises."""
    local = -(-config.batch_size // config.world_size)
    return min(config.optimizer.m or local, -(-local // config.accumulate))


class _Logits(nn.Module):
    """A network that returns the logits among the outputs of another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return get_logits(self.model(images))
