"""Probabilities of trained runs, from the networks that `load_run` gives and the written-out normalisation."""

import numpy as np
import torch

import sam_runner


def probabilities_of(folder, *others, images):
    """Softmax in float64 of a run, or its mean over several runs; images are uint8, (N, C, H, W)."""
    parts = []
    for place in (folder, *others):
        run = sam_runner.load_run(place)
        facts = run.model_facts.normalisation
        mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
        with torch.no_grad():
            logits = run.model()((images.float() / 255 - mean) / std).double().numpy()
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        parts.append(exponentials / exponentials.sum(1, keepdims=True))
    return np.mean(parts, 0)
