"""Reports on finished runs: read them from disk, aggregate them over seeds, and write tables, plots and a page.

`results` reads run folders, `aggregate` computes means and intervals over seeds, `tables` formats text, Markdown and CSV,
`plots` draws with matplotlib, `page` renders report.html from a template in `templates/`, `report` puts these together, and
`paper_comparison` sets runs beside the paper's numbers. The numbers themselves are in `paper`. Nothing here trains a
model, loads a checkpoint or changes a run folder. Commands import these modules only to make a report, because pandas
and matplotlib take a second.

May import: utils, config, paper, runs
"""
