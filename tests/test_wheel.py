"""The program as installed: from a wheel and from a checkout, by console script and as a module, from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sam_runner
from tests.helpers import TINY, command

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory):
    """The wheel, built offline and unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_file_of_conf_and_the_entry_points(unpacked_wheel):
    conf = unpacked_wheel / "sam_runner" / "conf"
    inside = {path.relative_to(conf) for path in conf.rglob("*.yaml")}
    assert inside == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    (entry_points,) = unpacked_wheel.glob("*.dist-info/entry_points.txt")
    assert "sam-train = sam_runner.commands.train:main" in entry_points.read_text()
    assert not (unpacked_wheel / "conf").exists()


@pytest.mark.parametrize("way", [pytest.param("module", marks=pytest.mark.slow), "console script"])
def test_the_wheel_trains_from_another_folder(unpacked_wheel, tmp_path, way):
    environment = os.environ | {"PYTHONPATH": str(unpacked_wheel), "OMP_NUM_THREADS": "1"}
    script = tmp_path / "bin" / "sam-train"  # as pip writes it
    script.parent.mkdir()
    script.write_text("import sys\nfrom sam_runner.commands.train import main\nsys.exit(main())\n")
    start = ["-m", "sam_runner"] if way == "module" else [str(script)]
    done = subprocess.run(
        [sys.executable, *start, *TINY, "epochs=1", "optimizer=sam", "run_dir=run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()
    where = subprocess.run(
        [sys.executable, "-c", "import sam_runner.commands.train as c; print(c.CONF)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()) == unpacked_wheel / "sam_runner" / "conf"


@pytest.mark.slow
def test_the_checkout_trains_from_another_folder(tmp_path):
    assert (Path(sam_runner.__file__).parent.parent / "conf").is_dir()
    done = command(*TINY, "epochs=1", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_own_options_from_another_folder(tmp_path):
    own = tmp_path / "mine" / "augment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [none, _self_]\npad: 1\npad_mode: zero\ncutout: 2\n")
    done = command("--config-dir", tmp_path / "mine", "augment=mine", "--cfg", "job", cwd=tmp_path)
    assert "cutout: 2" in done.stdout
