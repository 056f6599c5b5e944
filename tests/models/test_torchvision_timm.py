"""Networks of torchvision and timm, constructed by name."""

import sys

import pytest
import torch
import torchvision
import yaml

from sam_runner.commands.train import CONF
from sam_runner.models.torchvision_timm import small_image_resnet, timm_model, torchvision_model
from sam_runner.training.builders.run import build_run
from sam_runner.utils.errors import InputError
from tests.helpers import config_of
from tests.models.test_models import num_parameters

IMAGES = ("data=synthetic", "data.num_train=8", "data.num_test=8", "data.image_size=32", "batch_size=8", "device=cpu")
NAMED = sorted(
    path.stem
    for path in (CONF / "model").glob("*.yaml")
    if "torchvision" in yaml.safe_load(path.read_text()).get("defaults", ())
)


@pytest.mark.parametrize("name", NAMED)
def test_a_torchvision_option_builds_the_network_of_its_name_with_the_published_number_of_weights(name):
    content = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    assert content == {"defaults": ["torchvision", "_self_"], "name": name}
    published = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["num_params"]
    with torch.device("meta"):
        assert num_parameters(torchvision_model(1000, name=name)) == published


def test_the_resnet_for_small_images_has_the_known_number_of_weights_and_keeps_the_resolution():
    """11,173,962 parameters are those of the ResNet-18 that comparisons on CIFAR-10 use."""
    with torch.device("meta"):
        model = small_image_resnet(10, 3, name="resnet18")
        assert num_parameters(model) == 11_173_962
        assert model.layer1(model.maxpool(model.conv1(torch.rand(1, 3, 32, 32)))).shape == (1, 64, 32, 32)
    with pytest.raises(ValueError, match="not one of resnet18"):
        small_image_resnet(10, 3, name="resnet20")


def test_the_heads_have_the_classes_of_the_data():
    with torch.device("meta"):
        for name in ("resnet50", "efficientnet_b0", "vit_b_32"):
            assert torchvision_model(7, name=name, image_size=64).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_every_classification_network_of_torchvision_can_be_named():
    with torch.device("meta"):
        for name in ("googlenet", "inception_v3", "squeezenet1_1", "convnext_tiny", "swin_t", "densenet121"):
            assert torchvision_model(7, name=name).eval()(torch.rand(1, 3, 224, 224)).shape == (1, 7)


def test_a_vision_transformer_takes_the_side_of_the_images():
    with torch.device("meta"):
        assert torchvision_model(5, name="vit_b_16", image_size=32).encoder.pos_embedding.shape == (1, 5, 768)
    with pytest.raises(ValueError, match="does not support images of 30 pixels"):
        torchvision_model(5, name="vit_b_16", image_size=30)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=torchvision", "model.name=resnet51"], "did you mean resnet50"),
        (["model=torchvision", "model.name=fasterrcnn_resnet50_fpn"], "not a classification network of torchvision"),
        (["model=resnet50", "data.channels=1"], "is for 3 channels, the images have 1"),
        (["model=vit_b_16", "data.image_size=20"], "images of 20 pixels"),
        (["model=timm", "model.name=resnet50e"], "did you mean resnet50 or"),
        (["model=timm", "model.name=hf-hub:someone/something"], "not a classification network of timm"),
        (["model=timm", "model.name=resnet18.nobody_in1k"], "not a classification network of timm"),
    ],
)
def test_impossible_networks_are_an_input_error(overrides, message):
    with pytest.raises(InputError, match=message):
        build_run(config_of(*IMAGES, *overrides))


def test_networks_of_timm_take_classes_channels_and_side():
    with torch.device("meta"):
        assert timm_model(7, 1, name="resnet18").eval()(torch.rand(1, 1, 32, 32)).shape == (1, 7)
        assert timm_model(7, 3, name="test_vit", image_size=32).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 7)
        assert num_parameters(timm_model(1000, 3, name="resnet50")) == 25_557_032


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of it raises ImportError
    with pytest.raises(InputError, match=r"timm is not installed: pip install 'sam-runner\[timm\]'"):
        build_run(config_of(*IMAGES, "model=timm", "model.name=resnet18"))
