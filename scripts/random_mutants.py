"""Change the program at random places, one at a time, and run its tests: which changes do they not notice?

    python scripts/random_mutants.py --package sam --count 40 --seed 0
    python scripts/random_mutants.py --package sam --count 40 --seed 0 --again   # survivors, after a change of the tests
    python scripts/random_mutants.py --package sam --list                        # all places

A mutant changes an operator, a comparison, a constant, a condition or the order of two arguments, or removes a call. It
is killed if a test of its package fails. Results are appended to outputs/random_mutants/; a second call continues there.
equivalent_mutants.yaml lists mutants that no test can kill, with the reason; they are not counted.
"""

import argparse
import ast
import copy
import difflib
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml

torch.set_num_threads(1)

from tests.mutants.child import PACKAGE, TIMED_OUT, run_tests

# package: arguments of pytest in two rounds; the second is for mutants that survive the first
FAST, SLOW = "not slow and not gpu and not dist", "not gpu"
TESTS = {
    "sam": (
        ["sam", "models/test_models_shake.py", "distributed/test_distributed.py", "-k", "not compiled", "-m", FAST],
        ["distributed/test_ranks.py", "training/test_method_state.py", "-m", SLOW],
    ),
    "data": (
        ["data", "distributed/test_distributed.py", "-m", FAST],
        ["training/test_resume.py", "training/test_loop.py", "-m", FAST],
    ),
    "training": (
        ["training", "distributed/test_distributed.py", "models/test_models_finetune.py", "-m", FAST],
        ["distributed", "runs", "models", "-m", SLOW],
    ),
}
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
MESSAGES = ("log", "warnings", "InputError", "ValueError", "RuntimeError")  # calls whose arguments are texts for users
MODULES = ("torch", "np", "math", "F", "distributed", "os", "time", "json", "signal", "random", "hashlib")
CLEAR = ("isinstance", "zip", "range", "max", "min", "getattr")  # exchanged arguments fail or are the same
LONGEST = 10  # entries of a longer table are left out, but for the first
MARGIN = 30  # characters around a change that name it


def changes_of(node):
    """Return the changes of a node itself, not of its children."""

    def changed(**fields):
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in OPERATORS:
            return [changed(op=OPERATORS[type(operator)]())]
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            return [changed(op=OPERATORS[type(operator)]())]
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            return [changed(ops=[OPERATORS[type(operator)]()])]
        case ast.UnaryOp(operand=operand):
            return [copy.deepcopy(operand)]
        case ast.Constant(value=bool(value)):
            return [changed(value=not value)]
        case ast.Constant(value=int() | float() as value):
            return [changed(value=value + 1)]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            return [changed(test=ast.UnaryOp(ast.Not(), test)), changed(test=ast.Constant(True))]
        case ast.comprehension(ifs=[_, *_]):
            return [changed(ifs=[])]
        case ast.Expr(value=ast.Call() | ast.Yield(value=ast.Call())):
            return [ast.Pass()]
        case ast.Call(func=ast.Attribute(value=base), args=arguments):
            removed = [] if isinstance(base, ast.Name) and base.id in MODULES else [copy.deepcopy(base)]
            swapped = [changed(args=[arguments[1], arguments[0], *arguments[2:]])] if len(arguments) > 1 else []
            return removed + swapped
        case ast.Call(func=function, args=[first, second, *rest]) if ast.unparse(function) not in CLEAR:
            return [changed(args=[second, first, *rest])]
    return []


@dataclass(frozen=True)
class Mutant:
    """One change of one node.

    Attributes:
        path: File.
        tree: Syntax tree of the file, unchanged.
        function: Dotted name of the function, class or module around the node.
        statement: Statement around the node.
        old: The node.
        new: What takes its place.
    """

    path: Path
    tree: ast.Module
    function: str
    statement: ast.stmt
    old: ast.AST
    new: ast.AST

    @property
    def place(self):
        """File and line."""
        line = next((node.lineno for node in ast.walk(self.old) if hasattr(node, "lineno")), self.statement.lineno)
        return f"{self.path.relative_to(ROOT)}:{line}"

    def within(self, root):
        """Return a changed copy of the tree or of the statement."""
        twin = copy.deepcopy(root)
        pairs = zip(ast.walk(root), ast.walk(twin), strict=True)
        target = next(copied for original, copied in pairs if original is self.old)
        return ast.fix_missing_locations(Replace(target, copy.deepcopy(self.new)).visit(twin))

    def lines(self):
        """Return the lines of the statement that differ, before and after the change, as a diff."""
        texts = [ast.unparse(root).splitlines() for root in (self.statement, self.within(self.statement))]
        diff = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
        return [line for line in diff if not line.startswith("@@")]

    @property
    def change(self):
        """The change on one line, with some characters around it: its name in equivalent_mutants.yaml."""
        before, after = (" ".join(line[1:].strip() for line in self.lines() if line[0] == sign) for sign in "-+")
        start = len(os.path.commonprefix([before, after]))
        end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
        first, left_out = max(start - MARGIN, 0), max(end - MARGIN, 0)
        return " -> ".join(text[first : len(text) - left_out].strip() for text in (before, after))


class Replace(ast.NodeTransformer):
    """Put a node in the place of another."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else super().visit(node)


def mutants_of(package):
    """Return all mutants of a package by name: (function, change), in the order of its files and their text."""
    mutants = {}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        todo = [(node, node, module) for node in reversed(tree.body)]
        while todo:
            node, statement, name = todo.pop()
            statement = node if isinstance(node, ast.stmt) else statement
            name = f"{name}.{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else name
            for mutant in (Mutant(path, tree, name, statement, node, new) for new in changes_of(node)):
                mutants.setdefault((name, mutant.change), mutant)
            todo += [(child, statement, name) for child in reversed(children_of(node))]
    return mutants


def children_of(node):
    """Return the child nodes that are changed too: no annotations, messages and long tables."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
        return []
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in MESSAGES:
        return []
    children = []
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "bases", "exc", "cause"):
            nodes = [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, ast.AST)]
            children += nodes[:1] if isinstance(node, ast.expr) and len(nodes) > LONGEST else nodes
    return children


def run(mutant, package, seconds, folder):
    """Return the verdict, and the first test that failed."""
    module, output = mutant.within(mutant.tree), folder / "output.txt"
    for number, arguments in enumerate(TESTS[package], 1):
        output.write_text("")
        own = [str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob(f"test_{mutant.path.stem}.py")]
        code = run_tests(
            [*(own if number == 1 else ()), *arguments], mutant.path, module, seconds=seconds, output=output
        )
        if code != 0:
            failed = [line for line in output.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
            return f"killed in round {number}", "time limit" if code == TIMED_OUT else (failed or [f"code {code}"])[0]
    return "survived", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", choices=TESTS, default="sam")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run the survivors of earlier calls again")
    parser.add_argument("--list", action="store_true", help="print all mutants and run none")
    parser.add_argument("--seconds", type=int, default=240, help="time limit of a round of tests; exceeding it kills")
    arguments = parser.parse_args()
    mutants = mutants_of(arguments.package)
    if arguments.list:
        print(*map(": ".join, mutants), sep="\n")
        return
    folder = ROOT / "outputs/random_mutants"
    folder.mkdir(parents=True, exist_ok=True)
    known = yaml.safe_load((Path(__file__).parent / "equivalent_mutants.yaml").read_text()) or {}
    log = folder / f"{arguments.package}.jsonl"
    done = {}
    for row in map(json.loads, log.read_text().splitlines()) if log.is_file() else ():
        done[row["function"], row["change"]] = row
    chosen = random.Random(arguments.seed).sample(list(mutants.items()), min(arguments.count, len(mutants)))
    verdicts = []
    for number, (name, mutant) in enumerate(chosen, 1):
        reason, row = known.get(name[0], {}).get(name[1]), done.get(name)
        if reason:
            verdict, why = "equivalent", reason
        elif row and not (arguments.again and row["verdict"] == "survived"):
            verdict, why = row["verdict"], row["why"]
        else:
            verdict, why = run(mutant, arguments.package, arguments.seconds, folder)
            row = {"function": name[0], "change": name[1], "verdict": verdict, "why": why}
            with log.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        verdicts.append(verdict)
        print(f"[{number}/{len(chosen)}] {verdict} {why}", f"{mutant.place} {': '.join(name)}", sep="\n  ", flush=True)
        if verdict == "survived":
            print(*mutant.lines(), sep="\n    ", flush=True)
    killed = sum(verdict.startswith("killed") for verdict in verdicts)
    counted = sum(verdict != "equivalent" for verdict in verdicts)
    print(f"{arguments.package}, seed {arguments.seed}: {killed} of {counted} killed, "
          f"{len(verdicts) - counted} equivalent ones left out, {len(mutants)} places")  # fmt: skip


if __name__ == "__main__":
    main()
