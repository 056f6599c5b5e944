"""Entry points `sam-train`, `sam-eval`, `sam-verify`, `sam-report`: exit codes; no torch before settings are valid."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sam_runner.errors import InputError, RankError, Stopped, TrainingError

_HERE = Path(__file__).resolve().parent
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Failure(NamedTuple):
    """A run that failed: the overrides of its cell ("" for a single run), what was said, the exit code."""

    cell: str
    message: str
    code: int


def train() -> int:
    """`sam-train`: a run, or with -m a sweep. Returns the exit code."""
    code = _guarded(_train)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from sam_runner.distributed import leave

        leave()
    return code


def evaluate() -> int:
    """`sam-eval run_dir=FOLDER [checkpoint=last|best] [device=...]`: a checkpoint's metrics. Returns the exit code."""
    from sam_runner import afterwards

    return _guarded(afterwards.evaluate)


def verify() -> int:
    """`sam-verify PATH...`: whether the checkpoints of runs, folders or files are intact; 2 if one is not."""
    from sam_runner import afterwards

    return _guarded(afterwards.verify)


def report() -> int:
    """`sam-report FOLDER... [metric=test/accuracy] [out=FOLDER]`: compare runs; table, plots, report.html in out.

    Returns the exit code.
    """
    from sam_runner import afterwards

    return _guarded(afterwards.report)


def _guarded(command: Callable[[list[str]], int]) -> int:
    """Run a command; errors that a user is meant to read become a message and a code."""
    _log_to_console()
    try:
        return command(sys.argv[1:])
    except InputError as error:
        _complain(str(error))
        return BAD_INPUT
    except TrainingError as error:
        _complain(str(error))
        return FAILED
    except Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _is_first() -> bool:
    """Whether this process speaks for all those that torchrun has started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _complain(message: str, *, anyway: bool = False) -> None:
    if not (anyway or _is_first()):
        return
    lines = message.splitlines()
    print("\n".join([f"error: {lines[0]}", *lines[1:18]]), file=sys.stderr)


def _log_to_console() -> None:
    """One plain line a message on stdout, above a progress bar if there is one."""

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm

            try:
                tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # whoever read the output is gone; the run goes on
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    logger = logging.getLogger("sam_runner")
    logger.handlers = [Console() if _is_first() else logging.NullHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _train(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        from sam_runner.usage import help_text

        print(help_text(CONF))
        return DONE
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from sam_runner import hydra_guard, yaml_guard
    from sam_runner.schema import register_schemas

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of Hydra's own printing and sys.exit
    now = datetime.now()
    os.environ.setdefault("SAM_RUNNER_STARTED", f"{now:%Y-%m-%d_%H-%M-%S}_{now.microsecond:06d}-{os.getpid()}")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from sam_runner.distributed import agreed

        os.environ["SAM_RUNNER_STARTED"] = agreed("started", os.environ["SAM_RUNNER_STARTED"])
    register_schemas()
    hydra_guard.install()
    yaml_guard.install()
    sys.argv[1:] = arguments = prepared(arguments)
    failures: list[Failure] = []
    entry = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda cfg: _job(cfg, failures))
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        from sam_runner.messages import explain

        raise InputError(explain(error, CONF, arguments)) from error
    except YAMLError as error:
        raise InputError("a configuration file is no YAML\n  " + "\n  ".join(str(error).splitlines()[:6])) from error
    except RecursionError as error:
        raise InputError("a configuration file or an argument is nested too deeply") from error
    except ValueError as error:  # Hydra's own, of a group that is given no option, say
        raise InputError(f"{str(error).splitlines()[0]}\n  given: {' '.join(arguments)[:300]}") from error
    except SystemExit as stop:  # argparse, and Hydra's --cfg
        return stop.code if isinstance(stop.code, int) else DONE
    finally:
        _list(failures)
    if ("-m" in arguments or "--multirun" in arguments) and "dry_run=true" not in arguments and _is_first():
        from sam_runner.afterwards import tell

        tell(_sweep_folder(arguments))
    return _code(failures)


def _sweep_folder(arguments: list[str]) -> Path:
    """As conf/config.yaml names it."""
    names = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("sweep_name=")]
    return Path("outputs") / "sweeps" / (names[-1] if names else os.environ["SAM_RUNNER_STARTED"])


def prepared(arguments: list[str]) -> list[str]:
    """The command line as Hydra reads it: flags first, ``key=~/folder`` with the home folder, which shells leave."""
    if any(argument.startswith("--e") for argument in arguments):
        raise InputError("--experimental-rerun reads a pickle: refused\n  give the settings themselves")
    flags, rest, waiting = [], [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word in ("-m", "--multirun", "--resolve"):
            flags.append(word)
        elif word in ("--cfg", "-c", "--config-dir", "-cd") and waiting:
            flags += [word, waiting.pop(0)]
        else:
            rest.append(word)
    return flags + [_home_expanded(word) for word in rest]


def _home_expanded(argument: str) -> str:
    key, _, value = argument.partition("=")
    if not value.startswith("~") or "," in value or "'" in value:
        return argument
    path = os.path.expanduser(value)  # as it was where there is no such user
    return f"{key}={path}" if key.startswith("-") else f"{key}='{path}'"


def _job(cfg: Any, failures: list[Failure]) -> None:
    """One run, or one cell of a sweep; its error is told at once and kept as text, and the sweep goes on.

    The exception itself would keep the failed cell's network and data alive.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from sam_runner.config import fingerprint, plain, validate

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    multirun = hydra_config.mode == RunMode.MULTIRUN
    cell = " ".join(overrides) if multirun else ""
    try:
        validate(cfg, overrides, multirun=multirun)
        if multirun:
            logging.getLogger("sam_runner").info("cell %d: %s", hydra_config.job.num + 1, cell)
        from sam_runner.launch import launch  # torch, only now

        launch(plain(cfg), fingerprint(cfg), overrides, Path(hydra_config.sweep.dir) if multirun else None)
    except InputError as error:
        _complain(str(error))
        failures.append(Failure(cell, str(error), FAILED if multirun else BAD_INPUT))
    except TrainingError as error:
        _complain(str(error))
        failures.append(Failure(cell, str(error), FAILED))
    except BrokenPipeError:
        raise
    except RankError as error:
        if error.own and not isinstance(error.__cause__, InputError):
            traceback.print_exc()
        _complain(str(error), anyway=error.own)
        sys.stdout.flush()
        os._exit(FAILED)  # the other cells need all ranks, and an orderly end would wait for some that are gone
    except Exception as error:
        traceback.print_exc()
        failures.append(Failure(cell, f"{type(error).__name__}: {error}", FAILED))


def _list(failures: list[Failure]) -> None:
    """Say once more at the end of a sweep which cells failed."""
    for failure in failures:
        if failure.cell:
            _complain(f"failed: {failure.cell}\n  {failure.message.splitlines()[0] if failure.message else ''}")


def _code(failures: list[Failure]) -> int:
    return max((failure.code for failure in failures), default=DONE)
