"""Every script of scripts/ can be imported: a syntax error, a name that has moved, or a missing package is found."""

import importlib
import sys
import traceback
from pathlib import Path

from tests.helpers import at_once

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


def import_all(names):
    """Import scripts; the errors by name."""
    sys.path.insert(0, str(SCRIPTS))
    errors = {}
    for name in names:
        sys.modules.pop(name, None)
        try:
            importlib.import_module(name)
        except BaseException:
            errors[name] = traceback.format_exc()
    return errors


def test_every_script_is_imported_without_an_error():
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    assert len(names) > 15
    assert at_once(import_all, [names]) == [{}]  # in another process: scripts may change settings of torch
