"""Change the program at random places, one at a time, and find the changes that its tests do not notice.

    python scripts/checks/random_mutants.py --package sam --count 40 --seed 0
    python scripts/checks/random_mutants.py --package sam --count 40 --seed 0 --again   # the survivors again
    python scripts/checks/random_mutants.py --package sam --list                        # all places

A mutant changes an operator, a comparison, a constant, a condition or the order of two arguments, or removes a call.
It is killed if a test of its package fails or the tests take several times as long as those of the unchanged program.
Results are appended to a file in outputs/random_mutants/, so a call that was interrupted continues where it ended.
equivalent_mutants.yaml lists mutants that no test can kill, by function and change, with the reason, and functions
that run only on a GPU; they are not counted.
"""

import argparse
import ast
import copy
import difflib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.child import PACKAGE, TIMED_OUT, run_tests

ROOT = Path(__file__).resolve().parents[2]

FAST = ("-m", "not slow and not gpu and not dist")
TESTS = {  # arguments of pytest
    "sam": ["sam", "distributed", "models/test_models_shake.py", "training/test_method_state.py", "-k", "not compiled"],
    "data": ["data", "distributed/test_distributed.py"],
    "training": ["training", "distributed", "runs", "config/test_method_rules.py", "models/test_models_finetune.py"],
}
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
MESSAGES = ("log", "warnings", "InputError", "ValueError", "RuntimeError")  # calls whose arguments are texts for users
MODULES = ("torch", "np", "math", "F", "distributed", "os", "time", "json", "signal", "random", "hashlib")
CLEAR = ("isinstance", "zip", "range", "max", "min", "getattr")  # exchanging their arguments fails or has no effect
LONGEST = 10  # of a longer table only the first entry is changed
MARGIN = 30  # characters on both sides of a change that are part of its name


def changes_of(node):
    """Return the changed versions of a node, without changes of its children."""

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
        new: The node that replaces it.
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
        start = common_start(before, after)
        end = common_start(before[start:][::-1], after[start:][::-1])
        first, left_out = max(start - MARGIN, 0), max(end - MARGIN, 0)
        return " -> ".join(text[first : len(text) - left_out].strip() for text in (before, after))


def common_start(first, second):
    """Return the number of characters that two strings have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


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
    """Return the child nodes to change, without annotations, messages and most of a long table."""
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


def run(package, folder, mutant=None, seconds=0):
    """Return the verdict on a mutant, or on the unchanged program, and the first test that failed."""
    output = folder / f"{package}.txt"
    output.write_text("")
    own = [] if mutant is None else sorted((ROOT / "tests").rglob(f"test_{mutant.path.stem}.py"))
    changed = () if mutant is None else (mutant.path, mutant.within(mutant.tree))
    code = run_tests([*map(str, own), *TESTS[package], *FAST], *changed, seconds=seconds, output=output)
    if code == 0:
        return "survived", ""
    failed = [line for line in output.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "killed", f"after {seconds} s" if code == TIMED_OUT else (failed or [f"pytest's code {code}"])[0]


def time_limit(package, folder):
    """Run the tests of the unchanged program; return a number of seconds that no mutant should need."""
    start = time.monotonic()
    verdict, failed = run(package, folder)
    if verdict != "survived":
        raise SystemExit(f"the tests of the unchanged program fail: {failed}")
    return 60 + 4 * round(time.monotonic() - start)


def main():
    """Try the chosen mutants and print the rate of those that are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", choices=TESTS, default="sam")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a module or function, e.g. sam.batch_statistics")
    parser.add_argument("--again", action="store_true", help="run the survivors of earlier calls again")
    parser.add_argument("--list", action="store_true", help="print all mutants and run none")
    arguments = parser.parse_args()
    found = mutants_of(arguments.package)
    mutants = {name: mutant for name, mutant in found.items() if name[0].startswith(f"sam_runner.{arguments.only}")}
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
    names, draws, chosen = list(mutants), random.Random(arguments.seed), {}
    while len(chosen) < min(arguments.count, len(names)):  # a larger count begins with the mutants of a smaller one
        name = names[draws.randrange(len(names))]
        chosen[name] = mutants[name]
    verdicts, limit = [], 0
    for number, (name, mutant) in enumerate(chosen.items(), 1):
        reasons, row = known.get(name[0], {}), done.get(name)
        reason = reasons if isinstance(reasons, str) else reasons.get(name[1])
        if reason:
            verdict, why = "equivalent", reason
        elif row and not (arguments.again and row["verdict"] == "survived"):
            verdict, why = row["verdict"], row["why"]
        else:
            limit = limit or time_limit(arguments.package, folder)
            verdict, why = run(arguments.package, folder, mutant, limit)
            row = {"function": name[0], "change": name[1], "verdict": verdict, "why": why}
            with log.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        verdicts.append(verdict)
        print(f"[{number}/{len(chosen)}] {verdict} {why}", f"{mutant.place} {': '.join(name)}", sep="\n  ", flush=True)
        if verdict == "survived":
            print(*mutant.lines(), sep="\n    ", flush=True)
    killed = sum(verdict == "killed" for verdict in verdicts)
    counted = sum(verdict != "equivalent" for verdict in verdicts)
    print(f"{arguments.package}, seed {arguments.seed}: {killed} of {counted} killed, "
          f"{len(verdicts) - counted} equivalent ones left out, {len(mutants)} places")  # fmt: skip


if __name__ == "__main__":
    main()
