"""Noising of every data point by the process of its component."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ndsm_jax.gmm import GaussianMixture
from ndsm_jax.noising.batch import NoisedBatch, NoisingFn, TimeLaw


@partial(jax.tree_util.register_dataclass, data_fields=("prior", "within"), meta_fields=())
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatched:
    """Dispatches data to the components of a mixture, and noises them there.

    The component is drawn from its posterior P(c | x), anew each time. 2410.19149 fixes one
    component for a data point; where the components are far apart that is the same. Where they
    overlap, draws keep p(x | c) smooth, and at a maximum of the likelihood its mean, its variance
    and the fraction of the data in c are those of the mixture, so that the reverse process starts
    with the right weights.

    Attributes:
      prior: the mixture.
      within: noises the standardised data, see `SDE.standardised`.
    """

    prior: GaussianMixture
    within: NoisingFn

    @property
    def times(self) -> TimeLaw:
        """The law of the training times."""
        return self.within.times

    def __call__(self, key: Array, x0: Array) -> NoisedBatch:
        """x0 [B, d] -> NoisedBatch with states in the coordinates of their component."""
        key_component, key_noise = jax.random.split(key)
        odds = jnp.log(self.prior.responsibilities(x0))
        component = jax.random.categorical(key_component, odds).astype(jnp.int32)
        batch = self.within(key_noise, self.prior.standardise(component, x0))
        component = jnp.broadcast_to(component[:, None], batch.t.shape)
        return dataclasses.replace(batch, component=component)
