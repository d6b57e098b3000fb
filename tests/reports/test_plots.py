"""Pictures of points: what they show, and on which scales."""

import numpy as np
import pytest

from ndsm_jax import plots
from ndsm_jax.reports import report


def test_features_of_different_units_have_a_scale_each(rng):
    x = rng.normal(size=(100, 3)) * [1.0, 100.0, 1e-3]
    axis, _ = plots.panels({"data": x, "samples": x}, (3,)).axes
    assert axis.get_aspect() == "auto"
    for limits, of in ((axis.get_xlim(), x[:, 0]), (axis.get_ylim(), x[:, 1])):
        assert np.ptp(of) / np.ptp(limits) == pytest.approx(1 / 1.3)
    assert axis.get_xlabel() == "coordinate 1 of 3"
    axis, _ = plots.panels({"data": x[:, [0, 0]], "samples": x[:, [0, 0]]}, (2,)).axes
    assert (axis.get_aspect(), axis.get_xlabel()) == (1.0, "")


def test_constant_features_have_limits(rng):
    x = np.stack([np.full(50, 3.0), rng.normal(size=50)], axis=1)
    (axis,) = plots.panels({"data": x}, (2,)).axes
    assert axis.get_xlim()[0] < 3.0 < axis.get_xlim()[1]


def test_histograms_have_one_scale(rng):
    sets = {"wide": 5 * rng.normal(size=(400, 1)), "narrow": rng.normal(size=(400, 1))}
    axes = plots.panels(sets, (1,)).axes
    assert len({axis.get_ylim() for axis in axes}) == 1
    (axis,) = plots.rows_figure(sets, (1,), columns=5).axes
    one, other = (patch.get_xy() for patch in axis.patches)
    np.testing.assert_array_equal(one[:, 0], other[:, 0])  # one set of bins
    for corners in (one, other):  # a density: its area is 1
        heights, edges = corners[1:-1:2, 1], np.unique(corners[:, 0])
        assert heights @ np.diff(edges) == pytest.approx(1.0)


def test_a_single_row_is_seen_and_what_is_not_measured_left_out():
    rows = [{"step": 10, "loss": 1.0, "grad_norm": 2.0, "eps_mean": 0.0}]
    figure = plots.curves_figure(rows, report.UNCONTROLLED)
    assert [axis.get_title() for axis in figure.axes] == ["loss", "grad norm"]
    assert all(line.get_marker() == "." for axis in figure.axes for line in axis.get_lines())
