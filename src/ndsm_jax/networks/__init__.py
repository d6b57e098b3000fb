"""Score networks, the eps network, and parameterisations. The only place that imports Flax.

A score network is a Flax module (y [n, d], c [n]) -> [n, d] with c in [-1, 1] the time coordinate.
"""

from ndsm_jax.networks.eps import EpsNet
from ndsm_jax.networks.mlp import ScoreMLP
from ndsm_jax.networks.parameterisation import PARAMETERISATIONS, ScoreModel
from ndsm_jax.networks.unet import UNet

NETWORKS = {"mlp": ScoreMLP, "unet": UNet}

__all__ = ["NETWORKS", "PARAMETERISATIONS", "EpsNet", "ScoreMLP", "ScoreModel", "UNet"]
