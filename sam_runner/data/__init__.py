"""Data: image sets, label noise, augmentation, loading. One module per idea."""
