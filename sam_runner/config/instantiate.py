"""The only place where a name in a configuration becomes a call."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object

from sam_runner.config.allowed_targets import ALLOWED, prefixes, require_trusted_name
from sam_runner.config.validation import unknown_key
from sam_runner.utils.errors import InputError


def locate(target: str) -> Callable[..., Any]:
    """The function or class of a dotted name, if it is defined in a trusted module.

    The name alone is not enough: ``sam_runner.data.datasets.digits.gzip.open`` starts well and ends elsewhere.

    Raises:
        InputError: Where it is not trusted or does not exist.
    """
    require_trusted_name(target)
    try:
        found = get_object(target)
    except Exception as error:
        parent, _, name = target.rpartition(".")
        try:
            known = [entry for entry in dir(get_object(parent)) if not entry.startswith("_")]
        except Exception:
            raise InputError(f"_target_={target} does not exist: {error}") from error
        raise InputError(
            f"_target_={target} does not exist\n  {unknown_key(name, known).splitlines()[-1].strip()[:300]}"
        ) from error
    home = f"{getattr(found, '__module__', None)}."
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not home.startswith(prefixes()):
        raise InputError(f"_target_={target} is no function or class of a trusted module (it is from {home[:-1]})")
    called: Callable[..., Any] = found
    return called


def construct(node: Mapping[str, Any], what: str, **context: Any) -> Any:
    """Call what ``_target_`` names with the node's other keys and with those of `context` that it takes.

    Args:
        node: Settings with ``_target_``.
        what: Where it stands in the configuration, for messages.
        context: What the program supplies.

    Raises:
        InputError: Where a key is unknown or missing, or a value is refused.
    """
    function = locate(node["_target_"])
    keys = {key: value for key, value in node.items() if key != "_target_"}
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in keys:
        if key not in parameters and not takes_any:
            raise InputError(
                unknown_key(f"{what}.{key}", [f"{what}.{name}" for name in parameters if name not in context])
            )
    supplied = {key: value for key, value in context.items() if key in parameters}
    try:
        inspect.signature(function).bind(**supplied, **keys)
    except TypeError as error:
        raise InputError(f"{what} ({node['_target_']}): {error}\n  given: {', '.join(keys) or 'no keys'}") from error
    refusals = (TypeError, ValueError, IndexError) if f"{node['_target_']}.".startswith(ALLOWED) else (ValueError,)
    try:
        return function(**supplied, **keys)
    except refusals as error:  # a fault in your own code keeps its traceback
        raise InputError(f"{what} ({node['_target_']}) refuses its settings: {error}\n  given: {keys}") from error
