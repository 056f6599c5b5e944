"""`sam-train`: train a run, or with ``-m`` the jobs of a sweep. Imports no torch before the settings are valid."""

import errno
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

from sam_runner.commands.exit_codes import DONE, exit_code_of, run_command
from sam_runner.commands.next_step import after_run, print_next_step
from sam_runner.config.hydra.command_line import HYDRA_COMMANDS, CommandLine, parse_command_line
from sam_runner.runs.environment import record_command
from sam_runner.runs.status import new_call_name
from sam_runner.utils.console import LESS_MEMORY, exit_immediately, is_distributed, report_exception
from sam_runner.utils.errors import InputError, RankError
from sam_runner.utils.files import CONF

CALLS = itertools.count()  # numbers the calls of this process


def main() -> int:
    """Run `sam-train`. Returns the exit code."""
    code = run_command(train, LESS_MEMORY)
    if is_distributed():
        from sam_runner.distributed.torchrun import leave_process_group

        leave_process_group()
    return code


def train(arguments: list[str]) -> int:
    """Run what the command line asks for. Returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        from sam_runner.config.help import help_text

        print(help_text(CONF))
        return DONE
    if "--version" in arguments:
        import sam_runner

        print(f"sam-runner {sam_runner.__version__}")
        return DONE
    from sam_runner.config.hydra import guard as hydra_guard
    from sam_runner.config.hydra import launchers, yaml_guard
    from sam_runner.config.hydra.compose import register_settings
    from sam_runner.config.hydra.text_values import quote_text_values

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them and leaving
    name_call(os.environ.get("SAM_RUNNER_STARTED") or new_call_name())
    record_command([sys.argv[0], *arguments])
    line = parse_command_line(arguments)
    line.trust_targets()
    if not line.is_sweep and not line.names & HYDRA_COMMANDS:
        return _run_single(line)
    _require_config_dir(line)
    line = line._replace(overrides=quote_text_values(line.overrides, is_sweep=line.is_sweep))
    yaml_guard.install()
    register_settings()
    launchers.register()
    sys.argv[1:] = [*line.flags, *line.overrides]
    codes: list[int] = []
    if line.is_sweep:
        from sam_runner.commands.sweep import SweepCall

        call = _explain_errors(lambda: SweepCall(line), line)
        return int(call.run(lambda: _run_hydra(line, codes)))
    hydra_guard.install()
    return max([_run_hydra(line, codes), *codes])


def _require_config_dir(line: CommandLine) -> None:
    """Refuse a ``--config-dir`` that is no folder, or has an option of this program's, which Hydra would prefer."""
    from sam_runner.config.help import list_options

    if line.config_dir is None:
        return
    if not os.path.isdir(line.config_dir):
        raise InputError(f"--config-dir {line.config_dir} is not a folder\n  give the folder of your own groups")
    for group, names in list_options(CONF).items():
        for name in names:
            if os.path.isfile(os.path.join(line.config_dir, group, f"{name}.yaml")):
                raise InputError(
                    f"{group}={name} is an option of sam_runner, and {line.config_dir}/{group}/{name}.yaml another\n"
                    "  give your file another name"
                )


def name_call(name: str) -> None:
    """Give a call of the command, or of `sam_runner.api.train`, its name; every process takes that of rank 0."""
    if is_distributed():
        from sam_runner.distributed.torchrun import broadcast_from_main

        name = broadcast_from_main(f"call {next(CALLS)}", name)
    os.environ["SAM_RUNNER_STARTED"] = name


def _run_single(line: CommandLine) -> int:
    """Compose, validate and train one run. Returns the exit code."""
    from sam_runner.config.hydra.compose import typed_overrides

    config = compose_single(line)
    return _run_job(config, typed_overrides(config.hydra))


def compose_single(line: CommandLine) -> Any:
    """Return the configuration of a single run, a DictConfig with Hydra's own settings, which are checked.

    Raises:
        InputError: If the configuration cannot be composed, or describes a sweep.
    """
    from sam_runner.config.hydra import guard as hydra_guard
    from sam_runner.config.hydra import yaml_guard
    from sam_runner.config.hydra.compose import compose_settings

    yaml_guard.install()
    _require_config_dir(line)
    hydra_guard.refuse_sweep_settings(line.words)
    config = _explain_errors(
        lambda: compose_settings(
            line.overrides, return_hydra_config=True, config_dir=line.config_dir, config_file=line.config_file
        ),
        line,
    )
    _explain_errors(lambda: hydra_guard.check(config), line)
    hydra_guard.refuse_sweep_files(config, line.words)
    return config


def _run_hydra(line: CommandLine, codes: list[int]) -> int:
    """Let Hydra's own main run the command line.

    Args:
        line: The command line.
        codes: Takes the exit codes of runs in this process that failed.

    Returns:
        The exit code of Hydra.
    """
    import hydra

    from sam_runner.config.hydra.own_file import store_config_file

    name = "config"
    if line.config_file is not None:
        name, words = _explain_errors(lambda: store_config_file(str(line.config_file), line.overrides), line)
        sys.argv[1:] = [*line.flags, *words]
    entry = hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(lambda cfg: _job(cfg, codes))
    try:
        _explain_errors(entry, line)
    except SystemExit as stop:  # argparse, and Hydra's --cfg
        return stop.code if isinstance(stop.code, int) else DONE
    return DONE


def _explain_errors(call: Callable[[], Any], line: CommandLine) -> Any:
    """Return what `call` returns; errors of Hydra, OmegaConf and YAML become an `InputError` with a way out."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return call()
    except RecursionError as error:
        raise InputError(
            "a configuration file or an argument is nested too deeply\n  write fewer brackets inside each other"
        ) from error
    except (
        HydraException,
        OmegaConfBaseException,
        YAMLError,
        ValueError,
        NotImplementedError,
        TypeError,
        AssertionError,
    ) as error:
        from sam_runner.config.hydra.messages import explain

        raise InputError(explain(error, CONF, line.words, line.config_dir)) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        longest = max([*sys.argv[1:], *line.words], key=len)
        raise InputError(
            f"{longest[:60]}... is too long for the name of an option or a file\n  give a shorter name"
        ) from error


def _job(cfg: Any, codes: list[int]) -> None:
    """Run what Hydra's main has composed: a single run, or a job of a sweep in a process of a launcher."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from sam_runner.config.hydra.compose import typed_overrides

    hydra_config = HydraConfig.get()
    overrides = typed_overrides(hydra_config)
    if hydra_config.mode == RunMode.MULTIRUN:
        from sam_runner.sweeps.job_runner import run_job

        run_job(cfg, hydra_config, overrides)
    else:
        codes.append(_run_job(cfg, overrides))


def _run_job(cfg: Any, overrides: list[str]) -> int:
    """Validate and train one run. Returns the exit code; no exception keeps the network and the data alive."""
    from sam_runner.config.experiment import load_experiment
    from sam_runner.config.hydra.compose import plain_settings
    from sam_runner.config.rules.files import require_files

    try:
        try:
            config = load_experiment(plain_settings(cfg), overrides)
            require_files(config)
            from sam_runner.runs.start import start_run  # imports torch, after the settings are valid

            folder = start_run(config, overrides)
        except KeyboardInterrupt as stopped:  # a run that has its folder says what is in it
            raise KeyboardInterrupt(str(stopped) or "interrupted before anything was written") from None
        if folder is not None:
            print_next_step(after_run(folder, config))
    except BrokenPipeError:
        raise
    except RankError as error:
        exit_immediately(error)
    except Exception as error:
        report_exception(error)
        return exit_code_of(error)
    return DONE
