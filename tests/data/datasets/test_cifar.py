"""CIFAR in all published forms, damaged files, and the labels of CIFAR-N."""

import io
import pickle
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sam_runner.data.datasets.cifar import CIFAR10, CIFAR100, CLASSES_10, CLASSES_100, cifar10, cifar100
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.noise import CIFAR_N_KEYS, human, noise_needs, none
from sam_runner.data.splits import Splits, prepare_splits
from sam_runner.utils.errors import InputError
from tests.helpers import invoke

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
READERS = {"cifar10": (cifar10, CIFAR10), "cifar100": (cifar100, CIFAR100)}


def random_files(name, per_file=20):
    """Pixels and labels of each file of a set, in the order of its files."""
    draws = np.random.default_rng(0)
    classes, files = (10, BATCHES) if name == "cifar10" else (100, ["train", "test"])
    return {
        file: (draws.integers(0, 256, (per_file, 3072), dtype=np.uint8), draws.integers(0, classes, per_file))
        for file in files
    }


def training_labels(files):
    """Labels of the training set of CIFAR-10, in the order of its files."""
    return np.concatenate([labels for file, (_, labels) in files.items() if file != "test_batch"])


def file_contents(name, kind, parts):
    """The bytes of each file of a version: "binary", "python" (as Python 3 pickles it), "python 2"."""
    files = {}
    for file, (pixels, labels) in parts.items():
        if kind == "binary":
            columns = (
                [labels[:, None], pixels] if name == "cifar10" else [labels[:, None] // 5, labels[:, None], pixels]
            )
            files[f"{file}.bin"] = np.concatenate(columns, 1).astype(np.uint8).tobytes()
        else:
            key = "labels" if name == "cifar10" else "fine_labels"
            files[file] = pickle.dumps({b"data": pixels, key.encode(): labels.tolist()}, protocol=2)
            if kind == "python 2":
                files[file] = python_2_pickle(pixels, labels.tolist(), key)
    return files


def python_2_pickle(pixels, labels, key):
    """A pickle of protocol 2 with strings of bytes, as Python 2 and its NumPy wrote it: the published form."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    content = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R("
        + b"K\x01M" + len(pixels).to_bytes(2, "little") + b"M\x00\x0c\x86" + b"cnumpy\ndtype\n" + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + len(content).to_bytes(4, "little") + content + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + numbers + b"u."


def write_dataset(folder, name, kind, parts, *, archive=False):
    version = READERS[name][1][0 if kind == "binary" else 1]
    files = file_contents(name, kind, parts)
    folder.mkdir(parents=True, exist_ok=True)
    if archive:
        write_tar(folder / version.archive, {f"{version.folder}/{file}": content for file, content in files.items()})
        return
    (folder / version.folder).mkdir()
    for file, content in files.items():
        (folder / version.folder / file).write_bytes(content)


def write_tar(path, members, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def assert_splits_equal(splits, parts, classes):
    *train, test = parts.values()
    for part, (pixels, labels) in (
        (splits.train, tuple(map(np.concatenate, zip(*train, strict=True)))),
        (splits.test, test),
    ):
        assert part.images_NCHW.shape == (len(labels), 3, 32, 32)
        assert np.array_equal(part.images_NCHW.numpy().reshape(-1, 3072), pixels)
        assert part.labels.tolist() == labels.tolist()
        assert part.classes == classes


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("kind", ["binary", "python", "python 2"])
@pytest.mark.parametrize("name", READERS)
def test_every_published_form_gives_the_same_images(name, kind, archive, tmp_path):
    parts = random_files(name)
    write_dataset(tmp_path, name, kind, parts, archive=archive)
    assert_splits_equal(READERS[name][0](root=str(tmp_path)), parts, CLASSES_10 if name == "cifar10" else CLASSES_100)


def test_the_folder_itself_may_be_given(tmp_path):
    parts = random_files("cifar10")
    write_dataset(tmp_path, "cifar10", "binary", parts)
    assert_splits_equal(cifar10(root=str(tmp_path / "cifar-10-batches-bin")), parts, CLASSES_10)


def test_torchvision_reads_the_same_from_the_python_version(tmp_path, monkeypatch):
    """torchvision is the oracle for the layout; its digest check is disabled, since the images are random."""
    from torchvision.datasets import CIFAR10

    parts = random_files("cifar10")
    write_dataset(tmp_path, "cifar10", "python 2", parts)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES_10)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    reference, result = CIFAR10(tmp_path, train=True), cifar10(root=str(tmp_path)).train
    assert np.array_equal(reference.data, result.images_NCHW.permute(0, 2, 3, 1).numpy())
    assert reference.targets == result.labels.tolist()


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("damage", ["cut", "missing", "label", "text"])
def test_damage_is_named(kind, damage, tmp_path):
    parts = random_files("cifar10")
    if damage == "label":
        parts["test_batch"][1][3] = 11
    write_dataset(tmp_path, "cifar10", kind, parts)
    folder = tmp_path / ("cifar-10-batches-bin" if kind == "binary" else "cifar-10-batches-py")
    path = folder / ("data_batch_3.bin" if kind == "binary" else "data_batch_3")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(InputError) as caught:
        cifar10(root=str(tmp_path))
    assert str(folder) in str(caught.value)
    assert {"label": "label 11"}.get(damage, path.stem) in str(caught.value)


def test_a_cut_archive_is_named(tmp_path):
    write_dataset(tmp_path, "cifar10", "binary", random_files("cifar10"), archive=True)
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-300_000])
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz"):
        cifar10(root=str(tmp_path))


def test_a_missing_set_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"data\.download=true, or download https://www\.cs\.toronto\.edu"):
        cifar100(root=str(tmp_path))


COLUMNS = {"clean_label": [0, 1, 2, 0, 1, 2], "worse_label": [2, 1, 0, 0, 0, 2], "aggre_label": [0, 1, 2, 0, 1, 1]}


def write_labels_file(path, columns=COLUMNS, kind=np.int64):
    torch.save({key: np.array(values, kind) for key, values in columns.items()}, path, pickle_protocol=2)
    return str(path)


def test_human_labels_in_the_published_order_are_as_they_stand(tmp_path):
    file, labels = write_labels_file(tmp_path / "human.pt"), torch.tensor(COLUMNS["clean_label"])
    assert human(labels, 3, 0, file=file, set="worst").tolist() == COLUMNS["worse_label"]
    assert human(labels, 3, 1, file=file, set="aggre").tolist() == COLUMNS["aggre_label"]
    assert labels.tolist() == COLUMNS["clean_label"]


def test_human_labels_follow_the_images_of_a_folder(tmp_path):
    """Class by class: image k of a class is the k-th of it in the file."""
    file = write_labels_file(tmp_path / "human.pt")
    assert human(torch.tensor([0, 0, 1, 1, 2, 2]), 3, 0, file=file, set="worst").tolist() == [2, 0, 1, 0, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worse_label": [0, 1, 2, 0, 1]}, "labels that do not match"),
        ({"worse_label": [0, 1, 2, 0, 1, 3]}, "labels that do not match"),
        ({"worse_label": [0, 1, 2, 0, 1, -1]}, "labels that do not match"),
        ({"clean_label": [0, 1, 2, 0, 1, 1]}, "labels that do not match"),
        ({"worse_label": [[0, 1, 2, 0, 1, 1]]}, "no one-dimensional integer labels"),
    ],
)
def test_human_labels_of_other_images_are_refused(change, message, tmp_path):
    file = write_labels_file(tmp_path / "human.pt", COLUMNS | change)
    with pytest.raises(InputError, match=message):
        human(torch.tensor([0, 0, 1, 1, 2, 2]), 3, 0, file=file, set="worst")


def test_a_set_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"(?s)noise\.set=random2.*it has: aggre, worst"):
        human(torch.zeros(6, dtype=torch.int64), 3, 0, file=write_labels_file(tmp_path / "human.pt"), set="random2")
    assert set(CIFAR_N_KEYS) == {"aggre", "random1", "random2", "random3", "worst", "noisy"}


@settings(
    deadline=None, max_examples=20, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(seed=st.integers(0, 2**32 - 1), held_out=st.sampled_from([0.0, 0.1, 0.4]), used=st.floats(0.2, 1))
def test_human_labels_stay_with_their_images_when_a_part_is_kept(seed, held_out, used, tmp_path):
    """The pixels of each image are its index in the whole set, which is also its index in the file."""
    draws = np.random.default_rng(seed)
    clean, given_labels = draws.integers(0, 3, (2, 60))
    splits = Splits(numbered_images(clean), numbered_images(np.array([0, 1, 2])))
    file = write_labels_file(tmp_path / "human.pt", {"clean_label": clean, "worse_label": given_labels})
    fractions = {"val_fraction": held_out, "train_fraction": used, "seed": 0}
    prepare = partial(prepare_splits, splits, partial(human, file=file, set="worst"), needs=noise_needs(human))
    plain, noisy = prepare_splits(splits, none, needs="labels", **fractions), prepare(**fractions)
    indices = noisy.train.images_NCHW[:, 0, 0, 0].tolist()
    assert noisy.train.labels.tolist() == [given_labels[index] for index in indices]
    assert noisy.train.clean_labels.tolist() == [clean[index] for index in indices]
    assert len(indices) == round(used * round(60 - round(held_out * 60)))
    assert torch.equal(noisy.train.images_NCHW, plain.train.images_NCHW)
    if held_out:
        validation = noisy.validation
        indices = validation.images_NCHW[:, 0, 0, 0].tolist()
        assert validation.labels.tolist() == [clean[index] for index in indices]
        assert torch.equal(validation.labels, validation.clean_labels)
        assert torch.equal(validation.images_NCHW, plain.validation.images_NCHW)
        validation = prepare(**fractions, val_labels="noisy").validation
        assert validation.labels.tolist() == [given_labels[index] for index in indices]


def numbered_images(labels):
    """A set in which the pixels of each image are its index."""
    pixels = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return make_image_set(pixels, torch.from_numpy(labels), ("a", "b", "c"))


def test_a_run_on_human_noise_holds_images_out_and_logs_the_noise_rate(tmp_path, monkeypatch, capsys):
    parts = random_files("cifar10")
    write_dataset(tmp_path, "cifar10", "binary", parts)
    clean = training_labels(parts)
    write_labels_file(tmp_path / "human.pt", {"clean_label": clean, "worse_label": (clean + 1) % 10})
    words = [
        "data=cifar10", "data.root=.", "noise=human", "noise.file=human.pt", "data.val_fraction=0.2", "batch_size=20",
        "data.train_fraction=0.5", "epochs=1", "model.width=4", "device=cpu", "run_dir=run",
    ]  # fmt: skip
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "40 train, 20 test, 20 validation images, 10 classes, 40 training labels corrupted (100.00%)" in done.stdout
    assert '"validation/accuracy"' in (tmp_path / "run" / "result.json").read_text()
    write_labels_file(tmp_path / "human.pt", {"clean_label": clean, "worse_label": (clean + 2) % 10})
    done = invoke(monkeypatch, capsys, tmp_path, *words, "epochs=2")
    assert done.returncode == 2
    assert "labels have changed since this run was made\n  to continue it, give the same" in done.stderr


def test_training_under_human_labels_reports_both_parts(tmp_path, monkeypatch, capsys):
    parts = random_files("cifar10")
    write_dataset(tmp_path, "cifar10", "binary", parts, archive=True)
    clean = training_labels(parts)
    write_labels_file(
        tmp_path / "human.pt", {"clean_label": clean, "worse_label": (clean + (np.arange(100) < 40)) % 10}
    )
    done = invoke(
        monkeypatch, capsys, tmp_path, "data=cifar10", "data.root=.", "noise=human", "noise.file=human.pt",
        "batch_size=50", "epochs=1", "model.width=4", "device=cpu", "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"train/memorised"' in (tmp_path / "run" / "result.json").read_text()
