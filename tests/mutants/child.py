"""Run tests against a changed module in a forked process, which has torch and the other packages loaded already."""

import contextlib
import gc
import importlib.machinery
import inspect
import os
import signal
import sys
from pathlib import Path

import hydra  # noqa: F401 - what the children need is loaded once
import hypothesis.strategies  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from hydra._internal.config_loader_impl import ConfigLoaderImpl

TESTS = Path(__file__).resolve().parent.parent
PLUGINS = ("cacheprovider", "xdist", "timeout", "randomly", "unraisableexception")
TIMED_OUT = -signal.SIGALRM


def run_tests(file, module, arguments, *, seconds=0, output=os.devnull):
    """Run pytest in a fork where the package is loaded anew.

    Args:
        file: Source file that `module` takes the place of, or None.
        module: Syntax tree of the changed file.
        arguments: Of pytest; paths are relative to tests/.
        seconds: Time limit; 0: none.
        output: File that the tests' output is appended to.

    Returns:
        Exit code of pytest; `TIMED_OUT` after the time limit.
    """
    gc.freeze()  # pages that nobody looks at are not copied
    child = os.fork()
    if child == 0:
        gc.disable()
        code = 99
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            with open(output, "a") as sink:
                os.dup2(sink.fileno(), 1)
                os.dup2(sink.fileno(), 2)
            _forget_package()
            _load_instead(file, module)
            words = [word for name in PLUGINS for word in ("-p", f"no:{name}")]
            options = ["-x", "-q", "-o", "addopts=", "--rootdir", str(TESTS.parent), "--assert=plain", *words]
            os.chdir(TESTS)
            code = int(pytest.main([*options, *arguments]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that an ended child left
    return os.waitstatus_to_exitcode(status)


def _forget_package():
    for name in [name for name in sys.modules if name.startswith(("sam_runner", "tests", "test_", "conftest"))]:
        del sys.modules[name]
    ConfigLoaderImpl.load_configuration = inspect.unwrap(ConfigLoaderImpl.load_configuration)  # by its guard


def _load_instead(file, module):
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, name):
        if file is not None and loader.path == str(file):
            return compile(module, loader.path, "exec")
        return original(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code
