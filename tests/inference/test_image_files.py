"""Image files for predictions: labels by folders, sizes, and chunks with unreadable files."""

import numpy as np
import pytest
import torch
from PIL import Image

from sam_runner.inference import image_files
from sam_runner.inference.image_files import UNKNOWN, decode_files, find_files, make_reader
from sam_runner.utils.errors import InputError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def test_labels_are_the_outermost_folder_that_is_called_like_a_class(tmp_path):
    for name in ("cat/1.png", "cat/dog/2.png", "other/dog/3.png", "4.png", ".hidden/cat/5.png"):
        write(tmp_path / "in" / name, np.zeros((4, 4)))
    (tmp_path / "in/notes.txt").write_text("no image")
    found = find_files([tmp_path / "in/", tmp_path / "in/cat/1.png"], ("dog", "cat"))
    names = [path.relative_to(tmp_path / "in").as_posix() for path in found.paths[:4]]
    labels = dict(zip(names, found.labels[:4], strict=True))
    assert labels == {"cat/1.png": 1, "cat/dog/2.png": 1, "other/dog/3.png": 0, "4.png": UNKNOWN}
    assert (found.paths[4], found.labels[4]) == (tmp_path / "in/cat/1.png", UNKNOWN)


def test_a_network_for_images_that_are_not_square_gets_images_of_its_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3))
    read = make_reader((3, 6, 9), 1.0)
    assert np.array_equal(read(write(tmp_path / "good.png", pixels)).permute(1, 2, 0).numpy(), pixels)
    with pytest.raises(InputError, match=r"bad.png is 6x9 pixels, the network needs 9x6"):
        read(write(tmp_path / "bad.png", pixels.transpose(1, 0, 2)))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunks_keep_the_positions_of_readable_files(tmp_path, monkeypatch, size):
    monkeypatch.setattr(image_files, "IMAGES_PER_CHUNK", size)
    paths = [write(tmp_path / f"{index}.png", np.full((4, 4, 3), index)) for index in range(7)]
    for index in (2, 3, 6):
        paths[index].write_bytes(b"no image")
    chunks = list(decode_files(paths, make_reader((1, 4, 4), 1.0)))
    assert len(chunks) == -(-7 // size)
    positions = [position for _, found, _ in chunks for position in found]
    assert positions == [0, 1, 4, 5]
    assert torch.cat([images for images, found, _ in chunks if found])[:, 0, 0, 0].tolist() == positions
    faults = {index: str(error).split()[0] for _, _, errors in chunks for index, error in errors.items()}
    assert faults == {index: str(paths[index]) for index in (2, 3, 6)}
