"""scripts/growth/measure_growth.py: exponents, and what its report says of them."""

import json
import math

import pytest

from scripts.growth import measure_growth as script


def found(**seconds_by_size):
    return {int(size[1:]): {"wall": cpu, "cpu": cpu, "mib": 100.0} for size, cpu in seconds_by_size.items()}


def test_the_exponent_is_that_of_the_two_largest_sizes():
    square = found(n10=5.0, n100=0.1, n1000=10.0)
    assert script.exponent(square, "cpu", 0.05) == pytest.approx(2)
    assert script.exponent(square, "mib", 20) == pytest.approx(0)
    assert math.isnan(script.exponent(square, "cpu", 0.2))  # too short to measure
    assert math.isnan(script.exponent(found(n10=5.0), "cpu", 0.05))


def test_a_part_that_grows_faster_than_its_work_is_missed(capsys):
    report = script.Report("Growth", script.torch.device("cpu"))
    parts = {"curve of a report": found(n10=1.0, n100=9.0), "sam-status": found(n10=1.0, n100=50.0)}
    script.report_measured(report, {"rows": parts})
    assert [entry["met"] for entry in report.checks] == [True, False]
    assert "MISSED rows of metrics.jsonl, sam-status: exponent: 1.7" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoints", "rows", "runs", "jobs"])
def test_a_quantity_is_measured_at_its_quick_sizes(name, tmp_path):
    measured = script.measure_quantity(name, quick=True)
    quantity = script.QUANTITIES[name]
    assert [*measured] == [*quantity.parts]
    assert all([*sizes] == [*quantity.quick] for sizes in measured.values())
    assert all(values["cpu"] > 0 for sizes in measured.values() for values in sizes.values())
    (tmp_path / "kept.json").write_text(json.dumps({name: measured}))
    assert script.read_measured(tmp_path / "kept.json") == {name: measured}


def test_the_measurement_with_the_least_cpu_time_counts(monkeypatch):
    times = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(script, "measure_in_process", lambda *_: found(n10=next(times))[10])
    counted = script.Quantity("jobs", (10,), (10,), {"plan": lambda *_: lambda: None}, times=3)
    monkeypatch.setitem(script.QUANTITIES, "jobs", counted)
    assert script.measure_quantity("jobs", quick=True) == {"plan": found(n10=1.0)}


def test_measurements_are_drawn_with_their_exponents(tmp_path, drawn_plots):
    measured = {"rows": {"curve of a report": found(n10=1.0, n100=9.0), "sam-status": found(n10=1.0, n100=50.0)}}
    script.draw(measured, "cpu", "CPU seconds", 0.05, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<svg" in text and "curve of a report: 0.95" in text and "sam-status: 1.70" in text
