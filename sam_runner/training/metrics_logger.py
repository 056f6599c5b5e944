"""Where a run's numbers go: the interface of a logger, and a list of loggers that is used as one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class MetricsLogger(Protocol):
    """Something that stores the numbers of a run."""

    name: str

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log numbers that a repetition of the run gives again; tags like ``train/loss``."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that depend on the machine; tags like ``time/images_per_second``."""

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture, (3, H, W), uint8 or float in [0, 1]."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Log settings by dotted key and final metrics by tag."""

    def flush(self) -> Any:
        """Bring everything to the disk; return the state that a checkpoint stores, plain types."""

    def close(self) -> None:
        """Flush and close the files."""


class MetricsLoggers:
    """Several loggers as one. In data-parallel training only the main process has any.

    Args:
        loggers: The loggers; their names differ.
    """

    def __init__(self, loggers: Sequence[MetricsLogger] = ()) -> None:
        self._loggers = list(loggers)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """See `MetricsLogger.scalars`."""
        for logger in self._loggers:
            logger.scalars(step, epoch, values)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """See `MetricsLogger.timing`."""
        for logger in self._loggers:
            logger.timing(step, values)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """See `MetricsLogger.image`."""
        for logger in self._loggers:
            logger.image(tag, picture, step)

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """See `MetricsLogger.hparams`."""
        for logger in self._loggers:
            logger.hparams(settings, final)

    def flush(self) -> dict[str, Any]:
        """Flush all loggers; return their states by name."""
        return {logger.name: logger.flush() for logger in self._loggers}

    def close(self) -> None:
        """Close all loggers."""
        for logger in self._loggers:
            logger.close()
