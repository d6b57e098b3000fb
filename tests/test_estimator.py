"""The estimator: densities and samples of tables, as scikit-learn has them."""

import pathlib
import pickle
import re

import numpy as np
import pandas
import pytest
import scipy.stats
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import ndsm_jax
from ndsm_jax import NDSM, frames, references

TINY = {"network.width": 8, "network.depth": 1, "network.time_features": 4, "noising.k": 1}


def tiny(**options) -> NDSM:
    settings = TINY | options.pop("settings", {})
    options = {"steps": 4, "batch_size": 16, "random_state": 0} | options
    return NDSM(settings=settings, **options)


def flowers() -> np.ndarray:
    """Iris as people have it: numbers, and the species in words."""
    iris = load_iris()
    table = np.empty((len(iris.data), 5), object)
    table[:, :4] = iris.data
    table[:, 4] = np.array(["setosa", "versicolor", "virginica"])[iris.target]
    return table


@pytest.fixture(scope="module")
def fitted() -> NDSM:
    return tiny(num_components=2, covariance="diag").fit(flowers())


def test_a_model_that_learnt_nothing_has_the_density_of_its_mixture():
    """In the units of the data, by SciPy, with the log-determinant of standardisation."""
    x = np.random.default_rng(0).normal(size=(90, 2)) @ [[300.0, 0.02], [0.0, 0.01]] + [5e4, 1.0]
    numeric = {f"column_{i}": "numeric+standardised" for i in (1, 2)}
    settings = {"optimizer.learning_rate": 1e-12}
    made = tiny(columns=numeric, settings=settings, covariance="full", num_components=2).fit(x)
    mixture = made.model_.experiment.components
    factors = np.asarray(mixture.factor, np.float64)
    scale, shift = _standardisation(made)
    y = (x - shift) / scale
    parts = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(y) + log_weight
        for mean, factor, log_weight in zip(
            np.asarray(mixture.means), factors, np.asarray(mixture.log_weights), strict=True
        )
    ]
    expected = logsumexp(parts, axis=0) - np.log(scale).sum()
    np.testing.assert_allclose(made.score_samples(x), expected, atol=2e-3)
    assert made.score(x) == pytest.approx(expected.mean(), abs=1e-3)


def _standardisation(made: NDSM) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of each column, from where two states leave."""
    frame = made.model_.experiment.frame.outer
    at_zero, at_one = frame.leave(np.array([[0.0, 0.0], [1.0, 1.0]]))
    return at_one - at_zero, at_zero


def test_samples_come_as_the_rows_did(fitted):
    rows = fitted.sample(40)
    assert rows.shape == (40, 5)
    assert rows.dtype == object
    assert set(rows[:, 4]) == {"setosa", "versicolor", "virginica"}
    assert np.isfinite(rows[:, :4].astype(float)).all()
    np.testing.assert_array_equal(rows, fitted.sample(40))
    assert (rows[:, 0] != fitted.sample(40, random_state=7)[:, 0]).any()
    numbers = tiny(num_components=1).fit(np.round(load_iris().data * 10).astype(np.int32))
    assert numbers.sample(3).dtype == np.int32
    rng = np.random.default_rng(0)
    small = np.clip(rng.normal(250, 9, size=(60, 2)), 0, 255).astype(np.uint8)
    drawn = tiny(num_components=1, covariance="spherical").fit(small)
    wide, values = drawn.sample(200), drawn.model_.sample(200, seed=drawn._draw_seed(None))
    assert values.max() > 255  # a byte does not hold them
    np.testing.assert_array_equal(wide, values)


def test_one_folder_and_one_pickle_keep_everything(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    again = NDSM.load(tmp_path / "model")
    assert again.get_params() == fitted.get_params()
    x = flowers()[:5]
    for other in (again, pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.sample(6), fitted.sample(6))
        np.testing.assert_array_equal(other.score_samples(x), fitted.score_samples(x))
        assert other.n_features_in_ == 5
    model = ndsm_jax.load(tmp_path / "model")
    y = np.zeros((2, model.experiment.process.dim), np.float32)
    condition = np.zeros(2, np.int32)
    assert model.score(y, condition=condition).shape == y.shape
    np.testing.assert_array_equal(model.log_prob(x), fitted.score_samples(x))
    again.save(tmp_path / "twice")
    np.testing.assert_array_equal(NDSM.load(tmp_path / "twice").sample(6), fitted.sample(6))


def test_it_is_an_estimator(fitted):
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.sample()
    x = load_iris().data
    pipeline = make_pipeline(StandardScaler(), tiny(num_components=2, covariance="diag"))
    assert np.isfinite(pipeline.fit(x).score(x))


TUTORIAL = pathlib.Path(__file__).parents[1] / "docs" / "estimator.md"


@pytest.mark.slow
def test_the_tutorial_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL))
    names: dict = {}
    exec(compile(code, str(TUTORIAL), "exec"), names)
    assert names["new"].shape == (200, 14)
    assert np.isfinite(names["densities"]).all()


QUICK_CHECKS = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_estimators_fit_returns_self",
    "check_estimators_unfitted",
    "check_fit1d",
    "check_fit2d_1sample",
    "check_estimator_sparse_array",
    "check_complex_data",
    "check_valid_tag_types",
)


@pytest.mark.parametrize("name", QUICK_CHECKS)
def test_scikit_learn_checks_it(name):
    """Those of its checks that take a second at most."""
    estimator = tiny(num_components=1, covariance="diag", steps=1)
    getattr(estimator_checks, name)("NDSM", estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_passes_it():
    """All of its checks that apply, by the tags of the estimator."""
    estimator = tiny(num_components=1, covariance="spherical")
    logs = estimator_checks.check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {log["check_name"]: log["exception"] for log in logs if log["status"] == "failed"}
    assert not failed
    assert sum(log["status"] == "passed" for log in logs) > 30


def test_the_density_of_a_row_is_its_own():
    """Also where whole numbers are spread by noise: whatever rows stand beside it."""
    x = np.random.default_rng(0).integers(0, 5, (24, 2))
    made = tiny(num_components=1, covariance="spherical").fit(x)
    of_rows = made.score_samples(x)
    np.testing.assert_allclose(made.score_samples(x[::-1])[::-1], of_rows, rtol=1e-6)
    np.testing.assert_allclose(made.score_samples(x[3:5]), of_rows[3:5], rtol=1e-6)
    equal = (x == x[0]).all(axis=1)
    np.testing.assert_allclose(of_rows[equal], of_rows[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({}, lambda: flowers()[:6], "a minimum of 10 rows is required, and X has 6"),
        ({"settings": {"network.widht": 3}}, flowers, "widht.*width"),
        ({"settings": {"train.steps": 3}}, flowers, "train.steps.*sets itself"),
        ({"settings": {"process.mass": 3.0}}, flowers, "process.mass.*no effect"),
        ({"covariance": "round"}, flowers, "NDSM: covariance='round'"),
        ({"columns": {"x": "numeric"}}, flowers, "no column 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(options, rows, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).fit(rows())


def test_cells_that_are_given_stay_and_the_others_are_drawn(fitted):
    rows = fitted.condition({"column_5": "setosa", 0: 5.0}).sample(30)
    assert set(rows[:, 4]) == {"setosa"}
    np.testing.assert_allclose(rows[:, 0].astype(float), 5.0, rtol=1e-6)
    assert len(np.unique(rows[:, 1].astype(float))) > 5
    # Setosa's petals are 1.46 +- 0.17 cm long, all others' 3 cm or more.
    assert np.median(rows[:, 2].astype(float)) < 2.5
    with pytest.raises(ValueError, match="no column 'colour'"):
        fitted.condition({"colour": 1})
    with pytest.raises(ValueError, match="no level 'rose'"):
        fitted.condition({"column_5": "rose"})


def test_gaps_are_filled_row_by_row(fitted):
    rows = flowers()[[0, 60, 120]]
    gaps = rows.copy()
    gaps[0, 2], gaps[1, [0, 4]] = None, None
    full = fitted.impute(gaps)
    known = np.array([[cell is not None for cell in row] for row in gaps])
    assert (full[known] == rows[known]).all()
    assert not any(cell is None or cell != cell for cell in full.ravel())
    assert full[1, 4] in ("setosa", "versicolor", "virginica")
    np.testing.assert_array_equal(fitted.impute(rows), rows)


def test_imputed_rows_are_as_they_were_given(fitted):
    rows = [[5.1, 3.5, None, 0.2, "setosa"], [6.3, 3.3, 6.0, 2.5, "virginica"]]
    full = fitted.impute(rows)
    assert full[1].tolist() == rows[1]
    assert isinstance(full[0, 2], float)
    exact = tiny(num_components=1).fit(load_iris().data.astype(np.float32))
    gaps = load_iris().data + 1e-9
    gaps[0, 0] = np.nan
    full = exact.impute(gaps)
    assert full.dtype == np.float64
    np.testing.assert_array_equal(full[~np.isnan(gaps)], gaps[~np.isnan(gaps)])
    with pytest.raises(ValueError, match=r"no finite draw for 1 of 1 rows, first \[1.e\+25"):
        exact.impute([[1e25, None, 1.0, 1.0]])


def test_columns_that_are_left_out():
    rng = np.random.default_rng(0)
    rows = np.stack([np.arange(60), rng.normal(10, 1, 60), rng.normal(-10, 1, 60)], axis=1)
    made = tiny(num_components=1, columns={"column_1": "drop"}).fit(rows)
    # Positions count in the rows that were given.
    given = made.condition({1: 10.5}).sample(3)
    np.testing.assert_array_equal(given[:, 0], 10.5)
    assert (given[:, 1] < -5).all()
    for key, message in ((0, "left out"), ("column_1", "left out"), (3, "no column 3")):
        with pytest.raises(ValueError, match=message):
            made.condition({key: 1.0})
    own = made.sample(5)
    assert own.shape == (5, 2)
    assert np.isfinite(made.score(own))
    gaps = rows[:4].copy()
    gaps[2, 1] = np.nan
    full = made.impute(gaps)
    np.testing.assert_array_equal(full[:, [0, 2]], gaps[:, [0, 2]])
    assert np.isfinite(full).all()
    with pytest.raises(ValueError, match="4 features, but NDSM is expecting 3"):
        made.score(np.zeros((2, 4)))


def test_data_frames_keep_index_names_and_types(tmp_path):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            7: rng.normal(100, 1, 60),
            0: rng.normal(-100, 1, 60),
            5: range(60),
            9: pandas.Categorical(["b", "a"] * 30, ["b", "a"]),
            2: pandas.array([1, 2, None] * 20, dtype="Int64"),
        },
        index=np.arange(60) + 1000,
    )
    made = tiny(num_components=1, columns={"5": "drop"}).fit(frame)
    gaps = frame.iloc[:6].copy()
    gaps.iloc[1, 0] = np.nan
    full = made.impute(gaps)
    assert not full.isna().any().any()
    assert full.dtypes.equals(frame.dtypes)
    assert full.index.equals(gaps.index)
    pandas.testing.assert_frame_equal(full.where(gaps.notna()), gaps, check_dtype=False)
    own = made.sample(4)
    assert own.columns.tolist() == [7, 0, 9, 2]
    assert np.isfinite(made.score(own))
    # A name comes before a position.
    assert (made.condition({7: 100.0}).sample(2)[7] == 100.0).all()
    assert (made.condition({0: -100.0}).sample(2)[0] == -100.0).all()
    assert (made.condition({3: "a"}).sample(2)[9] == "a").all()
    assert (made.condition({"9": "a"}).sample(2)[9] == "a").all()
    made.save(tmp_path)
    pandas.testing.assert_frame_equal(NDSM.load(tmp_path).sample(4), own)


def test_words_beside_numbers_in_a_column():
    rows = np.empty((60, 2), object)
    rows[:, 0] = [1, 2, "unknown"] * 20
    rows[:, 1] = np.random.default_rng(0).normal(size=60)
    made = tiny(num_components=1).fit(rows)
    assert set(made.sample(50)[:, 0]) == {1, 2, "unknown"}
    assert np.isfinite(made.score(made.sample(20)))
    assert made.condition({0: 1}).sample(1)[0, 0] == 1


def test_far_rows_have_no_density_and_the_others_theirs(fitted):
    rows = load_iris().data
    made = tiny(num_components=2, covariance="diag").fit(rows)
    near = made.score_samples(rows[:3])
    far = rows[:1] + np.array([1e30, 0, 0, 0])[None]
    found = made.score_samples(np.concatenate([far, rows[:2], far, rows[2:3]]))
    np.testing.assert_array_equal(found, [-np.inf, *near[:2], -np.inf, near[2]])
    np.testing.assert_array_equal(made.score_samples(far), [-np.inf])
    words = flowers()[:2]
    words[1, 0] = 1e30
    assert np.isfinite(fitted.score_samples(words)).tolist() == [True, False]


def test_rows_with_gaps_have_no_density(fitted):
    rows = flowers()[:3]
    rows[1, 2] = None
    with pytest.raises(ValueError, match="impute"):
        fitted.score_samples(rows)


def test_no_estimator_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"NDSM\.save"):
        NDSM.load(tmp_path)


def test_the_criterion_chooses_what_the_data_were_drawn_from():
    """Three spherical clusters, two that are long and oblique: 600 draws each."""
    rng = np.random.default_rng(0)
    round_ones = np.concatenate([rng.normal(c, 0.1, (200, 2)) for c in ((0, 0), (1, 0), (0, 1))])
    found = references.choose(round_ones)
    assert (found.num_components, found.covariance) == (3, "spherical")
    turn = np.array([[1.0, 0.97], [0.0, 0.24]])
    oblique = np.concatenate([rng.normal(size=(300, 2)) @ turn + c for c in (0.0, [0.0, 3.0])])
    found = references.choose(oblique)
    assert (found.num_components, found.covariance) == (2, "full")
    for data, kind in ((round_ones, "spherical"), (oblique, "full")):
        mixture, _ = references.fit(data, 0, covariance="auto")
        assert (mixture.num_components, mixture.covariance) == ({"full": 2}.get(kind, 3), kind)
    wide = rng.normal(size=(40, 65))
    assert {kind for kind, _ in references.choose(wide).criteria} == {"spherical", "diag"}
    mixture, _ = references.fit(round_ones, 0)
    assert mixture.num_components == 3
    with pytest.raises(ValueError, match=r"data=.* not finite"):
        references.choose(np.full((5, 2), np.nan))


def test_cross_validation_is_that_of_scikit_learn_and_chooses_for_density():
    """Its value against folds made here; and where no mixture is right, a ring, it takes more
    components than the other criterion, whose penalty is for parameters."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 300)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(scale=0.05, size=(300, 2))
    found = references.choose(ring, covariances=("spherical",), criterion="cross_validation")
    data = ring[np.random.default_rng(0).permutation(300)]
    expected = 0.0
    for fold in range(5):
        held = np.arange(300) % 5 == fold
        mixture = GaussianMixture(
            8, covariance_type="spherical", reg_covar=1e-4, random_state=0
        ).fit(data[~held])
        expected -= 2 * mixture.score_samples(data[held]).sum()
    assert found.criteria["spherical", 8] == pytest.approx(expected)
    assert min(found.criteria.values()) == found.criteria["spherical", found.num_components]
    assert found.model.means_.shape == (found.num_components, 2)
    by_bic = references.choose(ring, covariances=("spherical",))
    assert found.num_components > by_bic.num_components
    fitted, _ = references.fit(ring, 0, criterion="cross_validation")
    shuffled = ring[np.random.default_rng(0).permutation(300)]
    found = references.choose(shuffled, covariances=("spherical",), criterion="cross_validation")
    assert fitted.num_components == found.num_components


def test_the_estimator_chooses_by_cross_validation_where_it_is_told(monkeypatch):
    """Number and kind, or one of them; where neither is open nothing reads the criterion."""

    def choose(data, *, criterion, **options):
        k = {"bic": 3, "cross_validation": 7}[criterion]
        return references.Choice(num_components=k, covariance="diag", model=None, criteria={})

    monkeypatch.setattr(references, "choose", choose)
    settings = {"mixture.criterion": "cross_validation"}
    for own, k in (({}, 3), (settings, 7)):
        made = tiny(settings=own)
        chosen = made._choose(made._config(0), frames.Identity(), np.zeros((12, 2)))
        assert (chosen.mixture.num_components, chosen.mixture.covariance) == (k, "diag")
    for options in ({"covariance": "diag"}, {"num_components": 2}):
        config = tiny(settings=settings, **options)._config(0)
        assert config.mixture.criterion == "cross_validation"
    with pytest.raises(ValueError, match=r"mixture\.criterion='cross_validation' has no effect"):
        tiny(settings=settings, covariance="diag", num_components=2)._config(0)


def test_too_few_samples_to_choose_by_are_one_error():
    points = np.random.default_rng(0).normal(size=(12, 2))
    with pytest.raises(ValueError, match=r"numbers.0.=1 components are fitted to 1 of 2 samples"):
        references.choose(points[:2], criterion="cross_validation")
    with pytest.raises(ValueError, match=r"numbers.0.=5 .* to 4 of 6 samples .*, or choose bic"):
        references.choose(points[:6], numbers=(5,), criterion="cross_validation")
    assert references.choose(points[:6], numbers=(5,)).num_components == 5
    with pytest.raises(ValueError, match=r"mixture\.criterion.* at least 3 samples.*set it to bic"):
        references.fit(points[:2], 0, criterion="cross_validation")
    with pytest.raises(ValueError, match=r"mixture\.num_components=13 .* got 12; lower it to 6"):
        tiny(num_components=13).fit(points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.0}, r"NDSM: steps=2\.0: a whole number >= 1"),
        ({"num_components": "two"}, r"NDSM: num_components='two': .* or None is needed"),
        ({"columns": {"column_1": 1}}, "NDSM: columns=.*: a mapping of names to words"),
        ({"settings": {1: 2}}, "NDSM: settings=.*: a mapping of keys"),
        ({"random_state": 2**32}, "NDSM: random_state=4294967296"),
    ],
)
def test_parameters_are_checked_in_fit_and_named(options, message):
    made = NDSM(**options)  # scikit-learn's: a constructor looks at nothing
    with pytest.raises(ValueError, match=message):
        made.fit(flowers())


def test_numbers_of_numpy_are_parameters():
    """As a search over a grid gives them."""
    config = tiny(steps=np.int64(7), num_components=np.int32(2))._config(0)
    assert (config.train.steps, config.mixture.num_components) == (7, 2)


def test_what_grids_of_numpy_found_is_saved(tmp_path):
    made = tiny(num_components=np.int64(1), settings={"network.width": np.int64(8)})
    made.fit(load_iris().data).save(tmp_path)
    kept = NDSM.load(tmp_path).get_params()
    assert kept["num_components"] == 1
    assert kept["settings"]["network.width"] == 8


def test_a_damaged_file_of_parameters_is_one_error(tmp_path):
    for content in ("{", "{}", "[]", '{"parameters": {"a": 1}, "rows": {}}'):
        (tmp_path / "estimator.json").write_text(content)
        with pytest.raises(ValueError, match=r"estimator\.json is damaged"):
            NDSM.load(tmp_path)


def test_a_model_is_asked_for_components_and_times_that_exist(fitted):
    model = fitted.model_
    y = np.zeros((2, model.experiment.process.dim))
    for given, message in (
        ({"condition": [0, 9]}, "Model.score: condition=.* with 9: integers below K"),
        ({}, "Model.score: condition=None"),
        ({"condition": [0, 1], "t": 0.0}, "Model.score: t=0"),
        ({"condition": [0, 1], "t": [-1.0, 1.0]}, "Model.score: t=.* above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.score(y, **given)
