"""Load NumPy arrays from a pickle without running any code that the pickle names.

CIFAR's Python batches and the CIFAR-N labels are published as pickles, and a pickle can call any function by name. The
unpickler in here replaces every name by a stub that records its arguments: an array is a shape, the name of a dtype and
bytes. The result holds plain containers, numbers, text and arrays of a few numeric types.
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

DTYPES = frozenset({"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"})
MAX_BYTES = 1 << 28
MAX_OPCODES, MAX_CALLS = 2_000_000, 100
OPCODES = frozenset(
    {
        "PROTO", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
        "BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
        "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD",
    }
)  # fmt: skip


class _ArrayStub:
    """Stands for an array; builds it from the state in the pickle."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, stub, fortran, content = state
        if not isinstance(stub, _DtypeStub) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not numeric")
        sizes = tuple(int(size) for size in shape)
        if min(sizes, default=0) < 0 or math.prod(sizes) * stub.dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f"its array of {shape} has {len(content)} bytes")
        flat = np.frombuffer(content, stub.dtype)
        self.value = flat.reshape(sizes, order="F" if fortran else "C")


class _DtypeStub:
    """Stands for a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any) -> None:
        if _to_text(name) not in DTYPES:
            raise pickle.UnpicklingError(f"it holds an array of type {_to_text(name)[:40]}")
        self.dtype = np.dtype(_to_text(name))

    def __setstate__(self, state: Any) -> None:
        if _to_text(state[1]) not in ("<", ">", "|"):
            raise pickle.UnpicklingError("it holds an array of unknown byte order")
        self.dtype = self.dtype.newbyteorder(_to_text(state[1]))  # type: ignore[arg-type]


class _FunctionStub:
    """Stands for a function: the pickle can call it but cannot change its state."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


STUBS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _ArrayStub(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _ArrayStub(),
    ("numpy", "ndarray"): lambda *_: None,
    ("numpy", "dtype"): lambda name, *_: _DtypeStub(name),
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that knows the names in `STUBS` and ``_codecs.encode``, Python 3's form of bytes in protocol 2."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _FunctionStub(self._encode)
        if (module, name) not in STUBS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no set of images or labels needs"[:200])
        return _FunctionStub(STUBS[module, name])

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside of the file")

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes a value that is not latin1 text")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for more memory than the file has bytes")
        return text.encode("latin1")


def _to_text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise pickle.UnpicklingError("it has another value in place of a name")
    return value.decode("latin1") if isinstance(value, bytes) else value


def load_pickle(content: bytes, name: str) -> dict[str, Any]:
    """Load the dictionary in a pickle or in a file of ``torch.save``; keys are converted to text.

    Args:
        content: Bytes of the file.
        name: Name of the file, for messages.

    Raises:
        InputError: If it is damaged, holds no dictionary, or names anything but NumPy arrays.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            content = _extract_pickle(content)
        _check_opcodes(content)
        value = _RestrictedUnpickler(content).load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError("it holds no dictionary")
        return {_to_text(key): entry.value if isinstance(entry, _ArrayStub) else entry for key, entry in value.items()}
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply") from error
    except Exception as error:  # a damaged or hostile pickle can raise any exception
        raise InputError(f"{name} cannot be read: {str(error)[:200]}\n  download it again") from error


def _check_opcodes(content: bytes) -> None:
    """Refuse opcodes that arrays, lists of numbers and their names do not need, and too many of any.

    FRAME is refused because pickletools and the unpickler read frames differently.
    """
    num_calls = num_tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}, which no set of images or labels needs")
        num_calls += opcode.name == "REDUCE"
        num_tuples += opcode.name.startswith("TUPLE")
        skips_memo = opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > number
        if skips_memo or number > MAX_OPCODES or num_calls > MAX_CALLS or num_tuples > 10 * MAX_CALLS:
            raise pickle.UnpicklingError("it asks for more memory than the file has bytes")


def _extract_pickle(content: bytes) -> bytes:
    """Return the only pickle of an uncompressed archive of torch.save."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED or entries[0].file_size > len(content):
            raise pickle.UnpicklingError("it was not written by torch.save")
        return archive.read(entries[0])


def load_pickle_file(path: Path) -> dict[str, Any]:
    """Apply `load_pickle` to a file.

    Raises:
        InputError: See `load_pickle`; also if the file cannot be read or has more than 256 MiB.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        return load_pickle(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
