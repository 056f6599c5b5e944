"""One thread per process: tests run two processes at a time, and bits depend on the number of threads."""

import gc
import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.composing import reuse_composed_options
from tests.plotting import draw_plots, leave_plots_undrawn

reuse_composed_options()
leave_plots_undrawn()
torch.set_num_threads(1)


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look at it time and again."""
    gc.freeze()


@pytest.fixture
def drawn_plots():
    """Let matplotlib draw, in a test that looks at a picture or at its size."""
    with draw_plots():
        yield


@pytest.fixture
def caplog(caplog, monkeypatch):
    """Pytest's fixture; a command that ran before in this process ends what `sam_runner` logs at its own handler."""
    monkeypatch.setattr(logging.getLogger("sam_runner"), "propagate", True)
    return caplog


@pytest.fixture
def device():
    """The device of tests marked gpu; SAM_RUNNER_TEST_DEVICE=cpu rehearses them."""
    name = os.environ.get("SAM_RUNNER_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(name)


@pytest.fixture(autouse=True)
def no_test_trusts_code_for_another():
    """Typing a target of one's own code sets SAM_RUNNER_TRUSTED of the process."""
    before = os.environ.get("SAM_RUNNER_TRUSTED")
    yield
    if before is None:
        os.environ.pop("SAM_RUNNER_TRUSTED", None)
    else:
        os.environ["SAM_RUNNER_TRUSTED"] = before
