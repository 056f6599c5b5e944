"""Coordinates of slices: the checkpoints themselves are on every slice."""

import numpy as np
import pytest

from sam_runner.analysis.landscape import centred_coordinates, path_coordinates, plane_coordinates


@pytest.mark.parametrize("num_points", [3, 4, 5, 6, 7, 10, 51, 52, 101])
def test_a_path_contains_both_checkpoints_and_is_symmetric(num_points):
    found = path_coordinates(num_points)
    assert len(found) == num_points and 0.0 in found and 1.0 in found
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-9)
    assert found[0] + found[-1] == pytest.approx(1)
    if num_points > 20:
        assert found[0] == pytest.approx(-0.25, abs=0.03)


@pytest.mark.parametrize("extent", [0.3, 1.0, 1e-3])
def test_a_line_contains_its_checkpoint(extent):
    for num_points in (3, 25, 51):
        found = centred_coordinates(extent, num_points)
        assert found[num_points // 2] == 0.0 and (found[0], found[-1]) == (-extent, extent)
        np.testing.assert_allclose(found, np.linspace(-extent, extent, num_points), atol=1e-15)


@pytest.mark.parametrize("places", [(0.0, 5.0, 2.3), (0.0, 5.0, 5.01), (0.0, 5.0, -0.04), (0.0, 0.0, 3.0)])
def test_the_axes_of_a_plane_contain_the_checkpoints(places):
    for num_points in (5, 25):
        found = plane_coordinates(places, num_points)
        assert len(found) == num_points and set(places) <= set(found)
        assert (np.diff(found) > 0).all()
    assert found[0] < min(places) and found[-1] > max(places)
