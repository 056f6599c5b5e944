"""Run tests against a changed module in a forked process, which has torch and the other packages loaded already."""

import ast
import contextlib
import gc
import inspect
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import hydra  # noqa: F401 - what the children need is loaded once
import hypothesis.strategies
import pandas  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import Phase

import sam_runner

PACKAGE = Path(sam_runner.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT = -signal.SIGALRM


def run_tests(arguments, file=None, module=None, *, seconds=0, output=os.devnull):
    """Run pytest in a fork, with a copy of the package in which one file is changed.

    Args:
        arguments: Of pytest; paths are relative to tests/.
        file: File of the package that is changed; None: none.
        module: Syntax tree of the changed file.
        seconds: Time limit; 0: none.
        output: File that the output of the tests is appended to.

    Returns:
        Exit code of pytest; `TIMED_OUT` after the time limit.
    """
    gc.freeze()  # pages that nobody looks at are not copied
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name)
        shutil.copytree(ROOT / "conf", Path(folder) / "conf")
        if file is not None:
            (copy / file.relative_to(PACKAGE)).write_text(ast.unparse(module))
        child = os.fork()
        if child == 0:
            gc.disable()
            code = 99
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                code = _run(folder, arguments, output)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that the child left behind
    return os.waitstatus_to_exitcode(status)


def _run(folder, arguments, output):
    sys.stdout = sys.stderr = open(output, "a")  # noqa: SIM115 - until the process ends
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    for name in [name for name in sys.modules if name.startswith(("sam_runner", "tests", "test_", "conftest"))]:
        del sys.modules[name]
    ConfigLoaderImpl.load_configuration = inspect.unwrap(ConfigLoaderImpl.load_configuration)  # without its guard
    sys.modules["__main__"] = ModuleType("__main__")  # processes that are spawned would import the caller's
    sys.path[:] = [folder, *sys.path, str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join((folder, str(ROOT)))  # for processes that the tests start
    import sam_runner as changed

    assert Path(changed.__file__).is_relative_to(folder)
    hypothesis.settings.register_profile("mutant", database=None, phases=[Phase.explicit, Phase.generate])
    hypothesis.settings.load_profile("mutant")  # one failure is enough: making it shorter takes seconds
    plugins = ("cacheprovider", "xdist", "timeout", "randomly", "unraisableexception")
    options = ["-x", "-q", "--tb=line", "--assert=plain", "--rootdir", str(ROOT), "-o", "addopts=", "-o", "pythonpath="]
    options += [word for name in plugins for word in ("-p", f"no:{name}")]
    os.chdir(ROOT / "tests")
    return int(pytest.main([*options, *arguments]))
