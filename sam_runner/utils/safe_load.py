"""Safe loading of files written by `torch.save`: a file is inspected before torch opens it.

``torch.load(weights_only=True)`` runs no code from the file, but the file can make it exhaust the memory:
``bytearray(2**34)`` is an allowed call, and a compressed archive may unpack to any size.
"""

import io
import pickletools
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

from sam_runner.utils.errors import InputError

ALLOWED_GLOBALS = frozenset(
    {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch DoubleStorage",
        "torch HalfStorage", "torch BFloat16Storage", "torch ComplexFloatStorage", "torch ComplexDoubleStorage",
        "torch LongStorage", "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage",
        "torch BoolStorage",
    }
)  # fmt: skip
PLAIN_TYPES = frozenset({bool, int, float, str, type(None)})
# Opcodes that import or build objects in other ways; torch.save does not write them.
FORBIDDEN_OPCODES = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})


def holds_only_tensors(path: Path) -> bool:
    """Return whether a file is an uncompressed archive with one pickle of tensors and plain containers."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            uncompressed = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            size = sum(entry.file_size for entry in entries)
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if not uncompressed or size > path.stat().st_size or len(pickles) != 1:
                return False
            return _is_allowed_pickle(archive.read(pickles[0]))
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile):
        return False


def _is_allowed_pickle(content: bytes) -> bool:
    return not any(
        opcode.name in FORBIDDEN_OPCODES or (opcode.name == "GLOBAL" and argument not in ALLOWED_GLOBALS)
        for opcode, argument, _ in pickletools.genops(content)
    )


def find_unloadable(state: Any) -> str:
    """Return which entry of a state `load_tensors` would refuse and its type, "" if there is none.

    Args:
        state: What `torch.save` is to write.
    """
    import torch

    if type(state) in (dict, OrderedDict):
        found = ((name, find_unloadable(value)) for name, value in state.items())
        return next((f"{name}: {kind}" for name, kind in found if kind), "")
    if type(state) in (list, tuple):
        return next(filter(None, map(find_unloadable, state)), "")
    kind = f"{type(state).__module__}.{type(state).__qualname__}".removeprefix("builtins.")
    if type(state) is torch.Tensor:
        kind = f"{kind}, {state.dtype}, {state.layout}"
        if state.layout == torch.strided:
            return "" if _is_accepted(state.dtype) else kind
    return "" if type(state) in PLAIN_TYPES or _is_written_plainly(state) else kind


@cache
def _is_accepted(dtype: Any) -> bool:
    import torch

    return _is_written_plainly(torch.empty(0, dtype=dtype))


def _is_written_plainly(value: Any) -> bool:
    """Return whether `torch.save` writes a value such that `load_tensors` accepts it."""
    import torch

    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # of the value's own code
        return False
    with zipfile.ZipFile(buffer) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pkl"))
        return _is_allowed_pickle(archive.read(name))


def load_tensors(path: Path) -> Any:
    """Load a file of tensors and plain types onto the CPU.

    Raises:
        InputError: If the file contains anything else, is damaged, or was not written by `torch.save`.
    """
    message = (
        f"{path} was refused: it holds more than tensors and plain types, or torch.save did not write it\n"
        "  accepted: a file of torch.save that holds only tensors, numbers, strings and containers of them\n"
        "  a whole network is not read: torch.save(model.state_dict(), FILE) writes its weights alone"
    )
    if not holds_only_tensors(path):
        raise InputError(message)
    import torch  # importing it takes seconds, so a refused file is answered first

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(message) from error
