"""The table of docs/reliability.md about random trials, from the reports of scripts/reliability/fuzz.py."""

import json
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- from scripts/reliability/fuzz.py --page -->\n", "<!-- end -->\n"


def write_page(reports: Sequence[Path], page: Path = PAGE) -> None:
    """Replace the table in a page.

    Args:
        reports: Files ``fuzz.json``, in the order of the rows.
        page: The page, with the lines `BEGIN` and `END`.
    """
    lines = [
        "| trials of | number | broke a rule | how they ended | seed and trials |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path in reports:
        content = json.loads(path.read_text())
        lines += [_format_row(table, content["conditions"]["date"]) for table in content["tables"]]
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{after}")


def _format_row(table: dict, date: str) -> str:
    counts = dict(table["rows"])
    number, broken = counts.pop("all"), counts.pop("broke a rule")
    ways = "; ".join(f"{what}: {count:,}" for what, count in counts.items())
    return f"| {table['title']} | {number:,} | {broken} | {ways} | {table['note']}, {date} |"
