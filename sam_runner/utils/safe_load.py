"""A look into a file of tensors before torch opens it: only what this program writes is let in.

``torch.load(weights_only=True)`` runs no code from the file, but lets it ask for memory: ``bytearray(2**34)`` is a
plain call to it, and a compressed archive may unpack to anything.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

from sam_runner.utils.errors import InputError

NAMES = frozenset(
    {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch DoubleStorage",
        "torch HalfStorage", "torch BFloat16Storage", "torch LongStorage", "torch IntStorage", "torch ShortStorage",
        "torch CharStorage", "torch ByteStorage", "torch BoolStorage",
    }
)  # fmt: skip
STACKED = ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")  # not what torch.save writes


def holds_only_tensors(path: Path) -> bool:
    """Whether a file is an uncompressed archive whose one pickle names nothing but tensors and plain containers."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            size = sum(entry.file_size for entry in entries)
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if not stored or size > path.stat().st_size or len(pickles) != 1:
                return False
            return _names_only(archive.read(pickles[0]))
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile):
        return False


def _names_only(content: bytes) -> bool:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL" and argument not in NAMES:
            return False
        if opcode.name in STACKED:
            return False
    return True


def load_tensors(path: Path) -> Any:
    """What torch saved in a file, if it is made of tensors and plain types; on the CPU.

    Raises:
        InputError: Where it is anything else.
    """
    refusal = f"{path} holds more than tensors and plain types, or is no file of torch.save: refused"
    if not holds_only_tensors(path):
        raise InputError(refusal)
    import torch  # takes seconds; not before a path is read

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that was not written here, or is damaged
        raise InputError(refusal) from error
