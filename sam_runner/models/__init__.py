"""Networks. Each factory takes `num_classes` and `in_channels`, which come from the data, and its own options."""
