"""The table of docs/reliability.md about random trials, from the reports of scripts/reliability/fuzz.py."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- from scripts/reliability/fuzz.py --page -->\n", "<!-- end -->\n"
NOTE = re.compile(r"(--parts \w+ --seed \d+(?: --kills .+?)?)(?: --first (\d+))? --count (\d+) \(([\d,]+) s\)")


@dataclass(frozen=True)
class _Row:
    """The trials of one part, from the number `first` on, with what happened in how many of them."""

    title: str
    command: str
    first: int
    seconds: int
    date: str
    counts: Counter[str]

    def follows(self, other: "_Row") -> bool:
        """Return whether these are the next trials after those of another row."""
        keys = (self.title, self.command, self.date, self.first)
        return keys == (other.title, other.command, other.date, other.first + other.counts["all"])

    def __add__(self, other: "_Row") -> "_Row":
        """Return the row of the trials of both."""
        seconds, counts = self.seconds + other.seconds, self.counts + other.counts
        return _Row(self.title, self.command, self.first, seconds, self.date, counts)

    def format(self) -> str:
        """Return the row of the table."""
        ways = [
            f"{what}: {count:,}" if self.counts["all"] > 1 else what
            for what, count in self.counts.most_common()
            if what not in ("all", "broke a rule")
        ]
        command = f"{self.command}{f' --first {self.first}' * bool(self.first)} --count {self.counts['all']}"
        cells = (
            self.title, f"{self.counts['all']:,}", self.counts["broke a rule"], "; ".join(ways),
            f"{command} ({self.seconds:,} s), {self.date}",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def write_page(reports: Sequence[Path], page: Path = PAGE) -> None:
    """Add rows to the table in a page; a row that is there already is not added again.

    Reports of consecutive trials of the same seed and day are one row.

    Args:
        reports: Files ``fuzz.json``, in the order of the rows.
        page: The page, with the table between the lines `BEGIN` and `END`.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    rows: list[_Row] = []
    for path in reports:
        content = json.loads(path.read_text())
        for entry in content["tables"]:
            row = _read_row(entry, content["conditions"]["date"])
            rows[-1:] = [rows[-1] + row] if rows and row.follows(rows[-1]) else [*rows[-1:], row]
    lines = [*table.strip().splitlines(), *(row.format() for row in rows)]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(dict.fromkeys(lines)) + f"\n\n{END}{after}")


def _read_row(table: dict, date: str) -> _Row:
    found = NOTE.fullmatch(table["note"])
    assert found, table["note"]
    command, first, _, seconds = found.groups()
    return _Row(
        table["title"], command, int(first or 0), int(seconds.replace(",", "")), date, Counter(dict(table["rows"]))
    )
