"""Colour and shape transformations drawn for each image: torchvision's AutoAugment, RandAugment and TrivialAugment.

torchvision draws from torch's global generator. `apply_policy` seeds that generator for each image and restores its
state after the batch, so the transformation of an image is a function of (seed, epoch, example).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sam_runner.config.data import AugmentConfig
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed

Policy = Callable[[Tensor], Tensor]  # maps a uint8 image (C, H, W) to another, drawing from torch's global generator


def build_policy(augmentation: AugmentConfig, fill: Sequence[float]) -> Policy | None:
    """Build the transformation that `augmentation.policy` names, or None for "none".

    AutoAugment (Cubuk et al., CVPR 2019) has policies for CIFAR-10, SVHN and ImageNet; the others are RandAugment
    (Cubuk et al., 2020) and TrivialAugment in its wide version (Mueller and Hutter, ICCV 2021).

    Args:
        augmentation: `policy`, `num_ops` and `magnitude` are used.
        fill: Value of each channel, 0 to 255, for pixels that a transformation moves in from outside the image, 1 or 3
            numbers. The mean of the set becomes 0 after normalisation, as in AutoAugment's published code;
            torchvision's default is black.

    Raises:
        InputError: If the number of channels is neither 1 nor 3.
    """
    name = augmentation.policy
    if name == "none":
        return None
    if len(fill) not in (1, 3):
        raise InputError(
            f"augment.policy={name} needs images of 1 or 3 channels, not {len(fill)}\n  leave augment.policy out"
        )
    from torchvision.transforms import v2  # imported here because it is slow and few runs need it

    policy: Any
    if name == "randaugment":
        policy = v2.RandAugment(augmentation.num_ops, augmentation.magnitude, fill=list(fill))
    elif name == "trivialaugment":
        policy = v2.TrivialAugmentWide(fill=list(fill))
    else:
        policy = v2.AutoAugment(v2.AutoAugmentPolicy(name), fill=list(fill))
    typed_policy: Policy = policy
    return typed_policy


def apply_policy(images_NCHW: Tensor, policy: Policy, seed: int, epoch: int, indices: Sequence[int]) -> Tensor:
    """Transform each image by its own draw of `policy`; the state of torch's global generator is restored.

    Args:
        images_NCHW: uint8, (B, C, H, W), on the CPU.
        policy: Transformation from `build_policy`.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        indices: Positions of the B images in the set.
    """
    transformed = []
    with torch.random.fork_rng(devices=[]):
        for image, index in zip(images_NCHW, indices, strict=True):
            torch.default_generator.manual_seed(derive_seed(seed, "policy", epoch, index))
            transformed.append(policy(image))
    return torch.stack(transformed)
