"""Hydra composes each choice of options of conf/ once per process, instead of in every test that needs settings.

Reading and merging the files takes Hydra a quarter of a second. They are the same in all tests, so a copy of what it
composed from the same options serves as well. What a test brings along is composed anew: a folder or file of the user,
the settings of a run, an option that is stored later, and everything that ends in an error.
"""

import copy
from functools import cache

import omegaconf.base
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import OmegaConf

from sam_runner.utils.files import CONF

FILES, LISTS, CONFIGS = {}, {}, {}  # what Hydra has read and composed: files, defaults lists, merged options
WORDS = {}  # what it has read from arguments of a command line


def reuse_composed_options():
    """Replace Hydra's slow functions in this process."""
    if not hasattr(config_loader_impl, "originals"):  # else a child of tests/mutants, which has a conf/ of its own
        config_loader_impl.originals = (
            config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list,
            ConfigRepository.load_config, ConfigStore.store, OverridesParser.parse_rule,
        )  # fmt: skip
        omegaconf.base.parse = cache(omegaconf.base.parse)  # of interpolations
    make_list, merge, load, store, parse = config_loader_impl.originals

    def load_config(self, config_path):
        if _is_brought(config_path):
            return load(self, config_path)
        if config_path not in FILES and _only_shipped(self):
            FILES[config_path] = load(self, config_path)
        found = FILES.get(config_path)
        is_first = found is not None and found.path == f"file://{CONF}" and _list_folders(self)[0] == str(CONF)
        return copy.deepcopy(found) if is_first or _only_shipped(self) else load(self, config_path)

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        groups = [override for override in overrides_list if repo.group_exists(override.key_or_group)]
        arguments = repo, config_name, overrides_list, prepend_hydra, skip_missing
        if not _only_shipped(repo) or config_name != "config" or any(map(_is_special, groups)):
            return make_list(*arguments)
        key = (prepend_hydra, skip_missing, *(override.input_line for override in groups))
        if key not in LISTS:
            LISTS[key] = make_list(*arguments)
        found, values = LISTS[key], [entry for entry in overrides_list if entry not in groups]
        settings = [override for override in values if not override.is_sweep_override()]
        return DefaultsList(found.defaults, found.defaults_tree, settings, found.overrides)

    def compose_config(self, defaults, repo):
        key = tuple((entry.config_path, entry.package, entry.primary) for entry in defaults)
        if not _only_shipped(repo) or any(_is_brought(path) for path, *_ in key):
            return merge(self, defaults, repo)
        if key not in CONFIGS:
            CONFIGS[key] = merge(self, defaults, repo)
        return copy.deepcopy(CONFIGS[key])

    def store_option(self, name, node, group=None, package=None, provider=None):
        path = f"{group}/{name}" if group else name
        before = _stored(self, path)
        store(self, name, node, group, package, provider)
        if not _is_brought(path) and _stored(self, path) != before:
            for known in (FILES, LISTS, CONFIGS):
                known.clear()

    def parse_rule(self, text, rule_name):
        if rule_name != "override":
            return parse(self, text, rule_name)
        if text not in WORDS:
            WORDS[text] = parse(self, text, rule_name)
        return copy.copy(WORDS[text])

    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_config
    ConfigRepository.load_config = load_config
    OverridesParser.parse_rule = parse_rule
    ConfigStore.store = store_option
    ConfigStore.__deepcopy__ = lambda self, _: self  # Hydra copies all options, though it copies each one that it reads


def _stored(store, path):
    """The content of an option in Hydra's store, None without one."""
    try:
        return OmegaConf.to_container(store.load(f"{path}.yaml").node)
    except ConfigLoadError:
        return None


def _list_folders(repo):
    """The folders in which Hydra looks for options, the one that it prefers first; and "" after them."""
    return [*(source.path for source in repo.get_sources() if source.scheme() == "file"), ""]


def _only_shipped(repo):
    """Whether the options are those of conf/, of Hydra and of the settings classes."""
    return _list_folders(repo) == [str(CONF), ""] and len(repo.get_sources()) == 3


def _is_brought(config_path):
    """Whether an option is a file of the user, or the settings of a run."""
    return str(config_path).startswith(("config/", "saved_config"))


def _is_special(override):
    """Whether an override of a group may choose what is not in conf/, or is one that Hydra refuses."""
    return (
        override.key_or_group == "config"
        or not isinstance(override.value(), str | list)
        or override.is_sweep_override()
    )
