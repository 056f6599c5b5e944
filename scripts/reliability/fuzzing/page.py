"""The table of docs/reliability.md about random trials, from the reports of scripts/reliability/fuzz.py."""

import json
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- from scripts/reliability/fuzz.py --page -->\n", "<!-- end -->\n"


def write_page(reports: Sequence[Path], page: Path = PAGE) -> None:
    """Add rows to the table in a page; a row that is there already is not added again.

    Args:
        reports: Files ``fuzz.json``, in the order of the rows.
        page: The page, with the table between the lines `BEGIN` and `END`.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = table.strip().splitlines()
    for path in reports:
        content = json.loads(path.read_text())
        lines += [_format_row(table, content["conditions"]["date"]) for table in content["tables"]]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(dict.fromkeys(lines)) + f"\n\n{END}{after}")


def _format_row(table: dict, date: str) -> str:
    counts = dict(table["rows"])
    number, broken = counts.pop("all"), counts.pop("broke a rule")
    ways = "; ".join(f"{what}: {count:,}" for what, count in counts.items())
    return f"| {table['title']} | {number:,} | {broken} | {ways} | {table['note']}, {date} |"
