"""sam-curvature, sam-sharpness and sam-landscape on tiny runs: numbers, files, continuation, refusals."""

import contextlib
import functools
import io
import json
import math
import re
import shutil
import sys

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.analysis.options import Measurement
from sam_runner.analysis.subject import find_subjects
from sam_runner.commands import curvature, landscape, sharpness
from sam_runner.data import reading
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.runs.load import restore_run
from sam_runner.runs.start import start_run
from sam_runner.sam.network import second_derivatives
from sam_runner.training import subset
from sam_runner.training.builders import data as data_builder
from sam_runner.utils.manifest import write_manifest
from tests.helpers import at_once, config_of, invoke, read_rows, train_tiny, write_image_folder

LINE = r"lambda_max (\S+), trace \S+ \+- \S+, lambda_max/lambda_5 \S+"
SMALL = ("--examples", "40")
FEW = ("--trace", "6", "--density", "1", "--density-steps", "4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "sam": ("optimizer=sam", "telemetry.curvature_epochs=1"),
        "sgd": ("optimizer=sgd",),
        "other": ("optimizer=sgd", "seed=1", "epochs=1"),
    }
    return {name: train_tiny(folder / name, "label_smoothing=0.1", *words) for name, words in settings.items()}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def run(module, *arguments):
        return invoke(monkeypatch, capsys, tmp_path, *arguments, entry=module.main)

    return run


def power_iteration(folder, num_steps=100):
    """The largest eigenvalue of the Hessian in evaluation mode, in float64, without the package's own products."""
    run = restore_run(folder, "last", plain_training_set=True)
    model = run.model.double().eval()
    batches = [(part.images.double(), part.labels) for part in run.train.epoch()]
    params = [param for param in model.parameters() if param.requires_grad]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    vector, value, shift = torch.ones_like(flat), 0.0, 1.0  # the shift makes the most positive one the largest
    for _ in range(num_steps):
        product = torch.autograd.grad(flat, params, vector, retain_graph=True)
        moved = torch.cat([part.flatten() for part in product]).detach()
        value = float(vector @ moved / (vector @ vector))
        vector = moved + shift * vector
        vector = vector / vector.norm()
    return value


def test_curvature_agrees_with_a_power_iteration_and_is_stored(runs, call):
    words = (runs["sam"], "--batchnorm", "eval", "--examples", "96", "--dtype", "float64", *FEW)
    done = call(curvature, *words)
    assert done.returncode == 0, done.stderr
    assert "96 training images" in done.stdout and "label smoothing 0.1, without weight decay" in done.stdout
    found = re.fullmatch(LINE, done.stdout.splitlines()[-1])
    assert float(found[1]) == pytest.approx(power_iteration(runs["sam"]), rel=1e-3)
    files = runs["sam"] / "analysis"
    (name,) = (path.stem for path in (runs["sam"] / "checkpoints").glob("*12.pt"))
    answer = json.loads((files / f"curvature-{name}.json").read_text())["answers"][0]
    assert answer["settings"]["batchnorm"] == "eval" and answer["values"]["converged"] is True
    assert not list(files.glob("products-*"))
    density = pd.read_csv(files / f"density-{name}.csv")
    assert torch.trapezoid(*(torch.tensor(density[c].to_numpy()) for c in ("density", "eigenvalue"))) == pytest.approx(
        1, abs=0.01
    )
    again = call(curvature, *words)
    assert f"from {files}" in again.stdout and again.stdout.splitlines()[-1] == found[0]


def test_telemetry_logs_the_lambda_max_of_the_command(runs, call):
    rows = read_rows(runs["sam"])
    logged = [row["telemetry/lambda_max"] for row in rows if "telemetry/lambda_max" in row]
    done = call(curvature, runs["sam"], "--k", "1", "--trace", "0", "--density", "0")
    found = re.fullmatch(r"lambda_max (\S+)", done.stdout.splitlines()[-1])
    assert Measurement.examples == subset.NUM_EXAMPLES
    assert len(logged) == 2 and float(found[1]) == pytest.approx(logged[-1], rel=1e-3)


def test_curvature_of_several_checkpoints_is_one_table_and_one_plot(runs, call, tmp_path, drawn_plots):
    words = ("--checkpoint", "all", *FEW, "--k", "2")
    done = call(curvature, runs["sam"], runs["sgd"], *SMALL, *words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out/curvature.csv")
    assert list(table["step"]) == [6, 12, 6, 12] and list(table["run"].unique()) == ["sam, rho 0.05", "sgd"]
    assert (table["lambda_max"] > table["lambda_2"]).all() and (table["trace_error"] > 0).all()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv", ".png", ".svg"}


def test_a_missing_checkpoint_is_told(runs, call, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["sgd"], folder, ignore=shutil.ignore_patterns("analysis"))
    (folder / "checkpoints/step-00000006.pt").unlink()
    done = call(curvature, folder, *SMALL, "--checkpoint", "all", "--trace", "0", "--density", "0")
    assert done.returncode == 0 and len(pd.read_csv(folder / "analysis/curvature.csv")) == 1
    assert "left out, since they are damaged or missing: step-00000006" in done.stdout + done.stderr


def test_sharpness_of_several_runs(runs, call, tmp_path):
    words = ("--rho", "0.05,0.1", "--m", "8", "--steps", "2", "--directions", "2", "--groups", "3")
    done = call(sharpness, *runs.values(), *SMALL, *words, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "sharpness.csv")
    for folder, row in zip(runs.values(), table.to_dict("records"), strict=True):
        final = json.loads((folder / "result.json").read_text())["final"]
        assert row["test_nll"] == pytest.approx(final["test/nll"], abs=1e-5)
        assert row["loss gap"] == pytest.approx(row["test_nll"] - row["train_nll"], abs=1e-6)
        assert row["accuracy gap"] == pytest.approx(row["train_accuracy"] - row["test_accuracy"], abs=1e-6)
        assert 0 < row["worst case, rho 0.05"] < row["worst case, rho 0.1"]
        assert row["average, rho 0.05"] < row["worst case, rho 0.05"]
        assert row["m-sharpness, m 8, rho 0.1"] > row["worst case, rho 0.1"] * 0.5
    assert "3 settings say nothing about whether sharpness predicts the loss gap" in done.stdout
    assert "the runs differ in data or label noise" not in done.stdout
    more = call(sharpness, runs["sam"], *SMALL, *words[:5], "4", *words[6:])
    assert more.returncode == 0
    entries = json.loads(next((runs["sam"] / "analysis").glob("sharpness-*.json")).read_text())["answers"]
    assert len(entries) == 2  # ascents of another length are another answer
    assert "m 8: 3 of 5 groups" in more.stdout and "in no group" not in more.stdout
    rest = call(sharpness, runs["sam"], *SMALL, *words[:3], "12,7", *words[4:])
    assert "m 12: 3 groups, 4 images are in no group; m 7: 3 of 5 groups, 5 images are in no group" in rest.stdout


def test_default_values_of_m_fit_the_images(runs, call, tmp_path):
    words = ("--steps", "1", "--directions", "1", "--groups", "1", "--restarts", "0", "--out", tmp_path)
    assert call(sharpness, runs["sam"], *SMALL, *words).returncode == 0
    names = [name for name in pd.read_csv(tmp_path / "sharpness.csv") if "m-sharpness" in name]
    assert names and all("m 16" in name for name in names)
    assert call(sharpness, runs["sam"], "--examples", "8", *words).returncode == 0
    assert not [name for name in pd.read_csv(tmp_path / "sharpness.csv") if "m-sharpness" in name]


def test_only_what_was_computed_is_in_the_table(runs, call, tmp_path):
    done = call(curvature, runs["sgd"], runs["other"], *SMALL, "--trace", "0", "--density", "0", "--k", "1", "--out",
                tmp_path)  # fmt: skip
    assert done.returncode == 0 and "nan" not in done.stdout.lower()
    table = pd.read_csv(tmp_path / "curvature.csv")
    assert not table.isna().any().any() and not {"trace", "lambda_min", "lambda_1"} & set(table)


def scale_weights(folder, factor):
    """Multiply the weights of a run's only checkpoint, all but biases and those of batch norm."""
    (path,) = (folder / "checkpoints").glob("*.pt")
    state = torch.load(path, weights_only=True)
    state["model"] = {key: value * factor if value.ndim > 1 else value for key, value in state["model"].items()}
    torch.save(state, path)
    write_manifest(path, is_best=True, is_kept=False)


@pytest.fixture
def diverged(runs, tmp_path):
    """A run whose weights are so large that its loss is not finite."""
    folder = tmp_path / "diverged"
    shutil.copytree(runs["other"], folder, ignore=shutil.ignore_patterns("analysis"))
    scale_weights(folder, 1e30)
    return folder


def test_a_diverged_run_is_named_and_the_others_are_measured(runs, call, diverged, tmp_path):
    done = call(curvature, diverged, runs["sgd"], *SMALL, "--trace", "0", "--density", "0", "--out", tmp_path)
    assert done.returncode == 1 and f"error: {diverged} step-" in done.stderr and "leave this run out" in done.stderr
    assert len(pd.read_csv(tmp_path / "curvature.csv")) == 1
    assert call(curvature, diverged, *SMALL).returncode == 1
    words = ("--m", "8", "--rho", "0.1", "--steps", "1", "--directions", "1", "--groups", "1", "--out", tmp_path)
    done = call(sharpness, diverged, *runs.values(), *SMALL, *words)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "sharpness.csv").set_index("folder")
    assert table.loc[str(diverged), ["worst case, rho 0.1", "m-sharpness, m 8, rho 0.1"]].isna().all()
    assert table.drop(str(diverged))["worst case, rho 0.1"].notna().all()
    name = table.loc[str(diverged), "run"]
    assert "loss is not finite near the weights: no worst case, rho 0.1;" in done.stdout + done.stderr
    assert f"Not finite, so left out: {name}." in done.stdout


@pytest.mark.parametrize("others", [(), ("sam",), ("sam", "sgd")], ids=len)
def test_a_landscape_with_a_run_whose_loss_is_not_finite_is_refused(runs, call, diverged, others):
    scale_weights(diverged, math.inf)
    done = call(landscape, *(runs[name] for name in others), diverged, *SMALL)
    assert done.returncode == 1 and f"error: {diverged} step-" in done.stderr, done.stderr
    assert "has no slice: its training loss is nan" in done.stderr and "leave this run out" in done.stderr


def test_image_files_are_read_once_for_several_runs_of_the_same_data(call, tmp_path, monkeypatch):
    write_image_folder(tmp_path / "images")
    words = ("data=image_folder", f"data.root={tmp_path}/images", "model.width=4", "batch_size=16", "epochs=2",
             "device=cpu", "checkpoint.min_interval=0", "data.val_fraction=0.25")  # fmt: skip
    for seed in (0, 1):
        start_run(config_of(*words, f"seed={seed}", f"run_dir={tmp_path}/{seed}"), ())
    data_builder._read_data.cache_clear()
    reading._read_all.cache_clear()
    reads = []
    monkeypatch.setattr(reading, "_decode_set", lambda *args, own=reading._decode_set: reads.append(1) or own(*args))
    done = call(
        curvature, tmp_path / "0", tmp_path / "1", "--checkpoint", "all", *SMALL, "--trace", "0", "--density", "0"
    )
    assert done.returncode == 0 and len(reads) == 3  # training, validation and test images


def measure(words):
    """sam-curvature in a process of its own; its exit code and what it printed."""
    sys.argv = ["sam-curvature", *map(str, words)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return curvature.main(), printed.getvalue()


def test_two_calls_at_once_give_the_same_answer_once(runs, tmp_path):
    """The second call waits for the first one and repeats its answer."""
    folder = tmp_path / "run"
    shutil.copytree(runs["sgd"], folder, ignore=shutil.ignore_patterns("analysis"))
    calls = at_once(measure, [(folder, *SMALL, *FEW)] * 2)
    assert [code for code, _ in calls] == [0, 0], calls
    assert len({out.splitlines()[-1] for _, out in calls}) == 1
    assert sum("from " in out and "curvature-step" in out for _, out in calls) == 1
    (path,) = (folder / "analysis").glob("curvature-*.json")
    assert len(json.loads(path.read_text())["answers"]) == 1 and not list((folder / "analysis").glob("products-*"))


def own_loss(subject):
    """The training loss of a checkpoint on 40 images in 3 chunks, batch norm by the statistics of a chunk."""
    batch = subject.examples(subject.train, type("How", (), {"examples": 40, "dtype": "float32"}))
    model = subject.run.model.train()
    parts = zip(batch.inputs.tensor_split(3), batch.targets.tensor_split(3), strict=True)
    losses = [F.cross_entropy(model(x), y, label_smoothing=0.1, reduction="sum").item() for x, y in parts]
    return sum(losses) / 40


@pytest.mark.parametrize("names", [("sam",), ("sam", "sgd"), ("sam", "sgd", "other")], ids=len)
def test_landscapes_contain_their_checkpoints(runs, call, names, tmp_path):
    sizes = {1: ("--points", "3", "--line-points", "3"), 2: ("--line-points", "7"), 3: ("--points", "5")}[len(names)]
    folders = [runs[name] for name in names]
    words = (*folders, *SMALL, *sizes, "--jobs", "2", "--batchnorm", "train", "--out", tmp_path)
    done = call(landscape, *words)
    assert done.returncode == 0, done.stderr
    assert "was trained with other" not in done.stdout + done.stderr
    exact = [own_loss(subject) for subject in find_subjects(folders, "last")]
    kinds = {1: ("line", "surface"), 2: ("path",), 3: ("plane",)}[len(names)]
    for kind in kinds:
        table = pd.read_csv(tmp_path / f"landscape-{kind}.csv")
        own = table.iloc[(table["a"].abs() + table["b"].abs()).argmin()]
        assert own["train_loss"] == pytest.approx(exact[0], rel=1e-5) and (own["a"], own["b"]) == (0, 0)
        for value in exact[1:]:
            assert (table["train_loss"] - value).abs().min() < 1e-5 * value
        if kind == "path":
            assert table.set_index("a").loc[1.0, "train_loss"] == pytest.approx(exact[1], rel=1e-5)
        assert (tmp_path / f"landscape-{kind}.svg").is_file() and (tmp_path / f"landscape-{kind}.png").is_file()
        if kind in ("surface", "plane"):
            page = (tmp_path / f"landscape-{kind}.html").read_text()
            assert not re.search(r"https?://|src=|href=|import\(|@import|fetch\(", page)
            data = json.loads(re.search(r"const DATA = (.*);\n", page)[1])
            values = torch.tensor(data["layers"]["training loss"]).flatten()
            torch.testing.assert_close(values, torch.tensor(table["train_loss"].to_numpy()).float(), rtol=1e-5, atol=0)
            assert [mark[0] for mark in data["marks"]] == [one.label for one in find_subjects(folders, "last")]
    points = {path: path.read_text() for path in (runs["sam"] / "analysis").glob(f"points-{kinds[0]}-*.jsonl")}
    (path,) = points
    kept = points[path].splitlines()
    path.write_text("\n".join(kept[:2]) + "\n" + kept[2][:9])  # a stopped command
    again = call(landscape, *words)
    assert again.returncode == 0
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
    assert sorted(rows) == sorted(json.loads(line) for line in kept)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (curvature, (), "RUN"),
        (curvature, ("nowhere",), "is not a folder"),
        (curvature, (".",), "holds no run"),
        (curvature, ("SAM", "--k", "0"), "at least 1"),
        (curvature, ("SAM", "--k", "1000000"), "accepted: 1 to"),
        (curvature, ("SAM", "--trace", "3"), "accepted: 0, or at least 6"),
        (curvature, ("SAM", "--batch-norm", "eval"), "did you mean --batchnorm"),
        (curvature, ("SAM", "--device", "nonsense"), "nonsense"),
        (sharpness, ("SAM", "--rho", "0"), "positive numbers"),
        (sharpness, ("SAM", "--m", "0"), "at least 1"),
        (sharpness, ("SAM", "--m", "8,64", "--examples", "40"), "--m 64 is larger than --examples 40"),
        (sharpness, ("SAM", "--m", "500"), "--m 500 is larger than the number of images, 96"),
        (landscape, ("SAM", "SGD", "--points", "9"), "has no effect with 2 runs"),
        (landscape, ("SAM", "SGD", "OTHER", "--seed", "1"), "--seed has no effect with 3 runs"),
        (landscape, ("SAM", "--points", "10"), "give --points 11"),
        (landscape, ("SAM", "--line-points", "50"), "give --line-points 51"),
        (landscape, ("SAM", "SGD", "OTHER", "SGD2"), "is not a folder"),
        (landscape, ("SAM", "SGD", "--batchnorm", "eval"), "features.1.running_mean"),
        (landscape, ("SAM", "SGD", "OTHER", "--batchnorm", "eval"), "use --batchnorm reestimate"),
        (landscape, ("SAM", "--checkpoint", "all"), "invalid choice"),
    ],
)
def test_bad_input_is_refused(runs, call, module, words, message):
    places = {name.upper(): folder for name, folder in runs.items()}
    done = call(module, *(places.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_second_derivatives_are_refused_or_told(call, tmp_path, monkeypatch):
    """Those of weight norm are known to be wrong; others are found by products that are not symmetric."""
    own = SmallCNN.__init__

    @functools.wraps(own)
    def normed(self, *args, **options):
        own(self, *args, **options)
        self.head = nn.utils.parametrizations.weight_norm(self.head[0])

    monkeypatch.setattr(SmallCNN, "__init__", normed)
    run = train_tiny(tmp_path / "run", "max_steps=1")
    done = call(curvature, run, *SMALL, "--trace", "0", "--density", "0")
    assert done.returncode == 1 and f"error: {run} step-" in done.stderr and "weight_norm is wrong" in done.stderr
    monkeypatch.setattr(second_derivatives, "WRONG", {})
    for _ in range(2):  # computed, then read
        done = call(curvature, run, *SMALL, "--trace", "0", "--density", "0")
        assert done.returncode == 0 and "products are not symmetric, by" in done.stdout + done.stderr


def test_groups_of_one_image_are_refused_if_batch_norm_cannot_normalise_them(call, tmp_path, monkeypatch):
    own = SmallCNN.__init__

    @functools.wraps(own)
    def normed(self, *args, **options):
        own(self, *args, **options)
        self.head = nn.Sequential(nn.BatchNorm1d(8), self.head)

    monkeypatch.setattr(SmallCNN, "__init__", normed)
    run = train_tiny(tmp_path / "run", "max_steps=1")
    done = call(sharpness, run, "--m", "1,16", *SMALL)
    assert done.returncode == 2 and "--m 1: batch norm cannot normalise one image" in done.stderr, done.stderr


def test_a_number_format_that_the_network_does_not_compute_in_is_refused(runs, call, monkeypatch):
    own = SmallCNN.forward
    monkeypatch.setattr(SmallCNN, "forward", lambda self, images: own(self, images.float()))
    for module in (curvature, sharpness, landscape):
        done = call(module, runs["sam"], *SMALL, "--dtype", "float64")
        assert done.returncode == 2 and "does not compute in float64" in done.stderr, done.stderr
        assert "leave --dtype out" in done.stderr


def test_a_network_that_is_random_in_evaluation_mode_has_no_measures(runs, call, monkeypatch):
    own = SmallCNN.forward
    monkeypatch.setattr(SmallCNN, "forward", lambda self, images: own(self, F.dropout(images)))
    for module in (curvature, sharpness, landscape):
        done = call(module, runs["other"], *SMALL, "--seed", "7")
        assert done.returncode == 1 and "its loss is random" in done.stderr, done.stderr


def test_frozen_layers_must_be_those_of_the_first_run(call, tmp_path, monkeypatch):
    """The weights of the second run do not make its network of the first one if their frozen layers differ."""
    own = SmallCNN.__init__

    @functools.wraps(own)
    def frozen(self, *args, **options):
        own(self, *args, **options)
        self.features[0].weight.requires_grad_(False)

    monkeypatch.setattr(SmallCNN, "__init__", frozen)
    folders = [train_tiny(tmp_path / seed, f"seed={seed}", "max_steps=1") for seed in "01"]
    done = call(landscape, *folders, *SMALL)
    assert done.returncode == 2 and "differ in features.0.weight, which is not trained" in done.stderr, done.stderr


def test_runs_with_other_labels_are_told(runs, call, tmp_path):
    noisy = train_tiny(tmp_path / "noisy", "noise=symmetric", "noise.rate=0.4", "max_steps=1")
    done = call(landscape, runs["sam"], noisy, *SMALL, "--line-points", "3", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join((done.stdout + done.stderr).split())
    assert "was trained with other training images or labels, label smoothing than sam" in text
    words = ("--steps", "1", "--restarts", "0", "--directions", "1", "--m", "8", "--groups", "1", "--out", tmp_path)
    done = call(sharpness, runs["sam"], noisy, *SMALL, *words)
    assert "the runs differ in data or label noise, which changes the gaps by itself" in done.stdout, done.stderr


def test_as_many_eigenvalues_as_were_asked_for_are_found(runs, call, tmp_path, monkeypatch):
    """The limit of products grows with k, which it would cut otherwise."""
    monkeypatch.setattr("sam_runner.analysis.curvature.MAX_PRODUCTS", 12)
    done = call(curvature, runs["other"], *SMALL, "--k", "15", "--trace", "0", "--density", "0", "--out", tmp_path)
    assert done.returncode == 0 and "lambda_max/lambda_15" in done.stdout
    assert {"lambda_max", "lambda_15"} <= set(pd.read_csv(tmp_path / "curvature.csv"))


def test_answers_of_an_earlier_method_are_computed_anew(runs, call, tmp_path, monkeypatch):
    """An answer that has not converged says so each time it is printed."""
    folder = tmp_path / "run"
    shutil.copytree(runs["sgd"], folder, ignore=shutil.ignore_patterns("analysis"))
    words = (folder, *SMALL, "--trace", "0", "--density", "0")
    monkeypatch.setattr("sam_runner.analysis.curvature.MAX_PRODUCTS", 7)
    for _ in range(2):
        done = call(curvature, *words)
        assert "have not converged" in done.stdout + done.stderr
    monkeypatch.undo()
    (path,) = (folder / "analysis").glob("curvature-*.json")
    content = json.loads(path.read_text())
    content["answers"][0]["settings"].pop("method")
    path.write_text(json.dumps(content))
    again = call(curvature, *words)
    assert "from " not in again.stdout and "have not converged" not in again.stdout + again.stderr


def test_runs_of_other_networks_are_refused(runs, call, tmp_path):
    wider = train_tiny(tmp_path / "wider", "model.width=6", "max_steps=1")
    done = call(landscape, runs["sam"], wider, *SMALL)
    assert done.returncode == 2 and "weights of other shapes" in done.stderr
    assert not (tmp_path / "wider" / "analysis").exists()


def test_all_runs_below_a_folder_are_found(runs, call, tmp_path):
    done = call(landscape, runs["sam"].parent, *SMALL, "--points", "3", "--out", tmp_path)
    assert done.returncode == 0 and (tmp_path / "landscape-plane.csv").is_file()
