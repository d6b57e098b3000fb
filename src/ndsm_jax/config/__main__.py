"""Prints docs/configuration.md."""

from ndsm_jax.config.sections import reference

print(reference(), end="")
