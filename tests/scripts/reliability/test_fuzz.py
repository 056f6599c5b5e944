"""scripts/reliability/fuzz.py: a seed repeats its trials, the full disk, what counts as lost, the table of the page."""

import errno
import json
import os
import random
from collections import Counter

import pytest

from scripts.reliability.fuzzing.command_lines import Drawer
from scripts.reliability.fuzzing.folders import find_losses
from scripts.reliability.fuzzing.full_disk import FullDisk
from scripts.reliability.fuzzing.kills import KINDS
from scripts.reliability.fuzzing.page import BEGIN, END, PAGE, write_page


def test_a_seed_repeats_a_command_line():
    lines = [[Drawer().draw(random.Random(f"{seed} lines 3")) for _ in range(2)] for seed in (1, 2)]
    assert lines[0][0] == lines[0][1]
    assert lines[0][0] != lines[1][0]


def test_writes_below_the_folder_fail_from_a_number_on(tmp_path):
    disk = FullDisk(tmp_path / "disk", 2)
    for _ in range(2):
        disk.take(tmp_path / "disk" / "a")
    disk.take(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        disk.take(tmp_path / "disk" / "a")


def test_what_a_command_may_change():
    before = {"r/notes.txt": "1", "r/metrics.jsonl": "1", "r/run.log": "1"}
    changed = dict.fromkeys(before, "2")
    assert find_losses(before, {**before, "r/report.html": "1"}, "report", 0) == []
    assert find_losses(before, changed, "eval", 0) == ["changed or deleted r/notes.txt, r/metrics.jsonl, r/run.log"]
    assert find_losses(before, changed, "resume", 2) == ["changed or deleted r/notes.txt, r/metrics.jsonl"]
    assert find_losses(before, changed, "resume", 0) == ["changed or deleted r/notes.txt"]


def test_the_page_gets_a_row_for_consecutive_trials(tmp_path):
    reports = []
    for number, (first, count) in enumerate(((0, 3), (3, 2), (7, 2))):
        rows = [["code 2", count - 1], ["rare", 1], ["all", count], ["broke a rule", first // 3]]
        note = f"--parts lines --seed 1{f' --first {first}' * bool(first)} --count {count} (1,000 s)"
        tables = [{"title": "t", "rows": rows, "note": note}]
        reports.append(tmp_path / f"{number}.json")
        reports[-1].write_text(json.dumps({"conditions": {"date": "2026-11-26"}, "tables": tables}))
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}\n| old |\n\n{END}b\n")
    write_page(reports, page)
    write_page(reports, page)
    assert page.read_text() == (
        f"a\n{BEGIN}\n| old |\n"
        "| t | 5 | 1 | code 2: 3; rare: 2 | --parts lines --seed 1 --count 5 (2,000 s), 2026-11-26 |\n"
        "| t | 2 | 2 | code 2: 1; rare: 1 | --parts lines --seed 1 --first 7 --count 2 (1,000 s), 2026-11-26 |\n"
        f"\n{END}b\n"
    )


def test_the_page_has_as_many_trials_as_it_says():
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    lines, kills = 0, Counter()
    for what, number, _, ways, _ in rows:
        if what == "command lines":
            lines += int(number.replace(",", ""))
        if what.startswith("kills"):
            for way in ways.split("; "):
                name, _, count = way.rpartition(": ")
                kills[name.replace("calls of a run", "calls of a sweep")] += int(count.replace(",", ""))
    assert lines > 20_000
    kinds = {kind.replace("calls of a run", "calls of a sweep") for kind in KINDS}
    assert {kind: kills[kind] for kind in kinds if kills[kind] < 100} == {}
