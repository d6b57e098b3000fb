"""Score models in the latent space of an autoencoder (second version of 2405.15625; 2512.06615)."""

from ndsm_jax.codec import Codec, Latent, decode, encode
from ndsm_jax.latent.objective import cross_entropy, joint_terms
from ndsm_jax.latent.training import (
    frame_of,
    score_config,
    train_autoencoder,
    train_joint,
    train_latent,
)

__all__ = [
    "Codec",
    "Latent",
    "cross_entropy",
    "decode",
    "encode",
    "frame_of",
    "joint_terms",
    "score_config",
    "train_autoencoder",
    "train_joint",
    "train_latent",
]
