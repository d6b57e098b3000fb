"""Mirrored and moved images: the laws of NumPy's, and only where training sees them."""

import dataclasses

import jax
import numpy as np
import pytest

from ndsm_jax import processes
from ndsm_jax.augmentation import Both, Mirrored, Shifted
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


def moved(image, down, right):
    """Of NumPy: the image in a wide frame of its edges, and a window of that."""
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    return wide[2 - down : 2 - down + SHAPE[0], 2 - right : 2 - right + SHAPE[1]]


def test_every_move_is_that_of_numpy_and_as_probable_as_any(rng):
    """Of 25 moves each has 1/25 of 5,000 images, with a standard error of 0.0028."""
    image = rng.normal(size=SHAPE).astype(np.float32)
    moves = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
    expected = np.stack([moved(image, *move) for move in moves]).reshape(25, -1)
    images = np.tile(image.ravel(), (5000, 1))
    shifted = Shifted(shape=SHAPE, pixels=2)
    found = np.asarray(shifted(jax.random.key(0), images))
    equal = (found[:, None] == expected).all(axis=-1)
    np.testing.assert_array_equal(equal.sum(axis=1), 1)
    np.testing.assert_allclose(equal.mean(axis=0), 0.04, atol=4.5 * 0.0028)
    np.testing.assert_array_equal(shifted(jax.random.key(0), images), found)


def test_mirrored_and_moved_are_independent(rng):
    """The six combinations of a flip and a move by a column: 2,000 images, se 0.0084."""
    image = rng.normal(size=(1, 3, 1)).astype(np.float32)
    both = Both(first=Mirrored(shape=image.shape), second=Shifted(shape=image.shape, pixels=1))
    found = np.asarray(both(jax.random.key(0), np.tile(image.ravel(), (2000, 1))))
    flips = [image[0, :, 0], image[0, ::-1, 0]]
    for flip in flips:
        for move in ([0, 0, 1], [0, 1, 2], [1, 2, 2]):
            share = (found == flip[move]).all(axis=1).mean()
            assert abs(share - 1 / 6) < 4.5 * 0.0084


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
    with pytest.raises(ValueError, match=r"data\.flips moves pixels of images, and .*='gaussians'"):
        build(config, (2,), stand_in(config, (2,)))
    # Before anything is fitted, with the stand-in's equal scales.
    config = tiny(data={"name": "digits", "flips": True, "frame": "standardised"})
    own = stand_in(config, (8, 8, 1), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"data\.frame to shared, or data\.flips to false"):
        build(config, (8, 8, 1), own, quiet=True)
    config = tiny(data={"name": "digits", "flips": True})
    parts = stand_in(config, (8, 8, 1), (0.0, 1.0))
    assert build(config, (8, 8, 1), parts, quiet=True).augment == Mirrored(shape=(8, 8, 1))
    config = tiny(data={"name": "gaussians", "shifts": 1})
    with pytest.raises(ValueError, match=r"data\.shifts moves pixels of .*; set data\.shifts to 0"):
        build(config, (2,), stand_in(config, (2,)))
    config = tiny(data={"name": "digits", "shifts": 8})
    with pytest.raises(
        ValueError, match=r"data\.shifts=8 moves images of 8 x 8 .*; set it to at most 7, or 0"
    ):
        build(config, (8, 8, 1), parts, quiet=True)
    config = tiny(data={"name": "digits", "shifts": 1})
    with pytest.raises(ValueError, match=r"data\.shifts=1 moves images of 1 x 5 .*; set it to 0"):
        build(config, (1, 5, 1), stand_in(config, (1, 5, 1), (0.0, 1.0)), quiet=True)
    config = tiny(data={"name": "gaussians", "shifts": 1, "flips": True})
    with pytest.raises(ValueError, match=r"set data\.flips to false and data\.shifts to 0"):
        build(config, (2,), stand_in(config, (2,)))
    config = tiny(data={"name": "digits", "shifts": 2, "flips": True})
    mirrored, shifted = Mirrored(shape=(8, 8, 1)), Shifted(shape=(8, 8, 1), pixels=2)
    made = build(config, (8, 8, 1), parts, quiet=True).augment
    assert made == Both(first=mirrored, second=shifted)
    config = tiny(data={"name": "digits", "shifts": 2})
    assert build(config, (8, 8, 1), parts, quiet=True).augment == shifted
