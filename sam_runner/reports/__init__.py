"""Reports on finished runs: read them from disk, aggregate them over seeds, and write tables, plots and a page.

`results` reads run folders, and `aggregate` computes means, intervals and paired differences over seeds. `selection`
chooses the values of searched settings, `comparison` finds the baseline of each group, `setup` describes how runs were
made, and `rerun` finds the command of further runs. `report` puts these together, `group_tables` makes its tables,
`sentences` says in words what they show, and `next_commands` what to type next. `tables` formats text and Markdown, and
`output` writes the page, the table for a paper and the plots. `paper_comparison` compares runs with the paper's
numbers, which are in `paper`. Nothing here trains a model, loads a checkpoint or changes a run folder. Commands import
these modules only to make a report, because importing pandas takes a second.

May import: utils, config, paper, runs.
"""
