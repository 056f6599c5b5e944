"""Every path, command, flag, setting and option that the pages and the comments in conf/ name exists."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import sam_runner
from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.hydra.command_line import FLAGS
from sam_runner.config.hydra.launchers import DEFAULTS
from sam_runner.config.keys import walk
from scripts.pages import architecture_picture

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXTS = [path for path in [*PAGES, *sorted(ROOT.glob("conf/**/*.yaml"))] if path.name != "CHANGELOG.md"]
OWN = {name for path in PAGES for name in re.findall(r"^# mine/(.*)\.yaml", path.read_text(encoding="utf-8"), re.M)}
SETTINGS = {name for name, _, _ in walk(ExperimentConfig())} | {
    f"{group}.{entry.name}" for group, classes in GROUPS.items() for found in classes for entry in fields(found)
}
SETTING_GROUPS = ("data", "noise", "augment", "model", "optimizer", "schedule", "checkpoint", "sweep", "telemetry")
OPTIONS = {path.relative_to(ROOT / "conf").with_suffix("").as_posix() for path in ROOT.glob("conf/*/**/*.yaml")}
OPTIONS |= set(DEFAULTS)
# Files that pages write; a launcher named as refused.
EXAMPLES = OWN | {"model/mlp", "data/waves", "noise/next_class", "optimizer/mine", "hydra/launcher/ray_aws"}
# "key=value", "group=option"; arguments of own classes; folders of scripts/studies/evidence.py
EXAMPLE_SETTINGS = {
    "key", "group", "optimizer.base.eps", "optimizer.last", "data.length", "noise.part", "data.path", "cifar10",
    "cifar10n", "lite0", "fashion",
}  # fmt: skip
COMMANDS = {
    "sam-train": "train",
    "sam-eval": "evaluate",
    "sam-verify": "verify",
    "sam-report": "report",
    "sam-status": "status",
    "sam-curvature": "curvature",
    "sam-sharpness": "sharpness",
    "sam-landscape": "landscape",
    "sam-predict": "inference/predict",
    "sam-export": "inference/export",
    "sam-suspects": "inference/suspects",
}
TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}


def parametrize(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def shell_code(path):
    """Lines of shell blocks and code spans of a page, comments of a YAML file; without comments in a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return join_lines(re.findall(r"(?:^|\s)# (.*)", text))
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    shell = [line for language, block in blocks if not language for line in join_lines(block.splitlines())]
    return shell + [span.replace("\n", " ") for span in spans]


def join_lines(lines):
    return re.sub(r" \\\n\s*", " ", "\n".join(re.sub(r"(^|\s+)# .*", "", line) for line in lines)).splitlines()


def is_placeholder(name):
    return bool(re.search(r"[<>*]|\.\.\.|\b[A-Z]{2,}\b", name))


def wrong_override(key, value):
    """What is wrong with an override as it is typed, "" for a good one."""
    if any(option.startswith(f"{key}/") for option in OPTIONS):
        names = [name for name in value.split(",") if name != "null" and not is_placeholder(name)]
        return ", ".join(f"{key}={name}" for name in names if f"{key}/{name}" not in OPTIONS | EXAMPLES)
    is_known = key in SETTINGS | EXAMPLE_SETTINGS | {"config", "resume"} or key.startswith("hydra.")
    return "" if is_known else key


@parametrize(TEXTS)
def test_settings_and_options_exist(path):
    wrong = []
    for code in shell_code(path):
        if "(" not in code and '"' not in code:  # no Python
            for key, value in re.findall(r"(?<![\w.-])([a-z_][\w./]*)=([^\s\[\]]+?)[.,:;')]*(?=\s|\]|$)", code):
                wrong += [wrong_override(key, value)] if value not in ("True", "False") else []
        if re.fullmatch(rf"({'|'.join(SETTING_GROUPS)})\.[a-z_.]+", code) and code not in SETTINGS | {"model.json"}:
            wrong.append(code)
    assert not list(filter(None, wrong))


@parametrize(TEXTS)
def test_paths_and_names_exist(path):
    text = path.read_text(encoding="utf-8")
    for found in re.findall(r"(?<![\w./-])(?:sam_runner|conf|docs|scripts|tests)/[\w./*<>-]*", text):
        name = found.rstrip(".")
        assert is_placeholder(name) or name == "sam_runner/conf" or (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w./-])sam_runner(?:\.\w+)+", text):
        assert is_defined(name) or name.endswith(".gzip.open"), name  # SECURITY.md names one that is refused


def is_defined(name):
    """Whether a dotted name is a module of the package, or a class or function of one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    file = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    exported = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node)]
    names = {getattr(node, "name", "") for node in tree.body}.union(*map(ast.literal_eval, exported))
    return path.name in names


@parametrize(TEXTS)
def test_commands_and_their_flags_exist(path):
    targets = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.M)
    for line in shell_code(path):
        code = re.sub(r"^docker run .* sam-runner(:\w+)? (?=sam-)", "", line)
        flags = re.findall(r"(?<!\S)(--[a-z-]+)", code)
        if make := re.match(r"make ([a-z0-9-]+)", code):
            assert make[1] in targets, code
        elif script := re.match(r"(?:python )?(scripts/[\w/]+\.py)", code):
            source = (ROOT / script[1]).read_text(encoding="utf-8")
            assert all(f'"{flag}"' in source for flag in flags), code
        elif "torchrun" in code or "sam-train" in code:
            assert set(flags) <= FLAGS | TORCHRUN, code
        elif command := re.match(rf"({'|'.join(COMMANDS)})\b", code):
            files = (f"{COMMANDS[command[0]]}.py", "arguments.py")
            source = "".join((ROOT / "sam_runner/commands" / file).read_text(encoding="utf-8") for file in files)
            assert all(f'"{flag}"' in source for flag in flags), code
            assert "=" not in re.sub(r"--baseline \S+", "", code), code
        assert {*re.findall(r"(?<!\S)sam-[a-z]+\b", code)} <= {"sam-runner", "sam-", *COMMANDS}, code


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@parametrize(PAGES)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert link.startswith("http") or (target.is_file() and (not anchor or anchor in anchors(target))), link


@parametrize([path for path in PAGES if path.name != "settings.md"])
def test_paragraphs_and_lines_are_short(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d+\. |\|)", prose):
        lines = paragraph.strip().splitlines()
        if lines and not lines[0].startswith(("|", "!", "#")):
            assert len(lines) <= 4 and max(map(len, lines)) <= 120, paragraph


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(r"^## \[(.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert (citation["version"], citation["date-released"]) == heading.groups()
    assert citation["version"] == sam_runner.__version__
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_picture_of_the_architecture_is_up_to_date():
    drawn = architecture_picture.picture()
    assert architecture_picture.PICTURE.read_text() == drawn, "run python scripts/pages/architecture_picture.py"


def test_the_examples_of_extending_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_RUNNER_STARTED", "now")
    scope = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.M | re.S):
        exec(compile(block, "docs/extending.md", "exec"), scope)
    objective = scope["Objective"](scope["model"], scope["loss"])
    step = scope["SamStep"](objective, scope["optimizer"], scope["EverySecondStep"]())
    batch = scope["Batch"](scope["inputs"], scope["targets"])
    assert [float(step(batch, 0.05, number).eps_norm) > 0 for number in range(3)] == [True, False, True]
    assert scope["again"].config == scope["run"].config and len(scope["table"]) == 1
