"""Monotone maps of columns: there and back, shares, tails, densities, and when they are chosen."""

import numpy as np
import pytest
from scipy import stats

from ndsm_jax.columns import FAR, Column, fit_scale, squeezed

N = 1000


def columns_of_numbers(rng) -> dict[str, tuple[np.ndarray, bool]]:
    """Values, and whether they are whole numbers."""
    normal = rng.normal(size=N)
    return {
        "normal": (normal, False),
        "units of 1e6": (1e6 * normal + 3e6, False),
        "units of 1e-6": (1e-6 * normal, False),
        "small beside its offset": (1e4 + 1e-3 * normal, False),
        "heavy tails": (rng.standard_t(2, size=N), False),
        "skewed": (np.exp(2 * normal), False),
        "an outlier": (np.append(normal[1:], 1e6), False),
        "an outlier of few": (np.append(normal[:49], 1e6), False),
        "half at zero": (np.where(normal < 0, 0.0, normal), False),
        "a sentinel": (np.where(normal < -1, -99.0, 100 + normal), False),
        "two spikes": (np.where(normal < -1, -1.0, np.where(normal > 0.5, 2.0, normal)), False),
        "few values": (np.round(normal) / 4, False),
        "tenths": (normal.round(1), False),
        "all but one alike": (np.eye(N)[0], False),
        "constant": (np.full(N, 0.1), False),
        "counts": (rng.poisson(30.0, size=N).astype(float), True),
        "few counts": (rng.poisson(1.0, size=N).astype(float), True),
        "counts with gaps": (rng.choice([0.0, 1.0, 5.0, 90.0], size=N), True),
        "counts mostly 0": (rng.poisson(rng.gamma(0.05, 2000, size=N)).astype(float), True),
        "a constant count": (np.full(N, 7.0), True),
        "large counts": (np.rint(1e6 * np.exp(normal)), True),
        "ten values": (normal[:10], False),
    }


CASES = list(columns_of_numbers(np.random.default_rng(0)))


@pytest.mark.parametrize("transform", ["auto", "standardised", "quantile"])
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, transform, rng):
    """Of every value, from wherever in its stretch; in order; nothing is infinite or clipped."""
    values, integer = columns_of_numbers(rng)[name]
    scale = fit_scale(values, integer=integer, transform=transform)
    low, high = scale.stretches(values, integer=integer)
    assert np.isfinite([low, high]).all()
    assert (high >= low).all()
    spread = max(np.ptp(values), 1e-300)
    for share in (1e-3, 0.5, 1 - 1e-3):
        back = scale.values(low + share * (high - low), integer=integer)
        if integer:
            np.testing.assert_array_equal(back, values)
        else:
            np.testing.assert_allclose(back, values, atol=1e-12 * spread, rtol=1e-12)
    # Stretches of different values do not overlap, and are in order.
    order = np.argsort(values, kind="stable")
    low, high, ordered = low[order], high[order], values[order]
    other = np.diff(ordered) > 0
    assert (high[:-1] <= low[1:] + 1e-12)[other].all()
    assert np.isfinite(scale.log_volume(values, integer=integer)).all()
    # States stay where a network sees them, of any value of a quantile column.
    if scale.normal:
        assert np.abs([low, high]).max() < 4
    far = scale.values(np.array([-1e3, 1e3]), integer=integer)
    assert np.isfinite(far).all()
    assert far[0] <= values.min()
    assert far[1] >= values.max()


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("normal", False),
        ("units of 1e6", False),
        ("small beside its offset", False),
        ("tenths", False),
        ("counts", False),
        ("constant", True),  # discrete, of one value
        ("heavy tails", True),
        ("skewed", True),
        ("an outlier", True),
        ("an outlier of few", True),
        ("half at zero", True),
        ("few values", True),
        ("few counts", True),
        ("counts mostly 0", True),
        ("large counts", True),
        ("ten values", False),
    ],
)
def test_the_map_that_is_chosen(name, normal, rng):
    values, integer = columns_of_numbers(rng)[name]
    assert fit_scale(values, integer=integer).normal == normal


def test_a_standardised_column_has_mean_0_and_variance_1(rng):
    values = 1e4 + 1e-3 * rng.normal(size=N)
    low, high = fit_scale(values, integer=False).stretches(values, integer=False)
    np.testing.assert_array_equal(low, high)
    np.testing.assert_allclose([low.mean(), low.std()], [0, 1], atol=1e-6)


def test_shares_of_values_that_stand_out_are_exact(rng):
    """They are the normal probabilities of the stretches: a normal coordinate has them right."""
    for name in ("half at zero", "two spikes", "few values", "few counts", "counts with gaps"):
        values, integer = columns_of_numbers(rng)[name]
        scale = fit_scale(values, integer=integer)
        found, counts = np.unique(values, return_counts=True)
        found, counts = found[counts >= 100], counts[counts >= 100]
        low, high = scale.stretches(found, integer=integer)
        # But for the outermost half rows.
        probability = stats.norm.cdf(high) - stats.norm.cdf(low)
        np.testing.assert_allclose(probability, counts / N, atol=0.6 / N)


@pytest.mark.parametrize("name", ["heavy tails", "skewed", "half at zero", "counts mostly 0"])
def test_normal_coordinates_have_the_law_of_the_column(name, rng):
    """A normal state is the ideal model of one column: against draws that the map did not see."""
    values, integer = columns_of_numbers(rng)[name]
    unseen, _ = columns_of_numbers(np.random.default_rng(1))[name]
    scale = fit_scale(values, integer=integer)
    made = scale.values(rng.normal(size=20 * N), integer=integer)
    # 1.95 sqrt(1/n + 1/m) is exceeded with probability 1e-3; fit and test each have N draws.
    assert stats.ks_2samp(made, unseen).statistic < 1.95 * (2 / N + 1 / len(made)) ** 0.5
    # Nothing lies at the ends but what the data have there.
    for end in (values.min(), values.max()):
        assert (made == end).mean() <= (values == end).mean() + 3 / N


def test_an_outlier_stays_a_rarity(rng):
    values, _ = columns_of_numbers(rng)["an outlier"]
    made = fit_scale(values, integer=False).values(rng.normal(size=100 * N), integer=False)
    assert np.abs(made).max() < 1e8
    assert 0 < (np.abs(made) > 10).mean() < 3 / N  # one of N rows
    assert stats.kstest(made, "norm").statistic < 1.95 * (1 / N) ** 0.5


def test_ends_are_open(rng):
    """Of uniform values some samples lie beyond each end, few and near, and none upon it."""
    values = rng.uniform(size=N)
    for transform in ("standardised", "quantile"):
        scale = fit_scale(values, integer=False, transform=transform)
        made = scale.values(rng.normal(size=20 * N), integer=False)
        assert made.min() < values.min()
        assert made.max() > values.max()
        assert len(np.unique(made)) == len(made)
        if transform == "quantile":
            assert made.min() > -0.1
            assert made.max() < 1.1
            assert ((made < values.min()) | (made > values.max())).mean() < 3 / N


@pytest.mark.parametrize("transform", ["standardised", "quantile"])
def test_log_volume_is_the_slope_of_the_map(transform, rng):
    """By differences of the inverse, away from knots; then densities integrate to one."""
    values = rng.standard_t(2, size=N)
    scale = fit_scale(values, integer=False, transform=transform)
    y = rng.normal(size=50)
    x, step = scale.values(y, integer=False), 1e-7
    slope = (scale.values(y + step, integer=False) - x) / step
    found = scale.log_volume(x, integer=False)
    np.testing.assert_allclose(found, -np.log(slope), rtol=1e-4)
    grid = np.linspace(-60, 60, 400_001)
    low, _ = scale.stretches(grid, integer=False)
    density = stats.norm.pdf(low) * np.exp(scale.log_volume(grid, integer=False))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=5e-3)


def test_a_normal_coordinate_is_a_good_density_of_heavy_tails(rng):
    """On unseen draws, within 0.05 nats of the true law's; a normal law of x loses half a nat."""
    values, unseen = rng.standard_t(2, size=(2, 4000))
    scale = fit_scale(values, integer=False)
    low, _ = scale.stretches(unseen, integer=False)
    found = stats.norm.logpdf(low) + scale.log_volume(unseen, integer=False)
    truth = stats.t(2).logpdf(unseen)
    assert (truth - found).mean() < 0.05
    assert (truth - stats.norm(values.mean(), values.std()).logpdf(unseen)).mean() > 0.5


def test_entropies_of_stretches(rng):
    """By quadrature; with a normal state the bound of log P is log P itself."""
    values, integer = columns_of_numbers(rng)["few counts"]
    scale = fit_scale(values, integer=integer)
    k = np.array([0.0, 1.0, 2.0])
    low, high = scale.stretches(k, integer=integer)
    for a, b, found in zip(low, high, scale.log_volume(k, integer=integer), strict=True):
        y = np.linspace(a, b, 20_001)
        share = stats.norm.cdf(b) - stats.norm.cdf(a)
        q = stats.norm.pdf(y) / share
        np.testing.assert_allclose(found, -np.trapezoid(q * np.log(q), y), atol=1e-6)
        bound = np.trapezoid(q * stats.norm.logpdf(y), y) + found
        np.testing.assert_allclose(np.exp(bound), share, rtol=1e-5)
    linear = fit_scale(values, integer=True, transform="standardised")
    step = np.hypot(values.std(), 12**-0.5)
    np.testing.assert_allclose(linear.log_volume(k, integer=True), -np.log(step))


def test_what_was_never_seen_is_taken_for_the_nearest():
    """In a discrete column; others have a place for anything."""
    values = np.repeat([0.0, 1.0, 5.0, 90.0], 50)
    scale = fit_scale(values, integer=True)
    low, high = scale.stretches(np.array([-7.0, 2.0, 4.0, 40.0, 1000.0]), integer=True)
    back = scale.values((low + high) / 2, integer=True)
    np.testing.assert_array_equal(back, [0, 1, 5, 5, 90])
    assert np.isfinite(scale.log_volume(np.array([2.0, 40.0]), integer=True)).all()
    half = fit_scale(np.where(np.arange(N) % 2, 0.0, np.arange(N) + 100.0), integer=False)
    low, _ = half.stretches(np.array([50.0, -3.0, 1e5]), integer=False)
    np.testing.assert_allclose(half.values(low, integer=False)[[0, 2]], [50, 1e5], rtol=1e-9)
    assert np.isfinite(half.log_volume(np.array([50.0]), integer=False)).all()


def test_far_is_measured_against_normal_draws():
    """The largest of N normal draws is about Phi^-1(1 - 1/2N) away."""
    rng = np.random.default_rng(3)
    expected = stats.norm.ppf(1 - 0.5 / N)
    for factor, normal in ((0.9 * FAR, False), (1.3 * FAR, True)):
        values = rng.normal(size=N)
        values[0] = factor * expected
        assert fit_scale(values, integer=False).normal == normal


@pytest.mark.parametrize("integer", [True, False])
def test_a_value_that_no_row_had_is_rarer_than_any(rng, integer):
    """1 / n of the nearest one's probability, and not that of the nearest one."""
    values = rng.choice([0, 1, 4], p=[0.2, 0.3, 0.5], size=200) * (1.0 if integer else 0.1)
    scale = fit_scale(values, integer=integer)
    seen = np.unique(values)
    step = seen[1]
    np.testing.assert_array_equal(scale.unseen(seen), False)
    np.testing.assert_array_equal(scale.unseen(seen.astype(np.float32)), False)
    other = np.array([2, 99, 1e9, -7]) * step
    np.testing.assert_array_equal(scale.unseen(np.append(other, np.nan)), [1, 1, 1, 1, 0])
    nearest = np.array([1, 4, 4, 0]) * step
    found = scale.log_volume(other, integer=integer)
    expected = scale.log_volume(nearest, integer=integer) - np.log(200)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    gaps = fit_scale(np.append(np.zeros(100), rng.normal(5, 1, 100)), integer=False)
    assert not gaps.unseen(np.array([1.0, 20.0])).any()  # among numbers any number may come


def test_columns_as_json():
    column = Column(name="a", kind="categorical", levels=("x", True, 3), missing=True)
    assert Column.from_json(column.to_json()) == column
    assert (column.width, column.constant, column.ordered) == (2, False, False)
    assert Column(name="b", kind="numeric", low=2.0, high=2.0).width == 0
    assert Column(name="c", kind="categorical", levels=("x",)).constant


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (lambda rng: rng.normal(size=1000), False),
        (lambda rng: rng.standard_t(2, size=1000), False),
        (lambda rng: np.exp(3 * rng.normal(size=1000)), True),
        (lambda rng: np.append(rng.normal(size=999), 1e6), True),
        (lambda rng: 1e4 + 1e-3 * np.append(rng.normal(size=999), 1e6), True),
        (lambda rng: np.full(1000, 7.0), False),
        (lambda rng: np.where(rng.random(1000) < 0.9, 0.0, rng.normal(5, 1e-3, 1000)), False),
        (lambda rng: np.append(np.zeros(900), np.append(rng.normal(size=99), 1e6)), True),
        (lambda rng: (rng.random(1000) < 0.002).astype(float), False),
        (lambda rng: rng.normal(np.sign(rng.normal(size=1000)), 1e-4), False),
    ],
)
def test_what_far_values_leave_no_room(rng, law, expected):
    """A middle of 1 beside a deviation of 3e4 is as good as a point."""
    assert squeezed(law(rng)) is expected
