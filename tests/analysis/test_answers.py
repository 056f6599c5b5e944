"""Results on disk: nothing is lost, a stopped computation continues to the bit, damage is noticed."""

import pytest
import torch

from sam_runner.analysis.answers import Answer, StoredProducts, settings_digest
from sam_runner.geometry.lanczos import largest_eigenvalues
from sam_runner.utils.errors import InputError
from tests.geometry.problems import matrix


def test_answers_to_other_settings_stay(tmp_path):
    path = tmp_path / "answers.json"
    Answer(path, {"k": 1}).save(value=1.0)
    Answer(path, {"k": 2}).save(value=2.0)
    answer = Answer(path, {"k": 1})
    answer.save(more=[3.0])
    assert answer.values == {"value": 1.0, "more": [3.0]}
    assert Answer(path, {"k": 2}).values == {"value": 2.0} and Answer(path, {"k": 3}).values == {}
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1}) != settings_digest({"a": 1, "b": 3})
    path.write_text("not JSON")
    with pytest.raises(InputError, match="move it away"):
        Answer(path, {"k": 1})


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
    assert len(calls) == second.num_computed == whole.num_products - (5 if damage == "none" else 4)
    assert sum(counts) == whole.num_products and path.stat().st_size > size
    second.delete()
    assert not path.exists()
