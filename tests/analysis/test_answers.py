"""Results on disk: nothing is lost, a stopped computation continues to the bit, damage is noticed."""

import json
import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch

from sam_runner.analysis.answers import Answer, StoredProducts, hold_lock, settings_digest
from sam_runner.geometry.lanczos import largest_eigenvalues
from sam_runner.utils.errors import InputError
from tests.geometry.problems import matrix
from tests.helpers import at_once


def test_answers_to_other_settings_stay(tmp_path):
    path = tmp_path / "answers.json"
    Answer(path, {"k": 1}).save(value=1.0)
    Answer(path, {"k": 2}).save(value=2.0)
    answer = Answer(path, {"k": 1})
    answer.save(more=[3.0])
    assert answer.values == {"value": 1.0, "more": [3.0]}
    assert Answer(path, {"k": 2}).values == {"value": 2.0} and Answer(path, {"k": 3}).values == {}
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1}) != settings_digest({"a": 1, "b": 3})
    for content in ("not JSON", "[]", '{"answers": [1]}', '{"answers": [{"settings": {}}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match="move it away"):
            Answer(path, {"k": 1})


def answer_twenty_times(path, name):
    for number in range(20):
        with hold_lock(path):
            Answer(path, {"process": name, "number": number}).save(value=number)
            total = Answer(path, {"total": True})
            total.save(count=total.values.get("count", 0) + 1)


def test_processes_that_answer_at_once_lose_nothing(tmp_path):
    """Each of four processes adds twenty answers to one file, and counts up a number in it."""
    path = tmp_path / "answers.json"
    at_once(partial(answer_twenty_times, path), ["a", "b", "c", "d"])
    assert Answer(path, {"total": True}).values == {"count": 80}
    assert len(json.loads(path.read_text())["answers"]) == 81


def die_with_a_lock(path):
    with hold_lock(path):
        path.with_name("answers.json.tmp.1").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_ends_with_its_process_and_takes_half_written_files_with_it(tmp_path):
    path = tmp_path / "answers.json"
    process = multiprocessing.get_context("fork").Process(target=die_with_a_lock, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "answers.json.tmp.1").exists()
    with hold_lock(path):
        assert [file.name for file in tmp_path.iterdir()] == [".answers.json.lock"]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("damage", ["none", "cut", "bit"])
def test_a_stopped_computation_continues_to_the_bit(tmp_path, damage):
    A, _ = matrix()
    A, start, calls = A.float(), torch.linspace(1, 2, 30), []

    def products(vectors, limit=None):
        if limit is not None and len(calls) >= limit:
            raise StoppedError
        calls.extend(vectors)
        return [A @ v for v in vectors]

    whole = largest_eigenvalues(lambda v: A @ v, start, 3)
    path = tmp_path / "products.bin"
    first = StoredProducts(path, lambda vs: products(vs, 5), start)
    with pytest.raises(StoppedError):
        largest_eigenvalues(first.one, start, 3)
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "bit":
        content[-7] ^= 1
        path.write_bytes(content)
    calls.clear()
    counts = []
    second = StoredProducts(path, products, start, after=counts.append)
    assert largest_eigenvalues(second.one, start, 3) == whole
    assert len(calls) == whole.num_products - (5 if damage == "none" else 4)
    assert sum(counts) == whole.num_products and path.stat().st_size > size
    second.delete()
    assert not path.exists()
