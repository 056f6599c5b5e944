"""The structure of the package: imports between folders run one way, as each folder's `__init__.py` says."""

import ast
import re
from pathlib import Path

import pytest

import sam_runner

PACKAGE = Path(sam_runner.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
FOLDERS = sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
MAX_ENTRIES = 13


def imports_of(path):
    """(name, whether at the top of the module) of everything that a file imports."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def allowed_imports(folder):
    """The folders that the docstring of a folder's `__init__.py` names after "May import:"."""
    found = re.search(r"^May import: (.*)\.$", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), re.M)
    assert found, f"{folder.name}/__init__.py has no line 'May import: ....'"
    return {name.strip() for name in found[1].split(",")} - {"nothing"}


def folder_of(path):
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_imports_only_what_it_says(folder):
    names = {path.name for path in FOLDERS}
    allowed = allowed_imports(folder)
    assert allowed <= names
    for path in folder.rglob("*.py"):
        for name, _ in imports_of(path):
            parts = name.split(".")
            if parts[0] == "sam_runner" and len(parts) > 1 and parts[1] in names:
                assert parts[1] in allowed | {folder.name}, f"{path.relative_to(PACKAGE)} imports {name}"


def test_imports_between_folders_run_one_way():
    allowed = {path.name: allowed_imports(path) for path in FOLDERS}
    order = []
    while allowed:
        ready = sorted(name for name, others in allowed.items() if others <= set(order))
        assert ready, f"a circle among {sorted(allowed)}"
        order += ready
        for name in ready:
            del allowed[name]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_described_and_not_crowded(folder):
    entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(entries) - 1 <= MAX_ENTRIES  # apart from __init__.py
    assert len(ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_foreign_packages_stay_where_they_belong(path):
    roots = {name.split(".")[0] for name, _ in imports_of(path)}
    name = path.relative_to(PACKAGE).as_posix()
    if not name.startswith(("config/hydra", "commands/train")):
        assert roots.isdisjoint({"hydra", "omegaconf"})
    if folder_of(path) != "reports":
        assert "jinja2" not in roots or name == "inference/contact_sheet.py"
        assert "matplotlib" not in roots or name == "analysis/plots.py"
    if name != "runs/logging/tensorboard.py":
        assert "tensorboard" not in roots
        assert not any("tensorboard" in imported for imported, _ in imports_of(path) if imported.startswith("torch"))


@pytest.mark.parametrize(
    "name",
    [
        "config/experiment.py",
        "config/hydra/compose.py",
        "config/help.py",
        "commands/train.py",
        "commands/curvature.py",
        "commands/sharpness.py",
        "commands/landscape.py",
        "commands/evaluate.py",
        "commands/inference/predict.py",
        "commands/inference/export.py",
        "commands/inference/suspects.py",
    ],
)
def test_modules_before_validation_do_not_import_torch_at_the_top(name):
    seen, todo = set(), [PACKAGE / name]
    while todo:
        path = todo.pop()
        seen.add(path)
        for imported, at_top in imports_of(path):
            if not at_top:
                continue
            assert imported.split(".")[0] not in ("torch", "torchvision", "numpy", "pandas"), path
            parts = imported.split(".")
            if parts[0] == "sam_runner":
                candidates = [PACKAGE.joinpath(*parts[1:]), PACKAGE.joinpath(*parts[1:-1])]
                files = [file for path in candidates for file in (path.with_suffix(".py"), path / "__init__.py")]
                todo += [file for file in files if file.is_file() and file not in seen]


def test_loading_is_safe_everywhere():
    """torch.load always says weights_only=True; nothing unpickles, evaluates, or extracts archives."""
    forbidden = ("eval", "exec", "pickle.load", "pickle.loads", "hydra.utils.instantiate")
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in forbidden, path
                assert not called.endswith((".extractall", ".unsafe_load")), path
                if called == "torch.load":
                    assert {word.arg: ast.unparse(word.value) for word in node.keywords}["weights_only"] == "True"
