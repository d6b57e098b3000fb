"""Frames: round trips in the precision of the data, densities, and what may follow what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import frames, references
from ndsm_jax.frames import (
    Angles,
    Augmented,
    Chained,
    Identity,
    OfComponent,
    Pixels,
    Standardised,
    chained,
    component_mixture,
    standardised,
    states,
)

KEY = jax.random.key(0)
FULL = np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.05], [-0.05, 0.1]]])
MIXTURE = references.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], FULL, covariance="full")


def badly_scaled(rng, num: int = 500) -> np.ndarray:
    """Features of units 1, 1e-6 and 1e6, and one at an offset of 1e4 with a spread of 1e-3."""
    x = rng.normal(size=(num, 4))
    return x * [1.0, 1e-6, 1e6, 1e-3] + [0.0, 3e-6, -2e6, 1e4]


def numerical_log_det(frame, x: np.ndarray, condition=None, *, step: float) -> float:
    """log |det dy / dx| of frame.leave's inverse at a state, by central differences in float64."""
    y = np.asarray(frame.prepare(x[None]), np.float64)
    if condition is not None:
        y = np.asarray(frame.mixture.standardise(condition[0], jnp.asarray(x[None])), np.float64)
    columns = []
    for i in range(y.shape[1]):
        e = np.zeros_like(y)
        e[0, i] = step
        high, low = (np.asarray(frame.leave(z, condition), np.float64) for z in (y + e, y - e))
        columns.append((high - low)[0] / (2 * step))
    return -np.linalg.slogdet(np.stack(columns, axis=1))[1]


# --- standardised ---


def test_standardised_keeps_every_feature_to_a_millionth_of_its_own_spread(rng):
    x = badly_scaled(rng)
    frame = standardised(x)
    y = frame.prepare(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-5)
    entered, condition = frame.enter(KEY, jnp.asarray(y))
    assert condition is None
    back = frame.leave(np.asarray(entered), condition)
    assert back.dtype == np.float64
    error = np.abs(back - x).max(axis=0) / x.std(axis=0)
    assert error.max() < 1e-6, error


def test_float32_alone_would_not_do(rng):
    """The test above is none of luck: float32 has 1e-3 there, the whole spread of the feature."""
    x = badly_scaled(rng)
    rounded = x.astype(np.float32).astype(np.float64)
    assert np.abs(rounded - x)[:, 3].max() / x[:, 3].std() > 0.1


def test_constant_features_become_zero_and_leave_as_the_constant(rng):
    x = rng.normal(size=(100, 4)) * [2.0, 0.0, 0.0, 0.0] + [1.0, 0.1, 1e4 + 0.1, 0.0]
    frame = standardised(x)
    np.testing.assert_array_equal(frame.shift[1:], x[0, 1:])
    np.testing.assert_array_equal(frame.prepare(x)[:, 1:], 0)
    np.testing.assert_array_equal(frame.leave(rng.normal(size=(100, 4)))[:, 1:], x[:, 1:])


def test_standardised_keeps_a_feature_that_is_small_beside_its_offset_but_not_constant(rng):
    """A spread of 1e-6 about 1e4 is data, of 1e-10 relative: it is scaled like any other."""
    x = 1e4 + 1e-6 * rng.normal(size=(400, 1))
    frame = standardised(x)
    np.testing.assert_allclose(frame.prepare(x).std(), 1, atol=1e-4)


def test_shared_has_one_shift_and_one_scale(rng):
    x = rng.normal(size=(300, 5)) * [1, 2, 3, 4, 5] + 7
    frame = standardised(x, shared=True)
    assert frame.shift.shape == frame.scale.shape == (5,)
    assert np.ptp(frame.shift) == np.ptp(frame.scale) == 0
    y = frame.prepare(x)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-5)
    assert np.ptp(y.std(axis=0)) > 0.5  # the features keep their proportions
    np.testing.assert_allclose(frame.leave(y), x, atol=1e-5)
    constant = standardised(np.full((10, 3), 4.0), shared=True)
    np.testing.assert_array_equal(constant.prepare(np.full((10, 3), 4.0)), 0)


def test_standardised_log_det_is_that_of_a_numerical_jacobian(rng):
    x = badly_scaled(rng)[:, :3]
    frame = standardised(x)
    found = frame.log_det(x[:7])
    assert found.shape == (7,)
    np.testing.assert_allclose(found, numerical_log_det(frame, x[0], step=1e-3), rtol=1e-6)
    # Then log p(x) = log p(y) + log_det, for a normal law of the states.
    shift, scale = frame.shift, frame.scale
    y = (x[:7] - shift) / scale
    normal = -0.5 * (y**2).sum(axis=1) - 1.5 * np.log(2 * np.pi)
    by_hand = -0.5 * (((x[:7] - shift) / scale) ** 2).sum(axis=1) - 0.5 * np.log(
        (2 * np.pi) ** 3 * np.prod(scale) ** 2
    )
    np.testing.assert_allclose(normal + found, by_hand, rtol=1e-10)


# --- angles, pixels, velocities ---


@pytest.mark.parametrize("period", [2 * np.pi, 1.0])
def test_angles_wrap_into_half_a_period_about_zero(period, rng):
    frame = Angles(period=period)
    x = rng.uniform(-20, 20, size=(200, 3))
    for wrapped in (frame.prepare(x), frame.leave(x, None)):
        assert np.abs(wrapped).max() <= 0.5 * period * (1 + 1e-6)
        turns = (wrapped - x) / period
        np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)
    inside = rng.uniform(-0.49, 0.49, size=(50, 3)) * period
    np.testing.assert_allclose(frame.leave(frame.prepare(inside), None), inside, atol=1e-5)
    np.testing.assert_allclose(frame.prepare(x), frame.prepare(x + 3 * period), atol=1e-4)
    entered, _ = frame.enter(KEY, jnp.asarray(frame.prepare(inside)))
    np.testing.assert_array_equal(entered, frame.prepare(inside))  # the states themselves run free
    np.testing.assert_array_equal(frame.log_det(x), 0)


@pytest.mark.parametrize("period", [2 * np.pi, 360.0])
def test_angles_leave_in_the_interval_of_the_data(period, rng):
    """Six conventions side by side; the last, unwrapped, has no interval of one period."""
    low = np.array([-0.5, 0.0, 0.5, -0.25, 0.0, -1.0])
    reach = np.array([1.0, 1.0, 1.0, 0.5, 0.3, 3.0])
    x = period * (low + reach * rng.uniform(size=(400, 6)))
    frame = Angles.of(x, period=period)
    np.testing.assert_array_equal(frame.start, [-0.5, 0.0, 0.5, -0.5, -0.5, -0.5])
    states = frame.prepare(x)
    assert np.abs(states).max() <= 0.5 * period * (1 + 1e-6)  # wherever samples leave
    turns = rng.integers(-3, 4, size=x.shape)
    left = frame.leave(states.astype(np.float64) + period * turns)
    np.testing.assert_allclose(left[:, :5], x[:, :5], atol=2e-6 * period)
    assert np.abs(left[:, 5]).max() <= 0.5 * period
    np.testing.assert_array_equal(Angles(period=period).start, [-0.5])


def test_angles_on_circles(rng):
    """Chords do not know where an angle is cut, and are lengths of arcs where these are short."""
    x, frame = rng.uniform(-180, 180, size=(50, 3)), Angles(period=360.0)
    on = frame.on_circles(x)
    assert on.shape == (50, 6)
    np.testing.assert_allclose(frame.on_circles(x + 720), on, atol=1e-10)
    radius = 180 / np.pi
    np.testing.assert_allclose(np.hypot(on[:, :3], on[:, 3:]), radius)
    chord = np.linalg.norm(on - frame.on_circles(x + np.array([90.0, 0.0, 0.0])), axis=1)
    np.testing.assert_allclose(chord, 2**0.5 * radius)
    arc = np.linalg.norm(on - frame.on_circles(x + np.array([0.1, 0.0, 0.0])), axis=1)
    np.testing.assert_allclose(arc, 0.1, rtol=1e-5)


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_pixels_leave_as_the_levels_that_entered(levels):
    """For every level and many draws; the states fill the gaps between levels evenly."""
    frame = Pixels(levels=levels)
    x = np.tile(np.linspace(-1, 1, levels), (200, 1)).astype(np.float32)
    entered, condition = frame.enter(KEY, jnp.asarray(frame.prepare(x)))
    np.testing.assert_allclose(frame.leave(np.asarray(entered), condition), x, atol=1e-6)
    offset = (np.asarray(entered) - x) * (levels - 1) / 2
    assert np.abs(offset).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(offset.var(), 1 / 12, rtol=0.15)
    again, _ = frame.enter(jax.random.key(1), jnp.asarray(x))
    assert np.abs(again - entered).max() > 0  # anew at every visit
    outside = frame.leave(np.array([[-3.0, 0.0, 3.0]]), None)
    assert (outside.min(), outside.max()) == (-1, 1)


def test_augmented_adds_velocities_that_samples_leave_without(rng):
    frame = Augmented(std=jnp.float32(0.3))
    x = frame.prepare(rng.normal(size=(4000, 2)))
    y, condition = frame.enter(KEY, jnp.asarray(x))
    assert y.shape == (4000, 4)
    assert condition is None
    np.testing.assert_array_equal(y[:, :2], x)
    # The standard error of a deviation is 0.3 / sqrt(2 * 4000) = 0.0034.
    np.testing.assert_allclose(np.std(y[:, 2:], axis=0), 0.3, atol=0.014)
    assert abs(np.corrcoef(np.asarray(y).T)[:2, 2:]).max() < 0.07
    np.testing.assert_array_equal(frame.leave(np.asarray(y), None), x)
    with pytest.raises(ValueError, match="marginalised"):
        frame.log_det(x)


# --- components ---


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical", "low_rank"])
def test_component_log_det_is_that_of_its_covariance(covariance, rng):
    shapes = {
        "full": FULL,
        "diag": np.array([[0.05, 0.1], [0.2, 0.1]]),
        "spherical": np.array([0.05, 0.2]),
        "low_rank": references.LowRank(
            np.array([0.05, 0.2]), np.broadcast_to(np.eye(2, 1), (2, 2, 1)), np.full((2, 1), 0.3)
        ),
    }
    means = [[-1.0, 0.5], [1.0, -0.5]]
    mixture = references.mixture([0.3, 0.7], means, shapes[covariance], covariance=covariance)
    frame = OfComponent(mixture=mixture)
    x = rng.normal(size=(6, 2)).astype(np.float32)
    component = np.array([0, 1, 1, 0, 0, 1])
    found = frame.log_det(x, component)
    # y = Sigma^{-1/2} (x - mu): leaving maps unit vectors to the columns of the root.
    for k in (0, 1):
        leave = lambda y, k=k: frame.leave(np.float32(y)[None], np.array([k]))[0]  # noqa: E731
        root = np.stack([leave(e) - leave(np.zeros(2)) for e in np.eye(2)], axis=1)
        np.testing.assert_allclose(
            found[component == k], -np.linalg.slogdet(root)[1], rtol=1e-4, atol=1e-5
        )
        sign, log_det = np.linalg.slogdet(root @ root.T)
        np.testing.assert_allclose(found[component == k], -0.5 * log_det, rtol=1e-4, atol=1e-5)
        assert sign == 1
        if covariance == "full":
            np.testing.assert_allclose(root @ root.T, FULL[k], atol=1e-6)


def test_component_coordinates_leave_as_they_entered(rng):
    frame = OfComponent(mixture=MIXTURE)
    x = rng.normal(size=(50, 2)).astype(np.float32)
    y, component = frame.enter(KEY, jnp.asarray(frame.prepare(x)))
    assert set(np.asarray(component)) == {0, 1}
    np.testing.assert_allclose(frame.leave(np.asarray(y), component), x, atol=1e-5)
    np.testing.assert_array_equal(frame.describe(component), np.asarray(MIXTURE.means)[component])


# --- one after the other ---


def test_chained_is_one_frame_after_the_other(rng):
    x = badly_scaled(rng)[:, :2] + [5.0, 0.0]
    outer, inner = standardised(x), OfComponent(mixture=MIXTURE)
    frame = chained(outer, inner)
    assert isinstance(frame, Chained)
    assert frame.random
    assert component_mixture(frame) is MIXTURE
    prepared = frame.prepare(x)
    np.testing.assert_array_equal(prepared, outer.prepare(x))
    y, component = frame.enter(KEY, jnp.asarray(prepared))
    expected, same = inner.enter(KEY, jnp.asarray(prepared))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(component, same)
    back = frame.leave(np.asarray(y), component)
    assert (np.abs(back - x).max(axis=0) / x.std(axis=0)).max() < 1e-5
    np.testing.assert_array_equal(frame.describe(component), inner.describe(component))
    total = frame.log_det(x, component)
    parts = outer.log_det(x) + inner.log_det(prepared, component)
    np.testing.assert_allclose(total, parts, rtol=1e-6)
    # d y / d x, column by column, at one item.
    k = np.asarray(component)[:1]
    columns = []
    for i, step in enumerate(1e-2 * x.std(axis=0)):
        e = np.zeros(2)
        e[i] = step
        high, low = (MIXTURE.standardise(k, outer.prepare(x[:1] + s * e)) for s in (1, -1))
        columns.append(np.asarray(high - low, np.float64)[0] / (2 * step))
    log_det = np.linalg.slogdet(np.stack(columns, axis=1))[1]
    np.testing.assert_allclose(total[0], log_det, rtol=1e-4)


def test_chains_of_one_link_are_that_link():
    outer = Standardised(shift=np.zeros(2), scale=np.ones(2))
    assert chained(outer, Identity()) is outer
    assert chained(Identity(), outer) is outer
    assert component_mixture(frames.Identity()) is None


def test_both_links_of_a_chain_may_draw():
    """Each with a key of its own: the noise of grey levels is not that of the velocities."""
    frame = chained(Pixels(levels=5), Augmented(std=jnp.float32(1)))
    x = np.random.default_rng(0).choice(np.linspace(-1, 1, 5), size=(4000, 2))
    y, _ = frame.enter(KEY, jnp.asarray(frame.prepare(x)))
    noise = np.asarray(y)[:, :2] - x
    np.testing.assert_allclose(noise.var(axis=0), 0.25 / 12, rtol=0.1)
    # Correlations of independent draws have a standard error of 1 / sqrt(4000) = 0.016.
    both = np.concatenate([noise, np.asarray(y)[:, 2:]], axis=1)
    assert np.abs(np.corrcoef(both.T) - np.eye(4)).max() < 0.07
    np.testing.assert_array_equal(frame.leave(np.asarray(y), None), x)


def test_states_of_many_data_are_those_of_one_visit(rng):
    """In chunks, a function of the seed; as they are, where nothing is drawn."""
    x = rng.choice(np.linspace(-1, 1, 5), size=(25, 2))
    frame = Pixels(levels=5)
    found = states(frame, x, seed=1, chunk=10)
    assert np.abs(found - x).max() <= 0.25 + 1e-6
    assert len(np.unique(found - x)) == 50
    np.testing.assert_array_equal(found, states(frame, x, seed=1, chunk=10))
    assert (found != states(frame, x, seed=2, chunk=10)).all()
    plain = standardised(x)
    np.testing.assert_array_equal(states(plain, x), plain.prepare(x))


@pytest.mark.parametrize(
    "frame",
    [
        Identity(),
        Standardised(shift=np.zeros(2), scale=np.ones(2)),
        Angles(),
        Pixels(),
        OfComponent(mixture=MIXTURE),
        Augmented(std=jnp.float32(1)),
        Chained(outer=Angles(), inner=Pixels()),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_frames_are_pytrees_that_compiled_code_takes(frame):
    x = jnp.asarray(frame.prepare(np.zeros((3, 2))))
    y, condition = jax.jit(lambda frame, key, x: frame.enter(key, x))(frame, KEY, x)
    eager, expected = frame.enter(KEY, x)
    np.testing.assert_allclose(y, eager, atol=1e-6)
    assert jax.tree.structure(condition) == jax.tree.structure(expected)
    assert frame.leave(np.asarray(y), condition).shape == (3, 2)
    assert np.isfinite(y).all()
