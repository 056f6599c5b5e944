"""Mean and standard deviation of the images: where they come from, and that a run keeps them."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from sam_runner.data import normalisation
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.files.kept_pixels import keep_pixels
from sam_runner.data.normalisation import (
    IMAGENET_NORMALISATION,
    Normalisation,
    choose_normalisation,
    read_normalisation,
)
from sam_runner.models import pretrained
from sam_runner.runs.load import restore_run
from sam_runner.runs.start import start_run
from sam_runner.training.builders.run import build_run
from sam_runner.utils.errors import InputError
from tests.data.test_image_sets import numbered_images
from tests.helpers import config_of, train_tiny


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several sizes and formats, with 70 training images, more than one task decodes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 35), ("test", 3)):
        for label, name in enumerate("ab"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (9 + number % 7, 11 + label, 3)) + 40 * label
                suffix = "jpg" if number % 3 == 0 else "png"
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(tmp_path / "photos" / part / name / f"{number}.{suffix}")
    return str(tmp_path / "photos")


@pytest.mark.parametrize("crop_ratio", [1.0, 0.6])
def test_images_on_disk_are_normalised_as_in_memory(photos, crop_ratio):
    memory, disk = (
        image_folder(root=photos, image_size=8, eval_crop_ratio=crop_ratio, storage=storage).read().train
        for storage in ("memory", "disk")
    )
    result = Normalisation.from_set(disk)
    assert result == Normalisation.from_set(memory)
    pixels = memory.images_NCHW.double().div(255)
    torch.testing.assert_close(torch.tensor(result.mean, dtype=torch.float64), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(result.std, dtype=torch.float64), pixels.std((0, 2, 3), correction=0))


def test_a_large_set_is_represented_by_the_same_sample_wherever_it_is(photos, monkeypatch):
    monkeypatch.setattr(normalisation, "MAX_STATISTICS_BYTES", 69 * 3 * 8 * 8)
    monkeypatch.setattr(normalisation, "SAMPLE_SIZE", 10)
    memory, disk = (image_folder(root=photos, image_size=8, storage=name).read().train for name in ("memory", "disk"))
    sample = Normalisation.from_set(disk)
    assert sample == Normalisation.from_set(memory)
    assert sample != Normalisation.from_images(memory.images_NCHW)


def test_two_runs_that_differ_in_storage_alone_have_the_same_metrics(photos, tmp_path):
    rows = []
    for storage in ("memory", "disk"):
        words = ("data=image_folder", f"data.root={photos}", "data.image_size=8", f"data.storage={storage}")
        options = ("data.num_workers=0", "model.width=4", "batch_size=32", "epochs=1", "optimizer=sam")
        folder = tmp_path / storage
        run_config = config_of(*words, *options, "device=cpu", f"run_dir={folder}")
        start_run(run_config)
        rows.append((folder / "metrics.jsonl").read_bytes())
        assert read_normalisation(folder).source == "set"
    assert rows[0] == rows[1]


def unknown():
    return None


def test_the_levels_of_files_are_counted_once_if_there_is_a_cache(photos, tmp_path, monkeypatch):
    counted, count = [], normalisation._count_levels_of_files
    monkeypatch.setattr(normalisation, "_count_levels_of_files", lambda *of: counted.append(count(*of)) or counted[-1])

    def normalise(**options):
        for cached in (normalisation._from_files, keep_pixels):
            cached.cache_clear()
        splits = image_folder(root=photos, image_size=8, storage="disk", cache=str(tmp_path / "cache"), **options)
        return Normalisation.from_set(splits.read().train)

    assert normalise() == normalise()
    assert len(counted) == 1
    assert normalise(eval_crop_ratio=0.5) != normalise()
    assert len(counted) == 2
    path = tmp_path / "photos" / "train" / "a" / "0.jpg"
    Image.fromarray(np.full((30, 30, 3), 255, np.uint8)).save(path)
    assert normalise() == Normalisation.from_counts(counted[-1]) != Normalisation.from_counts(counted[0])
    assert len(counted) == 3


@pytest.mark.parametrize(
    ("source", "weights", "published", "expected"),
    [
        ("auto", None, None, "set"),
        ("auto", "x.pt", None, "set"),
        ("auto", "torchvision", ((0.5,) * 3, (0.25,) * 3), "weights"),
        ("auto", "timm", ((0.5,), (0.25,)), "set"),
        ("set", "torchvision", ((0.5,) * 3, (0.25,) * 3), "set"),
        ("imagenet", None, None, "imagenet"),
        ("weights", "timm", ((0.5,) * 3, (0.25,) * 3), "weights"),
    ],
)
def test_source_of_the_normalisation(source, weights, published, expected):
    result = choose_normalisation(source, colour_images(), weights, lambda: published)
    assert result.source == expected
    if expected == "weights":
        assert (result.mean, result.std) == published
    if expected == "imagenet":
        assert result == IMAGENET_NORMALISATION


def colour_images():
    images = numbered_images(5)
    return replace(images, images_NCHW=images.images_NCHW[:, :1].expand(-1, 3, -1, -1).contiguous())


def test_the_log_says_why_the_normalisation_is_not_that_of_the_weights(caplog):
    caplog.set_level(logging.INFO, "sam_runner")
    grey = replace(colour_images(), images_NCHW=colour_images().images_NCHW[:, :1])
    choose_normalisation("auto", colour_images(), "x.pt", unknown)
    choose_normalisation("auto", grey, "x.pt", unknown)
    choose_normalisation("auto", grey, "x.pt", lambda: ((0.5,) * 3, (0.5,) * 3))
    start = "normalisation: mean and std of the training set, since model.weights=x.pt has"
    assert caplog.messages == [
        f"{start} no mean and std; data.normalisation=imagenet for those of ImageNet",
        f"{start} no mean and std",
        f"{start} 3-channel mean and std",
    ]


def test_a_normalisation_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"use data\.normalisation=set or imagenet"):
        choose_normalisation("weights", colour_images(), "x.pt", unknown)
    grey = replace(colour_images(), images_NCHW=colour_images().images_NCHW[:, :1])
    with pytest.raises(InputError, match="for 3 channels, the images have 1\n"):
        choose_normalisation("imagenet", grey, None, unknown)
    with pytest.raises(InputError, match=r"needs model\.weights"):
        config_of("data.normalisation=weights")


def test_published_normalisations():
    """torchvision's documentation and timm's table: Inception's are 0.5, ViT-B/16 of AugReg too."""
    imagenet = (IMAGENET_NORMALISATION.mean, IMAGENET_NORMALISATION.std)
    assert pretrained.torchvision_normalisation("resnet18") == imagenet
    assert pretrained.torchvision_normalisation("efficientnet_v2_l") == ((0.5,) * 3, (0.5,) * 3)
    assert pretrained.torchvision_normalisation("efficientnet_v2_s", "IMAGENET1K_V1") == imagenet
    assert pretrained.timm_normalisation("vit_base_patch16_224.augreg_in21k") == ((0.5,) * 3, (0.5,) * 3)
    assert pretrained.timm_normalisation("resnet18.a1_in1k") == imagenet


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_convert_their_images_get_the_converted_ones(name):
    """With published weights torchvision's networks convert images by `transform_input`; ours get them like that."""
    published = torchvision.models.get_model(name, num_classes=2, transform_input=True, init_weights=False)
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = published._transform_input(scaled(pixels, IMAGENET_NORMALISATION.mean, IMAGENET_NORMALISATION.std))
    torch.testing.assert_close(scaled(pixels, *pretrained.torchvision_normalisation(name)), expected)


def scaled(pixels, mean, std):
    return (pixels - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]


def test_weights_of_a_run_bring_its_normalisation(tmp_path):
    first = train_tiny(tmp_path / "first", "epochs=1")
    own = read_normalisation(first)
    checkpoint = next((first / "checkpoints").glob("*.pt"))
    second = train_tiny(tmp_path / "second", "epochs=1", "data.data_seed=7", f"model.weights={checkpoint}")
    assert read_normalisation(second) == replace(own, source="weights")
    assert restore_run(second, "last").train.normalisation.mean == own.mean  # without the weights of the first run
    weights = {name: value.contiguous() for name, value in torch.load(checkpoint)["model"].items()}
    save_file(weights, tmp_path / "plain.safetensors")
    third = train_tiny(
        tmp_path / "third", "epochs=1", "data.data_seed=7", f"model.weights={tmp_path}/plain.safetensors"
    )
    assert read_normalisation(third).source == "set"
    save_file(weights, tmp_path / "told.safetensors", {"mean": "[0.25]", "std": "[0.125]"})
    fourth = train_tiny(tmp_path / "fourth", "epochs=1", f"model.weights={tmp_path}/told.safetensors")
    assert read_normalisation(fourth) == Normalisation((0.25,), (0.125,), "weights")


def test_a_run_is_evaluated_and_continued_with_the_normalisation_that_it_stored(tmp_path):
    folder = train_tiny(tmp_path / "run", "epochs=1")
    stored = json.loads((folder / "normalisation.json").read_text())
    assert stored["source"] == "set"
    (folder / "normalisation.json").write_text(json.dumps({**stored, "mean": [0.125]}))
    assert restore_run(folder, "last").train.normalisation.mean == (0.125,)
    train_tiny(folder, "epochs=2")
    assert json.loads((folder / "normalisation.json").read_text())["mean"] == [0.125]


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"mean": [0.5], "std": [0], "source": "set"}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "normalisation.json").write_text(text)
    with pytest.raises(InputError, match="holds no mean and std"):
        read_normalisation(tmp_path)


def test_imagenet_can_be_chosen_for_any_set_of_three_channels():
    run = build_run(config_of("data=synthetic", "data.image_size=8", "data.normalisation=imagenet", "device=cpu"))
    assert run.train.normalisation == run.evaluations["test"].normalisation == IMAGENET_NORMALISATION
