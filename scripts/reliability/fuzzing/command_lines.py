"""Random command lines of sam-train: words drawn from the declarations of the settings, valid and not."""

import random
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.help import list_options
from sam_runner.config.hydra.command_line import FLAGS
from sam_runner.config.keys import Range
from sam_runner.utils.files import CONF

TINY = [
    "data=synthetic", "data.num_train=48", "data.num_test=16", "data.image_size=8", "data.channels=1",
    "data.num_classes=4", "model.width=4", "batch_size=16", "epochs=1", "device=cpu", "precision=fp32", "log_every=1",
    "max_steps=1",
]  # fmt: skip
LARGE_SIZES = ("data.", "model.", "batch_size", "accumulate", "checkpoint.", "augment.")  # a valid value may be slow
BIG = ("efficientnet", "vit_", "resnet1", "resnet5", "wrn", "pyramidnet", "shake", "wide_resnet")
NUMBERS = [
    "0", "-0", "1", "-1", "0.0", "-0.5", "1e-300", "1e300", "-1e300", "inf", "-inf", "nan", ".inf", ".nan", "1_000",
    "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 40,
    "1" + "0" * 400, "-" + "9" * 30, "0x10", "0b1", "1e", "1,5", "5.", "+5", "1e400", "٣", "½", "1/2", "100%",
]  # fmt: skip
ODD = [
    "", " ", "null", "~", "true", "false", "yes", "off", "none", "None", "[]", "{}", "[1,2]", "[[1]]", "{a:1}", "[",
    "]", "{", "}", "'", '"', "''", '""', "'a", "a'b", "a b", "a\tb", "a\nb", "\x01", "\x7f", "a,b", ",", "a,", ",a",
    "a=b", "=", "==", "a:b", "#", "a#b", "\\", "\\\\", "a\\'", "$", "${", "${}", "${lr}", "${nothing}",
    "${optimizer.rho}", "${data}", "${oc.env:HOME}", "${oc.env:NOTHING}", "${oc.decode:1}", "${oc.create:{a:1}}",
    "${hydra:runtime.cwd}", "${.x}", "${..x}", "${lr", "$lr", "${now:%Y}", "${seed}", "${epochs}", "é", "文字", "🙂",
    "\u202e", "\u200b", "ﬀ", "\udcff", "a\udcffb", "../x", "/", "/dev/null", "/proc/self/mem", ".", "..", "~root",
    "~/x", "*", "?", "glob(*)", "choice(1,2)", "range(0,3)", "range(0,1000000000)", "interval(0,1)", "sort(3,1)",
    "shuffle(1,2)", "tag(a,1)", "float(1)", "int(a)", "str(1)", "bool(x)", "json_str('{}')", "extend_list(1)",
    "!!python/object:os.system", "&a", "*a", "@", "%", "|", ">", "!", "???", "__class__", "_target_", "os.system",
    "x" * 300, "x" * 5000, "[" * 60, "(" * 60, "{a:" * 30, "-", "--", "-m", "optimizer", "sam", "cpu", "cuda",
    "cuda:99", "mps", "meta", "cpu:7", "2026-01-01", "12:30:00", "1:2",
]  # fmt: skip
TEXTS = {
    "device": ["cpu", "auto", "cuda", "cuda:1", "cpu:0", "meta"],
    "run_dir": ["run", "a/b", "ünï", "'a b'", "run.d", "null"],
    "sweep_name": ["s", "a.b", "ü", "a/b", "..", "x" * 101],
    "paper": ["table1", "null", "nothing", "table4.sam"],
    "model.weights": ["null", "nothing.pt", "torchvision", "timm:a", "timm", "run"],
    "data.root": ["null", "folder", "/dev/null", "."],
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting: its dotted name, type and range."""

    name: str
    annotation: Any
    range: Range | None


def list_settings() -> list[Setting]:
    """Return all settings of all options of all groups, each name and type once."""
    found: dict[tuple[str, str], Setting] = {}
    for path, classes in {"": (ExperimentConfig,), **GROUPS}.items():
        for kind in classes:
            for setting in _walk(kind, f"{path}." if path else ""):
                found[setting.name, str(setting.annotation)] = setting
    return list(found.values())


def _walk(kind: type, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if "key" in entry.metadata:
            yield Setting(f"{prefix}{entry.name}", hints[entry.name], entry.metadata["key"].range)
        elif is_dataclass(hints[entry.name]) and f"{prefix}{entry.name}" not in GROUPS:
            yield from _walk(hints[entry.name], f"{prefix}{entry.name}.")


class Drawer:
    """Draws command lines; the same generator state gives the same line."""

    def __init__(self) -> None:
        self._settings = list_settings()
        self._options = list_options(CONF)

    def draw(self, draws: random.Random) -> list[str]:
        """Return the arguments of a random call of sam-train."""
        words = [self._draw_word(draws) for _ in range(draws.choice((1, 1, 1, 1, 2, 2, 3, 5)))]
        base = list(TINY) if draws.random() < 0.93 else ["max_steps=1", "device=cpu"]
        if draws.random() < 0.15:
            base.append("dry_run=true")
        if draws.random() < 0.03:
            base += ["-m", "sweep.jobs=1"]
        if draws.random() < 0.06:
            words.insert(draws.randrange(len(words) + 1), self._draw_flag(draws))
        return [word.replace("\0", "") for word in [*base, *words]]

    def _draw_flag(self, draws: random.Random) -> str:
        flags = sorted(FLAGS)
        extra = ["--foo", "--cfg=job", "-x", "--", "--rho=0.1", "--learning-rate", "-c", "--config-dir=nowhere", "-é"]
        return draws.choice([*flags, *extra])

    def _draw_word(self, draws: random.Random) -> str:
        """Return a word: a setting with a value, an option of a group, a file, or one of them damaged."""
        chance = draws.random()
        if chance < 0.16:
            word = self._draw_option(draws)
        elif chance < 0.19:
            name = draws.choice(["run", "nothing", "a.yaml", ".", "/dev/null", *ODD])
            word = f"{draws.choice(['config', 'resume'])}={name}"
        elif chance < 0.23:
            group = draws.choice(["data", "noise", "model", "optimizer", "optimizer.base", "schedule"])
            target = draws.choice(["os.system", "my.code", "a.py", "builtins.print", "torch.nn.Linear", *ODD])
            word = f"{group}._target_={target}"
        else:
            setting = draws.choice(self._settings)
            word = f"{setting.name}={draw_value(setting, draws)}"
        if draws.random() < 0.06:
            word = draws.choice(["+", "++", "~", "+~", " "]) + word
        if draws.random() < 0.06:
            word = _damage(word, draws)
        return word

    def _draw_option(self, draws: random.Random) -> str:
        group = draws.choice(list(self._options))
        names = self._options[group]
        if draws.random() < 0.9:
            names = [name for name in names if not name.startswith(BIG)] or names
        name = draws.choice(names) if draws.random() < 0.85 else draws.choice([*ODD, "sma", "resnet21", "nothing"])
        return f"{group}={name}"


def draw_value(setting: Setting, draws: random.Random) -> str:
    """Return a value as it is typed: mostly valid, sometimes at the end of its range, of a wrong type, or absurd."""
    chance = draws.random()
    if chance < 0.7:
        return _draw_valid(setting.name, setting.annotation, setting.range, draws)
    if chance < 0.77:
        return _draw_edge(setting.range, draws)
    return draws.choice(NUMBERS if chance < 0.88 else ODD)


def _draw_valid(name: str, annotation: Any, range_: Range | None, draws: random.Random) -> str:
    origin, entries = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        entry = draws.choice(entries)
        return "null" if entry is type(None) else _draw_valid(name, entry, range_, draws)
    if origin is Literal:
        value = draws.choice(entries if name != "compile" else ("off", "graph", "capture"))  # others take a minute
        return str(value).lower() if isinstance(value, bool) else str(value)
    if origin is tuple:
        words = [_draw_valid(name, entries[0], range_, draws) for _ in range(draws.randrange(4))]
        return f"[{','.join(words)}]"
    if annotation is bool:
        return draws.choice(["true", "false"])
    if annotation is str:
        return draws.choice(TEXTS.get(name, ["name", "null", "a/b", "x.y"]))
    low = range_.low if range_ and range_.low > -1e300 else 0
    high = range_.high if range_ else low + 8
    if annotation is int:
        most = 12 if name.startswith(LARGE_SIZES) else 100
        return str(draws.randint(int(low), int(min(high, low + most))))
    span = min(high, low + draws.choice([0.1, 1.0, 5.0])) - low
    return f"{low + span * draws.uniform(0.001, 0.999):.4g}"


def _draw_edge(range_: Range | None, draws: random.Random) -> str:
    ends = [entry for entry in ((range_.low, range_.high) if range_ else (0, 1)) if abs(entry) < 1e300] or [0]
    end = draws.choice(ends)
    return f"{end + draws.choice([0, 0, 1, -1, 1e-9, -1e-9, 0.5]):.12g}"


def _damage(word: str, draws: random.Random) -> str:
    """Return the word with a character removed, doubled, exchanged or added."""
    place = draws.randrange(len(word) + 1)
    added = draws.choice([*"=,'\"[]{}()$:@~+- \\\t\n#.é文", "", word[place - 1 : place] * 2])
    return word[:place] + added + word[place + draws.choice([0, 1]) :]
