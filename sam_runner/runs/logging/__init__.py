"""The loggers of a run: JSON lines and TensorBoard. Their interface is `training.metrics_logger.MetricsLogger`.

May import: utils, training
"""
