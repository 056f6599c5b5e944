"""Safe loading of files written by `torch.save`: a file is inspected before torch opens it.

``torch.load(weights_only=True)`` runs no code from the file, but the file can make it exhaust the memory:
``bytearray(2**34)`` is an allowed call, and a compressed archive may unpack to any size.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

from sam_runner.utils.errors import InputError

ALLOWED_GLOBALS = frozenset(
    {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch DoubleStorage",
        "torch HalfStorage", "torch BFloat16Storage", "torch LongStorage", "torch IntStorage", "torch ShortStorage",
        "torch CharStorage", "torch ByteStorage", "torch BoolStorage",
    }
)  # fmt: skip
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
