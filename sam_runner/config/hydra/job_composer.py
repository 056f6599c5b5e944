"""Compose the jobs of a sweep: jobs that choose the same options of groups share the files that Hydra merges.

Hydra reads and merges all configuration files again for every job, which takes 0.2 s. The files of a job depend only on
its options of groups (``optimizer=sam``). Its other overrides (``rho=0.1``) are applied to the merged files afterwards.
So the files are merged once for each choice of options, and each job gets a copy with its own overrides.
"""

from collections.abc import Sequence
from copy import deepcopy

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from sam_runner.config.hydra import guard


class JobComposer:
    """Composes the configurations of a sweep's jobs as Hydra's `load_sweep_config` does.

    Args:
        loader: Hydra's loader of configurations.
        master: The configuration of the sweep.
    """

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._merged: dict[tuple[str, ...], DictConfig] = {}
        name, of_hydra = master.hydra.job.config_name, list(master.hydra.overrides.hydra)
        # Contains the folders that hydra.searchpath adds.
        _, self._repository = loader._parse_overrides_and_create_caching_repo(name, of_hydra)

    def compose(self, words: Sequence[str]) -> DictConfig:
        """Return the configuration of a job, with Hydra's own settings.

        Args:
            words: Overrides of the job.

        Raises:
            HydraException: If an override does not fit the configuration.
            InputError: If a setting of Hydra is refused.
        """
        overrides = OverridesParser.create().parse_overrides(list(words))
        values = [override for override in overrides if not self._is_merged(override)]
        options = tuple(word for word, override in zip(words, overrides, strict=True) if self._is_merged(override))
        if options not in self._merged:
            self._merged[options] = self._loader.load_sweep_config(self._master, list(options))
        config = deepcopy(self._merged[options])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        of_task = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in of_task]
        job = config.hydra.job
        job.override_dirname = get_overrides_dirname(overrides=of_task, **job.config.override_dirname)
        guard.check(config)
        guard.check_search(config)
        return config

    def _is_merged(self, override: Override) -> bool:
        """Return whether an override chooses an option of a group, or is one of Hydra's own."""
        is_group = override.package is not None or self._repository.group_exists(override.key_or_group)
        return is_group or override.is_hydra_override()
