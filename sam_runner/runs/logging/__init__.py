"""The loggers of a run, one file each, and their choice by the setting ``logger``.

Their interface is `training.metrics_logger.MetricsLogger`.

May import: utils, training
"""
