"""Change one place of a function on its syntax tree.

A pattern is Python code. A name of one capital letter stands for any expression (the same one wherever it occurs), and
as the only line of a block for the whole block; ``f(...)`` stands for a call with any arguments. A pattern matches

- expressions: ``A / B``, ``norm == 0``, ``A.sign()``;
- keyword arguments, written without spaces: ``alpha=A``;
- statements, if the pattern or its replacement is one: ``A.begin()`` -> ``pass``, ``if A: B`` -> ``B``.

Layout and comments do not count, and neither do names behind a capital letter, so a mutant survives their changes.
"""

import ast
import copy
import importlib.util
from pathlib import Path


class PlaceError(Exception):
    """A function or a place in it does not exist (any more)."""


def find_function(name):
    """Return (file, module, node) for a dotted name of a function, method, class or module of the package."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        if found is None:
            continue
        file = Path(found.origin)
        module = node = ast.parse(file.read_text())
        for part in parts[count:]:
            inner = [entry for entry in ast.iter_child_nodes(node) if getattr(entry, "name", None) == part]
            if not inner:
                raise PlaceError(f"{file.name} has no {'.'.join(parts[count:])}: name the function that holds the rule")
            node = inner[0]
        return file, module, node
    raise PlaceError(f"there is no module {name}")


def mutated(function, old, new, place=None):
    """Return (file, syntax tree of its module) after replacing `old` by `new` in `function`.

    Args:
        function: Dotted name.
        old: Pattern.
        new: Replacement; capital letters are what they stood for in `old`.
        place: Which of several matches, from 0 in the order of the text; None: there must be only one.

    Raises:
        PlaceError: If the function does not exist, or `old` does not match exactly one place.
    """
    file, module, scope = find_function(function)
    kinds, old_node, new_node = _parse(old, new)
    nodes = sorted(
        (node for node in ast.walk(scope) if isinstance(node, kinds) and node is not scope),
        key=lambda node: (node.lineno, node.col_offset),
    )
    found = [(node, names) for node in nodes if _matches(old_node, node, names := {})]
    if not found or (place is None and len(found) > 1) or (place or 0) >= len(found):
        wanted = "one" if place is None else f"number {place}"
        raise PlaceError(f"{function} has {len(found)} places like {old!r}, wanted {wanted}: correct the mutant")
    target, names = found[place or 0]
    replaced = _Replace(target, _Fill(names).visit(copy.deepcopy(new_node))).visit(module)
    return file, ast.fix_missing_locations(replaced)


def _parse(old, new):
    """Return the kinds of node that a pattern can match, and the nodes of pattern and replacement."""
    olds, news = ast.parse(old).body, ast.parse(new).body
    if isinstance(olds[0], ast.Expr) and isinstance(news[0], ast.Expr) and len(news) == 1:
        return ast.expr, olds[0].value, news[0].value
    if isinstance(olds[0], ast.Assign) and isinstance(news[0], ast.Assign) and " = " not in old:
        return ast.keyword, *(ast.parse(f"f({word})", mode="eval").body.keywords[0] for word in (old, new))
    return ast.stmt, olds[0], ast.Module(news, [])


def _is_wildcard(node):
    return isinstance(node, ast.Name) and len(node.id) == 1 and node.id.isupper()


def _matches(pattern, node, names):
    if _is_wildcard(pattern):
        if not isinstance(node, ast.expr):
            return False
        known = names.setdefault(pattern.id, node)
        return ast.dump(known) == ast.dump(node)
    if isinstance(pattern, list):
        if len(pattern) == 1 and isinstance(pattern[0], ast.Expr) and _is_wildcard(pattern[0].value):
            names[pattern[0].value.id] = node
            return isinstance(node, list)
        return len(pattern) == len(node) and all(_matches(a, b, names) for a, b in zip(pattern, node, strict=True))
    if not isinstance(pattern, ast.AST):
        return pattern == node
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, ast.Call) and [ast.unparse(word) for word in pattern.args] == ["..."]:
        return _matches(pattern.func, node.func, names)
    fields = (name for name in pattern._fields if name not in ("ctx", "kind", "type_comment"))
    return all(_matches(getattr(pattern, name), getattr(node, name), names) for name in fields)


class _Fill(ast.NodeTransformer):
    """Put what the capital letters stand for into a replacement."""

    def __init__(self, names):
        self.names = names

    def visit_Expr(self, node):
        if _is_wildcard(node.value) and isinstance(self.names[node.value.id], list):
            return copy.deepcopy(self.names[node.value.id])
        return self.generic_visit(node)

    def visit_Name(self, node):
        return copy.deepcopy(self.names[node.id]) if _is_wildcard(node) else node


class _Replace(ast.NodeTransformer):
    def __init__(self, target, replacement):
        self.target = target
        self.replacement = replacement.body if isinstance(replacement, ast.Module) else replacement

    def visit(self, node):
        return self.replacement if node is self.target else super().visit(node)
