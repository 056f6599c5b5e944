"""The hooks of the site: links of pages that move, and the page of the commands."""

import pytest

from scripts.pages.site_hooks import MARKER, WIDTH, commands_page, list_commands, move_links, move_root_page, wrap_line
from tests.test_docs import COMMANDS


def test_links_lead_to_the_same_pages_on_the_site():
    assert move_root_page("[a](docs/data.md) [b](SECURITY.md) ![c](docs/img/a.png)") == (
        "[a](data.md) [b](SECURITY.md) ![c](img/a.png)"
    )
    assert move_links("[a](../SECURITY.md) [b](data.md)", "architecture.md") == "[a](SECURITY.md) [b](data.md)"
    assert move_links("[a](../../SECURITY.md#x) [b](../data.md)", "howto/ray.md") == (
        "[a](../SECURITY.md#x) [b](../data.md)"
    )
    assert move_links("[a](../README.md)", "data.md") == "[a](index.md)"


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("  --out OUT    " + "word " * 40, 15),
        ("  model     " + "name  " * 40, 12),
        (" " * 20 + "word " * 40, 20),
        ("a", 0),
    ],
)
def test_long_lines_of_a_help_text_continue_below_their_second_column(line, column):
    first, *others = wrap_line(line).splitlines()
    assert bool(others) == (len(line) > WIDTH)
    assert all(len(part) <= WIDTH for part in (first, *others))
    assert all(part.startswith(" " * column) and part[column] != " " for part in others)
    assert " ".join([first, *others]).split() == line.split()


def test_the_page_of_the_commands_has_what_every_command_prints():
    assert list_commands().keys() == COMMANDS.keys()
    page = commands_page(f"# Commands\n\n{MARKER}\n")
    for name in list_commands():
        assert f"[{name}](#{name})" in page
        assert f"\n## {name}\n\n```text\n" in page
        assert f"usage: {name}" in page
    assert "--against {cost,seconds}" in page
    assert MARKER not in page
