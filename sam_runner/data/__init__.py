"""Image data: from a data set and its label noise to batches on the device.

`datasets` reads the data sets; `image_sets` and `splits` hold images and labels; `noise` corrupts labels; `augment`
transforms images; `files` reads image files; `worker_stream` prepares images in worker processes; `loader` yields the
batches. Models, losses, training and the choice of a data set from settings are elsewhere.

May import: utils, distributed, config.
"""
