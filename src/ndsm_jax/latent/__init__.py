"""Score models in the latent space of an autoencoder (second version of 2405.15625; 2512.06615)."""

from ndsm_jax.latent.objective import Codec, cross_entropy, joint_terms
from ndsm_jax.latent.training import (
    LatentModel,
    decode,
    encode,
    encode_dataset,
    fingerprint,
    score_config,
    train_autoencoder,
    train_joint,
    train_latent,
)

__all__ = [
    "Codec",
    "LatentModel",
    "cross_entropy",
    "decode",
    "encode",
    "encode_dataset",
    "fingerprint",
    "joint_terms",
    "score_config",
    "train_autoencoder",
    "train_joint",
    "train_latent",
]
