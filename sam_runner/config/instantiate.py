"""Import and call the function or class that a ``_target_`` names.

No other module calls a function by a name in a configuration.
"""

import inspect
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from sam_runner.config.allowed_targets import ALLOWED, list_trusted_prefixes, require_trusted_name
from sam_runner.config.component import Component
from sam_runner.config.validation import describe_unknown_key
from sam_runner.utils.errors import InputError


def locate(target: str) -> Callable[..., Any]:
    """Return the function or class of a dotted name, if a trusted module defines it.

    The prefix is not sufficient: ``sam_runner.data.datasets.digits.gzip.open`` has a trusted one, but belongs to gzip.

    Raises:
        InputError: If the name is not trusted or does not exist.
    """
    require_trusted_name(target)
    try:
        found = resolve_name(target)
    except Exception as error:
        parent, _, name = target.rpartition(".")
        try:
            known = [entry for entry in dir(resolve_name(parent)) if not entry.startswith("_")]
        except Exception:
            raise InputError(f"_target_={target} does not exist: {error}") from error
        hint = describe_unknown_key(name, known).splitlines()[-1].strip()[:300]
        raise InputError(f"_target_={target} does not exist\n  {hint}") from error
    home = f"{getattr(found, '__module__', None)}."
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not home.startswith(list_trusted_prefixes()):
        raise InputError(f"_target_={target} is no function or class of a trusted module (it is from {home[:-1]})")
    function: Callable[..., Any] = found
    return function


def instantiate(component: Component, group: str, **context: Any) -> Any:
    """Call the target of an option.

    Args:
        component: The option's settings; its arguments are passed by name.
        group: Name of the group, for messages.
        context: Arguments from the program. The target gets those that are in its signature.

    Raises:
        InputError: If an argument is unknown or missing, or the target refuses a value.
    """
    return call_target(component.target, component.arguments(), group, **context)


def call_target(target: str, arguments: Mapping[str, Any], group: str, **context: Any) -> Any:
    """Call the function or class `target` with `arguments`; see `instantiate`."""
    function = locate(target)
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name not in parameters and not takes_any:
            known = [f"{group}.{entry}" for entry in parameters if entry not in context]
            raise InputError(describe_unknown_key(f"{group}.{name}", known))
    supplied = {name: value for name, value in context.items() if name in parameters}
    try:
        inspect.signature(function).bind(**{**supplied, **arguments})
    except TypeError as error:
        raise InputError(f"{group} ({target}): {error}\n  given: {', '.join(arguments) or 'no keys'}") from error
    refusals = (TypeError, ValueError, IndexError) if f"{target}.".startswith(ALLOWED) else (ValueError,)
    try:
        return function(**{**supplied, **arguments})
    except refusals as error:  # other errors of a user's own code keep their traceback
        message = f"{group} ({target}) refuses its settings: {error}\n  given: {dict(arguments)}"
        raise InputError(message) from error
