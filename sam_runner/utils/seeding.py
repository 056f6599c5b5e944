"""Random numbers as functions of (seed, purpose, ...), and the replay that gives both SAM passes the same masks."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose.

    Streams with different keys are independent, and none depends on how much another has drawn.

    Args:
        seed: The run's seed.
        keys: What the numbers are for, e.g. ``("order", epoch)``.
    """
    plain = (int(seed), *(key if isinstance(key, str) else int(key) for key in keys))
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose; see `derive_seed`.

    On a CPU torch uses the low 32 bits of the seed; another kind of device draws other numbers from the same seed.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


def seed_everything(seed: int, *keys: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices) for one phase of a run."""
    value = derive_seed(seed, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@dataclass(frozen=True)
class RngState:
    """State of torch's global generators: the CPU's and, on CUDA, the device's."""

    cpu: Tensor
    cuda: Tensor | None = None

    @staticmethod
    def capture(device: torch.device) -> "RngState":
        """Read the state; on CUDA it is host-side bookkeeping and does not synchronise.

        While a CUDA graph is recorded the device's state cannot be read; what is recorded draws no random numbers.
        """
        readable = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        return RngState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if readable else None)

    def restore(self, device: torch.device) -> None:
        """Put the state back, so that what is drawn next repeats what was drawn after `capture`."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)
