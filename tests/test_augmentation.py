"""Mirrored images: the law of NumPy's flips, and only where training sees them."""

import dataclasses

import jax
import numpy as np
import pytest

from ndsm_jax import frames, processes
from ndsm_jax.augmentation import Mirrored
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import stand_in
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.training import HeldOut, init_state
from ndsm_jax.training.held_out import make_look
from ndsm_jax.training.step import noised
from tests.training.tiny_runs import tiny

SHAPE = (4, 6, 3)


def test_half_of_the_images_are_those_of_numpy_mirrored(rng):
    """600 coins: the share is 1/2 with a standard error of 0.02. A key draws the same ones."""
    images = rng.normal(size=(600, *SHAPE)).astype(np.float32)
    flat = images.reshape(600, -1)
    mirror = Mirrored(shape=SHAPE)
    found = np.asarray(mirror(jax.random.key(0), flat))
    turned = (found == images[:, :, ::-1].reshape(600, -1)).all(axis=1)
    np.testing.assert_array_equal(found[~turned], flat[~turned])
    assert abs(turned.mean() - 0.5) < 4.5 * 0.0204
    np.testing.assert_array_equal(mirror(jax.random.key(0), flat), found)
    assert (np.asarray(mirror(jax.random.key(1), flat)) != found).any()


def never(key, x):
    raise AssertionError("augmented")


def test_a_visit_in_training_is_augmented_and_a_look_at_held_out_data_is_not(rng):
    network = ScoreMLP(width=4, depth=1, zero_output=True)
    made = experiment(
        processes.ornstein_uhlenbeck(2), objective="dsm", network=network, augment=never
    )
    x = rng.normal(size=(16, 2)).astype(np.float32)
    with pytest.raises(AssertionError, match="augmented"):
        noised(made, jax.random.key(0), x)
    look = make_look(made, HeldOut(data=x), unseen=x, fitted=x, batch_size=16, seed=0)
    _, found, _ = look(init_state(made, seed=0, select=True))
    assert np.isfinite(found["held_out_loss"])


def test_a_visit_sees_the_mirror_image_with_the_noise_of_its_key():
    """An image of two pixels in one row, under noise that is small beside them."""
    made = experiment(processes.variance_exploding(2), objective="dsm")
    made = dataclasses.replace(made, augment=Mirrored(shape=(1, 2, 1)))
    x = np.tile(np.float32([1000.0, 2000.0]), (400, 1))
    batch = noised(made, jax.random.key(0), x)
    first = np.asarray(batch.y)[:, 0, 0]
    assert abs((first > 1500).mean() - 0.5) < 4.5 * 0.025  # its standard error
    np.testing.assert_allclose(np.asarray(batch.y).sum(axis=-1), 3000, atol=1000)


def test_what_cannot_be_mirrored_is_refused():
    config = tiny(data={"name": "gaussians", "flips": True})
    with pytest.raises(ValueError, match=r"data\.flips mirrors images, and data\.name='gaussians'"):
        build(config, (2,), stand_in(config, (2,)))
    config = tiny(data={"name": "digits", "flips": True, "frame": "standardised"})
    parts = stand_in(config, (8, 8, 1), (0.0, 1.0))
    assert build(config, (8, 8, 1), parts, quiet=True).augment == Mirrored(shape=(8, 8, 1))
    scale = np.linspace(1, 2, 64)
    own = dataclasses.replace(parts, frame=frames.Standardised(shift=np.zeros(64), scale=scale))
    with pytest.raises(ValueError, match=r"data\.frame to shared, or data\.flips to false"):
        build(config, (8, 8, 1), own, quiet=True)
