"""Part settings: the validation answers every configuration, without Hydra; many hundred trials in a second."""

import copy
import random
import signal
import traceback
from pathlib import Path
from typing import Any

import yaml

from sam_runner.config.experiment import GROUPS, load_experiment
from sam_runner.config.help import list_options
from sam_runner.config.hydra.compose import compose_settings, plain_settings
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF
from scripts.reliability.fuzzing.command_lines import draw_value, list_settings

SECONDS = 5  # that a validation may take


class Settings:
    """Trials of `load_experiment` on composed configurations with random changes."""

    title = "validation of settings"

    def __init__(self, _: Path) -> None:
        self._settings, self._bases = list_settings(), []
        for group, names in list_options(CONF).items():
            for name in names:
                try:
                    self._bases.append(plain_settings(compose_settings([f"{group}={name}"])))
                except Exception:  # an option that needs another setting
                    continue

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Validate a random configuration; see `Lines.try_one`."""
        values = copy.deepcopy(draws.choice(self._bases))
        done = [self._change(values, draws) for _ in range(draws.choice((1, 1, 2, 3)))]
        overrides = [f"{name}={value}" for name, value in done] if draws.random() < 0.5 else []
        faults, what = [], "accepted"
        signal.alarm(SECONDS)
        try:
            config = load_experiment(values, overrides, multirun=draws.random() < 0.2)
            again = load_experiment(config.to_dict())
            if again != config or again.fingerprint() != config.fingerprint():
                faults.append("config.yaml would give other settings")
        except InputError as error:
            what, lines = "refused with a message", str(error).splitlines()
            if not lines or len(lines) > 20 or not lines[0].strip():
                faults.append(f"a message of {len(lines)} lines")
        except Exception:
            what = "traceback"
            faults.append(what)
            done.append(("", traceback.format_exc()[-1500:]))
        finally:
            signal.alarm(0)
        return what, faults, "\n".join(f"{name}={value!r}" for name, value in done)

    def _change(self, values: dict, draws: random.Random) -> tuple[str, Any]:
        """Set a setting, mostly one that is there, to a random value."""
        setting = draws.choice(self._settings)
        while draws.random() < 0.8 and not _has(values, setting.name):
            setting = draws.choice(self._settings)
        value: Any = draw_value(setting, draws)
        name = setting.name
        chance = draws.random()
        if chance < 0.8:
            value = _parse(value)
        elif chance < 0.9:
            value = draws.choice([None, {}, [], [None], {"a": None}, {1: 2}, 1e400, -0.0, 10**400, [[1]], b"x", True])
        if draws.random() < 0.03:
            name = draws.choice([*GROUPS, f"{name}.x", "x", "data.x", ""])
        place = values
        *parents, last = name.split(".")
        for part in parents:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = value
        return name, value


def _has(values: dict, name: str) -> bool:
    place: Any = values
    for part in name.split("."):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


def _parse(text: str) -> Any:
    """Return the value that a file with this text would have."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
