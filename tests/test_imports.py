"""The structure of docs/design.md: imports point down, and heavy or foreign packages stay where they belong."""

import ast
from pathlib import Path

import pytest

import sam_runner

PACKAGE = Path(sam_runner.__file__).parent
LAYERS = [  # within a layer, too, a module imports only those before it
    [
        "errors",
        "files",
        "stopping",
        "archives",
        "hardware",
        "lean",
        "seeding",
        "schedules",
        "spectral",
        "batchnorm",
        "shake",
        "trust",
        "distributed",
        "sharding",
        "torchrun",
    ],
    ["data", "models", "objective", "perturbation", "update", "sam", "capture"],
    ["metrics", "figures", "tracking", "checkpoint", "pretrained"],
    ["run", "scoring", "trainer"],
    [
        "console",
        "model_schema",
        "data_schema",
        "schema",
        "engines",
        "hydra_guard",
        "yaml_guard",
        "usage",
        "data_rules",
        "rules",
        "config",
        "messages",
        "run_folder",
        "places",
        "construct",
        "network",
        "rates",
        "build",
        "paper",
        "plan",
        "launch",
        "evaluation",
        "verification",
        "sweep",
        "cell",
        "records",
        "report",
        "comparison",
        "afterwards",
        "cli",
        "__main__",
    ],
]
DATA = [
    "sets",
    "decode",
    "plain_pickle",
    "download",
    "fashion",
    "cifar",
    "svhn",
    "folder",
    "noise",
    "augment",
    "policy",
    "mixing",
    "stream",
    "loader",
]
MODELS = [
    "initialisation",
    "stages",
    "small",
    "resnet_cifar",
    "wide_resnet",
    "resnet_mentormix",
    "shake_shake",
    "pyramidnet",
    "published",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
POSITION = {name: position for position, name in enumerate(name for names in LAYERS for name in names)}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def module_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports_of(path):
    """(name, whether at the top of the module) of everything imported."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "sam_runner":
                yield from ((f"sam_runner.{alias.name}", id(node) in top) for alias in node.names)
            else:
                yield node.module, id(node) in top


def own_imports(path):
    return [name.split(".")[1:] for name, _ in imports_of(path) if name.startswith("sam_runner.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(module_of(path)))
def test_imports_point_down(path):
    module = module_of(path)
    for imported in own_imports(path):
        if imported[0] == module[0]:
            order = {"data": DATA, "models": MODELS}[module[0]]
            assert order.index(imported[1]) < order.index(module[1])
        else:
            assert POSITION[imported[0]] < POSITION[module[0]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(module_of(path)))
def test_foreign_packages_stay_where_they_belong(path):
    name = module_of(path)[0]
    roots = {imported.split(".")[0] for imported, _ in imports_of(path)}
    if RANK[name] < 4:
        assert roots.isdisjoint({"hydra", "omegaconf", "yaml"})
    if name != "report":
        assert "matplotlib" not in roots
    if name != "tracking":
        assert "tensorboard" not in roots
        assert not any("tensorboard" in imported for imported, _ in imports_of(path))


@pytest.mark.parametrize("name", ["errors", "trust", "schema", "config", "usage", "messages", "cli"])
def test_modules_before_validation_do_not_import_torch_at_the_top(name):
    seen, todo = set(), [name]
    while todo:
        current = todo.pop()
        seen.add(current)
        for imported, at_top in imports_of(PACKAGE / f"{current}.py"):
            assert not (at_top and imported.split(".")[0] in ("torch", "torchvision", "numpy")), current
            parts = imported.split(".")
            if at_top and parts[0] == "sam_runner" and len(parts) > 1 and parts[1] not in seen:
                todo.append(parts[1])


def test_every_module_has_a_layer():
    assert {module_of(path)[0] for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(module_of(path)))
def test_modules_and_functions_are_short(path):
    source = path.read_text()
    assert source.count("\n") <= 280
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_loading_is_safe_everywhere():
    """torch.load always says weights_only=True; nothing unpickles, evaluates, or extracts archives."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "eval",
                    "exec",
                    "pickle.load",
                    "pickle.loads",
                    "instantiate",
                    "hydra.utils.instantiate",
                )
                assert not called.endswith((".extractall", ".unsafe_load"))
                if called == "torch.load":
                    assert {word.arg: ast.unparse(word.value) for word in node.keywords}["weights_only"] == "True"
