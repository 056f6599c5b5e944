"""docs/settings.md is what the settings classes say."""

from scripts import settings_page


def test_the_page_is_up_to_date():
    assert settings_page.PAGE.read_text() == settings_page.page(), "run python scripts/settings_page.py"
