"""Random numbers as functions of (seed, purpose, ...), and the random state that the passes of a SAM step replay."""

import ctypes
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OwnGenerator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_SEARCHED_LEVELS = 4  # an attribute, and three levels inside
_MT19937_BYTES = 2500  # 624 words and the position


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
    """The state of the global generators of torch, Python and NumPy, and of a network's own generators.

    Attributes:
        cpu: State of torch's CPU generator, a uint8 tensor.
        cuda: State of one CUDA device's generator, a uint8 tensor, or None.
        python: State of the module `random`, as `random.getstate` returns it.
        numpy: State of NumPy's global generator, as ``numpy.random.get_state(legacy=False)`` returns it.
        own: States of further generators, in their order.
    """

    cpu: Tensor
    cuda: Tensor | None = None
    python: Any = field(default_factory=random.getstate)
    numpy: Any = field(default_factory=lambda: _get_numpy_state())
    own: tuple[Any, ...] = ()

    @staticmethod
    def capture(device: torch.device, own: Sequence[OwnGenerator] = ()) -> "RngState":
        """Read the state without synchronising with the device.

        The CUDA state cannot be read while a CUDA graph is captured, and is None then: captured steps draw no random
        numbers.

        Args:
            device: Its generator is read too if it is a CUDA device.
            own: Further generators.
        """
        readable = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        cuda = torch.cuda.get_rng_state(device) if readable else None
        return RngState(torch.get_rng_state(), cuda, own=tuple(_get_own_state(generator) for generator in own))

    def restore(self, device: torch.device, own: Sequence[OwnGenerator] = ()) -> None:
        """Set the generators back to this state, so that they repeat the numbers drawn after `capture`."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)
        random.setstate(self.python)
        if _get_numpy_state() is not self.numpy:
            np.random.set_state(self.numpy)
        for generator, state in zip(own, self.own, strict=True):
            _set_own_state(generator, state)

    def equals(self, other: "RngState") -> bool:
        """Return whether the two states give the same random numbers."""
        return _are_equal(vars(self), vars(other))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain types, for a checkpoint."""
        return {name: _map_arrays(value, np.ndarray, _to_tensor) for name, value in vars(self).items()}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> "RngState":
        """Return the state that a `state_dict` holds."""
        torch_states = {name: state[name] for name in ("cpu", "cuda")}
        own = tuple(
            value if isinstance(value, Tensor) else _map_arrays(value, Tensor, _to_array) for value in state["own"]
        )
        numpy_state = _map_arrays(state["numpy"], Tensor, _to_array)
        return RngState(**torch_states, python=state["python"], numpy=numpy_state, own=own)


_last_numpy: tuple[bytes | None, Any] = None, None


def _get_numpy_state() -> Any:
    """Return the state of NumPy's global generator.

    Reading the state takes 30 microseconds, so the last state is returned again if the words of the Mersenne Twister
    are the same. A state with a stored normal number is always read, since using that number changes no word.
    """
    global _last_numpy
    generator, words = np.random.get_bit_generator(), None  # type: ignore[attr-defined]
    if isinstance(generator, np.random.MT19937):
        words = ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    last_words, state = _last_numpy
    if words is None or words != last_words or state["has_gauss"]:
        state = np.random.get_state(legacy=False)
        _last_numpy = words, state
    return state


def find_generators(attributes: Iterable[Any]) -> list[OwnGenerator]:
    """Return the random generators among `attributes`, each once.

    Lists, tuples, dictionaries and plain Python objects are searched too, three levels deep. Networks and tensors
    are not: a network gives the attributes of each of its modules.

    Args:
        attributes: Values of any type.
    """
    found: dict[int, OwnGenerator] = {}
    level, seen = list(attributes), set[int]()
    for _ in range(_SEARCHED_LEVELS):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, OwnGenerator) and not isinstance(value, random.SystemRandom):
                found.setdefault(id(value), value)
            elif id(value) not in seen:
                seen.add(id(value))
                inner += _list_contents(value)
        level = inner
    return list(found.values())


def _list_contents(value: Any) -> list[Any]:
    """Return the entries of a container or the attributes of a plain object; nothing for other values."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, type | Tensor | np.ndarray | nn.Module | ModuleType):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _get_own_state(generator: OwnGenerator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set_own_state(generator: OwnGenerator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _to_tensor(array: Any) -> Tensor:
    """Return the bits of unsigned words as signed ones, which every torch version can save."""
    return torch.from_numpy(array.view(array.dtype.str.replace("u", "i")))


def _to_array(tensor: Tensor) -> Any:
    array = tensor.numpy()
    return array.view(array.dtype.str.replace("i", "u"))


def _map_arrays(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to all arrays of type `kind` in nested dictionaries and tuples."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {name: _map_arrays(entry, kind, function) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_map_arrays(entry, kind, function) for entry in value)
    return value


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor | np.ndarray):
        return bool((first == second).all())
    if isinstance(first, dict):
        return all(_are_equal(value, second[name]) for name, value in first.items())
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    return bool(first == second)
