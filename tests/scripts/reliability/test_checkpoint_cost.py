"""scripts/reliability/checkpoint_cost.py times the saves of the program as it is now."""

import pytest

from scripts.reliability.checkpoint_cost import measure_run

TINY = ["data=synthetic", "data.num_train=32", "data.num_test=16", "data.image_size=8", "model.width=4", "epochs=2"]


@pytest.mark.slow
@pytest.mark.parametrize("saves", [True, False])
def test_the_saves_of_a_run_are_timed_or_left_out(saves, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM_RUNNER_STARTED", "another call")
    number, inside, whole = measure_run(saves, [*TINY, "checkpoint.min_interval=0", "batch_size=16"], f"{tmp_path}/run")
    assert number == 2 and 0 <= inside < whole
    assert (tmp_path / "run" / "checkpoints").exists() == saves
