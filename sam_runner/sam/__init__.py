"""The mathematics of Sharpness-Aware Minimization: one training step, its methods and the objective that it minimises.

Here: the step that all methods share (`step`), the interface of a method (`method`) and the methods (`methods/`, one
file each), eq. 2 (`perturbation`), the objective and its gradient (`objective`), normalisation statistics across the
passes of a step (`batch_statistics`, `spectral_norm`) and the step as a CUDA graph (`cuda_graph`). Not here: networks,
data, schedules, settings and files. The package works with any `torch.nn.Module`, loss and `torch.optim` optimizer.

May import: utils, distributed.
"""
