"""Words of a command line that name a user's own code: ``model._target_=my_models.tiny`` alone chooses model=own."""

import re
from collections.abc import Sequence

OPTIONS = {  # group: the option that has no settings but a target
    "data": "data=own",
    "noise": "noise=own",
    "model": "model=own",
    "optimizer": "optimizer=own",
    "optimizer.base": "optimizer/base=torch",
    "schedule": "schedule=own",
}
GENERAL = {  # settings of every option of a group, which the file of a user's own option need not have
    "data.train_fraction", "data.val_fraction", "data.val_labels", "data.normalisation", "data.drop_last",
    "model.weights",
}  # fmt: skip


def list_typed_targets(word: str) -> list[str]:
    """Return the targets of ``GROUP._target_=TARGET``, of a sweep ``TARGET,TARGET``; none for another word."""
    key, _, value = word.lstrip("+").partition("=")
    group, _, name = key.rpartition(".")
    return re.findall(r"[\w.]+", value) if name == "_target_" and group in OPTIONS else []


def complete_own_options(words: Sequence[str]) -> list[str]:
    """Return the words as Hydra needs them where an option is a user's own.

    A group with a typed target gets the option of `OPTIONS`, unless another one is typed, and its settings may be new
    keys: the target's signature decides which are accepted.

    Args:
        words: Settings ``key=value`` and choices ``group=option``.
    """
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    own = {group for group in OPTIONS if f"{group}._target_" in keys}
    chosen = [OPTIONS[group] for group in own if OPTIONS[group].partition("=")[0] not in keys]
    return [*sorted(chosen), *(_force(word, own) for word in words)]


def _force(word: str, own: set[str]) -> str:
    """Return a word with ``++``, which also adds a key that the option does not have, if it may be a new key."""
    key = word.partition("=")[0]
    is_new = key.rpartition(".")[0] in own and not key.endswith("._target_")
    return f"++{word}" if is_new or key in GENERAL else word
