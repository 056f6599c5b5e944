"""Transformations of colour and shape that are drawn for each image: torchvision's AutoAugment, RandAugment and others.

torchvision draws them from torch's global generator, which is set anew for each image and put back after a batch, so
that an image's transformation is a function of (seed, epoch, example) like everything else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sam_runner.config.data import AugmentConfig
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed

Policy = Callable[[Tensor], Tensor]


def policy_of(augmentation: AugmentConfig, fill: Sequence[float]) -> Policy | None:
    """From a uint8 image (C, H, W) to another, drawn from torch's global generator; None where none is chosen.

    Args:
        augmentation: Its `policy`: AutoAugment (Cubuk et al., CVPR 2019) as found for CIFAR-10, SVHN or ImageNet,
            RandAugment (Cubuk et al., 2020) or TrivialAugment, wide (Mueller and Hutter, ICCV 2021).
        fill: Value from 0 to 255 of each channel, 1 or 3, where a transformation moves the image away. With the mean
            of the set it is 0 after normalisation, as in AutoAugment's published code; torchvision's own is black.

    Raises:
        InputError: For any other number of channels.
    """
    name = augmentation.policy
    if name == "none":
        return None
    if len(fill) not in (1, 3):
        raise InputError(f"augment.policy={name} is for images of 1 or 3 channels, not {len(fill)}")
    from torchvision.transforms import v2  # imported here: it takes a moment, and few runs need it

    policy: Any
    if name == "randaugment":
        policy = v2.RandAugment(augmentation.num_ops, augmentation.magnitude, fill=list(fill))
    elif name == "trivialaugment":
        policy = v2.TrivialAugmentWide(fill=list(fill))
    else:
        policy = v2.AutoAugment(v2.AutoAugmentPolicy(name), fill=list(fill))
    chosen: Policy = policy
    return chosen


def apply_policy(images_NCHW: Tensor, policy: Policy, seed: int, epoch: int, indices: Sequence[int]) -> Tensor:
    """Each uint8 image under its own draw of `policy`; torch's global generator is left as it was.

    Args:
        images_NCHW: uint8, (B, C, H, W), on the CPU.
        policy: From `policy_of`.
        seed: Of the run.
        epoch: From 0.
        indices: Positions of the B images in the set.
    """
    done = []
    with torch.random.fork_rng(devices=[]):
        for image, index in zip(images_NCHW, indices, strict=True):
            torch.default_generator.manual_seed(derive_seed(seed, "policy", epoch, index))
            done.append(policy(image))
    return torch.stack(done)
