"""Format tables as aligned text and as Markdown, and settings as table cells."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def column_title(key: str) -> str:
    """Return the heading of a setting; a ``_target_`` has the name of its group."""
    return key.removesuffix("._target_")


def format_value(value: Any, key: str = "", missing: str = "-") -> str:
    """Return a setting as the user types it, of a ``_target_`` the last part of its name.

    Args:
        value: A scalar or text.
        key: Name of the setting.
        missing: Text for None and NaN.
    """
    if pd.isna(value):
        return missing
    if key.endswith("._target_"):
        return str(value).rpartition(".")[2]
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def settings_label(settings: Mapping[Any, Any]) -> str:
    """Return settings in one line for a legend, such as "sam, rho 0.05"; missing values are left out."""
    parts = {key: format_value(value, key, missing="") for key, value in settings.items()}
    return ", ".join(
        text if key == "optimizer" else f"{column_title(key)} {text}" for key, text in parts.items() if text
    )


def text_table(table: pd.DataFrame) -> str:
    """Return a table of strings as text with left-aligned columns."""
    rows = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of strings as Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
