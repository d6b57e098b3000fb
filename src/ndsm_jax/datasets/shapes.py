"""Small colour images, drawn in any number from a seed: a shape on a gradient."""

from __future__ import annotations

import numpy as np

from ndsm_jax.datasets.dataset import TEST, TRAIN, Options, Raw, Samples

SIDE = 32
DEFAULT_TRAIN, DEFAULT_TEST = 4000, 1000
SHARES = (0.5, 0.3, 0.2)
"""Of discs, squares and triangles."""


def colour_shapes(options: Options) -> Raw:
    """Images [32, 32, 3], uint8: a disc, a square or a triangle before two colours that blend."""
    return Raw(
        train=_draw(options.num_train or DEFAULT_TRAIN, options.seed, TRAIN),
        test=_draw(options.num_test or DEFAULT_TEST, options.seed, TEST),
        source="synthetic colour images, datasets.shapes",
    )


def _draw(count: int, seed: int, stream: int) -> Samples:
    rng = np.random.default_rng([seed, stream])
    pixel = np.linspace(-1, 1, SIDE)
    x, y = np.meshgrid(pixel, pixel)
    # Background: two dull colours, from one side of the image to the other.
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    along = 0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    ends = rng.uniform(0.15, 0.75, (count, 2, 1, 1, 3))
    background = (1 - along) * ends[:, 0] + along * ends[:, 1]
    # Shape: of one bright colour, upright, wholly inside.
    size = rng.uniform(0.3, 0.55, (count, 1, 1))
    centre = rng.uniform(-1, 1, (2, count, 1, 1)) * (0.9 - size)
    u, v = (x - centre[0]) / size, (y - centre[1]) / size
    outside = np.stack(
        [
            np.hypot(u, v) - 1,
            np.maximum(np.abs(u), np.abs(v)) - 0.85,
            np.maximum(v - 0.6, 0.866 * np.abs(u) - 0.5 * v - 0.6),
        ]
    )
    kind = rng.choice(len(SHARES), size=count, p=SHARES)
    distance = outside[kind, np.arange(count)] * size * SIDE / 2  # in pixels
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    colour = rng.dirichlet((0.5, 0.5, 0.5), count)
    colour = (colour / colour.max(axis=1, keepdims=True))[:, None, None]
    image = (1 - cover) * background + cover * colour
    return Samples(np.round(255 * image).astype(np.uint8))
