"""The interface of a metrics logger, and a list of loggers with the same interface."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class MetricsLogger(Protocol):
    """Stores the metrics of a run.

    Attributes:
        name: Key of the logger's state in checkpoints.
    """

    name: str

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log reproducible metrics by tag, such as ``train/loss``."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log measurements that depend on the machine by tag, such as ``time/images_per_second``."""

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture: (3, H, W), uint8 in [0, 255] or float in [0, 1]."""

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Log facts about the run by name, such as its command."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """Log the settings that the user chose, by name, and final metrics by tag; `swept` are names of settings."""

    def flush(self) -> Any:
        """Write all buffered data to disk; return the state for the checkpoint, of plain types."""

    def close(self) -> None:
        """Flush and close the files."""


class MetricsLoggers:
    """A list of loggers. In data-parallel training it is empty on all processes but the main one.

    Args:
        loggers: Loggers with different names.
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

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """See `MetricsLogger.text`."""
        for logger in self._loggers:
            logger.text(tag, facts)

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """See `MetricsLogger.hparams`."""
        for logger in self._loggers:
            logger.hparams(settings, final, swept)

    def flush(self) -> dict[str, Any]:
        """Flush all loggers; return their states by name."""
        return {logger.name: logger.flush() for logger in self._loggers}

    def close(self) -> None:
        """Close all loggers."""
        for logger in self._loggers:
            logger.close()
