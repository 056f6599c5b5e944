"""Random transformations of training images.

`augmentation` has crop, flip, cutout and erasing; `policy` has AutoAugment, RandAugment and TrivialAugment; `mixing`
has mixup and CutMix. Every random number is a function of the seed, the epoch and the example or batch. Decoding
files, normalisation and the order of the examples are not in here.

May import: utils, distributed, config.
"""
