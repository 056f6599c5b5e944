"""Settings of the methods: defaults of rho, combinations, and what is refused in one line."""

import pytest

from sam_runner.config.experiment import load_experiment
from sam_runner.config.help import list_options
from sam_runner.training.builders.method import build_method
from sam_runner.training.builders.run import build_run
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF
from tests.helpers import TINY, config_of

RHO = {"asam": 0.5, "fisher_sam": 0.1, "friendly_sam": 0.2, "sam_on": 0.5, "layerwise_sam": 0.01, "momentum_sam": 0.3}


PLAIN = {"sgd": "SGD", "none": "SGD", "adamw": "AdamW", "rmsprop": "RMSprop"}  # option: base optimizer


@pytest.mark.parametrize("name", [name for name in list_options(CONF)["optimizer"] if name != "own"])
def test_an_option_builds_its_method_with_its_rho(name):
    config = config_of(f"optimizer={name}")
    assert build_method(config, 100).name == ("plain" if name in PLAIN else name)
    if name in PLAIN:
        assert config.optimizer.base.target == f"torch.optim.{PLAIN[name]}"
        assert config.optimizer.name == ("sgd" if name == "sgd" else "none")
    else:
        assert config.optimizer.rho == config.rho == RHO.get(name, 0.05)
        assert config_of(f"optimizer={name}", "rho=0.07").optimizer.rho == 0.07


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("gsam", "sam"), ("gradient_norm", "asam"), ("wsam", "fisher_sam"), ("looksam", "friendly_sam"),
        ("interval", "sam_on"), ("random_sam", "layerwise_sam"), ("ae_sam", "asam"), ("late", "friendly_sam"),
    ],
)  # fmt: skip
def test_a_method_around_another_has_the_others_rho(name, around):
    config = config_of(f"optimizer={name}", f"optimizer/around={around}")
    method = build_method(config, 100)
    assert (method.name, method.around.name) == (name, around)
    assert config.optimizer.rho == RHO.get(around, 0.05)


def test_settings_reach_the_method():
    config = config_of("optimizer=late", "optimizer/around=asam", "optimizer.around.eta=0.3", "optimizer.part=first")
    method = build_method(config, 10)
    assert (method.around.eta, method.part, method.total_steps) == (0.3, "first", 10)
    gsam = build_method(
        config_of("optimizer=gsam", "lr=0.2", "schedule.final_factor=0.1", "optimizer.rho_min=0.01"), 10
    )
    assert (gsam.lr_max, gsam.lr_min, gsam.rho_min) == (0.2, pytest.approx(0.02), 0.01)
    assert [gsam.radius(0.05, 0, lr) for lr in (0.2, 0.02, 0.3)] == pytest.approx([0.05, 0.01, 0.05])
    assert gsam.radius(0.05, 0, 0.11) == pytest.approx(0.03)
    config = config_of(
        "optimizer=gsam", "schedule=step", "lr=0.1", "schedule.milestones=[0.5,0.7]", "schedule.gamma=0.1"
    )
    assert build_method(config, 10).lr_min == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=momentum_sam", "optimizer.base.momentum=0"], "needs a base optimizer with momentum"),
        (["optimizer=momentum_sam", "optimizer/base=adamw", "optimizer.base.betas=[0,0.999]"], "needs momentum"),
        (["optimizer=adamw", "optimizer/base=rmsprop"], "does not train with the base optimizer torch.optim.RMSprop"),
        (["optimizer=ae_sam", "compile=graph"], "decides on the CPU"),
        (["optimizer=esam", "compile=graph"], "draws weights anew"),
        (["optimizer=gsam", "optimizer.rho_min=0.5"], "rho_min=0.5 is larger than rho=0.05"),
        (["optimizer=gsam", "optimizer.rho_min=0.01", "schedule=constant"], "rho_min has no effect"),
        (["optimizer=gsam", "optimizer.rho_min=0.01", "schedule.final_factor=1"], "rho_min has no effect"),
        (["optimizer=asam", "optimizer.rho_final=0.5"], "rho_final has no effect"),
        (["optimizer=asam", "optimizer.p=1"], "override 'optimizer.p'"),
        (["optimizer=esam", "optimizer.beta=0"], "out of range"),
        (["optimizer=looksam", "optimizer.interval=0"], "out of range"),
        (["optimizer=late", "optimizer.fraction=1.5"], "out of range"),
        (["optimizer=late", "optimizer.around.name=gsam"], "optimizer.around.name=gsam is not known"),
        (["optimizer=momentum_sam", "optimizer.sync_perturbation=true"], "sync_perturbation"),
    ],
)
def test_what_has_no_meaning_is_refused(overrides, message):
    with pytest.raises(Exception, match=message.replace(".", r"\.")):
        config_of(*overrides)


def test_a_file_with_another_base_optimizer_than_the_option_is_refused():
    settings = {"optimizer": {"base": {"_target_": "torch.optim.SGD"}}}
    with pytest.raises(InputError, match=r"optimizer=adamw does not train with the base optimizer torch\.optim\.SGD"):
        load_experiment(settings, ["optimizer=adamw"])


def test_sharded_weights_refuse_the_second_order_term_at_once(monkeypatch):
    """Otherwise a user would be told to set sync_perturbation=true, and then to set it to false."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"parallel=fsdp needs optimizer\.second_order=false"):
        config_of("optimizer=sam", "parallel=fsdp", "optimizer.second_order=true")


@pytest.mark.parametrize(("batch_size", "m"), [(128, 32), (100, 7)])
def test_the_suggested_accumulate_is_the_smallest_with_an_effect(batch_size, m):
    words = [f"batch_size={batch_size}", f"optimizer.m={m}", "optimizer=sam"]
    suggested = -(-batch_size // (m - 1))
    with pytest.raises(InputError, match=f"use accumulate={suggested} or more"):
        config_of(*words, f"accumulate={suggested - 1}")
    config_of(*words, f"accumulate={suggested}")


def test_a_method_that_does_not_fit_the_network_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr("sam_runner.sam.methods.sam_on._normalising_parameters", lambda layer: [])
    with pytest.raises(
        InputError, match="optimizer=sam_on: the network has no trained parameters in normalisation"
    ) as e:
        build_run(config_of(*TINY, "optimizer=sam_on"))
    assert "use optimizer=sam" in str(e.value)


@pytest.mark.parametrize("target", ["torch.optim.Adagrad", "torch.optim.Adadelta"])
def test_momentum_sam_with_a_base_optimizer_without_momentum_is_refused_before_training(target):
    words = ["optimizer=momentum_sam", "optimizer/base=torch", f"optimizer.base._target_={target}"]
    with pytest.raises(InputError, match=f"needs momentum, and optimizer.base._target_={target} has none"):
        build_run(config_of(*TINY, *words))
    words[2] = "optimizer.base._target_=torch.optim.NAdam"
    build_run(config_of(*TINY, *words))


@pytest.mark.parametrize("name", ["gsam", "gradient_norm", "wsam", "looksam", "ae_sam"])
def test_methods_that_descend_along_g_are_refused_with_random_branches(name):
    shake = ["model=shake_shake26_2x32d", "model.depth=8", "model.width=4"]
    with pytest.raises(InputError, match=rf"optimizer={name}: {name} descends along g too.*Shake-Shake"):
        build_run(config_of(*TINY, *shake, f"optimizer={name}"))


def test_telemetry_of_steps_is_refused_with_random_branches():
    shake = ["model=shake_shake26_2x32d", "model.depth=8", "model.width=4"]
    with pytest.raises(InputError, match=r"telemetry\.every cannot compare g with g_SAM"):
        build_run(config_of(*TINY, *shake, "optimizer=sam", "telemetry.every=2"))
