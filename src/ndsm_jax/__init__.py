"""Score-based generative models with nonlinear noising dynamics, in JAX and Flax.

Nothing is imported here: take what is needed from the submodules, for example
``from ndsm_jax import processes, references``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ndsm_jax")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"
