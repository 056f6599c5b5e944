"""Hooks of mkdocs (mkdocs.yml): pages of the repository's root, and the help of all commands.

README.md is the site's home page, and CONTRIBUTING.md, SECURITY.md and CHANGELOG.md are pages, although they are not in
docs/. docs/reference/commands.md has the help of every command, which the commands themselves print during the build.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "SECURITY.md": "SECURITY.md"}
ROOT_PAGES["CHANGELOG.md"] = "CHANGELOG.md"
WIDTH = 118  # characters of a line of code on the page of the commands
MARKER = "<!-- the help of every command -->"


def move_root_page(text: str) -> str:
    """Return a page of the root with its links as they are from docs/."""
    return re.sub(r"\]\(docs/", "](", text)


def move_links(text: str, page: str) -> str:
    """Return a page of docs/ with its links to pages of the root as they are on the site.

    Args:
        text: Markdown.
        page: Path of the page below docs/.
    """
    up = "../" * page.count("/")
    for name, target in ROOT_PAGES.items():
        text = text.replace(f"]({up}../{name}", f"]({up}{target}")
    return text


def list_commands() -> dict[str, str]:
    """Return the modules of the commands by name, as pyproject.toml declares them."""
    return dict(re.findall(r'^(sam-[a-z-]+) = "([\w.]+):main"', (ROOT / "pyproject.toml").read_text(), re.M))


def read_help(name: str, module: str) -> str:
    """Return what ``NAME --help`` prints."""
    program = f"import sys; from {module} import main; sys.argv = [{name!r}, '--help']; sys.exit(main())"
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return "\n".join(wrap_line(line) for line in done.stdout.strip().splitlines())


def wrap_line(line: str) -> str:
    """Return a line of a help text on lines of at most 118 characters, further ones below its second column."""
    column = re.match(r"\s*\S+(?: \S+)*\s{2,}|\s*", line)
    indent = " " * len(column[0]) if column else ""
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, replace_whitespace=False, break_on_hyphens=False)


def commands_page(text: str) -> str:
    """Return the page of the commands, with links to a section for each command."""
    links = ", ".join(f"[{name}](#{name})" for name in list_commands())
    sections = [f"## {name}\n\n```text\n{read_help(name, module)}\n```" for name, module in list_commands().items()]
    return text.replace(MARKER, "\n\n".join([links, *sections]))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    from mkdocs.structure.files import File

    for name, target in ROOT_PAGES.items():
        text = move_root_page((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the commands, move links, and leave the lists of all runs of a study out of the search."""
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}
    if page.file.src_uri == "reference/commands.md":
        page.meta["hide"] = ["toc"]  # the texts are wide
        return commands_page(markdown)
    return move_links(markdown, page.file.src_uri)
