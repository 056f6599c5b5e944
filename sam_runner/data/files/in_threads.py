"""Call a function with many files in threads, with a progress bar; one error names the files that cannot be used."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from sam_runner.utils.console import is_main_process
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import start_threads

AnyPath = TypeVar("AnyPath", str, Path)
log = logging.getLogger("sam_runner")
SMALL_FILE_BYTES = 4096  # about 100x100 pixels; for smaller files one thread is as fast as several
FILES_PER_TASK = 256  # decoding one small image is cheaper than submitting it to a thread
MAX_LISTED = 10  # faults in a message; the log has all of them


def is_small_file(path: Path) -> bool:
    """Return whether one thread decodes files like this one as fast as several do; False if there is no such file."""
    return path.is_file() and path.stat().st_size < SMALL_FILE_BYTES


def for_each_file(
    files: list[AnyPath], call: Callable[[AnyPath], object], workers: int, title: str, faults: dict[AnyPath, str]
) -> None:
    """Call a function with each file that has no fault, in threads and with a bar; add its `InputError` to `faults`."""

    def work(part: list[AnyPath]) -> int:
        for path in part:
            if path not in faults:
                try:
                    call(path)
                except InputError as error:
                    faults[path] = str(error)
        return len(part)

    pool = start_threads(workers)
    hide_bar = None if is_main_process() else True  # None shows the bar on a terminal only
    try:
        parts = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
        with tqdm(total=len(files), desc=title, leave=False, disable=hide_bar) as bar:
            for future in as_completed([pool.submit(work, part) for part in parts]):
                bar.update(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def describe_faults(messages: Sequence[str], num_images: int) -> InputError:
    """Return one error for all faults: the whole message of a single one, the first lines of several.

    Args:
        messages: What is wrong with each image, at least one; further lines are what to do.
        num_images: Number of images that were looked at.
    """
    if len(messages) == 1:
        return InputError(messages[0])
    hints = dict.fromkeys(line for message in messages for line in message.splitlines()[1:])
    lines = [f"  {message.splitlines()[0]}" for message in messages[:MAX_LISTED]]
    if len(messages) > MAX_LISTED:
        for message in messages:
            log.warning("%s", message.splitlines()[0])
        lines.append(f"  and {len(messages) - MAX_LISTED} more; the lines above name all of them")
    return InputError("\n".join([f"{len(messages)} of {num_images:,} images cannot be used:", *lines, *hints]))
