"""Random damages of a run folder: what a full disk, a bad copy, another version or another program leaves."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sam_runner.utils import manifest

ODD_VALUES = [
    None, True, False, 0, -1, 1, 2**70, 1e308, float("nan"), float("inf"), "", "x", "nan", "finished", "running", "é",
    "\0", "a\nb", "x" * 5000, [], [1], [[[]]], {}, {"a": 1}, {"": None}, "../x", "${lr}", "2026-01-01T00:00:00+00:00",
]  # fmt: skip
FOREIGN = {
    "notes.txt": b"my notes\n", "paper.pdf": b"%PDF-1.4 mine", "my_weights.pt": bytes(range(256)),
    "checkpoints/backup.pt": b"my copy", "checkpoints/step-abc.json": b"{}", "plots/figure.png": b"\x89PNG mine",
    "old/result.json": b'{"status": "finished"}', "checkpoints/notes.md": b"mine", "data.csv": b"a,b\n1,2\n",
}  # fmt: skip
Damage = Callable[[Path, random.Random, Path], str]


def damage(run: Path, draws: random.Random, other: Path) -> list[str]:
    """Damage a run folder at random.

    Args:
        run: The folder.
        draws: Source of the choices.
        other: Another run, which files are taken from.

    Returns:
        What was done.
    """
    return [draws.choice(DAMAGES)(run, draws, other) for _ in range(draws.choice((1, 1, 1, 2, 3)))]


def _pick(run: Path, draws: random.Random, suffixes: tuple[str, ...] = ("",)) -> Path | None:
    own = {run / name for name in FOREIGN}
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    files = [path for path in files if path not in own]
    return draws.choice(files) if files else None


def delete(run: Path, draws: random.Random, _: Path) -> str:
    """Delete a file."""
    path = _pick(run, draws)
    if path is not None:
        path.unlink()
    return f"deleted {path and path.name}"


def truncate(run: Path, draws: random.Random, _: Path) -> str:
    """Cut off the end of a file, or all of it."""
    path = _pick(run, draws)
    if path is None:
        return "nothing"
    size = draws.choice([0, draws.randrange(path.stat().st_size + 1), max(0, path.stat().st_size - 1)])
    os.truncate(path, size)
    return f"cut {path.name} to {size} bytes"


def flip(run: Path, draws: random.Random, _: Path) -> str:
    """Change some bits of a file."""
    path = _pick(run, draws)
    if path is None or not path.stat().st_size:
        return "nothing"
    content = bytearray(path.read_bytes())
    for _number in range(draws.choice((1, 1, 8))):
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
    return f"changed bits of {path.name}"


def overwrite(run: Path, draws: random.Random, _: Path) -> str:
    """Replace the content of a file by something else."""
    path = _pick(run, draws)
    if path is None:
        return "nothing"
    contents = [
        b"", b"\0" * 64, bytes(draws.randrange(256) for _ in range(200)), b"[" * 100_000, b"{}", b"[]", b"null", b"1",
        b'"x"', b"NaN", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"a: &a [*a]", b"- 1\n- 2\n", b"a: b: c", b"PK\x03\x04",
        b"{'a': 1}", b'{"a": 1}\n', b"<<<<<<< HEAD\n", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ]  # fmt: skip
    number = draws.randrange(len(contents))
    path.write_bytes(contents[number])
    return f"overwrote {path.name} with {contents[number][:20]!r}"


def exchange(run: Path, draws: random.Random, other: Path) -> str:
    """Replace a file by that of another run."""
    path = _pick(run, draws)
    source = None if path is None else _pick(other, draws, (path.suffix,))
    same = None if path is None else other / path.relative_to(run)
    source = same if same is not None and same.is_file() and draws.random() < 0.7 else source
    if path is None or source is None:
        return "nothing"
    shutil.copy(source, path)
    return f"replaced {path.name} by {source.name} of another run"


def replace_by_folder(run: Path, draws: random.Random, _: Path) -> str:
    """Put a folder in place of a file."""
    path = _pick(run, draws)
    if path is None:
        return "nothing"
    path.unlink()
    path.mkdir()
    return f"a folder in place of {path.name}"


def replace_by_link(run: Path, draws: random.Random, _: Path) -> str:
    """Put a symbolic link in place of a file."""
    path = _pick(run, draws)
    if path is None:
        return "nothing"
    path.unlink()
    target = draws.choice(["nothing", path.name, "/dev/null", "."])
    path.symlink_to(target)
    return f"a link to {target} in place of {path.name}"


def add_foreign(run: Path, draws: random.Random, _: Path) -> str:
    """Add a file of the user."""
    name = draws.choice(sorted(FOREIGN))
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(FOREIGN[name])
    return f"added {name}"


def change_json(run: Path, draws: random.Random, _: Path) -> str:
    """Change an entry of a JSON file; a manifest gets the checksum that fits."""
    path = _pick(run, draws, (".json",))
    if path is None:
        return "nothing"
    value = json.loads(path.read_text())
    what = _change(value, draws)
    if "check" in value:
        value["check"] = manifest._checksum(value)
    path.write_text(json.dumps(value, indent=2))
    return f"{path.name}: {what}"


def change_row(run: Path, draws: random.Random, _: Path) -> str:
    """Change, delete or add a row of metrics.jsonl or timing.jsonl."""
    path = _pick(run, draws, (".jsonl",))
    lines = path.read_text().splitlines() if path is not None else []
    if path is None or not lines:
        return "nothing"
    number = draws.randrange(len(lines))
    row = json.loads(lines[number])
    what = _change(row, draws)
    lines[number] = draws.choice([json.dumps(row), json.dumps(row), "", "x", "[1]", "NaN", lines[number][:10]])
    path.write_text("\n".join(lines) + draws.choice(["\n", ""]))
    return f"{path.name}, row {number}: {what}"


def change_settings(run: Path, draws: random.Random, _: Path) -> str:
    """Change an entry of config.yaml."""
    path = run / "config.yaml"
    if not path.is_file():
        return "nothing"
    value = yaml.safe_load(path.read_text())
    what = _change(value, draws)
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return f"config.yaml: {what}"


def _change(value: Any, draws: random.Random) -> str:
    """Change an entry somewhere in nested dictionaries and lists; return what was done."""
    place, name = value, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return f"nothing in {name}"
        key = draws.choice(keys)
        name = f"{name}.{key}"
        if isinstance(place[key], dict | list) and place[key] and draws.random() < 0.8:
            place = place[key]
            continue
        action = draws.choice(["change", "change", "change", "remove", "add"])
        new = draws.choice(ODD_VALUES)
        if action == "change":
            place[key] = new
            return f"{name} = {str(new)[:30]!r}"
        if action == "remove":
            del place[key]
            return f"{name} removed"
        if isinstance(place, dict):
            place[draws.choice(["new", "version", "_target_"])] = new
        else:
            place.append(new)
        return f"added {str(new)[:30]!r} beside {name}"


def change_format(run: Path, draws: random.Random, _: Path) -> str:
    """Let another version have written a checkpoint."""
    path = _pick(run / "checkpoints", draws, (".json",))
    value = json.loads(path.read_text()) if path is not None else None
    if path is None or not isinstance(value, dict):
        return "nothing"
    value["format"] = draws.choice([1, 4, 6, 99])
    value["check"] = manifest._checksum(value)
    path.write_text(json.dumps(value))
    return f"{path.name} has format {value['format']}"


def _guard(change: Damage) -> Damage:
    """Return the damage, which does nothing where an earlier damage left nothing to change."""

    def guarded(run: Path, draws: random.Random, other: Path) -> str:
        try:
            return change(run, draws, other)
        except (ValueError, OSError, RecursionError, TypeError, yaml.YAMLError) as error:
            return f"nothing ({type(error).__name__})"

    return guarded


DAMAGES = [
    _guard(change)
    for change in (
        delete, truncate, truncate, flip, overwrite, overwrite, exchange, replace_by_folder, replace_by_link,
        add_foreign, change_json, change_json, change_json, change_row, change_settings, change_settings, change_format,
    )
]  # fmt: skip
