"""Reports on finished runs: read them from disk, aggregate them over seeds, and write tables, plots and a page.

`results` reads run folders, `aggregate` computes means and intervals over seeds, `tables` formats text and Markdown,
`plots` draws with matplotlib, `page` renders report.html from a file in `templates/`, `report` puts these together, and
`paper_comparison` compares runs with the paper's numbers, which are in `paper`. Nothing here trains a model, loads a
checkpoint or changes a run folder. Commands import these modules only to make a report: pandas takes a second.

May import: utils, config, paper, runs.
"""
