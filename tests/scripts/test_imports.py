"""Every script of scripts/ can be imported: a syntax error, a name that has moved, or a missing package is found."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
CODE = """
import importlib, sys, traceback
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(name)
        traceback.print_exc()
print("failed:", *failed)
"""


def test_every_script_is_imported_without_an_error():
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    assert len(names) > 15
    done = subprocess.run(  # in a process of its own: scripts may change settings of torch and matplotlib
        [sys.executable, "-W", "ignore", "-c", CODE, *names],
        cwd=SCRIPTS, env={**os.environ, "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{SCRIPTS.parent}"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "failed:", done.stderr
