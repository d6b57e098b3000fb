"""A scikit-learn estimator of tables: density, samples, conditionals and missing cells."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ndsm_jax import frames, references
from ndsm_jax.checks import COUNT, FLAG, FOLDER, NONE, Needs, arguments, check, one_of, whole
from ndsm_jax.columns import Column
from ndsm_jax.config import TABLE, Config, check_effect, check_key
from ndsm_jax.config.parts import Parts, data_frame, examples
from ndsm_jax.datasets import MIN_SAMPLES, Dataset, tables
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Frame
from ndsm_jax.launch import facts, fitted, set_aside, train_as_configured
from ndsm_jax.model import Model, load
from ndsm_jax.references.choosing import LADDER
from ndsm_jax.runs import json_text, replace_file
from ndsm_jax.training import TrainState, init_state

SETTINGS: Mapping[str, Any] = {
    f"{section}.{key}": value
    for section, options in TABLE.items()
    for key, value in options.items()
    if section != "mixture"
} | {"train.held_out": 0.25, "train.picture_every": 0}
"""What differs from the defaults of a config: `config.presets.TABLE`, but for the mixture, which is
chosen once for both fits. As all rows are fitted in the end, many can be held out until then."""


def _is_random_state(value: Any) -> bool:
    try:
        check_random_state(value)
    except ValueError:
        return False
    return True


RANDOM_STATE = Needs(
    "None, a whole number from 0 to 2**32 - 1, or a numpy.random.RandomState", _is_random_state
)

KEYS = Needs("a mapping of keys to values", lambda v: isinstance(v, Mapping) and _words(v))
WORDS = Needs(
    "a mapping of names to words",
    lambda v: isinstance(v, Mapping) and _words(v) and _words(v.values()),
)


def _words(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


PARAMETERS: Mapping[str, Any] = {
    "num_components": (COUNT, NONE),
    "covariance": (one_of(references.COVARIANCES), NONE),
    "steps": COUNT,
    "patience": whole(),
    "batch_size": COUNT,
    "columns": (WORDS, NONE),
    "settings": (KEYS, NONE),
    "random_state": RANDOM_STATE,
    "verbose": (FLAG, whole()),
}
"""What each has to be, which scikit-learn has looked at in `fit`."""

PARAMETERS_FILE = "estimator.json"


class NDSM(BaseEstimator):
    """A score-based generative model of a table, after a Gaussian mixture that is fitted to it.

    The mixture is the law that noising ends in, so that the network has to learn only in what the
    data differ from it; which mixture, is chosen by the Bayesian information criterion. The length
    of training is chosen on a quarter of the rows, which neither fit nor training see; then both
    are done once more, on all rows and for that long.

    Rows are arrays, lists of lists, or data frames of pandas, with columns of numbers, whole
    numbers, words and truth values, and missing cells (NaN, None): see docs/tables.md. Samples come
    as the rows did.

    Args:
      num_components: of the mixture; None: chosen.
      covariance: a kind of `references.COVARIANCES`; None: chosen among spherical, diagonal and, up
        to 64 coordinates, full.
      steps: of training, at most.
      patience: steps without an improvement on held-out rows after which training stops.
      batch_size: rows a step.
      columns: what some columns are, see `tables.read`: {"name": "categorical"}.
      settings: any other keys of a config (docs/configuration.md), such as {"network.width": 64}.
      random_state: seed of fit, training and samples.
      verbose: whether to show progress bars.

    Attributes:
      model_: the trained `Model`, for all that JAX code may want of it.
      columns_: what the columns are.
      n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    def __init__(
        self,
        *,
        num_components: int | None = None,
        covariance: str | None = None,
        steps: int = 3000,
        patience: int = 1000,
        batch_size: int = 128,
        columns: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.num_components = num_components
        self.covariance = covariance
        self.steps = steps
        self.patience = patience
        self.batch_size = batch_size
        self.columns = columns
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> NDSM:
        """Fits mixture and score to rows X [N, D]; y is ignored.

        Raises:
          ValueError: a parameter that is something else, fewer than 10 rows, rows that are no table
            (`tables.read`), or settings that do not exist, do not fit, or that nothing reads.
        """
        for name, wanted in PARAMETERS.items():
            check(f"NDSM: {name}", getattr(self, name), wanted)
        _check_dense(X)
        seed = self._seed(self.random_state)
        table = tables.read(X, columns=self.columns or {}, key="X")
        validate_data(self, X, skip_check_array=True)
        if len(table.x) < MIN_SAMPLES:
            raise ValueError(
                f"NDSM: a minimum of {MIN_SAMPLES} rows is required, and X has {len(table.x)}"
                f" sample{'s' * (len(table.x) != 1)}"
            )
        dataset = Dataset(
            name="table",
            train=table.x,
            test=table.x[:0],
            train_labels=None,
            test_labels=None,
            shape=(len(table.columns),),
            value_range=None,
            source="rows given to NDSM.fit",
            columns=table.columns,
        )
        config = self._config(seed)
        frame = data_frame(config, dataset)
        if self._open:
            config = self._choose(config, frame, dataset.train)
        parts, experiment, state = self._trained(config, dataset, frame)
        self.model_ = Model(
            config=config,
            experiment=experiment,
            state=state,
            parts=parts,
            facts=facts(config, dataset),
            examples=examples(config, dataset, frame),
        )
        self.columns_ = table.columns
        self._like = _Like.of(X, self)
        return self

    @arguments(n_samples=COUNT, random_state=RANDOM_STATE)
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """`n_samples` rows, as those that were fitted.

        random_state: as scikit-learn has it; None: the estimator's.
        """
        check_is_fitted(self, "model_")
        x = self.model_.sample(
            n_samples, seed=self._draw_seed(random_state), progress=bool(self.verbose)
        )
        return self._like.rows(self.columns_, x)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of rows, nats [n]: see `training.log_prob`.

        Raises:
          ValueError: rows with missing cells, which have no density; `impute` them first.
        """
        x = self._rows(X)
        gaps = np.isnan(x).any(axis=1)
        if gaps.any():
            raise ValueError(
                f"NDSM: {gaps.sum()} rows have missing cells, first row {gaps.argmax()}: they have"
                " no density; fill them by impute, or leave them out"
            )
        return self.model_.log_prob(x, progress=bool(self.verbose))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`; y is ignored."""
        return float(np.mean(self.score_samples(X)))

    @arguments(cells=Mapping)
    def condition(self, cells: Mapping[Any, Any]) -> Conditional:
        """Rows with these cells: `condition({"alcohol": 13.0}).sample(10)`.

        cells: column -> value, columns by their names or, otherwise, their positions among those
          that were fitted.

        Raises:
          ValueError: a column that is not there, or a value that it cannot have.
        """
        check_is_fitted(self, "model_")
        row = np.full((1, len(self.columns_)), np.nan)
        names = [column.name for column in self.columns_]
        for key, value in cells.items():
            name = self._like.name(key)
            if name not in names:
                dropped = f"column {name!r} was left out" if name else f"no column {key!r}"
                raise ValueError(f"condition: {dropped}; one of {', '.join(names)}")
            cell = np.empty((1, 1), object)
            cell[0, 0] = value
            place = names.index(name)
            row[0, place] = tables.encode(self.columns_[place : place + 1], cell)[0, 0]
        return Conditional(estimator=self, row=row)

    @arguments(random_state=RANDOM_STATE)
    def impute(self, X: Any, random_state: Any = None) -> Any:
        """Rows X with their missing cells drawn given the others, each row by its own: one draw.

        Several draws, by different `random_state`, say how sure they are (multiple imputation). All
        else comes back as it is in X.

        Raises:
          ValueError: a value that its column cannot have, or one too far from the data to draw by.
        """
        x = self._rows(X)
        gaps = np.isnan(x).any(axis=1)
        if gaps.any():
            x[gaps] = self._drawn(int(gaps.sum()), x[gaps], random_state)
        return tables.filled(self.columns_, X, x)

    def _drawn(self, num: int, given: np.ndarray, random_state: Any) -> np.ndarray:
        """`num` rows [num, D] given cells of each, or of all."""
        x = self.model_.sample(
            num,
            given=given,
            seed=self._draw_seed(random_state),
            progress=bool(self.verbose),
        )
        if not (found := np.isfinite(x).all(axis=1)).all():
            raise ValueError(
                f"NDSM: no finite draw for {(~found).sum()} of {num} rows, first"
                f" {given[found.argmin() % len(given)]}: their cells lie too far from the data"
            )
        return x

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "model_")
        _check_dense(X)
        if self._like.is_sample(X, self.columns_):
            return tables.encode(self.columns_, X)
        shape: tuple[int, ...] = getattr(X, "shape", ())
        if len(shape) == 2 and shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {shape[1]} features, but NDSM is expecting {self.n_features_in_} features"
                " as input"
            )
        x = tables.encode(self.columns_, X)
        validate_data(self, X, skip_check_array=True, reset=False)  # the names of columns
        return x

    def _config(self, seed: int) -> Config:
        """The config of the parameters, with the default mixture where it is to be chosen."""
        own = {
            "mixture.num_components": self.num_components,
            "mixture.covariance": self.covariance,
            "train.steps": self.steps,
            "train.patience": self.patience,
            "train.batch_size": self.batch_size,
            **{f"{section}.seed": seed for section in ("data", "mixture", "train", "sample")},
        }
        own, given = _plain(own), _plain(self.settings or {})
        for key in given:
            check_key(key)
            if "." not in key or key in own:
                raise ValueError(
                    f"NDSM: settings has {key!r}, which "
                    + ("is a section, not a key" if "." not in key else "NDSM(...) sets itself")
                )
        own = {key: value for key, value in own.items() if value is not None}
        tree: dict[str, dict[str, Any]] = {}
        for key, value in {**SETTINGS, **own, **given}.items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        config = Config.from_dict(tree)
        # What is chosen has a number of components only then, and a criterion that is read.
        check_effect(_with_mixture(config, num_components=0) if self._open else config, given)
        return config

    @property
    def _open(self) -> bool:
        """Whether number or kind of the components is to be chosen."""
        return self.num_components is None or self.covariance is None

    def _choose(self, config: Config, frame: Frame, rows: np.ndarray) -> Config:
        """The config with the mixture of the least criterion."""
        if self.covariance is not None:
            return _with_mixture(config, num_components=0)  # the fit chooses it
        c, states = config.mixture, frames.states(frame, rows)
        if self.num_components is not None:
            num, dim = states.shape
            references.check_samples(num, dim, self.num_components, "spherical")
        chosen = references.choose(
            states,
            numbers=LADDER if self.num_components is None else (int(self.num_components),),
            min_covariance=c.min_covariance,
            criterion=c.criterion,
            seed=c.seed,
        )
        return _with_mixture(
            config, num_components=chosen.num_components, covariance=chosen.covariance
        )

    def _trained(
        self, config: Config, dataset: Dataset, frame: Frame
    ) -> tuple[Parts, Experiment, TrainState]:
        """Fit and training on all rows, as long as is best for those that a first one held out.

        Early stopping with the data of the stopping used in the end (Goodfellow et al. 2016, Deep
        Learning, Algorithm 7.2). Where the choice is turned off there is the second one alone.
        """
        c = config.train
        rest, held = set_aside(config, dataset)
        best = None
        if held is not None:
            _, experiment = fitted(config, rest)
            first = train_as_configured(config, experiment, rest, held, progress=bool(self.verbose))
            best = first.best
            assert best is not None
            c = dataclasses.replace(c, steps=max(1, int(best.step)))
        parts, experiment = fitted(config, dataset, frame=frame)
        state = init_state(experiment, seed=c.seed)
        if best is None or int(best.step):
            state = train_as_configured(
                dataclasses.replace(config, train=c),
                experiment,
                dataset,
                None,
                state=state,
                progress=bool(self.verbose),
            )
        if best is not None:
            params = jax.tree.map(jnp.copy, state.ema)
            state = dataclasses.replace(state, best=dataclasses.replace(best, params=params))
        return parts, experiment, state

    def _seed(self, random_state: Any) -> int:
        return int(check_random_state(random_state).randint(2**31 - 1))

    def _draw_seed(self, random_state: Any) -> int:
        return self._seed(self.random_state if random_state is None else random_state)

    # --- one folder ---

    @arguments(folder=FOLDER)
    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the fitted estimator into a folder: a run, as the commands and `load` read it.

        Raises:
          ValueError: the folder holds another run, or cannot be written to.
        """
        check_is_fitted(self, "model_")
        parameters = _plain(self.get_params())
        if not isinstance(self.random_state, Integral):
            parameters["random_state"] = None
        if parameters["settings"] is not None:
            parameters["settings"] = _plain(parameters["settings"])
        own = json_text({"parameters": parameters, "rows": dataclasses.asdict(self._like)})
        self.model_.save(folder)
        replace_file(pathlib.Path(folder) / PARAMETERS_FILE, own.encode())

    @classmethod
    @arguments(folder=FOLDER)
    def load(cls, folder: str | pathlib.Path) -> NDSM:
        """The estimator that `save` wrote.

        Raises:
          FileNotFoundError: no such estimator.
          ValueError: damaged checkpoints, or a damaged file beside them.
        """
        path = pathlib.Path(folder) / PARAMETERS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {PARAMETERS_FILE}: give a folder that NDSM.save wrote; the model"
                " of any run is read by ndsm_jax.load"
            )
        try:
            own = json.loads(path.read_text())
            made, like = cls(**own["parameters"]), _Like(**own["rows"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r:.100}); save the estimator again, or take the model"
                " alone by ndsm_jax.load"
            ) from error
        made.model_ = load(folder)
        made.columns_ = made.model_.columns
        made._like = like
        made.n_features_in_ = made._like.width
        if made._like.names is not None:
            made.feature_names_in_ = np.array(made._like.names, object)
        return made

    # An optimiser's functions are closures, which nothing pickles: a run's folder is what is kept.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        model = state.pop("model_", None)
        if model is not None:
            state["_folder"] = _packed(model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_folder", None)
        super().__setstate__(state)
        if packed is not None:
            self.model_ = _unpacked(packed)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "density_estimator"
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Conditional:
    """Rows of an estimator with some cells given, see `NDSM.condition`."""

    estimator: NDSM
    row: np.ndarray

    @arguments(n_samples=COUNT, random_state=RANDOM_STATE)
    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """As `NDSM.sample`, given the cells, which are as they were given."""
        of = self.estimator
        return of._like.rows(of.columns_, of._drawn(n_samples, self.row, random_state))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Like:
    """How rows were given, and samples are.

    Attributes:
      width: columns that there were.
      names: of these, if they are words.
      labels: of these in a data frame of pandas, numbers and words; None of an array.
      dtype: of an array; of lists that of the array which `tables.as_rows` makes of them.
    """

    width: int
    names: list[str] | None = None
    labels: list[Any] | None = None
    dtype: str = "float64"

    @classmethod
    def of(cls, rows: Any, estimator: Any) -> _Like:
        names = getattr(estimator, "feature_names_in_", None)
        known = {
            "width": estimator.n_features_in_,
            "names": None if names is None else [str(name) for name in names],
        }
        if hasattr(rows, "iloc"):
            labels = [v if isinstance(v, str | int) else str(v) for v in rows.columns.tolist()]
            return cls(labels=labels, **known)
        dtype = tables.as_rows(rows).dtype
        return cls(dtype="object" if dtype.kind in "UT" else dtype.name, **known)

    def rows(self, columns: tuple[Column, ...], x: np.ndarray) -> Any:
        """A matrix [n, D] as rows of this kind."""
        values = tables.decode(columns, x)
        if self.labels is not None:
            import pandas

            return pandas.DataFrame({self._labelled[name]: v for name, v in values.items()})
        dtype = np.dtype(self.dtype)
        cells = np.empty(x.shape, object if dtype.kind == "O" else np.float64)
        for place, column in enumerate(values.values()):
            cells[:, place] = column
        if dtype.kind not in "iu":
            return cells.astype(dtype) if dtype.kind == "f" else cells
        for wide in (dtype, np.dtype(np.int64)):  # that of the rows, if it holds all samples
            bounds = np.iinfo(wide)
            if ((cells >= bounds.min) & (cells <= bounds.max)).all():
                return cells.astype(wide)
        return cells

    def name(self, key: Any) -> str | None:
        """Of the column that is called `key`, or else stands at that place; None: there is none."""
        if self.labels is not None and key in self.labels:
            return str(key)
        names = [f"column_{i + 1}" for i in range(self.width)]
        if self.labels is not None:
            names = [str(label) for label in self.labels]
        if key in names:
            return key
        return names[key] if whole().holds(key) and key < self.width else None

    def is_sample(self, rows: Any, columns: tuple[Column, ...]) -> bool:
        """Whether rows have the columns of samples, where some that were fitted were left out."""
        if len(columns) == self.width:
            return False
        if hasattr(rows, "iloc"):
            return [str(label) for label in rows.columns] == [column.name for column in columns]
        shape = np.shape(rows) if hasattr(rows, "shape") else tables.as_rows(rows).shape
        return len(shape) == 2 and shape[1] == len(columns)

    @property
    def _labelled(self) -> dict[str, Any]:
        return {str(label): label for label in self.labels or []}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """With Python's numbers in place of NumPy's, which grids of parameters have."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}


def _with_mixture(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, mixture=dataclasses.replace(config.mixture, **changes))


def _check_dense(rows: Any) -> None:
    if hasattr(rows, "dtype") and np.iscomplexobj(rows):
        raise ValueError("Complex data not supported: NDSM takes numbers and words")
    if issparse(rows):
        raise TypeError("NDSM: sparse rows are not supported; give rows.toarray()")


def _packed(model: Model) -> bytes:
    """The folder of a model, as the bytes of a zip file."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        with zipfile.ZipFile(buffer, "w") as file:
            for path in sorted(pathlib.Path(folder).rglob("*")):
                file.write(path, path.relative_to(folder))
    return buffer.getvalue()


def _unpacked(content: bytes) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            file.extractall(folder)
        return load(folder)
