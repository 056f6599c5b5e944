"""docs/settings.md is what the settings classes say."""

from dataclasses import fields

import pytest

from sam_runner.config.experiment import GROUPS
from scripts.pages import settings_page


def test_the_page_is_up_to_date():
    assert settings_page.PAGE.read_text() == settings_page.page(), "run python scripts/pages/settings_page.py"


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_option_has_a_row(group):
    page = settings_page.page()
    keys = {entry.name for option in GROUPS[group] for entry in fields(option) if "key" in entry.metadata}
    assert keys
    assert [name for name in sorted(keys) if f"| `{group}.{name}` |" not in page] == []
