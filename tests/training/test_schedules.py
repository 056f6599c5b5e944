"""Schedules against closed forms."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_runner.training import schedules

DECAYING = (schedules.constant, schedules.cosine, schedules.linear, schedules.step)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (50, 0.8535533905932737), (100, 0.5), (150, 0.14644660940672627), (200, 0.0)]
)
def test_cosine_closed_form(step, factor):
    lr = 0.1 * schedules.cosine(total_steps=200)(step)
    assert lr == pytest.approx(0.1 * factor, abs=1e-12)


def test_cosine_halves_are_mirror_images():
    factor = schedules.cosine(total_steps=37)
    assert all(factor(t) + factor(37 - t) == pytest.approx(1, abs=1e-12) for t in range(38))


def test_cosine_ends_at_final():
    factor = schedules.cosine(total_steps=60, final_factor=0.1)
    assert [factor(t) for t in (0, 20, 30, 60)] == pytest.approx([1, 0.775, 0.55, 0.1], abs=1e-12)


def test_linear_closed_form():
    factor = schedules.linear(total_steps=10, final_factor=0.2)
    assert [factor(t) for t in range(11)] == pytest.approx([1 - 0.08 * t for t in range(11)], abs=1e-12)


def test_constant_is_one_everywhere():
    factor = schedules.constant(total_steps=7)
    assert {factor(t) for t in range(7)} == {1.0}


def test_step_default_milestones_are_60_120_160_of_200():
    factor = schedules.step(total_steps=200)
    expected = [1.0] * 60 + [0.2] * 60 + [0.04] * 40 + [0.008] * 40
    assert [factor(t) for t in range(200)] == pytest.approx(expected, abs=1e-12)


def test_step_milestones_count_from_the_end_of_warmup():
    factor = schedules.step(total_steps=24, warmup_steps=4, milestones=[0.5, 0.75], gamma=0.1)
    expected = [0.25, 0.5, 0.75] + [1.0] * 11 + [0.1] * 5 + [0.01] * 5
    assert [factor(t) for t in range(24)] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(remaining=st.integers(2, 5000), warmup=st.integers(0, 50), data=st.data())
def test_step_drops_exactly_at_a_milestone(remaining, warmup, data):
    milestone = data.draw(st.integers(1, remaining - 1))
    factor = schedules.step(
        total_steps=warmup + remaining, warmup_steps=warmup, milestones=[milestone / remaining], gamma=0.5
    )
    assert (factor(warmup + milestone - 1), factor(warmup + milestone)) == (1.0, 0.5)


@pytest.mark.parametrize("schedule", DECAYING)
def test_warmup_rises_linearly_to_one(schedule):
    factor = schedule(total_steps=20, warmup_steps=5)
    assert [factor(t) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1], abs=1e-12)


def test_cosine_after_warmup_runs_over_the_remaining_steps():
    factor = schedules.cosine(total_steps=110, warmup_steps=10)
    expected = [(1 + math.cos(math.pi * t / 100)) / 2 for t in range(100)]
    assert [factor(10 + t) for t in range(100)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", DECAYING)
def test_warmup_of_the_whole_run(schedule):
    factor = schedule(total_steps=4, warmup_steps=4)
    assert [factor(t) for t in range(4)] == [0.25, 0.5, 0.75, 1.0]


@settings(deadline=None)
@given(
    schedule=st.sampled_from(DECAYING),
    total_steps=st.integers(1, 300),
    warmup=st.floats(0, 1),
    final_factor=st.floats(0, 1),
)
def test_factor_rises_in_warmup_then_falls_and_stays_in_range(schedule, total_steps, warmup, final_factor):
    warmup_steps = int(warmup * total_steps)
    options = {"final_factor": final_factor} if schedule in (schedules.cosine, schedules.linear) else {}
    factor = schedule(total_steps=total_steps, warmup_steps=warmup_steps, **options)
    values = [factor(t) for t in range(total_steps)]
    rising, falling = values[:warmup_steps], values[warmup_steps:]
    assert rising == sorted(rising)
    assert all(0 < value <= 1 for value in rising)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert all(options.get("final_factor", 0) - 1e-12 <= value <= 1 + 1e-12 for value in falling)


@settings(deadline=None)
@given(schedule=st.sampled_from(DECAYING), total_steps=st.integers(1, 100))
def test_factor_does_not_change_after_the_end(schedule, total_steps):
    factor = schedule(total_steps=total_steps)
    assert factor(total_steps) == factor(10 * total_steps + 3)
