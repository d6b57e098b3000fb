"""The frame of a table: there and back, ideal models, missing cells, densities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ndsm_jax import measurements, references, table_frame
from ndsm_jax.columns import Column
from ndsm_jax.frames import OfComponent, chained, component_mixture, states
from ndsm_jax.table_frame import LEVEL_DISTANCE, LEVEL_NOISE, TableFrame, frame_like

N = 4000
RARE = 0.02
COLOURS = ("blue", "green", "red")


def number(name: str, kind: str = "numeric", **more) -> Column:
    return Column(name=name, kind=kind, low=0.0, high=1.0, **more)


def category(name: str, levels=COLOURS, **more) -> Column:
    return Column(name=name, kind="categorical", levels=tuple(levels), **more)


MIXED = (
    number("big", missing=True),
    category("colour", missing=True),
    number("tiny", missing=True),
    number("count", "integer", missing=True),
    number("rain", missing=True),
)


def mixed(rng, num: int = N) -> np.ndarray:
    """Complete rows: units of 1e6 and 1e-6, counts, half zeros, and a rare level, all dependent."""
    colour = rng.choice(3, size=num, p=[RARE, 0.2, 0.78])
    z = rng.normal(size=num) + 1.5 * (2 - colour)
    return np.stack(
        [
            1e6 * z + 3e6,
            colour,
            1e-6 * np.exp(0.8 * rng.normal(size=num) + 0.5 * z),
            rng.poisson(np.exp(1 + 0.4 * z)),
            np.where(rng.random(num) < 1 / (1 + np.exp(z)), 0, np.exp(rng.normal(size=num))),
        ],
        axis=1,
    )


def with_gaps(rng, x: np.ndarray, share: float = 0.05) -> np.ndarray:
    return np.where(rng.random(x.shape) < share, np.nan, x)


@pytest.fixture(scope="module")
def fitted() -> tuple[TableFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    x = with_gaps(rng, mixed(rng))
    return table_frame.table_frame(MIXED, x), x


def test_rows_leave_as_they_entered(fitted):
    """Cells that were there, at every visit; all cells are filled; a visit draws anew."""
    frame, x = fitted
    assert frame.random
    assert (frame.data_dim, frame.dim) == (5, 6)
    there = ~np.isnan(x)
    visits = [states(frame, x, seed=seed) for seed in (0, 1)]
    for y in visits:
        assert y.dtype == np.float32
        assert y.shape == (N, 6)
        assert np.abs(y).max() < 6
        back = frame.leave(y)
        assert np.isfinite(back).all()
        exact = [1, 3]
        np.testing.assert_array_equal(back[:, exact][there[:, exact]], x[:, exact][there[:, exact]])
        zero = x[:, 4] == 0
        np.testing.assert_array_equal(back[zero, 4], 0)
        for i in (0, 2, 4):
            error = np.abs(back - x)[there[:, i], i].max()
            assert error < 1e-5 * np.nanstd(x[:, i])
    assert (visits[0][:, :2] == visits[1][:, :2])[there[:, [0, 2]]].all()  # a point each
    for place in (2, 3, 4, 5):
        assert (visits[0][:, place] != visits[1][:, place]).mean() > 0.4
    np.testing.assert_array_equal(visits[0], states(frame, x, seed=0))


def test_an_ideal_model_has_the_marginals_of_the_data(fitted):
    """States drawn anew from rows with replacement: what a perfect model would make.

    Against rows that the frame did not see and that miss no cell. 1.95 sqrt(1/n + 1/m) is exceeded
    with probability 1e-3. The share of the rare level: within two standard errors of the data's.
    """
    frame, x = fitted
    rng = np.random.default_rng(1)
    made = frame.leave(states(frame, x[rng.integers(N, size=N)], seed=7))
    unseen = mixed(rng)
    for i in (0, 2, 3, 4):
        assert stats.ks_2samp(made[:, i], unseen[:, i]).statistic < 1.95 * (2 / N) ** 0.5
    seen = x[~np.isnan(x[:, 1]), 1]
    for level in range(3):
        share = (seen == level).mean()
        assert abs((made[:, 1] == level).mean() - share) < 2 * (share * (1 - share) / N) ** 0.5
    # Nothing piles up at the ends of the range: but for counts and zeros they hold a row each.
    for i in (0, 2):
        for end in (np.nanmin(x[:, i]), np.nanmax(x[:, i])):
            assert (np.abs(made[:, i] - end) < 1e-6 * np.nanstd(x[:, i])).sum() < 6


def test_cells_that_are_missing_at_random_are_completed_by_the_law_of_the_others():
    """y is missing where x > 0, and depends on x: its mean is that of all rows."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, 2)) @ np.array([[1.0, 0.9], [0.0, 0.4]])
    colour = (x[:, 0] + 0.3 * rng.normal(size=N) > 0).astype(float)
    truth = np.column_stack([x, colour])
    gaps = truth.copy()
    gaps[(x[:, 0] > 0) & (rng.random(N) < 0.7), 1] = np.nan
    gaps[rng.random(N) < 0.3, 2] = np.nan
    columns = (number("x"), number("y", missing=True), category("c", ("n", "y"), missing=True))
    frame = table_frame.table_frame(columns, gaps)
    full = frame.complete(gaps, seed=3)
    there = ~np.isnan(gaps)
    np.testing.assert_array_equal(full[there], gaps[there])
    assert abs(np.nanmean(gaps[:, 1])) > 0.2  # of the cells that are there
    # A third of the rows is drawn: the mean has a standard error of 0.4 sqrt(1400) / 4000 = 0.004
    # by the draws, and by what 600 rows where x > 0 say of the law one of 0.01.
    assert abs(full[:, 1].mean() - truth[:, 1].mean()) < 0.04
    slope = np.polyfit(full[:, 0], full[:, 1], 1)[0]
    np.testing.assert_allclose(slope, 0.9, atol=0.04)
    np.testing.assert_allclose(np.std(full[:, 1] - 0.9 * full[:, 0]), 0.4, atol=0.03)
    # Levels that are drawn follow the sign of x, as those that were there do.
    drawn = ~there[:, 2]
    agreement = [np.mean((full[rows, 2] > 0) == (full[rows, 0] > 0)) for rows in (drawn, ~drawn)]
    np.testing.assert_allclose(agreement[0], agreement[1], atol=0.06)


def test_draws_given_some_coordinates_have_the_conditional_law(rng):
    """Component weights, mean and covariance by the textbook's formulas, in NumPy."""
    d, k = 3, 2
    roots = rng.normal(size=(k, d, d))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(d)
    means, weights = rng.normal(size=(k, d)), np.array([0.3, 0.7])
    mixture = references.mixture(weights, means, covariances, covariance="full")
    y, seen = np.array([0.4, 9.0, -0.8], np.float32), np.array([True, False, True])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.vmap(lambda key: table_frame._completed(mixture, key, jnp.asarray(y), seen))
    found = np.asarray(draw(keys))
    np.testing.assert_array_equal(found[:, seen], np.broadcast_to(y[seen], (len(found), 2)))
    moments = []
    for w, m, c in zip(weights, means, covariances, strict=True):
        c_ss, c_us = c[np.ix_(seen, seen)], c[1, seen]
        odds = w * stats.multivariate_normal(m[seen], c_ss).pdf(y[seen])
        gain = np.linalg.solve(c_ss, c_us)
        moments.append((odds, m[1] + gain @ (y[seen] - m[seen]), c[1, 1] - gain @ c_us))
    odds, centre, variance = np.array(moments).T
    law = odds / odds.sum()
    mean = law @ centre
    second = law @ (variance + centre**2) - mean**2
    deviation = np.sqrt(second / len(found))
    assert abs(found[:, 1].mean() - mean) < 4 * deviation
    np.testing.assert_allclose(found[:, 1].var(), second, rtol=0.05)


def test_levels_are_equally_far_apart_and_never_change(rng):
    """Fifty levels: corners of a simplex, and noise that crosses no border."""
    columns = (category("level", [f"l{i}" for i in range(50)]),)
    x = rng.integers(50, size=(20_000, 1)).astype(float)
    x[:50, 0] = np.arange(50)
    frame = table_frame.table_frame(columns, x)
    corners = frame.coordinates(np.arange(50.0)[:, None])
    assert corners.shape == (50, 49)
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=-1)[np.triu_indices(50, 1)]
    np.testing.assert_allclose(apart, LEVEL_DISTANCE)
    y = states(frame, x)
    np.testing.assert_array_equal(frame.leave(y), x)
    # The standard error of a deviation is LEVEL_NOISE / sqrt(2 * 20,000 * 49) = 1.8e-4.
    noise = y - frame.coordinates(x)
    np.testing.assert_allclose(noise.std(), LEVEL_NOISE, atol=1e-3)


def test_log_det_of_numbers_is_that_of_a_numerical_jacobian(rng):
    x = np.stack([1e6 * rng.normal(size=500), 1e-6 * rng.standard_t(2, size=500)], axis=1)
    frame = table_frame.table_frame((number("a"), number("b")), x)
    found = frame.log_det(x[:20])
    y = frame.coordinates(x[:20])
    columns = []
    for i in range(2):
        e = 1e-6 * np.eye(2)[i]
        columns.append((frame.leave(y + e) - frame.leave(y - e)) / 2e-6)
    expected = -np.linalg.slogdet(np.stack(columns, axis=2))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # A change of units changes it by the logarithm of the units.
    other = table_frame.table_frame((number("a"), number("b")), x * [1e-3, 10.0])
    np.testing.assert_allclose(other.log_det(x[:20] * [1e-3, 10.0]), found + np.log(1e3 / 10))


def test_log_det_of_a_category_bounds_its_probability(rng):
    """Of the law of the states themselves, a mixture: the bound is tight where levels are apart."""
    shares = np.array([0.02, 0.2, 0.78])
    x = rng.choice(3, size=(N, 1), p=shares).astype(float)
    frame = table_frame.table_frame((category("colour"),), x)
    corners = frame.coordinates(np.arange(3.0)[:, None])
    law = references.mixture(shares, corners, np.full(3, LEVEL_NOISE**2))
    log_prob = np.asarray(law.log_prob(states(frame, x))) + frame.log_det(x)
    for level in range(3):
        of_level = log_prob[x[:, 0] == level]
        # The entropy's estimate by n draws in two dimensions has a standard error of 1 / sqrt(n).
        error = 4 / len(of_level) ** 0.5
        np.testing.assert_allclose(of_level.mean(), np.log(shares[level]), atol=error)


def test_density_of_rows_with_missing_cells_is_refused(fitted):
    frame, x = fitted
    with pytest.raises(ValueError, match=r"row \d+ is one of \d+ with missing cells: it has no"):
        frame.log_det(x)
    assert np.isfinite(frame.log_det(frame.complete(x))).all()
    whole = table_frame.table_frame((number("a"),), np.arange(50.0)[:, None])
    with pytest.raises(ValueError, match="row 0 is one of 1 with missing cells: the frame knows"):
        whole.prepare(np.array([[np.nan]]))


def test_states_of_what_is_known(fitted):
    """For conditional laws: the coordinates of cells that are there, and which these are."""
    frame, _ = fitted
    x = np.array([[3e6, np.nan, np.nan, 2.0, np.nan], [np.nan, 0.0, 1e-6, np.nan, 0.0]])
    y, seen = frame.seen(x)
    blocks = frame.blocks
    assert list(blocks) == ["big", "colour", "tiny", "count", "rain"]
    expected = np.zeros((2, 6), bool)
    for row, names in enumerate((("big", "count"), ("colour", "tiny", "rain"))):
        for name in names:
            expected[row, blocks[name]] = True
    np.testing.assert_array_equal(seen, expected)
    back = frame.leave(y)
    there = ~np.isnan(x)
    np.testing.assert_allclose(back[there], x[there], rtol=1e-5)


def test_coordinates_are_the_middles_of_what_enters(fitted):
    frame, x = fitted
    at = frame.coordinates(x)
    missing = np.isnan(x)[:, [0, 2, 3, 4, 1, 1]]
    np.testing.assert_array_equal(np.isnan(at), missing)
    mean = np.mean([states(frame, x, seed=seed) for seed in range(20)], axis=0)
    # Levels: 20 draws of noise; a stretch is at most as wide as half of the normal law.
    assert np.abs(mean - at)[:, 4:][~missing[:, 4:]].max() < 5 * LEVEL_NOISE / 20**0.5
    assert np.abs(mean - at)[:, :2][~missing[:, :2]].max() < 1e-5
    np.testing.assert_array_equal(frame.leave(at)[~np.isnan(x[:, 3]), 3], x[~np.isnan(x[:, 3]), 3])


def test_what_diverged_stays_visible(fitted):
    frame, _ = fitted
    y = np.zeros((2, 6))
    y[0, frame.blocks["colour"].start], y[1, frame.blocks["big"].start] = np.nan, np.inf
    lost = np.isnan(frame.leave(y))
    np.testing.assert_array_equal(lost, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_a_constant_column_takes_no_coordinate(rng):
    columns = (
        Column(name="c", kind="numeric", low=5.0, high=5.0),
        number("a"),
        category("one", ["x"]),
        category("two", ["n", "y"]),
    )
    x = np.stack([np.full(60, 5.0), rng.normal(size=60), np.zeros(60), np.arange(60) % 2], axis=1)
    frame = table_frame.table_frame(columns, x)
    assert frame.dim == 2
    y = states(frame, x)
    np.testing.assert_allclose(frame.leave(y), x, atol=1e-6)
    assert frame.blocks == {
        "c": slice(0, 0),
        "a": slice(0, 1),
        "one": slice(1, 1),
        "two": slice(1, 2),
    }
    with pytest.raises(ValueError, match="every column of the table is constant"):
        table_frame.table_frame(columns[:1], x[:, :1])
    with pytest.raises(ValueError, match="column 'a' has no value among the 60 training rows"):
        table_frame.table_frame(columns[1:2], np.full((60, 1), np.nan))


@pytest.mark.parametrize("kept", [None, [0], [1], [3, 1]])
def test_a_frame_is_restored_into_its_like(kept, fitted):
    """The structure follows from the columns; sizes of arrays are read from the checkpoint."""
    frame, x = fitted
    if kept is not None:
        columns = tuple(dataclasses.replace(MIXED[i], missing=False) for i in kept)
        frame = table_frame.table_frame(columns, x[~np.isnan(x).any(axis=1)][:, kept])
    like = frame_like(frame.columns)
    assert jax.tree.structure(frame) == jax.tree.structure(like)
    kinds = [jax.tree.map(lambda a: (type(a), a.dtype, a.ndim), f) for f in (frame, like)]
    assert jax.tree.leaves(kinds[0]) == jax.tree.leaves(kinds[1])
    assert like.dim == frame.dim
    again = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(frame))
    y = np.ones((3, frame.dim))
    np.testing.assert_array_equal(again.leave(y), frame.leave(y))


def test_decimals_of_the_data_are_those_of_samples(rng):
    x = rng.normal(size=(100, 1)).round(1)
    frame = table_frame.table_frame((number("a", decimals=1),), x)
    made = frame.leave(rng.normal(size=(50, 1)))
    np.testing.assert_array_equal(made, made.round(1))
    np.testing.assert_array_equal(frame.leave(states(frame, x)), x)


def test_fifty_rows_with_gaps():
    rng = np.random.default_rng(4)
    x = with_gaps(rng, mixed(rng, 50), 0.1)
    frame = table_frame.table_frame(MIXED, x)
    assert frame.completion.num_components == 1
    full = frame.complete(x)
    assert np.isfinite(full).all()
    np.testing.assert_array_equal(full[~np.isnan(x)], x[~np.isnan(x)])


def test_a_hundred_thousand_rows():
    rng = np.random.default_rng(5)
    complete = tuple(dataclasses.replace(column, missing=False) for column in MIXED)
    x = mixed(rng, 100_000)
    frame = table_frame.table_frame(complete, x)
    y = states(frame, x)
    np.testing.assert_array_equal(frame.leave(y)[:, [1, 3]], x[:, [1, 3]])
    assert len(frame.knots_x) < 500


def test_a_frame_that_draws_may_go_first(fitted):
    """Then a component's coordinates: the linear baselines work on tables."""
    frame, x = fitted
    x = x[~np.isnan(x).any(axis=1)][:100]
    mixture = references.mixture([0.5, 0.5], [[0.0] * 6, [1.0] * 6], [0.5, 1.0])
    both = chained(dataclasses.replace(frame, completion=None), OfComponent(mixture=mixture))
    assert both.random
    assert component_mixture(both) is mixture
    prepared = both.prepare(x)
    np.testing.assert_array_equal(prepared, frame.prepare(x))
    y, component = both.enter(jax.random.key(1), jnp.asarray(prepared))
    back = both.leave(np.asarray(y), component)
    np.testing.assert_array_equal(back[:, [1, 3]], x[:, [1, 3]])
    np.testing.assert_allclose(back[:, 0], x[:, 0], atol=50)
    # A density of its own, for the condition that was drawn.
    total = both.log_det(x, component)
    np.testing.assert_allclose(
        total, frame.log_det(x) + both.inner.log_det(prepared, component), rtol=1e-6
    )


def test_positions_of_no_level_are_refused():
    columns = (category("k", (3, 5, 7)), number("x"))
    rows = np.array([[0.0, 0.1], [1.0, 0.5], [2.0, 0.9]] * 5)
    frame = table_frame.table_frame(columns, rows)
    for value in (7.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"'k': {value:g} is the position of no level"):
            frame.prepare(np.array([[value, 0.5]]))
        with pytest.raises(ValueError, match="the positions 0 to 2 of its levels 3, 5, 7"):
            frame.measured(measurements.given([[value, np.nan]]))


def test_a_table_of_words_alone_is_kept_in_a_checkpoint(tmp_path):
    from ndsm_jax import NDSM

    rng = np.random.default_rng(0)
    rows = [[sky, "wet" if sky == "rain" else "dry"] for sky in rng.choice(["sun", "rain"], 60)]
    model = NDSM(steps=20, random_state=0).fit(rows)
    model.save(tmp_path / "words")
    again = NDSM.load(tmp_path / "words")
    np.testing.assert_array_equal(
        again.sample(20, random_state=1), model.sample(20, random_state=1)
    )
