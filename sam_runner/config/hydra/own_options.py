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
    keys: the target's signature decides which are accepted. Without a target, a pattern such as ``optimizer=glob(*)``
    leaves that option out.

    Args:
        words: Settings ``key=value`` and choices ``group=option``.
    """
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    own = {group for group in OPTIONS if f"{group}._target_" in keys}
    chosen = [OPTIONS[group] for group in own if OPTIONS[group].partition("=")[0] not in keys]
    return [*sorted(chosen), *(_force(_leave_out(word, own), own) for word in words)]


def _leave_out(word: str, own: set[str]) -> str:
    """Return a pattern of options without the one that needs a target, unless a target is typed; other words as is."""
    found = re.fullmatch(r"([\w/]+)=glob\(([^(),=]*\*[^(),=]*)\)", word)
    group = found[1].replace("/", ".") if found else ""
    if found is None or group not in OPTIONS or group in own:
        return word
    return f"{found[1]}=glob({found[2]},exclude={OPTIONS[group].partition('=')[2]})"


def _force(word: str, own: set[str]) -> str:
    """Return a word with ``++``, which also adds a key that the option does not have, if it may be a new key."""
    key = word.partition("=")[0]
    is_new = key.rpartition(".")[0] in own and not key.endswith("._target_")
    return f"++{word}" if is_new or key in GENERAL else word
