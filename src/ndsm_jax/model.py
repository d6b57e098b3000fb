"""A trained model as a small object: samples, scores, densities and conditionals of data."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ndsm_jax import checks, conditions, frames, launch, measurements, training
from ndsm_jax.checks import COUNT, FLAG, FOLDER, SEEDS, Needs, arguments, number, one_of, whole
from ndsm_jax.columns import Column
from ndsm_jax.config import Config
from ndsm_jax.config.parts import Parts
from ndsm_jax.datasets import tables
from ndsm_jax.datasets.dataset import states
from ndsm_jax.experiment import Experiment
from ndsm_jax.guidance import GUIDANCES
from ndsm_jax.training import TrainState


def _is_label(value: Any) -> bool:
    """A word, a number, or several of them."""
    if hasattr(value, "dtype") and not isinstance(value, np.generic):
        words = getattr(value.dtype, "kind", None) in ("U", "O")
        kind = words or jnp.issubdtype(value.dtype, np.number)
        return kind and value.ndim < 2 and value.size > 0
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(v, str | int | float | np.generic) for v in value)
    return isinstance(value, str | int | float | np.generic)


LABEL = Needs("a label of the data, or a list of them,", _is_label)
EARLIEST = Needs("a time, or times [n], above 0", lambda t: bool(np.all(np.asarray(t) > 0)))
MODEL = Needs("a Model, as ndsm_jax.load reads it,", lambda v: isinstance(v, Model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What was trained, without its data. `load` reads it from the folder of a run.

    Data are arrays [n, D] in the units of the training data; of a table they are what
    `datasets.tables.read` takes, or a matrix of numbers with the positions of levels.

    Attributes:
      config: of the run.
      experiment: its parts; `experiment.frame` takes data to states and back.
      state: of its training.
      parts: what was fitted.
      facts: of the run, see `launch.facts`.
      examples: some states, where the reference is the user's own, see `config.parts.examples`.
    """

    config: Config
    experiment: Experiment
    state: TrainState
    parts: Parts
    facts: Mapping[str, Any]
    examples: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item of the data."""
        return tuple(self.facts["data"]["shape"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes whose labels the network is told, else empty."""
        return launch.classes_of(self.facts["data"])

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of a table, else empty."""
        return launch.columns_of(self.facts["data"])

    @arguments(
        num=COUNT,
        label=LABEL,
        guidance=one_of(GUIDANCES),
        guidance_scale=number(low=0),
        autoguide=MODEL,
        seed=SEEDS,
        components="integers [...]",
        progress=FLAG,
    )
    def sample(
        self,
        num: int = 1,
        *,
        label: Any = None,
        given: Any = None,
        guidance: str = "reconstruction",
        guidance_scale: float | None = None,
        autoguide: Model | None = None,
        seed: int = 0,
        components: Any = None,
        progress: bool = False,
    ) -> np.ndarray:
        """`num` samples [num, D]; the same ones for the same seed.

        Args:
          num: how many.
          label: of the class of each, or of several, in turn, as the data have them; by default
            drawn by their shares in the training data, for a network that is told labels.
          given: what is known of each, or of all: data [num, D] or [1, D], NaN (of a table, None)
            where nothing is.
          guidance: how they are drawn given it, a key of `guidance.GUIDANCES`.
          guidance_scale: in place of sample.guidance_scale.
          autoguide: a weaker model to guide away from, see `launch.weaker_score`.
          seed: of the samples.
          components: of the mixture to start from, see `training.draw`.
          progress: whether to show a progress bar.

        Raises:
          ValueError: as `training.draw`, `launch.labels_of` and `launch.weaker_score`.
        """
        known = None if given is None else measurements.given(self.matrix(given))
        weaker = None
        if autoguide is not None:
            parts = self.config, self.experiment, autoguide.experiment, autoguide.state
            weaker = launch.weaker_score(*parts)
        config = self.config
        if guidance_scale is not None:
            scaled = dataclasses.replace(config.sample, guidance_scale=guidance_scale)
            config = dataclasses.replace(config, sample=scaled)
        return launch.draw_as_configured(
            config,
            self.experiment,
            self.state,
            num,
            seed=seed,
            components=components,
            condition=self._labels(label, num),
            measurement=known,
            guidance=GUIDANCES[guidance],
            weaker=weaker,
            progress=progress,
        )

    @arguments(y="finite numbers [n, d]", t=(number(above=0), "finite numbers [n]"))
    def score(self, y: Any, t: Any = None, condition: Any = None) -> np.ndarray:
        """E^T grad log p_t at states y [n, d] (in the frame's coordinates) and times t.

        t: a number or [n], time units; by default the last time of sampling, that of the data.
        condition: the component of each [n], of a model whose states are in components; and what
          the network is told of each, if it is told any (`conditions.joined` of the two).

        Raises:
          ValueError: a condition that is none of the model.
        """
        y = jnp.asarray(y, jnp.float32)
        t = self.experiment.sample_grid[1] if t is None else t
        checks.check("Model.score: t", t, EARLIEST)
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), y.shape[:-1])
        params = self.state.chosen if self.config.sample.ema else self.state.params
        condition = self._condition(condition, len(y))
        return np.asarray(_score(self.experiment.model.bind(params, condition), y, times))

    @arguments(label=LABEL, seed=SEEDS, progress=FLAG)
    def log_prob(
        self, x: Any, *, label: Any = None, seed: int = 0, progress: bool = False
    ) -> np.ndarray:
        """log p of data, nats [n] float64: see `training.log_prob`.

        label: of all, or of each, as the data have them: log p given it.

        Raises:
          ValueError: as `training.log_prob`; some labels, but neither one nor one for each.
        """
        x = self.matrix(x)
        if label is not None and np.size(label) not in (1, len(x)):
            raise ValueError(
                f"Model.log_prob: {np.size(label)} labels of {len(x)} items; give one for each, or"
                " one for all"
            )
        return training.log_prob(
            self.experiment,
            self.state,
            x,
            condition=self._labels(label, len(x)),
            seed=seed,
            ema=self.config.sample.ema,
            progress=progress,
        ).value

    def _condition(self, condition: Any, num: int) -> Any:
        """That of `num` states, checked."""
        what, mixture = "Model.score: condition", frames.component_mixture(self.experiment.frame)
        if mixture is None:
            return self.experiment.checked("Model.score", condition, num)
        component, told = condition, None
        if self.experiment.model.condition is not None:
            checks.check(what, condition, conditions.Both)
            component, told = condition
        checks.check(what, component, "integers below K [n]", K=mixture.num_components, n=num)
        component = jnp.asarray(component, jnp.int32)
        return conditions.joined(component, self.experiment.checked("Model.score", told, num))

    def _labels(self, label: Any, num: int) -> np.ndarray | None:
        """Numbers [num] of the classes of labels, in turn; None for None."""
        if label is None:
            return None
        numbers = launch.labels_of(self.facts["data"], np.atleast_1d(label).tolist())
        return np.resize(np.array(numbers, np.int32), num)

    def matrix(self, x: Any) -> np.ndarray:
        """Data as a matrix of numbers [n, D]: of a table its encoded cells, NaN where missing.

        uint8 is scaled where the data of the run are images of a range.
        """
        matrix = isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "fiu"
        if not self.columns or (matrix and x.shape[1] == len(self.columns)):
            x = np.asarray(x)
            ranged = self.facts["data"]["value_range"] is not None
            return states(x) if x.dtype == np.uint8 and ranged else x
        return tables.encode(self.columns, x)

    @arguments(folder=FOLDER)
    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the model as a run of one checkpoint, see `launch.save`."""
        launch.save(folder, dict(self.facts), self.parts, self.state, examples=self.examples)


@jax.jit
def _score(score: Partial, y: jax.Array, t: jax.Array) -> jax.Array:
    return score(y, t)


@arguments(folder=FOLDER, sample=Mapping, step=whole(), allow_changed_source=FLAG)
def load(
    folder: str | pathlib.Path,
    *,
    sample: Mapping[str, Any] | None = None,
    step: int | None = None,
    allow_changed_source: bool = False,
) -> Model:
    """The model of a run's folder.

    Args:
      folder: of a run, or of `NDSM.save`.
      sample: keys of the config's sample section to replace.
      step: of the checkpoint to read; the newest good one by default.
      allow_changed_source: whether files of the user's own may have changed since.

    Raises:
      FileNotFoundError: no checkpoint in the folder, or none of the step, or a file of the user's
        own is gone.
      ValueError: every checkpoint is damaged, or a file of the user's own has changed.
    """
    run = launch.restore(
        folder, sample=sample, step=step, allow_changed_source=allow_changed_source
    )
    return Model(
        config=run.config,
        experiment=run.experiment,
        state=run.state,
        parts=run.parts,
        facts=run.host,
        examples=run.examples,
    )
