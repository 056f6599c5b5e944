"""Format tables as aligned text, Markdown and LaTeX, and settings as table cells."""

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd


def printable(text: str) -> str:
    """Return a text in one line that UTF-8 can encode; line ends, and bytes of a path that are not UTF-8, are escaped.

    Folders, settings and error messages are anybody's text.
    """
    shown = "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def column_title(key: str) -> str:
    """Return the heading of a setting; a ``_target_`` has the name of its group."""
    return printable(key.removesuffix("._target_"))


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
        return printable(str(value).rpartition(".")[2])
    return f"{value:.10g}" if isinstance(value, float) else printable(str(value))


def format_p_value(p_value: float) -> str:
    """Return a p-value with two digits, "<0.001" below 0.001, "-" for NaN."""
    if math.isnan(p_value):
        return "-"
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"


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


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, also in a table."""
    escaped = {ord("<"): "&lt;"} | {ord(character): f"\\{character}" for character in "\\|*`["}
    return text.translate(escaped)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of strings as Markdown."""
    cells = [[escape_markdown(cell) for cell in row] for row in (list(table.columns), *table.to_numpy().tolist())]
    rows = [cells[0], ["---"] * len(table.columns), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def escape_latex(text: str) -> str:
    """Return a text that LaTeX shows as it is."""
    special: dict[str, str | int | None] = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return text.translate(str.maketrans(special))


def latex_table(table: pd.DataFrame, numeric: set[str]) -> str:
    """Return a table of strings as LaTeX for the package booktabs.

    Args:
        table: The table.
        numeric: Columns that are aligned to the right.
    """
    columns = "".join("r" if name in numeric else "l" for name in table.columns)
    escaped = table.rename(columns=escape_latex).map(escape_latex)
    text = escaped.to_latex(index=False, escape=False, column_format=columns).replace("±", r"$\pm$")
    return re.sub(r"(?<=& )-(?=[\d.])", r"$-$", text)  # a minus, not a hyphen
