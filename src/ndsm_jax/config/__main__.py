"""Prints docs/configuration.md."""

from ndsm_jax.config.effect import reference

print(reference(), end="")
