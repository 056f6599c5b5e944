"""`JobComposer` against Hydra's own `load_sweep_config`, which merges all files again for each job."""

from collections.abc import Callable, Iterator

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.compose import register_settings
from sam_runner.config.hydra.job_composer import JobComposer
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF

JOBS = [
    [],
    ["optimizer=sam", "rho=0.2"],
    ["seed=3", "rho=0.2", "optimizer=asam", "lr=0.3", "rho=0.1"],
    ["optimizer=sgd", "optimizer/base=adamw", "noise=symmetric", "noise.rate=0.4", "hydra.verbose=true"],
    ["experiment=label_noise", "+model.depth=3", "++model.depth=4", "~model.width"],
    ["~schedule", "model={width:8}"],
    ["data.val_fraction=0.1", "unknown=1"],
    ["unknown/a=b"],
    ["optimizer=unknown", "rho=0.2"],
    ["~unknown"],
    ["rho=[1,2", "seed=1"],
]


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    register_settings()
    launchers.register()
    GlobalHydra.instance().clear()
    yield Hydra.create_main_hydra2("test", create_config_search_path(str(CONF)))
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def master(hydra: Hydra) -> DictConfig:
    return hydra.compose_config("config", ["rho=0.1,0.2", "hydra.job.name=sweep"], RunMode.MULTIRUN)


def outcome(compose: Callable[[], DictConfig]) -> object:
    """Return the contents of the composed configuration, or type and message of Hydra's error."""
    try:
        return OmegaConf.to_container(compose(), resolve=False)
    except HydraException as error:
        return type(error), str(error)


class TestJobComposer:
    @pytest.mark.parametrize("words", JOBS)
    def test_gives_the_configuration_of_hydra_or_its_error(self, hydra, master, words):
        composer = JobComposer(hydra.config_loader, master)
        expected = outcome(lambda: hydra.config_loader.load_sweep_config(master, words))
        assert outcome(lambda: composer.compose(words)) == expected
        assert outcome(lambda: composer.compose(words)) == expected  # from the merged files

    def test_jobs_share_merged_files_but_no_values(self, hydra, master, monkeypatch):
        composer, loader = JobComposer(hydra.config_loader, master), type(hydra.config_loader)
        load, loaded = loader.load_sweep_config, []
        monkeypatch.setattr(loader, "load_sweep_config", lambda *a: loaded.append(a[2]) or load(*a))
        jobs = [composer.compose(["optimizer=sam", f"rho={rho}"]) for rho in (0.1, 0.2)]
        other = composer.compose(["rho=0.3", "optimizer=sgd"])
        assert [config.rho for config in [*jobs, other]] == [0.1, 0.2, 0.3]
        assert [config.hydra.runtime.choices.optimizer for config in [*jobs, other]] == ["sam", "sam", "sgd"]
        assert loaded == [["optimizer=sam"], ["optimizer=sgd"]]

    def test_refuses_settings_of_hydra_that_could_run_code(self, hydra, master):
        with pytest.raises(InputError, match=r"hydra\.output_subdir"):
            JobComposer(hydra.config_loader, master).compose(["hydra.output_subdir=folder"])
