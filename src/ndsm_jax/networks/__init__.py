"""Score networks, the eps network, preconditioning, autoencoders. All that imports Flax.

A score network is a Flax module (y [n, d], c [n]) -> [n, d] with c in [-1, 1] the time coordinate;
a third argument [n, d] is what the frame or the prior tells it beside y, and the keyword
`condition`, a pytree of [n, ...], is what the user does, see `conditions`. Of angles it gets
`harmonics` in the place of y, so that any network is periodic.
Its `dtype` is that of the hidden layers' arithmetic. Parameters, the output, the features of the
time, statistics of normalisation and the softmax of attention are float32 always. So are the first
and the last layer: the smallest noise of training is below the spacing of bfloat16 numbers near 1,
and they cost little. Where there is a key of the stream `dropout`, which training alone gives, a
network leaves out a share `dropout` of its activations.
"""

from collections.abc import Callable

from ndsm_jax.networks.adm import ADM
from ndsm_jax.networks.autoencoder import Autoencoder
from ndsm_jax.networks.balance import balanced, target_excess
from ndsm_jax.networks.denoising import DenoisingAutoencoder
from ndsm_jax.networks.dit import DiT
from ndsm_jax.networks.embedding import harmonics
from ndsm_jax.networks.eps import EpsNet
from ndsm_jax.networks.local import Local, fitting, local, suited
from ndsm_jax.networks.mlp import ScoreMLP
from ndsm_jax.networks.model import ScoreModel
from ndsm_jax.networks.precondition import (
    Edm,
    Precondition,
    Raw,
    Residual,
    Scaled,
    Velocity,
    weight_of,
)
from ndsm_jax.networks.symmetry import SYMMETRIES, image_group
from ndsm_jax.networks.tells import described, prior_mean, takes_condition, takes_told
from ndsm_jax.networks.unet import UNet

NETWORKS = {"mlp": ScoreMLP, "unet": UNet, "adm": ADM, "dit": DiT}
PRECONDITIONS: dict[str, Callable[..., Precondition]] = {
    "auto": fitting,
    "local": local,
    "residual": Residual,
    "edm": Edm,
    "scaled": Scaled,
    "velocity": Velocity,
    "raw": Raw,
}
DTYPES = ("float32", "bfloat16")

__all__ = [
    "ADM",
    "DTYPES",
    "NETWORKS",
    "PRECONDITIONS",
    "SYMMETRIES",
    "Autoencoder",
    "DenoisingAutoencoder",
    "DiT",
    "Edm",
    "EpsNet",
    "Local",
    "Precondition",
    "Raw",
    "Residual",
    "Scaled",
    "ScoreMLP",
    "ScoreModel",
    "UNet",
    "Velocity",
    "balanced",
    "described",
    "harmonics",
    "image_group",
    "prior_mean",
    "suited",
    "takes_condition",
    "takes_told",
    "target_excess",
    "weight_of",
]
