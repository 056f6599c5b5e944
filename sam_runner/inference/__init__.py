"""Use of trained models: predictions, metrics of several runs, exported models and suspicious labels.

`image_files` finds and decodes image files, `predictions` applies runs to image files or to the sets of the runs,
`evaluation` has the metrics of several runs and of their mean, `export` writes a model for other programs, `suspects`
ranks images by how much the runs doubt their labels, and `contact_sheet` shows images on a page. Measurements
of the loss are in `analysis`, tables of finished runs in `reports`. Nothing here trains a run or changes its files.

May import: utils, config, distributed, sam, geometry, data, models, training, paper, runs, reports.
"""
