"""Reference training curves, frozen in tests/assets/curves.json by scripts/checks/freeze_curves.py."""

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.config.data import AugmentConfig
from sam_runner.data.datasets.digits import digits
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.seeding import seed_everything

NUM_STEPS, BATCH = 30, 64
CURVES = {"sgd": (0.0, {}), "sam": (0.1, {}), "sam m=16": (0.1, {"group_size": 16})}


def losses(name, *, dtype=torch.float64, chunks=1, compiled=False, device="cpu", fused=None, route=None):
    """Return (loss at w, loss at w + eps) of each step: one hidden layer, digits, Nesterov momentum.

    `route` wraps the step.
    """
    rho, options = CURVES[name]
    seed_everything(0, "curves")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double().to(device, dtype)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused
    )
    forward = torch.compile(model) if compiled else None
    objective = Objective(model, F.cross_entropy, forward=forward, num_chunks=chunks, batch_size=BATCH)
    step = SamStep(objective, optimizer, **options)
    step = step if route is None else route(step)
    data = digits().train
    loader = ImageLoader(
        data,
        batch_size=BATCH,
        normalisation=Normalisation.from_images(data.images_NCHW),
        device=torch.device(device),
        augmentation=AugmentConfig(pad=1),
        drop_last=True,
        dtype=dtype,
    )
    curve, epoch = [], 0
    while len(curve) < NUM_STEPS:
        for examples in loader.epoch(epoch):
            stats = step(Batch(examples.images, examples.labels), rho)
            curve.append([float(stats.loss), float(stats.loss_perturbed)])
            if len(curve) == NUM_STEPS:
                break
        epoch += 1
    return curve
