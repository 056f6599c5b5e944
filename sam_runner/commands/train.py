"""Entry points `sam-train`, `sam-eval`, `sam-verify`, `sam-report`: exit codes; no torch before settings are valid."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from sam_runner.utils.console import (
    exit_immediately,
    is_distributed,
    is_main_process,
    log_to_console,
    print_error,
    report_exception,
)
from sam_runner.utils.errors import InputError, RankError, RunInterrupt, TrainingError
from sam_runner.utils.files import CONF

FLAGS = frozenset(  # that begin with two dashes: ours, and what Hydra has
    [
        "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
        "--shell-completion", "--config-path", "--config-name", "--config-dir",
    ]
)  # fmt: skip
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def train() -> int:
    """`sam-train`: a run, or with -m a sweep. Returns the exit code."""
    code = _guarded(_train)
    if is_distributed():
        from sam_runner.distributed.torchrun import leave_process_group

        leave_process_group()
    return code


def evaluate() -> int:
    """`sam-eval run_dir=FOLDER [checkpoint=last|best] [device=...]`: a checkpoint's metrics. Returns the exit code."""
    from sam_runner.commands import after

    return _guarded(after.evaluate)


def verify() -> int:
    """`sam-verify PATH...`: whether the checkpoints of runs, folders or files are intact; 2 if one is not."""
    from sam_runner.commands import after

    return _guarded(after.verify)


def report() -> int:
    """`sam-report FOLDER... [metric=test/accuracy] [out=FOLDER]`: compare runs; table, plots, report.html in out.

    Returns the exit code.
    """
    from sam_runner.commands import after

    return _guarded(after.report)


def _guarded(command: Callable[[list[str]], int]) -> int:
    """Run a command; errors that a user is meant to read become a message and a code."""
    log_to_console()
    try:
        return command(sys.argv[1:])
    except InputError as error:
        print_error(str(error))
        return BAD_INPUT
    except TrainingError as error:
        print_error(str(error))
        return FAILED
    except RunInterrupt as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _train(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        from sam_runner.config.help import help_text

        print(help_text(CONF))
        return DONE
    if "--version" in arguments:
        import sam_runner

        print(f"sam-runner {sam_runner.__version__}")
        return DONE
    from sam_runner.config import hydra_guard, launchers, yaml_guard
    from sam_runner.config.schema import register_schemas

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of Hydra's own printing and sys.exit
    now = datetime.now()
    os.environ.setdefault("SAM_RUNNER_STARTED", f"{now:%Y-%m-%d_%H-%M-%S}_{now.microsecond:06d}-{os.getpid()}")
    if is_distributed():
        from sam_runner.distributed.torchrun import broadcast_from_main

        os.environ["SAM_RUNNER_STARTED"] = broadcast_from_main("started", os.environ["SAM_RUNNER_STARTED"])
    register_schemas()
    launchers.register()
    yaml_guard.install()
    sys.argv[1:] = arguments = prepared(arguments)
    codes: list[int] = []  # of runs in this process that failed
    if {"-m", "--multirun"} & set(arguments) and not {"-c", "--cfg"} & set(arguments):
        return _sweep(arguments, codes)
    hydra_guard.install(lambda _: None)
    code = _composed(arguments, codes)
    return max([code, *codes])


def _composed(arguments: list[str], codes: list[int]) -> int:
    """Let Hydra read the command line and call `_job` for each run; its errors in our words. Returns the exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    entry = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda cfg: _job(cfg, codes))
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        from sam_runner.config.messages import explain

        raise InputError(explain(error, CONF, arguments)) from error
    except YAMLError as error:
        raise InputError("a configuration file is no YAML\n  " + "\n  ".join(str(error).splitlines()[:6])) from error
    except RecursionError as error:
        raise InputError("a configuration file or an argument is nested too deeply") from error
    except (ValueError, NotImplementedError) as error:  # Hydra's own, of a group that is given no option, say
        raise InputError(f"{str(error).splitlines()[0]}\n  given: {' '.join(arguments)[:300]}") from error
    except SystemExit as stop:  # argparse, and Hydra's --cfg
        return stop.code if isinstance(stop.code, int) else DONE
    return DONE


def _sweep(arguments: list[str], codes: list[int]) -> int:
    """All cells; then what they found, which failed, and the exit code, all from what lies on the disk."""
    from sam_runner.commands.after import tell
    from sam_runner.config import hydra_guard, launchers
    from sam_runner.sweeps import status as sweep_status

    folder: Path | None = None
    dry, ended = False, sweep_status.Ended()
    with ExitStack() as stack:

        def composed(config: Any) -> None:
            """The first time before any cell runs, then for each cell."""
            nonlocal folder, dry, ended
            if folder is not None:
                ended.listen()  # Ray has taken SIGTERM when it started
            else:
                if is_distributed() and launchers.in_subprocesses(config.hydra):
                    raise InputError("torchrun and hydra/launcher both start processes\n  use one of them")
                launchers.prepare(config.hydra)
                folder, dry = Path(config.hydra.sweep.dir), config.dry_run
                if not launchers.in_subprocesses(config.hydra):
                    stack.enter_context(sweep_status.signals_between_cells())
                elif launchers.on_this_machine(config.hydra):
                    ended = stack.enter_context(sweep_status.signals_for_all(folder))

        hydra_guard.install(composed)
        try:
            code = _composed(arguments, codes)
            if code == signal.SIGTERM:  # Ray leaves with the number, where it comes before a cell
                ended.code = 75
        except InputError as error:
            if folder is None or not sweep_status.cells(folder):  # no cell has begun
                raise
            print_error(str(error))
            code = FAILED
        except Exception as error:  # of an engine: a process that was killed, a job that was lost
            print_error(f"{type(error).__name__}: {error}".splitlines()[0])
            code = FAILED
        finally:
            cells = [] if dry or folder is None or not is_main_process() else sweep_status.cells(folder)
            for cell in cells:
                if cell.state in sweep_status.FAILURES:
                    print_error(f"{cell.state}: {cell.name}\n  {cell.error.splitlines()[0] if cell.error else ''}")
            if folder is not None and is_main_process():
                sweep_status.tidy(folder)
    if folder is not None and not dry and is_main_process():
        tell(folder)
    return ended.code or max([code, sweep_status.exit_code(cells), *codes])


def prepared(arguments: list[str]) -> list[str]:
    """The command line as Hydra reads it: flags first, ``key=~/folder`` with the home folder, which shells leave."""
    if any(word.startswith("--e") and "--experimental-rerun".startswith(word.split("=")[0]) for word in arguments):
        raise InputError("--experimental-rerun reads a pickle: refused\n  give the settings themselves")
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key.lstrip("+~") == "hydra.mode":
            raise InputError("hydra.mode has no effect\n  for all combinations of values: sam-train -m ...")
        if key.lstrip("+") == "search" and "," in argument:
            raise InputError(
                f"{argument[:200]} names two searches\n  run one after the other, each as a sweep of its own"
            )
        if argument.startswith("--") and key not in FLAGS:
            word = argument.lstrip("-")
            raise InputError(
                f"{argument[:200]} is not a flag\n  settings have no dashes: {word[:200]}{'' if equals else '=...'}"
            )
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


def _job(cfg: Any, codes: list[int]) -> float | None:
    """One run, or one cell of a sweep; errors become text: an exception would keep the network and the data alive."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN:
        from sam_runner.sweeps.job import run_cell

        return run_cell(cfg, hydra_config, overrides, codes)
    from sam_runner.config.data_rules import require_files
    from sam_runner.config.validation import fingerprint, plain, validate
    from sam_runner.runs.relative_paths import require_here

    try:
        validate(cfg, overrides, multirun=False)
        require_here(plain(cfg))
        require_files(cfg)
        from sam_runner.runs.start import launch  # torch, only now

        launch(plain(cfg), fingerprint(cfg), overrides, None)
    except BrokenPipeError:
        raise
    except RankError as error:
        exit_immediately(error)
    except Exception as error:
        report_exception(error)
        codes.append(BAD_INPUT if isinstance(error, InputError) else FAILED)
    return None
