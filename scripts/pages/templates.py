"""The texts of the pages: Jinja templates in the folder templates/, which get their numbers from the page scripts."""

from collections.abc import Callable
from pathlib import Path

import jinja2


def open_templates(**filters: Callable[..., str]) -> jinja2.Environment:
    """Return the templates of all pages; a name without a value is an error.

    Args:
        filters: Functions that format values, by the names that the templates call them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= filters
    return environment
