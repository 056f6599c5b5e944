"""The interface of a metrics logger, and a list of loggers with the same interface."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from sam_runner.utils.errors import first_line

log = logging.getLogger("sam_runner")


class MetricsLogger:
    """Stores the metrics of a run. A method that a subclass does not define ignores the call.

    Attributes:
        name: Key of the logger's state in checkpoints.
        required: Whether an error of the logger ends the run.
    """

    name: str
    required = False

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log reproducible metrics by tag, such as ``train/loss``."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log measurements that depend on the machine by tag, such as ``time/images_per_second``."""

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture: (3, H, W), uint8 in [0, 255] or float in [0, 1]."""

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Log facts about the run by name, such as its command."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """Log the settings that the user chose, by name, and final metrics by tag. A sweep varies those in `swept`."""

    def flush(self) -> Any:
        """Write all buffered data to disk; return the state for the checkpoint, of plain types."""

    def close(self) -> None:
        """Flush and close the files."""


class MetricsLoggers:
    """A list of loggers. In data-parallel training it is empty on all processes but the main one.

    If a logger that is not required raises an error, the error is logged, and the run goes on without the logger.

    Args:
        loggers: Loggers with different names.
    """

    def __init__(self, loggers: Sequence[MetricsLogger] = ()) -> None:
        self._loggers = list(loggers)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """See `MetricsLogger.scalars`."""
        self._for_each(lambda logger: logger.scalars(step, epoch, values))

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """See `MetricsLogger.timing`."""
        self._for_each(lambda logger: logger.timing(step, values))

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """See `MetricsLogger.image`."""
        self._for_each(lambda logger: logger.image(tag, picture, step))

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """See `MetricsLogger.text`."""
        self._for_each(lambda logger: logger.text(tag, facts))

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """See `MetricsLogger.hparams`."""
        self._for_each(lambda logger: logger.hparams(settings, final, swept))

    def flush(self) -> dict[str, Any]:
        """Flush all loggers; return their states by name."""
        states: dict[str, Any] = {}
        self._for_each(lambda logger: states.update({logger.name: logger.flush()}))
        return states

    def close(self) -> None:
        """Close all loggers."""
        self._for_each(lambda logger: logger.close())

    def _for_each(self, call: Callable[[MetricsLogger], object]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:
                if logger.required:
                    raise
                self._loggers.remove(logger)
                log.warning("logger=%s failed, the run goes on without it: %s", logger.name, first_line(error))
