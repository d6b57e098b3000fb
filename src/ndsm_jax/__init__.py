"""Score-based generative models with nonlinear noising dynamics, in JAX and Flax.

Nothing is imported here before it is used: `NDSM`, a scikit-learn estimator; `load`, which reads
the model of a run's folder; and the submodules, for example ``from ndsm_jax import processes``.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("ndsm_jax")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "NDSM":
        from ndsm_jax.estimator import NDSM

        return NDSM
    if name == "load":
        from ndsm_jax.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
