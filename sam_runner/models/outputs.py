"""The logits among the outputs of a network."""

from typing import Any

from torch import Tensor

from sam_runner.utils.errors import InputError


def get_logits(outputs: Any) -> Tensor:
    """Return the logits (N, C) of what a network returns.

    Args:
        outputs: The logits; an object with an attribute or a key ``logits``, as networks of Hugging Face return; or a
            tuple or list whose first entry is the logits.

    Raises:
        InputError: If `outputs` contains no logits.
    """
    found = outputs
    if not isinstance(outputs, Tensor):
        found = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
        if found is None and isinstance(outputs, tuple | list) and outputs:
            found = outputs[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(outputs).__name__
        raise InputError(
            f"the model returns {kind}, not logits of shape (images, classes)\n"
            '  accepted are: logits, a dictionary with the key "logits", a tuple whose first entry is the logits'
        )
    return found
