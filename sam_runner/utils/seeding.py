"""Random numbers as functions of (seed, purpose, ...), and the random state that both passes of a SAM step replay."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *keys: int | str) -> int:
    """Return a 63-bit seed for one purpose.

    Streams with different keys are independent, and the numbers of a stream do not depend on draws from another one.

    Args:
        seed: The seed of the run.
        keys: The purpose of the random numbers, e.g. ``("order", epoch)``.
    """
    values = (int(seed), *(key if isinstance(key, str) else int(key) for key in keys))
    digest = hashlib.sha256(repr(values).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one purpose; see `derive_seed` for `seed` and `keys`.

    On a CPU torch uses the low 32 bits of the seed. Different device types draw different numbers from one seed.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


def seed_everything(seed: int, *keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (on all devices) for one phase of a run."""
    value = derive_seed(seed, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@dataclass(frozen=True)
class RngState:
    """The state of torch's global generators.

    Attributes:
        cpu: State of the CPU generator, a uint8 tensor.
        cuda: State of one CUDA device's generator, a uint8 tensor, or None.
    """

    cpu: Tensor
    cuda: Tensor | None = None

    @staticmethod
    def capture(device: torch.device) -> "RngState":
        """Read the state without synchronising with the device.

        The CUDA state cannot be read while a CUDA graph is captured, and is None then: captured steps draw no random
        numbers.
        """
        readable = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        return RngState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if readable else None)

    def restore(self, device: torch.device) -> None:
        """Set the generators back to this state, so that they repeat the numbers drawn after `capture`."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)
