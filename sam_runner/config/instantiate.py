"""Import and call the function or class that a ``_target_`` names.

No other module calls a function by a name in a configuration.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

from sam_runner.config.allowed_targets import (
    ALLOWED,
    add_working_folder,
    list_trusted_prefixes,
    require_trusted_name,
    target_of_file,
    trusting_command,
)
from sam_runner.config.component import Component
from sam_runner.config.validation import describe_unknown_key, find_close
from sam_runner.utils.errors import InputError
from sam_runner.utils.user_code import describe_error, find_definition, find_line


def locate(target: str) -> Callable[..., Any]:
    """Return the function or class of a dotted name, if a trusted module defines it.

    The prefix is not sufficient: ``sam_runner.data.datasets.digits.gzip.open`` has a trusted one, but belongs to gzip.
    A module of the user's own is also looked for in the working folder.

    Raises:
        InputError: If the name is not trusted or does not exist, or importing its module fails.
    """
    require_trusted_name(target)
    if is_own(target):
        add_working_folder()
        _import_own(target)
    try:
        found = resolve_name(target)
    except Exception as error:
        parent, _, name = target.rpartition(".")
        try:
            known = [entry for entry in dir(resolve_name(parent)) if not entry.startswith("_")]
        except Exception:
            raise InputError(f"_target_={target} does not exist: {error}") from error
        hint = describe_unknown_key(name, known).splitlines()[-1].strip()[:300]
        if from_file := target_of_file(target):
            names = f"; {hint}" if from_file.endswith(".NAME") else ""
            hint = f"write it as a module: _target_={from_file}{names}"
        raise InputError(f"_target_={target} does not exist\n  {hint}") from error
    home = f"{getattr(found, '__module__', None)}."
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        kind = type(found).__name__
        hint = f"\n  name a function or class of it: _target_={target}.NAME" if kind == "module" else ""
        raise InputError(f"_target_={target} is a {kind}, not a function or class of a trusted module{hint}")
    if not home.startswith(list_trusted_prefixes()):
        way = f"\n  trust that module too: {trusting_command([home[:-1]], sys.argv)}" if is_own(target) else ""
        raise InputError(
            f"_target_={target} is not a function or class of a trusted module (it is from {home[:-1]}){way}"
        )
    function: Callable[..., Any] = found
    return function


def is_own(target: str) -> bool:
    """Return whether a target is a user's own code."""
    return not f"{target}.".startswith(ALLOWED)


def _import_own(target: str) -> None:
    """Import the module of a target, as many parts of its name as are modules.

    Raises:
        InputError: If there is no such module, or it raises an error.
    """
    parts = target.split(".")
    for number in range(1, len(parts)):
        name = ".".join(parts[:number])
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name and number > 1:  # a class, whose method the target names
                return
            if error.name == name:
                raise InputError(
                    f"_target_={target}: there is no module {name}\n"
                    f"  looked in the working folder {os.getcwd()} and among the installed modules\n"
                    f"  if it is in another folder, put PYTHONPATH=FOLDER before the command"
                ) from error
            raise InputError(f"_target_={target}: importing {name} fails: {describe_error(error)}") from error
        except Exception as error:
            raise InputError(f"_target_={target}: importing {name} fails: {describe_error(error)}") from error


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


def _suggest_argument(name: str, group: str, context: Mapping[str, Any]) -> str:
    """Return how a target gets an argument that it needs: under a name that the program passes, or as a setting."""
    close = find_close(name, list(context))
    value = context[close[0]] if close and isinstance(context[close[0]], int | str) else "..."
    setting = f"{group}.{name}={value}"
    if not context:
        return f"give it: {setting}"
    hint = f"did you mean {close[0]}? or " if close else ""
    return f"the program passes {', '.join(context)}: {hint}give it: {setting}"


def call_target(target: str, arguments: Mapping[str, Any], group: str, **context: Any) -> Any:
    """Call the function or class `target` with `arguments`; see `instantiate`."""
    function = locate(target)
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name not in parameters and not takes_any:
            known = [f"{group}.{entry}" for entry in parameters if entry not in context]
            if not known:
                raise InputError(f"unknown key {group}.{name}\n  {target} takes no settings")
            raise InputError(describe_unknown_key(f"{group}.{name}", known))
    supplied = {name: value for name, value in context.items() if name in parameters}
    try:
        inspect.signature(function).bind(**{**supplied, **arguments})
    except TypeError as error:
        given = ", ".join([*supplied, *arguments]) or "no keys"
        names = [name for name in parameters if name in re.findall(r"'(\w+)'", str(error))]
        given += "".join(f"\n  {_suggest_argument(name, group, context)}" for name in names[:1])
        place = f"\n  in {find_definition(function)}" if is_own(target) else ""
        raise InputError(f"{group} ({target}): {error}\n  given: {given}{place}") from error
    refusals = (Exception,) if is_own(target) else (TypeError, ValueError, IndexError)
    try:
        return function(**{**supplied, **arguments})
    except InputError as error:
        if is_own(target) and find_line(error):
            raise InputError(f"{error}\n  in {find_line(error)}") from error
        raise
    except refusals as error:
        if find_line(error):  # in the user's own code
            raise InputError(f"{group} ({target}) fails: {describe_error(error)}") from error
        message = f"{group} ({target}) refuses its settings: {error}\n  given: {dict(arguments)}"
        raise InputError(message) from error
