"""Data: from a data set and its label noise to batches on the device.

`datasets` reads the data sets, `own_data` takes a user's arrays; `image_sets` and `splits` hold images and labels;
`noise` corrupts labels; `files` and `reading` read image files; `augment` transforms images; `normalisation` has mean
and standard deviation; `worker_stream` prepares images in worker processes; `loader` yields the batches. Models,
losses, training and the choice of a data set from settings are elsewhere.

May import: utils, distributed, config.
"""
