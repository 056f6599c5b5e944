"""Where in a user's own code an error was raised."""

import inspect
import os
import sysconfig
import traceback
from typing import Any

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple({_PACKAGE, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))})


def describe_error(error: BaseException) -> str:
    """Return the type and the first line of an error, and below it the line of the user's code that raised it.

    The second line is missing if no code outside this program and the installed packages took part.
    """
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    place = find_line(error)
    return f"{type(error).__name__}: {message[:300]}" + (f"\n  in {place}" if place else "")


def find_line(error: BaseException) -> str:
    """Return ``file:line, in function`` of the last call in a user's own code that an error has left, "" if none."""
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{_shorten(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return ""
    function = "" if frames[-1].name == "<module>" else f", in {frames[-1].name}"
    return f"{_shorten(frames[-1].filename)}:{frames[-1].lineno}{function}"


def find_definition(value: Any) -> str:
    """Return ``file:line, in name`` of the definition of a function or class, "" if it has no source."""
    try:
        file, (_, line) = inspect.getsourcefile(value), inspect.getsourcelines(value)
    except (OSError, TypeError):
        return ""
    return f"{_shorten(file)}:{line}, in {value.__name__}" if file else ""


def _is_users(file: str) -> bool:
    libraries = (*(f"{folder}{os.sep}" for folder in _LIBRARIES), "<")
    return not file.startswith(libraries) and "site-packages" not in file


def _shorten(file: str) -> str:
    """Return a path relative to the working folder if it is below it."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative
