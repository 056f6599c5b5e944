"""The numbers that the paper reports (Foret et al., ICLR 2021), and the row that a run belongs to.

`numbers.yaml` has the numbers and the overrides of each row, `rows` reads them. The settings of the paper's experiments
are in conf/experiment, the comparison of finished runs with the numbers is in `reports`.

May import: utils, config.
"""
