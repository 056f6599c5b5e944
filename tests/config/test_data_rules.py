"""Keys of data and augment that exclude each other, are out of range, or have no effect."""

import pytest

from sam_runner.config.rules.files import require_files
from sam_runner.utils.errors import InputError
from tests.helpers import config_of


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment=mixup", "augment.cutmix=1"], r"augment\.mixup and augment\.cutmix exclude each other\n.* null"),
        (["augment=mixup", "augment.mixup=0"], r"augment\.mixup=0.* is out of range\n.*\(0, inf\)"),
        (["augment=cutmix", "augment.cutmix=-1"], r"augment\.cutmix=-1.* is out of range"),
        (["augment=erasing", "augment.erasing=1.5"], r"augment\.erasing=1\.5 is out of range\n.*\[0, 1\]"),
        (["augment.magnitude=5"], r"augment\.magnitude has no effect without RandAugment\n.*augment=randaugment"),
        (["augment=autoaugment", "augment.num_ops=5"], r"augment\.num_ops has no effect without RandAugment"),
        (["augment=randaugment", "augment.magnitude=31"], r"augment\.magnitude=31 is out of range\n.*\[0, 30\]"),
        (["augment=randaugment", "augment.num_ops=0"], r"augment\.num_ops=0 is out of range"),
        (["augment.cutout_per_batch=true"], r"augment\.cutout_per_batch has no effect with augment\.cutout=0"),
        (["data=cifar10", "data.url=http://x"], r"data\.url has no effect with data\.download=false"),
        (
            ["data=imagenet", "data.root=x", "data.eval_crop_ratio=0"],
            r"data\.eval_crop_ratio=0.* is out of range\n.*\(0, 1\]",
        ),
        (["noise=instance", "noise.rate=1.2"], r"noise\.rate=1\.2 is out of range"),
        (["noise=relabelled"], r"noise\.file has to be given"),
        (["data.val_labels=noisy", "noise=pair"], r"data\.val_labels=noisy has no effect without held-out images"),
        (["data.val_labels=noisy", "data.val_fraction=0.1"], r"data\.val_labels=noisy has no effect with noise=none"),
        (
            ["data=image_list", "data.file=x", "data.val_labels=noisy"],
            r"data\.val_labels=noisy has no effect with noise=none",
        ),
        (
            ["data.val_labels=noisy", "data.val_fraction=0.1", "noise=relabelled", "noise.file=x"],
            r"the file of noise=relabelled has no labels for held-out images",
        ),
        (["data=cifar10", "augment=inception"], r"augment\.crop_scale_min needs image files"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        config_of(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["augment=randaugment", "augment.num_ops=3", "augment.magnitude=30"],
        ["augment=cutout", "augment.cutout_per_batch=true"],
        ["augment=mixup", "augment.mixup=null", "augment.cutmix=0.5"],
        ["data=svhn", "data.download=true", "data.url=http://mirror", "data.extra=true", "augment.policy=svhn"],
        ["data=imagenet", "data.root=x", "augment=inception", "augment.policy=randaugment"],
        ["data=cifar10", "noise=human", "noise.file=x", "data.val_fraction=0.1", "data.train_fraction=0.5"],
    ],
)
def test_what_can_be_meant_is_taken(words):
    config_of(*words)


@pytest.mark.parametrize(
    ("option", "rate"), [("symmetric", 0.2), ("pair", 0.45), ("asymmetric", 0.4), ("instance", 0.4)]
)
def test_the_rate_of_a_noise_is_the_default_that_the_page_of_settings_shows(option, rate):
    noise = config_of(f"noise={option}").noise
    assert noise.rate == type(noise).rate == rate


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("my photo", r"{here} has no folder my photo\n  did you mean {here}/my photos\?\n  expected: <root>/<class>/"),
        ("my phots/train", r"{here} has no folder my phots\n  did you mean {here}/my photos\?"),
        ("elsewhere", r"{here} has no folder elsewhere\n  expected"),
        ("labels.csv", r"is not a folder: it is a file\n  expected"),
    ],
)
def test_a_folder_that_is_absent_is_answered_with_a_similar_one(root, message, tmp_path, monkeypatch):
    (tmp_path / "my photos").mkdir()
    (tmp_path / "labels.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.format(here=tmp_path)):
        require_files(config_of("data=image_folder", f"data.root={root}"))
