"""Every script of scripts/ can be imported: a syntax error, a name that has moved, or a missing package is found."""

import importlib
import traceback
from pathlib import Path

from tests.helpers import at_once

ROOT = Path(__file__).resolve().parents[2]


def import_all(names):
    """Import scripts; the errors by name."""
    errors = {}
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:
            errors[name] = traceback.format_exc()
    return errors


def test_every_script_is_imported_without_an_error():
    paths = sorted((ROOT / "scripts").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    assert len(names) > 40
    assert at_once(import_all, [names]) == [{}]  # in another process: scripts may change settings of torch
