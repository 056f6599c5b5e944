"""Networks, the layers that they share, and weights to start from.

Each network is a class or function of `num_classes`, `in_channels` (if it accepts other numbers than 3) and its own
options; the first two come from the data. `build` constructs the network of a run and loads its weights, `pretrained`
reads weights from files and from torchvision, `torchvision_timm` has the networks of these libraries, `outputs` finds
the logits, `frozen_batchnorm` freezes statistics, and every other module is one architecture. Training steps and
batch-norm statistics are in `sam`, sharding is in `distributed`.

May import: utils, distributed, config.
"""
