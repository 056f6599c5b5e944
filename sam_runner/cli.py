"""Entry points `sam-train` and `sam-eval`: compose, validate, run, exit code; no torch before settings are valid."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sam_runner.errors import InputError, TrainingError

_HERE = Path(__file__).resolve().parent
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def train() -> int:
    """`sam-train`: a run, or with -m a sweep. Returns the exit code."""
    return _guarded(_train)


def evaluate() -> int:
    """`sam-eval run_dir=FOLDER [checkpoint=last|best] [device=...]`: a checkpoint's metrics. Returns the exit code."""
    return _guarded(_evaluate)


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
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(message: str) -> None:
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
    logger.handlers = [Console()]
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

    from sam_runner.schema import register_schemas

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of Hydra's own printing and sys.exit
    now = datetime.now()
    os.environ.setdefault("SAM_RUNNER_STARTED", f"{now:%Y-%m-%d_%H-%M-%S}_{now.microsecond:06d}-{os.getpid()}")
    register_schemas()
    sys.argv[1:] = arguments = [_home_expanded(argument) for argument in arguments]
    failures: list[tuple[str, Exception]] = []
    entry = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda cfg: _job(cfg, failures))
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        from sam_runner.messages import explain

        raise InputError(explain(error, CONF, arguments)) from error
    except SystemExit as stop:  # argparse, and Hydra's --cfg
        return stop.code if isinstance(stop.code, int) else DONE
    return _report(failures)


def _home_expanded(argument: str) -> str:
    """``data.root=~/photos``: the shell leaves the ~ alone in the middle of a word, and Hydra's grammar refuses it."""
    key, _, value = argument.partition("=")
    if not value.startswith("~") or "," in value or "'" in value:
        return argument
    return f"{key}='{Path(value).expanduser()}'"


def _job(cfg: Any, failures: list[tuple[str, Exception]]) -> None:
    """One run, or one cell of a sweep; an error is kept for later, since one that got out would end the sweep."""
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
    except Exception as error:
        failures.append((cell, error))


def _report(failures: list[tuple[str, Exception]]) -> int:
    """Say what failed; the exit code. In a sweep every cell was tried."""
    if not failures:
        return DONE
    for cell, error in failures:
        if not isinstance(error, InputError | TrainingError):
            traceback.print_exception(error)
        if cell:
            _complain(f"failed: {cell}\n  {error}")
    cell, error = failures[0]
    if not cell and isinstance(error, InputError | TrainingError):
        raise error
    return FAILED


def _evaluate(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if not arguments or {"--help", "-h"} & set(arguments):
        print((evaluate.__doc__ or "").split(" Returns")[0])
        return DONE if arguments else BAD_INPUT
    from sam_runner.config import unknown_key

    for key in given:
        if key not in ("run_dir", "checkpoint", "device"):
            raise InputError(unknown_key(key, ["run_dir", "checkpoint", "device"]))
    if "run_dir" not in given:
        raise InputError("run_dir has to be given: sam-eval run_dir=FOLDER")
    which = given.get("checkpoint", "last")
    if which not in ("last", "best"):
        raise InputError(f"checkpoint={which} is not known\n  accepted: last, best")
    from sam_runner.evaluation import evaluate_folder

    for tag, value in evaluate_folder(Path(given["run_dir"]).expanduser(), which, given.get("device")).items():
        print(f"{tag} {value:.6f}")
    return DONE
