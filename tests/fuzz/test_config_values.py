"""Configs with a value that is none, or a key: refused before anything is fitted."""

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np

from ndsm_jax.config import Config
from ndsm_jax.config.sections import sections
from ndsm_jax.launch import describe, load_data
from tests.fuzz.trial import examples, judge
from tests.training.tiny_runs import TINY

KEYS = [(name, f.name) for name, kind in sections().items() for f in dataclasses.fields(kind)]

READ = {
    "variance": {"process": {"name": "ornstein_uhlenbeck"}, "objective": {"name": "dsm"}},
    "beta_min": {"process": {"name": "variance_preserving"}, "objective": {"name": "dsm"}},
    "beta_max": {"process": {"name": "variance_preserving"}, "objective": {"name": "dsm"}},
    "sigma_min": {"process": {"name": "variance_exploding"}, "objective": {"name": "dsm"}},
    "sigma_max": {"process": {"name": "variance_exploding"}, "objective": {"name": "dsm"}},
    "mass": {"process": {"name": "critically_damped"}, "objective": {"name": "dsm"}},
    "rate": {"process": {"name": "critically_damped"}, "objective": {"name": "dsm"}},
    "degrees": {"reference": {"name": "student_t"}},
    "covariance": {"mixture": {"rank": 1}},
    "rank": {"mixture": {"covariance": "low_rank"}},
    "churn": {"sample": {"sampler": "heun_flow"}},
    "langevin_steps": {"sample": {"sampler": "annealed_langevin"}},
    "tolerance": {"objective": {"name": "local_dsm"}},
    "curvature": {"objective": {"name": "path_dsm"}},
    "num_bins": {"control_variate": {"kind": "optimal"}},
    "condition": {"data": {"name": "digits"}},
    "symmetry": {"data": {"name": "digits"}},
    "latent_dim": {"data": {"name": "digits"}, "autoencoder": {"kind": "vae"}},
}
"""Settings with which a key is read."""

VALUES: list[Any] = [
    None, True, 0, 1, -1, 2, 3, 7, 50, 10**6, 2**31 - 1, 2**31, 2**32, 2**63, 10**400, -(10**400),
    -0.0, 1e-300, 1e-30, 1e-9, 0.5, 1.0, 1e9, 1e38, 1e300, float("nan"), float("inf"), 1j,
    "", "a", "\0", "auto", "x" * 10_000, "a.py:b", b"x", [], (), [1], [[1]], (1,) * 100, [10**400],
    {}, {"a": 1}, object(), len, np.int64(3), np.float32(1.0), np.zeros(3),
]  # fmt: skip


def attempt(tree: Any) -> str:
    config = Config.from_dict(tree)
    return describe(config, load_data(config))


values = st.one_of(
    st.sampled_from(VALUES),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=3)), max_size=4),
)


@hypothesis.given(st.sampled_from(KEYS), values)
@examples(short=60, long=1500)
def test_values_are_taken_or_refused_before_anything_is_fitted(key, value):
    section, name = key
    tree = {s: dict(keys) for s, keys in TINY.items()}
    for other, more in READ.get(name, {}).items():
        tree[other] = tree.get(other, {}) | more
    tree[section] = tree.get(section, {}) | {name: value}
    judge("config values", f"{section}.{name}={value!r:.60}", lambda: attempt(tree))


words = st.one_of(st.sampled_from(["train", "train.steps", "steps", "", "."]), st.text(max_size=9))
keys = st.one_of(words, st.none(), st.integers(), st.floats(), st.booleans(), st.binary())


@hypothesis.given(
    st.one_of(values, st.dictionaries(keys, st.one_of(values, st.dictionaries(keys, values))))
)
@examples(short=30, long=300)
def test_trees_that_are_no_config_are_refused(tree):
    judge("config trees", f"{tree!r:.60}", lambda: Config.from_dict(tree))
