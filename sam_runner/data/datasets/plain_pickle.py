"""Arrays out of a pickle, without running anything that a pickle can ask for.

CIFAR's Python batches and the CIFAR-N labels are published as pickles, and a pickle is a program. It may call what it
names; here every name stands for an object that only takes notes: a NumPy array is its shape, the name of its type and
its bytes. What is left are plain containers, numbers, text and arrays of a few plain types.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sam_runner.utils.errors import InputError

KINDS = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"})
MAX_BYTES = 1 << 28
MOST_OPCODES, MOST_CALLS = 2_000_000, 100
OPCODES = frozenset(
    {
        "PROTO", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
        "BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
        "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD",
    }
)  # fmt: skip


class _Array:
    """What a pickle says of an array."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of plain numbers")
        counts = tuple(int(count) for count in shape)
        if min(counts, default=0) < 0 or math.prod(counts) * kind.dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f"its array of {shape} has {len(content)} bytes")
        flat = np.frombuffer(content, kind.dtype)
        self.value = flat.reshape(counts, order="F" if fortran else "C")


class _Kind:
    """What a pickle says of a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any) -> None:
        if _text(name) not in KINDS:
            raise pickle.UnpicklingError(f"it holds an array of type {_text(name)[:40]}")
        self.dtype = np.dtype(_text(name))

    def __setstate__(self, state: Any) -> None:
        if _text(state[1]) not in ("<", ">", "|"):
            raise pickle.UnpicklingError("it holds an array of unknown byte order")
        self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class _Call:
    """A name in a pickle: it can be called, and nothing about it can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it changes what it names")


NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): lambda *_: None,
    ("numpy", "dtype"): lambda name, *_: _Kind(name),
}


class _Reader(pickle.Unpickler):
    """Knows the names of `NAMES` and Python 2's bytes, as Python 3 writes them for protocol 2."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _Call(self._encoded)
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no set of images or labels needs"[:200])
        return _Call(NAMES[module, name])

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside")

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes what is no text")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for memory that it does not fill")
        return text.encode("latin1")


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise pickle.UnpicklingError("it has something else where a name has to be")
    return value.decode("latin1") if isinstance(value, bytes) else value


def read_plain(content: bytes, name: str) -> dict[str, Any]:
    """The dictionary in a pickle, also in one that ``torch.save`` wrote; its keys as text.

    Args:
        content: Of the file.
        name: Of the file, for messages.

    Raises:
        InputError: Where it is damaged, is no dictionary, or names anything but NumPy arrays.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            content = _stored(content)
        _require_modest(content)
        value = _Reader(content).load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError("it holds no dictionary")
        return {_text(key): entry.value if isinstance(entry, _Array) else entry for key, entry in value.items()}
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply") from error
    except Exception as error:  # whatever a damaged or hostile pickle leads to
        raise InputError(f"{name} cannot be read: {str(error)[:200]}\n  get it again") from error


def _require_modest(content: bytes) -> None:
    """Only what NumPy arrays, lists of numbers and their names are written with, and no more of it than they need.

    Frames are refused, since a scanner and the unpickler read them differently.
    """
    calls = tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}, which no set of images or labels needs")
        calls += opcode.name == "REDUCE"
        tuples += opcode.name.startswith("TUPLE")
        places = opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > number
        if places or number > MOST_OPCODES or calls > MOST_CALLS or tuples > 10 * MOST_CALLS:
            raise pickle.UnpicklingError("it asks for memory that it does not fill")


def _stored(content: bytes) -> bytes:
    """The one pickle of an archive of torch.save, which is not compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(found) != 1 or found[0].compress_type != zipfile.ZIP_STORED or found[0].file_size > len(content):
            raise pickle.UnpicklingError("it is no file of torch.save")
        return archive.read(found[0])


def read_plain_file(path: Path) -> dict[str, Any]:
    """`read_plain` of a file of at most 256 MiB."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        return read_plain(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
