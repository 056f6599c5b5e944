"""model.json, and the network that is built from a run folder without the data."""

import json
import shutil

import pytest
import torch

import sam_runner
from sam_runner.runs.load import load_network, restore_run
from sam_runner.runs.model_facts import read_model_facts
from sam_runner.training.builders import data
from sam_runner.utils.errors import InputError
from tests.helpers import train_tiny, write_image_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on an image folder that is deleted after the training."""
    folder = tmp_path_factory.mktemp("photos")
    root = write_image_folder(folder / "images")
    words = ("data=image_folder", f"data.root={root}", "data.image_size=8", "model=small_cnn", "model.width=4")
    sam_runner.train([*words, "epochs=1", "batch_size=16", "device=cpu", f"run_dir={folder / 'run'}"])
    shutil.move(root, folder / "moved")
    data._read_data.cache_clear()
    return folder / "run"


def test_the_network_is_built_without_the_data(photos):
    with pytest.raises(InputError, match="images is not a folder"):
        restore_run(photos, "last")
    run = sam_runner.load_run(photos)
    facts, network = run.model_facts, run.model()
    assert (facts.classes, facts.input_shape) == (("a", "b"), (3, 8, 8))
    saved = json.loads((photos / "normalisation.json").read_text())
    assert [list(facts.normalisation.mean), list(facts.normalisation.std)] == [saved["mean"], saved["std"]]
    checkpoint = torch.load(max((photos / "checkpoints").glob("*.pt")), weights_only=True)
    assert not network.training
    assert all(torch.equal(value, checkpoint["model"][name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no model.json"),
        ("{}", "holds no classes, input_shape and input_type"),
        ('{"classes": ["a"], "input_shape": [1, 8, 8]}', "holds no classes"),
        ('{"classes": ["a", "b"], "input_shape": [2, 8, 8]}', "holds no classes"),
        ('{"classes": ["a", "b"], "input_shape": [8, 8]}', "holds no classes"),
    ],
)
def test_a_run_without_facts_is_refused_with_a_way_out(tmp_path, content, message):
    run = train_tiny(tmp_path / "run", "max_steps=1")
    (run / "model.json").unlink()
    if content is not None:
        (run / "model.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_network(run, "last")
    assert f"sam-train config={run} run_dir=NEW" in str(error.value)


def test_the_missing_file_is_named(tmp_path):
    run = train_tiny(tmp_path / "run", "max_steps=1")
    (run / "normalisation.json").unlink()
    with pytest.raises(InputError, match=r"has no normalisation\.json"):
        read_model_facts(run)


def test_a_continued_run_writes_the_file_again(tmp_path):
    run = train_tiny(tmp_path / "run", "epochs=1")
    facts = read_model_facts(run)
    (run / "model.json").unlink()
    train_tiny(run, "epochs=2")
    assert read_model_facts(run) == facts
