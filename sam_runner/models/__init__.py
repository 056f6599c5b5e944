"""Networks, their layers, and weights to start from.

Each network is a class or function of `num_classes`, `in_channels` and its own options; the first two come from the
data. `build` constructs the network of a run and loads its weights, `pretrained` reads weights from files and from
torchvision, `torchvision_timm` has the networks of those libraries, and each other module is one architecture. What is
done with a network is elsewhere: training steps and batch-norm statistics in `sam`, sharding in `distributed`.

May import: utils, distributed, config
"""
