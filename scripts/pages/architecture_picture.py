"""Draw docs/img/architecture.svg from the package. Run it as ``python scripts/pages/architecture_picture.py``.

The picture has three parts: the folders of sam_runner/ by layer, the path of a batch and the path of a setting. Layers
and descriptions come from the docstrings of the folders' ``__init__.py``, as in tests/test_imports.py. A file or name
on a path that does not exist is an error.
"""

import ast
import re
import sys
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sam_runner"
PICTURE = ROOT / "docs" / "img" / "architecture.svg"

WIDTH, MARGIN, GAP = 1000, 20, 14  # pixels
LINE, CHARACTER = 16, 6.2  # height of a line and width of a character of the 12-pixel text, in pixels
TITLE_HEIGHT, ARROW = 44, 26
FILL = {"folder": "#eef3fb", "step": "#eef7ee", "outside": "#f6f6f6"}


class Stage(NamedTuple):
    """One box on a path.

    Attributes:
        title: First line of the box.
        file: File below the repository that the box is about; "" for none.
        names: Top-level classes and functions of the file that the text names.
        text: What happens there.
    """

    title: str
    file: str
    names: tuple[str, ...]
    text: str


BATCH = (
    Stage("1  loader", "sam_runner/data/loader.py", ("ImageLoader",), "reads, augments and normalises the images"),
    Stage("2  loop", "sam_runner/training/loop.py", ("fit",), "one step per batch, with rho and lr of the step"),
    Stage("3  step", "sam_runner/sam/step.py", ("SamStep",), "groups, statistics, finite check; asks the method"),
    Stage("4  method", "sam_runner/sam/method.py", ("Method",), "pass at w, eps, pass at w + eps"),
    Stage("5  objective", "sam_runner/sam/objective.py", ("Objective",), "loss and gradient of each pass"),
    Stage("6  optimizer", "sam_runner/sam/optimizer_step.py", ("OptimizerStep",), "clips; base optimizer makes new w"),
)
SETTING = (
    Stage("1  user", "conf/config.yaml", (), "YAML files of conf/ and the command line"),
    Stage("2  command", "sam_runner/commands/train.py", ("train",), "splits flags from settings"),
    Stage("3  Hydra", "sam_runner/config/hydra/compose.py", ("compose_settings",), "joins files and command line"),
    Stage("4  validation", "sam_runner/config/experiment.py", ("load_experiment",), "types, ranges and rules"),
    Stage("5  typed", "sam_runner/config/experiment.py", ("ExperimentConfig",), "frozen; one dataclass per group"),
    Stage("6  builder", "sam_runner/training/builders/run.py", ("build_run",), "makes network, step and loaders"),
)


def folder_facts() -> dict[str, tuple[str, set[str]]]:
    """Return (first line of the docstring, folders that it may import) of every folder of the package."""
    facts = {}
    for init in sorted(PACKAGE.glob("*/__init__.py")):
        doc = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        found = re.search(r"^May import: (.*?)\.?$", doc, re.M)
        if found is None:
            raise ValueError(f"{init.relative_to(ROOT)} has no line 'May import: ....'")
        allowed = {name.strip() for name in found[1].split(",")} - {"nothing"}
        facts[init.parent.name] = (doc.split("\n\n")[0].replace("\n", " "), allowed)
    return facts


def layers(facts: dict[str, tuple[str, set[str]]]) -> list[list[str]]:
    """Return the folders by layer, the lowest first: a folder is one layer above the highest folder it may import."""
    level: dict[str, int] = {}
    while len(level) < len(facts):
        ready = [name for name, (_, allowed) in facts.items() if name not in level and allowed <= level.keys()]
        if not ready:
            raise ValueError(f"a circle among {sorted(facts.keys() - level.keys())}")
        level |= {name: max((level[other] for other in facts[name][1]), default=-1) + 1 for name in ready}
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for name, number in sorted(level.items()):
        rows[number].append(name)
    return rows


def require_existing(stage: Stage) -> None:
    """Refuse a stage whose file or names do not exist.

    Raises:
        ValueError: With the file and the missing names.
    """
    path = ROOT / stage.file
    if not path.is_file():
        raise ValueError(f"{stage.file} does not exist")
    if stage.names:
        defined = {getattr(node, "name", "") for node in ast.parse(path.read_text(encoding="utf-8")).body}
        if missing := set(stage.names) - defined:
            raise ValueError(f"{stage.file} does not define {', '.join(sorted(missing))}")


def text_element(x: float, y: float, text: str, style: str) -> str:
    """Return an SVG text; `style` is a class of the picture's style sheet."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{escape(text)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, lines: list[tuple[str, str]]) -> list[str]:
    """Return a box with its lines of (text, style)."""
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{FILL[kind]}" stroke="#8a98ad"/>'
    ]
    parts += [text_element(x + 9, y + 20 + LINE * number, *line) for number, line in enumerate(lines)]
    return parts


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return an arrow from (x1, y1) to (x2, y2)."""
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" class="arrow" marker-end="url(#head)"/>'


def draw_layers(y: float) -> tuple[list[str], float]:
    """Return the folders by layer and the y below them."""
    facts = folder_facts()
    left = MARGIN + 16
    parts = [text_element(MARGIN, y + 26, "Folders of sam_runner/: a folder imports only folders below it", "title")]
    y += TITLE_HEIGHT
    top = y
    for row in reversed(layers(facts)):
        width = (WIDTH - MARGIN - left - GAP * (len(row) - 1)) / len(row)
        texts = [wrap(facts[name][0].replace("`", ""), int((width - 14) / CHARACTER)) for name in row]
        height = 30 + LINE * max(len(lines) for lines in texts)
        for number, (name, lines) in enumerate(zip(row, texts, strict=True)):
            content = [(name + "/", "name"), *((line, "text") for line in lines)]
            parts += box(left + number * (width + GAP), y, width, height, "folder", content)
        y += height + 10
    return [*parts, arrow(MARGIN, top, MARGIN, y - 12)], y


def draw_path(y: float, title: str, stages: tuple[Stage, ...]) -> tuple[list[str], float]:
    """Return a row of boxes joined by arrows and the y below it."""
    parts = [text_element(MARGIN, y + 26, title, "title")]
    y += TITLE_HEIGHT
    width = (WIDTH - 2 * MARGIN - ARROW * (len(stages) - 1)) / len(stages)
    contents = []
    for stage in stages:
        require_existing(stage)
        folder, _, file = stage.file.removeprefix("sam_runner/").rpartition("/")
        lines = [(stage.title, "name"), *((word, "code") for word in (f"{folder}/", file, *stage.names))]
        lines += [(line, "text") for line in wrap(stage.text, int((width - 14) / CHARACTER))]
        contents.append(lines)
    height = 14 + LINE * max(len(lines) for lines in contents)
    for number, lines in enumerate(contents):
        x = MARGIN + number * (width + ARROW)
        parts += box(x, y, width, height, "step" if number else "outside", lines)
        if number:
            parts.append(arrow(x - ARROW + 3, y + height / 2, x - 5, y + height / 2))
    return parts, y + height + 10


def picture() -> str:
    """Return the SVG."""
    parts, y = draw_layers(0)
    for title, stages in (("The path of a batch", BATCH), ("The path of a setting", SETTING)):
        found, y = draw_path(y, title, stages)
        parts += found
    head = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}">
<title>Folders of sam_runner, the path of a batch and the path of a setting</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#44546a"/></marker></defs>
<style>text {{ font-family: Helvetica, Arial, sans-serif; fill: #1d2733; font-size: 12px }}
.title {{ font-size: 17px; font-weight: bold }} .name {{ font-size: 14px; font-weight: bold }}
.code {{ font-family: Menlo, Consolas, monospace; font-size: 11px; fill: #35507a }}
.arrow {{ stroke: #44546a; stroke-width: 1.5; fill: none }}</style>
<rect width="{WIDTH}" height="{y:g}" fill="#ffffff"/>"""
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def main() -> int:
    """Write the picture."""
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
