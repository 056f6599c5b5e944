"""Random transformations of training images: `augmentation` (crop, flip, cutout, erasing), `policy` (AutoAugment,
RandAugment, TrivialAugment) and `mixing` (mixup, CutMix).

Every random number is a function of the seed, the epoch and the example or batch. Decoding files, normalisation and
the order of the examples are not in here.

May import: utils, distributed, config.
"""
