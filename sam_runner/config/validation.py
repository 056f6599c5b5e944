"""What a configuration has to satisfy beyond names and types, and what identifies it. Imports no torch."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from sam_runner.config.allowed_targets import require_trusted_name
from sam_runner.config.rules import RULES
from sam_runner.utils.errors import InputError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; an open end is not in it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE, NOT_NEGATIVE, FRACTION = Range(0, low_open=True), Range(0), Range(0, 1, high_open=False)
BELOW_ONE, AT_LEAST_ONE, INSIDE = Range(0, 1), Range(1), Range(0, 1, low_open=True)
RANGES: dict[str, Range] = {
    "rho": NOT_NEGATIVE, "lr": POSITIVE, "head_lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "grad_clip": POSITIVE,
    "epochs": AT_LEAST_ONE, "max_steps": AT_LEAST_ONE, "batch_size": AT_LEAST_ONE, "accumulate": AT_LEAST_ONE,
    "log_every": AT_LEAST_ONE, "eval_every": AT_LEAST_ONE, "label_smoothing": BELOW_ONE, "ema_decay": INSIDE,
    "seed": Range(0, 2**63),
    "checkpoint.every_steps": AT_LEAST_ONE, "checkpoint.every_seconds": POSITIVE, "checkpoint.keep": Range(2),
    "checkpoint.min_interval": NOT_NEGATIVE, "world_size": AT_LEAST_ONE, "rank_timeout": POSITIVE,
    "data.val_fraction": BELOW_ONE, "data.train_fraction": Range(0, 1, low_open=True, high_open=False),
    "data.num_train": AT_LEAST_ONE, "data.num_test": AT_LEAST_ONE,
    "data.num_classes": Range(2), "data.channels": AT_LEAST_ONE, "data.image_size": Range(4),
    "data.test_fraction": INSIDE, "data.num_workers": NOT_NEGATIVE, "data.data_seed": NOT_NEGATIVE,
    "data.eval_crop_ratio": Range(0, 1, low_open=True, high_open=False),
    "noise.rate": FRACTION, "augment.pad": NOT_NEGATIVE, "augment.cutout": NOT_NEGATIVE,
    "augment.crop_scale_min": Range(0, 1, low_open=True, high_open=False), "augment.num_ops": AT_LEAST_ONE,
    "augment.magnitude": Range(0, 30, high_open=False), "augment.erasing": FRACTION,
    "augment.mixup": POSITIVE, "augment.cutmix": POSITIVE,
    "model.width": AT_LEAST_ONE, "model.dropout": BELOW_ONE, "model.depth": Range(8),
    "model.widen_factor": AT_LEAST_ONE, "model.alpha": AT_LEAST_ONE, "model.shakedrop": FRACTION,
    "optimizer.rho": NOT_NEGATIVE, "optimizer.p": Range(1, math.inf, high_open=False), "optimizer.m": AT_LEAST_ONE,
    "optimizer.ascent_steps": AT_LEAST_ONE, "optimizer.rho_final": NOT_NEGATIVE,
    "optimizer.rho_warmup_epochs": NOT_NEGATIVE, "optimizer.base.lr": POSITIVE,
    "optimizer.base.weight_decay": NOT_NEGATIVE, "optimizer.base.momentum": BELOW_ONE,
    "optimizer.base.alpha": BELOW_ONE, "optimizer.base.eps": NOT_NEGATIVE,
    "schedule.warmup_epochs": NOT_NEGATIVE, "schedule.final_factor": NOT_NEGATIVE, "schedule.gamma": POSITIVE,
}  # fmt: skip
GROUPS = ("data", "noise", "augment", "model", "optimizer", "optimizer.base", "schedule")
EVERYWHERE = frozenset(
    {"data.val_fraction", "data.train_fraction", "optimizer.base.lr", "optimizer.base.weight_decay"}
)  # also in own files
LISTS = {"schedule.milestones": INSIDE, "checkpoint.keep_epochs": AT_LEAST_ONE, "optimizer.base.betas": BELOW_ONE}
LOCAL = frozenset(
    {"run_dir", "sweep_name", "sweep", "dry_run", "log_every", "checkpoint", "rank_timeout", "rho", "paper"}
)  # rho is an alias of optimizer.rho


def validate(cfg: DictConfig, overrides: Sequence[str], *, multirun: bool) -> None:
    """Check what types cannot say: unknown keys added with +, ranges, keys that exclude each other or have no effect.

    Args:
        cfg: The composed configuration.
        overrides: What was typed, as ``key=value``.
        multirun: Whether it is a cell of a sweep, where a key may be without effect in some cells.

    Raises:
        InputError: On the first fault.
    """
    for missing in sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"{missing} has to be given: {missing}=...")
    for group in GROUPS:
        node = OmegaConf.select(cfg, group)
        if not isinstance(node, DictConfig):
            given = "null" if node is None else node
            raise InputError(
                f"{group}={given} is no option of a group\n  choose one with {group.replace('.', '/')}=NAME"
            )
    _require_known(cfg, "")
    require_allowed_targets(cfg)
    for key, accepted in RANGES.items():
        value = _value_of_our_key(cfg, key)
        if value is not None and value not in accepted:
            raise InputError(f"{key}={value} is out of range\n  accepted: {accepted}")
    for key, accepted in LISTS.items():
        for value in _value_of_our_key(cfg, key) or []:
            if value not in accepted:
                raise InputError(f"{key} holds {value}, out of range\n  accepted: {accepted}")
    typed = {override.lstrip("+~").split("=")[0].split("@")[0] for override in overrides}
    for rule in RULES:
        rule(cfg, typed)
    if not multirun and "rho" in typed and "rho" not in cfg.optimizer:
        raise InputError(
            "rho has no effect with this optimizer: it makes one pass\n  use optimizer=sam, or leave rho out"
        )
    if not multirun and "sweep_name" in typed:
        raise InputError("sweep_name has no effect without -m\n  name the folder of a single run with run_dir=FOLDER")
    if not multirun and "search" in typed:
        raise InputError("search has no effect without -m: it is a sweep\n  use sam-train -m search=...")
    if not multirun and "sweep.on_error" in typed:
        raise InputError("sweep.on_error has no effect without -m\n  leave it out")
    if "run_dir" in typed and cfg.run_dir == "":
        raise InputError("run_dir is empty\n  give a folder, or leave it out")
    if multirun and "run_dir" in typed:
        raise InputError(
            "run_dir is for a single run\n  name a sweep with sweep_name=NAME; its folder is outputs/sweeps/NAME"
        )


def _parent(cfg: DictConfig, key: str) -> DictConfig:
    """The node that holds a dotted key."""
    parent = key.rpartition(".")[0]
    found: DictConfig = OmegaConf.select(cfg, parent) if parent else cfg
    return found


def _value_of_our_key(cfg: DictConfig, key: str) -> Any:
    """The value of a key that our schema types, else None: another's file may mean another thing by the name."""
    parent = _parent(cfg, key)
    name = key.rpartition(".")[2]
    schema = OmegaConf.get_type(parent) if isinstance(parent, DictConfig) else None
    typed = schema is not None and is_dataclass(schema) and name in {field.name for field in fields(schema)}
    value = OmegaConf.select(cfg, key) if typed or key in EVERYWHERE else None
    return value if typed or isinstance(value, int | float) else None


def _require_known(node: Any, path: str) -> None:
    """Hydra's + adds keys to a typed node without a word."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    schema = OmegaConf.get_type(node)
    names = {field.name for field in fields(schema)} if schema and is_dataclass(schema) else set(map(str, node))
    for key in map(str, node):
        if key not in names:
            raise InputError(unknown_key(f"{path}{key}", [f"{path}{name}" for name in sorted(names)]))
        if not OmegaConf.is_missing(node, key):
            _require_known(node._get_node(key), f"{path}{key}.")


def unknown_key(key: str, accepted: Sequence[str]) -> str:
    """The message for a key that does not exist: the nearest one beside it, else the nearest anywhere, else all."""
    parent, _, name = key.rpartition(".")
    names = [entry for entry in accepted if not entry.endswith("_target_")]
    beside = [entry for entry in names if entry.rpartition(".")[0] == parent]
    for candidates in (beside, names):
        by_name = {entry.rpartition(".")[2]: entry for entry in candidates}
        close = get_close_matches(name, list(by_name), 1)
        if close:
            return f"unknown key {key}\n  did you mean {by_name[close[0]]}?"
    return f"unknown key {key}\n  keys: {', '.join(sorted(beside or names))}"


def require_allowed_targets(node: Any) -> None:
    """Refuse `_target_` values outside the trusted modules before anything is imported; `construct` looks closer."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            value = node._get_node(key)
            if key == "_target_":
                require_trusted_name(str(node[key]))
            elif key.startswith("_") and key.endswith("_"):
                raise InputError(f"{key} is not supported in a configuration")
            else:
                require_allowed_targets(value)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            require_allowed_targets(node._get_node(index))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain Python types, interpolations resolved, enumerations by name."""
    container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def fingerprint(cfg: DictConfig) -> str:
    """12 hex digits that are equal for settings that give the same run, whatever its folder."""
    settings = {key: value for key, value in plain(cfg).items() if key not in LOCAL}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
