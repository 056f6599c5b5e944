"""Make docs/results.md, its figures and docs/results/<study>.md from the CSV files of the studies.

    python scripts/pages/results_page.py            # write the pages and figures
    python scripts/pages/results_page.py --check    # exit with 1 if the pages are not what the CSV files say

Every number of the pages is computed here. The text around them is templates/results.md.j2.
scripts/studies/evidence.py writes the CSV files.
"""

import argparse
import math
import re
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from scripts.pages.results_answers import group_comparisons, summarise, write_answer
from scripts.pages.results_begin import compare, conclude, draw_begin, draw_benefit
from scripts.pages.results_figures import draw_curves, draw_radius, draw_study
from scripts.pages.results_tables import Repeats, at_edge, format_estimate, read_blocks
from scripts.pages.templates import open_templates
from scripts.studies.evidence import FAILED, RESULTS, STUDIES, Study, name_run

DOCS = RESULTS.parent
OTHER_PAGES = {Path("results/geometry.md")}  # of scripts/pages/geometry_page.py


def format_percent(value: float) -> str:
    """Return a fraction as a percentage; a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def wrap_paragraphs(text: str) -> str:
    """Break each paragraph into lines of at most 120 characters."""
    lines = (" ".join(line.split()) for line in text.splitlines())  # templates leave spaces
    return "\n\n".join(textwrap.fill(line, 120, break_on_hyphens=False) for line in lines if line)


def make_anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def list_runs(study: Study) -> list[dict[str, Any]]:
    """Return the rows of a study with the name of each run, and whether its settings are kept."""
    runs, planned = [], set(study.planned_commands())
    for row in study.rows.values():
        name = name_run(row["block"], row["arm"], row["value"], row["role"], int(row["seed"]))
        is_planned = row["command"] in planned
        is_kept = is_planned and (study.kept / f"{name}.yaml").is_file()
        runs.append({**row, "name": name, "is_kept": is_kept, "is_planned": is_planned})
    return runs


def make_pages(docs: Path) -> None:
    """Write results.md, results/<study>.md and the figures into a folder."""
    planned = [Study(path.stem) for path in sorted(STUDIES.glob("*.yaml"))]
    planned.sort(key=lambda study: study.content["page_order"])
    studies = [study for study in planned if study.rows]  # the others are in the first table only
    blocks = {study.name: read_blocks(study) for study in studies}
    environment = open_templates(
        estimate=format_estimate, anchor=make_anchor, paragraphs=wrap_paragraphs, percent=format_percent
    )  # fmt: skip
    figures = {study.name: draw_study(study, blocks[study.name], docs / "img") for study in studies}
    curves = {
        study.name: draw_curves(blocks[study.name], docs / "img") for study in studies if "curves" in study.content
    }
    all_blocks = [block for found in blocks.values() for block in found]
    figures["radius"] = draw_radius(all_blocks, docs / "img")
    comparisons = compare(all_blocks)
    figures |= {"begin": draw_begin(comparisons, docs / "img"), "benefit": draw_benefit(comparisons, docs / "img")}
    groups = group_comparisons(all_blocks)
    page = environment.get_template("results.md.j2").render(
        planned=planned, studies=studies, blocks=blocks, figures=figures, at_edge=at_edge, curves=curves, groups=groups,
        answers={study.name: write_answer(study, blocks[study.name], environment, all_blocks)
                 for study in studies},
        repeats={study.name: Repeats(study) for study in studies},
        summary=summarise(all_blocks, groups), comparisons=comparisons,
        begin=conclude(comparisons) if comparisons else "",
        failed={study.name: [run for run in list_runs(study) if run["is_planned"] and run["status"] in FAILED]
                for study in studies},
    )  # fmt: skip
    (docs / "results.md").write_text(page, encoding="utf-8")
    for study in studies:
        runs = environment.get_template("runs.md.j2").render(study=study, runs=list_runs(study), repeats=Repeats(study))
        (docs / "results").mkdir(exist_ok=True)
        (docs / "results" / f"{study.name}.md").write_text(runs, encoding="utf-8")


@cache
def expected_pages() -> dict[Path, str]:
    """Return the pages that the CSV files make, by their path in docs/."""
    with tempfile.TemporaryDirectory() as folder:
        make_pages(Path(folder))
        return {
            path.relative_to(folder): path.read_text(encoding="utf-8") for path in sorted(Path(folder).rglob("*.md"))
        }


def find_differences(docs: Path = DOCS) -> list[str]:
    """Return the pages in `docs` that are not what the CSV files say, by name; also those that no study has."""
    expected = expected_pages()
    found = {Path("results.md"), *(path.relative_to(docs) for path in (docs / "results").glob("*.md"))} - OTHER_PAGES
    texts = {page: (docs / page).read_text(encoding="utf-8") for page in found if (docs / page).is_file()}
    return [str(page) for page in sorted({*expected, *texts}) if expected.get(page) != texts.get(page)]


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the pages with the CSV files, write nothing")
    if not parser.parse_args().check:
        make_pages(DOCS)
        return 0
    wrong = find_differences()
    print(f"pages that are not what the CSV files say: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
