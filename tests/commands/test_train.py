"""The command line as a user meets it: exit codes, messages, folders, start-up."""

import json
import math
import os
import re
import resource
import subprocess
import sys

import pytest

from sam_runner import __version__
from sam_runner.commands import evaluate as evaluate_command
from sam_runner.config.help import EXAMPLES
from tests.helpers import TINY, command, invoke

BAD_INPUT = [
    # (arguments, what the message must name, a way out that it must show)
    (["rhoo=0.1"], "rhoo", "did you mean rho?"),
    (["+rhoo=0.1"], "rhoo", "did you mean rho?"),
    (["++lrr=0.1"], "lrr", "did you mean lr?"),
    (["Lr=0.1"], "unknown key Lr", "did you mean lr?"),
    (["+lr=0.1"], "lr exists", "leave out the +: lr="),
    (["optimizer=null"], "optimizer=null is not an option of a group", "optimizer=NAME: adamw, ae_sam, asam, "),
    (["optimizer/base=null"], "optimizer/base=null is not an option", "optimizer/base=NAME: "),
    (["=1"], "=1 has no key", "key=value"),
    (["lr:0.1"], "cannot read the argument 'lr:0.1'", "did you mean lr=0.1?"),
    (["data.root=my", "photos"], "cannot read the argument 'photos'", "quoted, 'data.root=my photos'"),
    (["lr = 0.1"], "cannot read the argument 'lr = 0.1'", "leave out the spaces: lr=0.1"),
    (["seed=range(3)"], "seed=range(3) gives several values", "sam-train -m 'seed=range(3)'"),
    (["optimizer=sam", "rho=0.1,0.2"], "rho=0.1,0.2 gives several values", "sam-train -m optimizer=sam rho=0.1,0.2"),
    (["rho=0.1,0.2", "run_dir=x"], "rho=0.1,0.2 gives several values", "sam-train -m rho=0.1,0.2\n"),
    (["schedule=step", "schedule.milestones=0.5"], "milestones=0.5 has the wrong type", "milestones=[0.1,0.2]"),
    (["weight_decay=-1e40"], "weight_decay=-1e+40 is out of range", "[0, inf)"),
    (["optimizer=sam", "optimizer.ascent=projected"], "optimizer.ascent has no effect", "optimizer.ascent_steps=2"),
    (["optimizer=sam", "optimizer.rho_final=0"], "rho_final has no effect", "use optimizer.rho_schedule=linear"),
    (["dry_run=true,false"], "dry_run=true,false gives several values", "\n  give one value"),
    (["run_dir=a,b"], "run_dir=a,b gives several values", "'run_dir=\"a,b\"'"),
    (
        ["optimizer/base=adamw", "optimizer.base.momentum=0.5"],
        "momentum has no effect with optimizer/base=adamw",
        "optimizer/base=sgd",
    ),
    (["optimizer=sam", "rho=0", "optimizer.p=1"], "optimizer.p has no effect with rho=0", "set rho above 0"),
    (
        ["optimizer=sam", "rho=0", "optimizer.ascent_steps=2"],
        "ascent_steps has no effect with rho=0",
        "set rho above 0",
    ),
    (["+unknown=1"], "unknown", "keys: "),
    (["optimizer=smm"], "optimizer=smm", "did you mean optimizer=sam?"),
    (["optimizr=sam"], "optimizr", "did you mean optimizer?"),
    (["model=resnet21"], "model=resnet21", "did you mean model=resnet20?"),
    (["model=resnet109"], "model=resnet109", "did you mean model=resnet101?"),
    (["optimizer=sam", "optimizer/around=asam"], "optimizer/around has no effect with optimizer=sam", "optimizer=gsam"),
    (["optimizer.around=asam"], "optimizer/around has no effect with the default optimizer", "optimizer=gsam"),
    (["optimizer=sam", "optimizer/around="], "optimizer/around has no effect with optimizer=sam", "optimizer=gsam"),
    (["config=outputs/nope"], "config=outputs/nope is neither a file nor a run", "config=RUN"),
    ([f"config={'x' * 5000}"], "is neither a file nor a run folder", "config=RUN"),
    (["config=~["], "config=~[ is neither a file nor a run", "config=RUN"),
    (["config=/proc/self/mem"], "config=/proc/self/mem cannot be read: ", "config=RUN"),
    (["data=image_folder", f"data.root={'x' * 5000}"], "data.root", "folder"),
    (["config="], "it has no value", "config=outputs/runs/NAME"),
    (["sweep_name=${..x}"], "sweep_name cannot be resolved", "${group.key}"),
    (["lr=${nope}"], "lr cannot be resolved: Interpolation key 'nope' not found", "${group.key}"),
    (["-m", "seed=0,1", "sweep.jobs=${nope}"], "sweep.jobs cannot be resolved", "${group.key}"),
    (["-m", "seed=0,1", "sweep.jobs=1,2"], "sweep.jobs=1,2 gives several values", "give one value"),
    (["-m", "seed=0,1", "sweep.on_error=stop,continue"], "sweep.on_error=stop,continue gives", "give one value"),
    (["-m", "seed=0,1", "sweep_name=a,b"], "sweep_name=a,b gives several values", "give one value"),
    (["-m", "seed=0,1", "dry_run=true,false"], "dry_run=true,false gives several values", "give one value"),
    (["-m", "seed=0,1", "--config-dir", "nope"], "--config-dir nope is not a folder", "your own groups"),
    (["--dry-run"], "--dry-run is not a flag", "no dashes: dry_run=true"),
    (["--multi-run"], "--multi-run is not a flag", "did you mean --multirun?"),
    (["data=imagnet"], "data=imagnet", "did you mean data=imagenet?"),
    (["optimizer/base=adam"], "optimizer/base=adam", "did you mean optimizer/base=adamw?"),
    (["optimizer=sam", "optimizer.roh=0.1"], "optimizer.roh", "did you mean optimizer.rho?"),
    (["optimizer=sam", "+optimizer.extra=1"], "optimizer.extra", "keys: optimizer."),
    (["optimizer.base.momentm=0.1"], "optimizer.base.momentm", "did you mean optimizer.base.momentum?"),
    (["model.wdth=8"], "model.wdth", "did you mean model.width?"),
    (["optimizer.rho=0.1"], "optimizer.rho has no effect with the default optimizer", "optimizer=sam"),
    (["noise.rate=0.4"], "noise.rate has no effect", "noise=symmetric"),
    (
        ["-m", "model=resnet20,resnet32", "model.depth=8"],
        "model.depth before it knows model",
        "'model.depth=choice(8)'",
    ),
    (["noise=none", "noise.rate=0.4"], "noise.rate has no effect with noise=none", "noise=symmetric"),
    (["epochs=abc"], "epochs=abc", "a whole number"),
    (["epochs=1.5"], "epochs=1.5", "a whole number"),
    (["rho=big"], "rho=big", "a number"),
    (["channels_last=maybe"], "channels_last=maybe", "true, false, auto"),
    (["augment.crop_scale_min=0.5"], "augment.crop_scale_min", "data.storage=disk"),
    (["augment=inception", "augment.crop_scale_min=0"], "augment.crop_scale_min=0", "(0, 1]"),
    (["augment=inception"], "augment.crop_scale_min", "data=image_folder"),
    (["augment=autoaugment", "augment.policy=mnist"], "augment.policy=mnist", "cifar10, svhn, imagenet"),
    (["world_size=4"], "world_size=4 was given, but torchrun sets it", "torchrun --nproc-per-node 4"),
    (["sync_batchnorm=true"], "sync_batchnorm has no effect with one process", "torchrun"),
    (["parallel=fsdp"], "parallel=fsdp needs torchrun", "parallel=ddp"),
    (["optimizer=sam", "optimizer.sync_perturbation=true", "optimizer.m=8"], "sync_perturbation", "optimizer.m"),
    (["optimizer=sam", "optimizer.sync_perturbation=true", "optimizer.second_order=true"], "second_order", "=false"),
    (["precision=tf32", "device=cpu"], "precision=tf32", "precision=fp32"),
    (["compile=maybe"], "compile=maybe", "max-autotune"),
    (["data.val_fraction=x"], "data.val_fraction=x", "a number"),
    (["rho=null"], "rho", "needs a value"),
    (["precision=bfloat16"], "precision=bfloat16", "auto, fp64, fp32, tf32, bf16, fp16"),
    (["augment=basic", "augment.pad_mode=wrap"], "augment.pad_mode=wrap", "reflect, zero"),
    (["optimizer=sam", "rho=-1"], "rho=-1", "[0, inf)"),
    (["optimizer=sam", "rho=nan"], "rho=nan", "[0, inf)"),
    (["optimizer=sam", "rho=inf"], "rho=inf", "[0, inf)"),
    (["optimizer=sam", "optimizer.rho=-1"], "optimizer.rho=-1", "[0, inf)"),
    (["optimizer=sam", "optimizer.p=0.5"], "optimizer.p=0.5", "[1, inf]"),
    (["optimizer=sam", "optimizer.p=nan"], "optimizer.p=nan", "[1, inf]"),
    (["lr=0"], "lr=0", "(0, inf)"),
    (["lr=nan"], "lr=nan", "(0, inf)"),
    (["-cp", "x"], "-cp would replace the settings of sam-train", "own groups: --config-dir FOLDER"),
    (["--config-path=x", "-m", "seed=0,1"], "--config-path would replace", "own groups: --config-dir FOLDER"),
    (["--config-path"], "--config-path would replace", "own groups: --config-dir FOLDER"),
    (["-cn", "x"], "-cn would replace the settings of sam-train", "own settings: config=FILE.yaml"),
    (["--config-name", "x"], "--config-name would replace", "own settings: config=FILE.yaml"),
    ([f"schedule={'x' * 5000}"], "is too long for the name of an option", "schedule=xxx"),
    (["weight_decay=1e40"], "weight_decay=1e+40 is too large", "at most 3.4e+38"),
    (
        ["data=synthetic", f"data.image_size={2**64}"],
        "data.image_size=18446744073709551616 is too large",
        "at most 9.22337e+18",
    ),
    (["weight_decay=-1"], "weight_decay=-1", "[0, inf)"),
    (["epochs=0"], "epochs=0", "[1, inf)"),
    (["max_steps=0"], "max_steps=0", "[1, inf)"),
    (["batch_size=0"], "batch_size=0", "[1, inf)"),
    (["label_smoothing=1"], "label_smoothing=1", "[0, 1)"),
    (["seed=-1"], "seed=-1", "[0, "),
    (["grad_clip=0"], "grad_clip=0", "(0, inf)"),
    (["ema_decay=1"], "ema_decay=1", "(0, 1)"),
    (["optimizer.base.momentum=2"], "optimizer.base.momentum=2", "[0, 1)"),
    (["noise=symmetric", "noise.rate=1.1"], "noise.rate=1.1", "[0, 1]"),
    (["noise=symmetric", "noise.rate=-0.1"], "noise.rate=-0.1", "[0, 1]"),
    (["data=synthetic", "data.num_classes=1"], "data.num_classes=1", "[2, inf)"),
    (["schedule=step", "schedule.milestones=[0.5,2]"], "schedule.milestones", "(0, 1)"),
    (["schedule.warmup_epochs=20"], "schedule.warmup_epochs=20", "smaller than epochs"),
    (["accumulate=1000"], "accumulate=1000", "batch_size=128"),
    (["optimizer=sam", "optimizer.m=1000"], "optimizer.m=1000", "batch_size=128"),
    (["optimizer=sgd", "rho=0.3"], "rho has no effect", "optimizer=sam"),
    (["optimizer=sam", "rho=0.1", "optimizer.rho=0.2"], "rho=0.1 and optimizer.rho=0.2", "leave one out"),
    (["optimizer=sam", "optimizer.ascent=projected"], "optimizer.ascent has no effect", "ascent_steps"),
    (["optimizer=sam", "optimizer.rho_final=0.5"], "optimizer.rho_final has no effect", "linear or cosine"),
    (["optimizer=sam", "optimizer.ascent=projected", "optimizer.ascent_steps=2", "optimizer.p=3"], "projected", "p=2"),
    (["optimizer=sam", "optimizer.second_order=true", "optimizer.ascent_steps=2"], "second_order", "ascent_steps=1"),
    (["optimizer=sam", "optimizer.second_order=true", "compile=default"], "second_order", "compile=off"),
    (["optimizer=sam", "optimizer.direction=up"], "optimizer.direction=up", "gradient, random"),
    (["optimizer=sam", "optimizer.direction=random", "optimizer.p=3"], "direction=random needs", "p=2"),
    (["optimizer=sam", "optimizer.direction=random", "optimizer.ascent_steps=2"], "direction=random needs", "steps=1"),
    (
        ["optimizer=sam", "optimizer.direction=random", "optimizer.second_order=true"],
        "direction=random needs",
        "=false",
    ),
    (["optimizer=sam", "optimizer.direction=random", "compile=graph"], "direction=random needs", "other than graph"),
    (
        ["optimizer=sam", "optimizer.direction=random", "optimizer.sync_perturbation=true"],
        "direction=random needs optimizer.sync_perturbation=false",
        "the same on all processes",
    ),
    (["augment.pad_mode=zero"], "augment.pad_mode has no effect", "augment.pad"),
    (["device=tpu"], "device=tpu", "auto, cpu, cuda"),
    (["rho==0.1"], "rho==0.1", "did you mean rho=0.1?"),
    (["rho", "0.1"], "'rho'", "rho=..."),
    (["optimizer/base=adamw", "optimizer.base.betas=[0.9]"], "optimizer.base.betas=[0.9]", "[0.9,0.999]"),
    (["rho=[1"], "rho=[1", "quote"),
    (["--optimizer=sam"], "--optimizer=sam is not a flag", "no dashes: optimizer=sam"),
    (["--epochs", "3"], "--epochs is not a flag", "no dashes: epochs=..."),
    (["-optimizer=sam"], "-optimizer=sam is not a flag", "no dashes: optimizer=sam"),
    (["-q"], "-q is not a flag", "no dashes: q=..."),
    (["--cfg", "rho=1"], "--cfg rho=1 is not accepted", "accepted: job, hydra, all"),
    (["--run=2"], "--run takes no value", "give --run alone"),
    (["seed=1", "-sc"], "-sc needs a value", "install=bash"),
    (["-m", 'grad_clip"=null', "seed=0,1"], "cannot read the argument 'grad_clip\"=null'", "key=value"),
    ([f"lr=1{'0' * 400}"], "has the wrong type", "a number, like 0.05"),
    (["optimizer=sam", "optimizer.name=[1]"], "optimizer.name=[1] is not known", "accepted: sgd"),
    (["seed=1", "--config-dir"], "--config-dir needs a value", "the folder of your own groups"),
    (["-cd=nowhere"], "nowhere is not a folder", "your own groups"),
    (["-m", "rho=glob(*)"], "rho=glob(*) gives no value", "key=1,2"),
    (["-m", "seed=range(3,1)"], "seed=range(3,1) gives no value", "key=1,2"),
    (["sweep.on_error=stop"], "sweep.on_error has no effect", "leave it out"),
    (["search=rho"], "search has no effect without -m", "sam-train -m search="),
    (["-m", "sweep.on_error=go"], "sweep.on_error=go", "continue, stop"),
    (["rho=0.1,0.2"], "rho=0.1,0.2", "sam-train -m rho=0.1,0.2"),
    (["data=image_folder"], "data.root", "data.root=..."),
    (["optimizer/base=torch"], "optimizer.base._target_", "="),
    (["~optimizer"], "optimizer", "optimizer=NAME"),
    (["model._target_=os.system"], "os.system", "SAM_RUNNER_TRUSTED"),
    (["model._target_=sam_runner.utils.files.write_json"], "sam_runner.utils.files.write_json", "SAM_RUNNER_TRUSTED"),
    (["model._target_=subprocess.run"], "subprocess.run", "SAM_RUNNER_TRUSTED"),
    (["optimizer.base._target_=torch.load"], "torch.load", "SAM_RUNNER_TRUSTED"),
    (["+model._partial_=true"], "_partial_", "not supported"),
    (["-m", "run_dir=here", "seed=0,1"], "run_dir", "sweep_name"),
    (["-m", "noise=symmetric", "noise.rate=40", "seed=0,1,2"], "noise.rate=40.0 is out of range", "did you mean 0.4?"),
    (["-m", "checkpoint.keep_epochs=[0,2]", "seed=0,1"], "checkpoint.keep_epochs holds 0", "accepted: [1, inf)"),
    (["optimizer=SAM"], "optimizer=SAM: there is no such option", "did you mean optimizer=sam?"),
    (["-m", "precision=BF16", "seed=0,1"], "precision=BF16 is not known", "did you mean bf16?"),
    (["hydra.mode=MULTIRUN", "seed=0,1"], "hydra.mode", "sam-train -m"),
    (["mine.yaml"], "cannot read the argument 'mine.yaml'", "config=mine.yaml"),
    (["telemetry=full"], "telemetry=full is not accepted", "telemetry.every, telemetry.curvature_epochs"),
    (["model=resnet10t"], "model=resnet10t: there is no such option", "model=timm model.name=resnet10t"),
    (["-m", "search=[rho,mixup]"], "search=[rho,mixup]", "one after the other"),
]


def check_message(done, named, way_out):
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert way_out in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 20


@pytest.mark.parametrize("width", [10**12, 9 * 10**18])
def test_memory_that_the_system_refuses_is_one_message(tmp_path, monkeypatch, capsys, width):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, f"model.width={width}", "run_dir=run")
    assert done.returncode == 1 and done.stderr.startswith("error: out of memory: ")
    assert "dry_run=true estimates the memory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "named", "way_out"), BAD_INPUT, ids=lambda value: " ".join(value)[:60])
def test_bad_input_is_named_with_a_way_out_and_leaves_nothing(arguments, named, way_out, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert not list(tmp_path.iterdir())
    check_message(done, named, way_out)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("arguments", "named", "way_out"),
    [
        (["batch_size=5000"], "batch_size=5000", "data.drop_last=false"),
        (["device=cuda:99"], "device=cuda:99", "device=cpu"),
        (["data=image_folder", "data.root=nowhere"], "data.root=nowhere", "<root>/train/<class>"),
        (["data=image_folder", "data.root=.", "model.weights=gone.pt"], "gone.pt does not exist", "accepted: a file"),
        (["noise=relabelled", "noise.file=nowhere.npy"], "noise.file=nowhere.npy is not a file", "the path"),
        (["data=cifar10", "data.root=nowhere"], "looked for: cifar-10-batches-bin/", "(sha256 c4a38c50a1bc5f3a1c55"),
        (["model=resnet50"], "is for 3 channels, the images have 1", "or other data"),
        (["data=fashion_mnist", "data.root=nowhere"], "nowhere", "data.download=true"),
        (["data.val_fraction=0.0001"], "data.val_fraction=0.0001", "leaves one part empty"),
        (["augment.pad=8"], "augment.pad=8", "images of 8 pixels"),
        (["max_steps=3", "schedule.warmup_epochs=1"], "schedule.warmup_epochs=1", "the whole training is 3"),
        (["model=resnet20", "model.depth=21"], "depth must be 6n + 2", "given:"),
        (["model._target_=sam_runner.data.datasets.digits.gzip.open"], "digits.gzip.open", "trusted module"),
        (["optimizer/base=torch", "optimizer.base._target_=torch.optim.Adagrd"], "Adagrd", "did you mean Adagrad?"),
        (["optimizer/base=torch", "optimizer.base._target_=torch.optim.LBFGS"], "LBFGS", "closure"),
        (
            ["optimizer/base=torch", "optimizer.base._target_=torch.optim.Adagrad", "+optimizer.base.lr_decy=1"],
            "optimizer.base.lr_decy", "did you mean optimizer.base.lr_decay?",
        ),
    ],
    ids=lambda value: " ".join(value)[:60],
)  # fmt: skip
def test_bad_input_that_only_the_data_or_torch_can_show(arguments, named, way_out, tmp_path, monkeypatch, capsys):
    check_message(invoke(monkeypatch, capsys, tmp_path, *arguments), named, way_out)
    assert not list(tmp_path.rglob("*"))


ANSWERS = [
    ["--help"], ["-h"], ["--version"], ["--cfg", "job"], ["rhoo=1"], ["optimizer=sam", "rho=-1"],
    ["data=imagenet", "data.root=nowhere"], ["noise=human", "noise.file=nowhere.pt"],
]  # fmt: skip


def test_answers_without_torch_in_half_the_time_that_torch_takes_to_be_there(tmp_path):
    """Processor time of whole processes. One that took longer is asked again: the machine may have been busy."""
    answer = (
        "import sys; from sam_runner.commands.train import main; sys.argv = ['sam-train', *sys.argv[1:]]; main();"
        "sys.exit(7 if 'torch' in sys.modules or 'tensorboard' in sys.modules else 0)"
    )

    def seconds(code, *words):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, words
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    longest = 0.5 * seconds("import torch")
    slow = [words for words in ANSWERS if seconds(answer, *words) > longest]
    assert [words for words in slow if seconds(answer, *words) > longest] == []


def test_cells_without_their_files_are_refused_without_torch(tmp_path):
    code = (
        "import sys; from sam_runner.commands.train import main\n"
        "sys.argv = ['sam-train', *sys.argv[1:]]; code = main();"
        "sys.exit(100 * ('torch' in sys.modules) + code)"
    )
    words = ["-m", "data=imagenet", "data.root=nowhere", "seed=0,1", "sweep_name=s"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: data.root=nowhere is not a folder: ")
    assert done.stderr.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_version_is_ours(tmp_path, monkeypatch, capsys):
    assert invoke(monkeypatch, capsys, tmp_path, "--version").stdout == f"sam-runner {__version__}\n"


def test_help_lists_groups_options_examples_and_keys_but_no_schema(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for wanted in (
        "sgd*",
        "sam",
        "resnet110",
        "symmetric",
        "fashion_mnist",
        "rho=0.05",
        "-sc install=bash",
        "checkpoint.every_seconds=300",
        "logger=[tensorboard]",
        "layerwise_sam  sam*  sam_on",
        "--version ",
        "sweep.on_error=continue",
        "sweep.jobs=auto",
        "sam-status",
        "exit codes",
    ):
        assert wanted in done.stdout
    assert len(re.findall(r"^  sam-train ", done.stdout, re.MULTILINE)) == 10
    assert "schema" not in done.stdout


def test_every_example_of_the_help_is_accepted(tmp_path, monkeypatch, capsys):
    for example, _ in EXAMPLES:
        words = [word for word in example.split() if word not in ("dry_run=true", "-m")]
        if "-m" in example:  # the first cell
            words = [word.split(",")[0] for word in words]
        done = invoke(monkeypatch, capsys, tmp_path, *words, "--cfg", "job")
        assert done.returncode == 0, done.stderr


def test_cfg_job_prints_the_whole_configuration(tmp_path):
    done = command("--cfg", "job", "optimizer=sam", "rho=0.2", "--resolve", cwd=tmp_path)
    assert done.returncode == 0
    assert "second_order: false" in done.stdout
    assert done.stdout.count("rho: 0.2") == 2


def test_shell_completion_offers_options(tmp_path):
    environment = {"COMP_LINE": "sam-train optimizer=", "COMP_POINT": "20"}
    done = command("-sc", "query=bash", cwd=tmp_path, env=environment)
    assert {"optimizer=sam", "optimizer=sgd"} <= set(done.stdout.split())
    everything = command("-sc", "query=bash", cwd=tmp_path, env={"COMP_LINE": "sam-train ", "COMP_POINT": "10"})
    assert {"augment=", "rho="} <= set(everything.stdout.split())
    assert "schema" not in done.stdout + everything.stdout


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    arguments = ["optimizer=sam", "noise=symmetric", "noise.rate=0.4", "dry_run=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for wanted in (
        "1,442 train",
        "577 training labels corrupted (40.01%)",
        "65,834 parameters",
        "220 in all",
        "sam with rho 0.05, torch.optim.SGD, 2 passes per step",
    ):
        assert wanted in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_plan_says_where_the_data_decide_the_passes(tmp_path, monkeypatch, capsys):
    words = [*TINY, "epochs=1", "optimizer=ae_sam", "optimizer/around=fisher_sam", "dry_run=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert "ae_sam around fisher_sam with rho 0.1, torch.optim.SGD, at most 2 passes per step\n" in done.stdout
    assert re.search(r"6 in all, 6 per epoch, 1 epoch\n  compute    at most [\d.e+]+ FLOPs", done.stdout)


def test_a_sweep_survives_a_failing_cell_and_run_again_does_nothing_twice(tmp_path, monkeypatch, capsys):
    arguments = ["-m", *TINY, "epochs=1", "optimizer=sgd,sam", "rho=0.05,-1", "sweep_name=first"]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 1
    results = list((tmp_path / "outputs" / "sweeps" / "first").glob("*/result.json"))
    assert len(results) == 2
    assert done.stderr.count("error: refused: ") == 2
    assert "rho=-1" in done.stderr
    assert "Traceback" not in done.stderr
    before = {path: path.stat().st_mtime_ns for path in results}
    again = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert again.returncode == 1
    assert again.stdout.count("already finished") == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before


def test_a_list_is_one_value_of_all_jobs(tmp_path, monkeypatch, capsys):
    arguments = ["-m", *TINY, "checkpoint.keep_epochs=[1,2]", "seed=0,1", "dry_run=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "job 2: " in done.stdout


def test_a_dry_sweep_prints_each_different_plan_once_and_the_total(tmp_path, monkeypatch, capsys):
    small = [word for word in TINY if not word.startswith("epochs")]
    arguments = ["-m", *small, "epochs=1,2", "lr=0.1,0.2", "seed=0,1", "dry_run=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    flops = [float(number) for number in re.findall(r"compute +(\S+) FLOPs", done.stdout)]
    assert (len(flops), done.stdout.count("plan (dry run")) == (2, 2)
    assert [done.stdout.count(f": as job {first}\n") for first in (1, 5)] == [3, 3]
    # 96 images in batches of 16: 6 steps per epoch
    total = re.search(r"in all: 8 jobs, (\d+) steps, (\S+) FLOPs", done.stdout)
    assert int(total[1]) == 4 * 6 + 4 * 12
    assert float(total[2]) == pytest.approx(4 * sum(flops), rel=0.01)
    assert not list(tmp_path.iterdir())


def test_telemetry_of_a_sweep_leaves_jobs_without_a_second_pass_alone(tmp_path, monkeypatch, capsys):
    words = [*TINY, "epochs=1", "telemetry.every=2"]
    assert invoke(monkeypatch, capsys, tmp_path, *words, "optimizer=sgd").returncode == 2
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "optimizer=sgd,sam", "sweep_name=s")
    assert done.returncode == 0, done.stderr
    found = {
        path.parent.name.split(",")[0]: "telemetry/cosine" in path.read_text()
        for path in (tmp_path / "outputs" / "sweeps" / "s").glob("*/metrics.jsonl")
    }
    assert found == {"optimizer=sgd": False, "optimizer=sam": True}


def test_a_path_as_the_data_is_answered_with_its_option(tmp_path, monkeypatch, capsys):
    for name in ("photos", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("path,label\n")
    for path, words in {
        "photos": "data=image_folder data.root=photos",
        "saved": "data=hugging_face data.root=saved",
        "labels.csv": "data=image_list data.file=labels.csv",
    }.items():
        done = invoke(monkeypatch, capsys, tmp_path, f"data={path}")
        assert done.returncode == 2 and f"for this path: {words}\n" in done.stderr, done.stderr


def test_a_sweep_of_a_file_with_a_run_dir(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("run_dir: mine\n" + "\n".join(word.replace("=", ": ") for word in TINY))
    words = ["config=mine.yaml", "run_dir=null", "seed=0,1", "sweep_name=s"]
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "sweeps" / "s").glob("*/result.json"))) == 2
    assert not (tmp_path / "mine").exists()


def test_cells_that_differ_only_in_an_unused_rho_are_run_once(tmp_path, monkeypatch, capsys):
    arguments = ["-m", *TINY, "epochs=1", "optimizer=sgd", "rho=0.05,0.1", "sweep_name=one"]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 1
    assert "2 jobs, 1 of them distinct: equal jobs run once\n" in done.stdout
    assert done.stdout.count("\nrun folder ") == 1


def test_an_interrupt_ends_the_sweep_with_its_own_code(tmp_path, monkeypatch, capsys):
    from sam_runner.training import loop

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", interrupt)
    arguments = ["-m", *TINY, "seed=0,1", "sweep_name=stopped"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 130
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("status.json")]
    assert statuses == ["interrupted"]


def test_a_run_without_a_terminal_prints_plain_lines(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert len(re.findall(r"^epoch \d/2 ", done.stdout, re.MULTILINE)) == 2


def test_a_run_tells_what_it_trains_on(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "noise=symmetric", "noise.rate=0.25", "run_dir=run")
    assert "data: 96 train, 32 test images, 4 classes, 24 training labels corrupted (25.00%)\n" in done.stdout
    clean = invoke(monkeypatch, capsys, tmp_path, *TINY, "precision=fp32", "run_dir=clean")
    assert "data: 96 train, 32 test images, 4 classes\n" in clean.stdout


def test_a_diverging_run_exits_with_one_and_says_why(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "lr=1e30", "run_dir=run")
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "failed"
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    evaluated = invoke(monkeypatch, capsys, tmp_path, "run", entry=evaluate_command.main)
    assert evaluated.returncode == 2
    assert "has no checkpoint: the run failed: TrainingError: the " in evaluated.stderr
    assert "sam-train config=run KEY=VALUE run_dir=NEW" in evaluated.stderr


def test_a_run_with_a_huge_loss_is_said_to_have_diverged_once_and_at_its_end(tmp_path, monkeypatch, capsys):
    words = ["lr=1000", "epochs=3", "precision=fp32"]
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, *words, "run_dir=run")
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"^epoch .*  loss (\S+)", done.stdout, re.M)]
    assert min(losses) > 100 * math.log(4)
    lines = done.stdout.splitlines()
    told = [number for number, line in enumerate(lines) if "the run has diverged" in line]
    epochs = [number for number, line in enumerate(lines) if line.startswith("epoch ")]
    assert told == [epochs[0] + 1, epochs[2] + 1]
    fine = invoke(monkeypatch, capsys, tmp_path, *TINY, "epochs=2", "run_dir=fine")
    assert "diverged" not in fine.stdout + fine.stderr


def test_a_default_for_sgd_and_classes_for_cifar_are_remarked(tmp_path, monkeypatch, capsys):
    adamw = ["optimizer=sam", "optimizer/base=adamw"]
    remark = "lr=0.05 is the default for SGD; AdamW usually needs less, such as lr=0.001"
    assert remark in invoke(monkeypatch, capsys, tmp_path, *TINY, *adamw, "run_dir=a").stdout
    assert remark not in invoke(monkeypatch, capsys, tmp_path, *TINY, *adamw, "lr=0.05", "run_dir=b").stdout
    words = ["data.num_classes=10", "noise=asymmetric", "noise.rate=0.5", "run_dir=c"]
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, *words)
    assert "here it replaces class 2 by class 0, class 3 by class 5, " in done.stdout, done.stdout


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path):
    shell = f"{sys.executable} -m sam_runner {' '.join(TINY)} run_dir=run | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"
    assert len(done.stderr.splitlines()) <= 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no config.yaml"),
        (["--chekpoint", "best", "."], "did you mean --checkpoint?"),
        (["--checkpoint", "best"], "required: RUN"),
        (["x", "--checkpoint", "first"], "choose from"),
    ],
)
def test_eval_refuses_bad_input(arguments, named, tmp_path, monkeypatch, capsys):
    check_message(invoke(monkeypatch, capsys, tmp_path, *arguments, entry=evaluate_command.main), named, "")


def test_eval_of_no_run_is_refused_without_torch(tmp_path):
    code = (
        "import sys; from sam_runner.commands.evaluate import main; main()\n"
        "sys.exit(7 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "."], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"holds no run" in done.stderr


def test_a_folder_with_other_files_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "run_dir=mine")
    check_message(done, "run_dir=mine", "empty or new folder")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "run_dir=file/run")
    check_message(done, "file/run", "")


def test_a_tilde_in_a_value_is_the_home_folder(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "run_dir=~/a b", "--cfg", "job")
    assert f"run_dir: {os.path.expanduser('~')}/a b" in done.stdout


def test_info_needs_no_value(tmp_path):
    """In a process of its own: Hydra's --info changes the logging of the process."""
    done = command("seed=1", "-i", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Installed Hydra Plugins" in done.stdout
