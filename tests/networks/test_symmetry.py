"""Symmetrised scores: exact equivariance, known means, what is no group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import references
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import Parts, stand_in
from ndsm_jax.experiment import Experiment
from ndsm_jax.frames import Identity
from ndsm_jax.networks.symmetry import image_group, matrices, permutations, symmetrise

SQUARE = (6, 6, 2)
IMAGES = {
    "c2": [lambda x: np.rot90(x, 2)],
    "c4": [np.rot90, lambda x: np.rot90(x, 2)],
    "d4": [np.rot90, np.fliplr, np.flipud, lambda x: np.swapaxes(x, 0, 1)],
}
ORDER = {"c2": 2, "c4": 4, "d4": 8}


def dihedral(n: int) -> np.ndarray:
    """The 2 n turns and reflections of a regular n-gon, as matrices in the plane."""
    angles = 2 * np.pi * np.arange(n) / n
    c, s = np.cos(angles), np.sin(angles)
    turns = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], axis=-2)
    return np.concatenate([turns, turns @ np.diag([1.0, -1.0])])


def any_score(dim: int, seed: int = 0):
    """A smooth function (y, t) without any symmetry."""
    a, b = jax.random.normal(jax.random.key(seed), (2, dim, dim)) / dim**0.5
    bias = jnp.arange(dim) / dim
    return lambda y, t: jnp.tanh(y @ a + t[..., None]) @ b + jnp.broadcast_to(bias, y.shape)


def transform(image_map, y: np.ndarray, shape=SQUARE) -> np.ndarray:
    """An array function of one image on flat states [n, d]."""
    return np.stack([image_map(x.reshape(shape)).ravel() for x in y])


@pytest.mark.parametrize("name", IMAGES)
def test_symmetrised_scores_of_images_are_equivariant(name, rng):
    """s_G(h y) = h s_G(y), with h by NumPy's own functions on images of two channels."""
    group = image_group(name, SQUARE)
    assert group is not None
    assert group.order == ORDER[name]
    score = any_score(72)
    equivariant = symmetrise(score, group)
    y = rng.normal(size=(5, 72)).astype(np.float32)
    t = jnp.linspace(0.1, 0.9, 5)
    for h in IMAGES[name]:
        turned = transform(h, y)
        assert np.abs(score(turned, t) - transform(h, np.asarray(score(y, t)))).max() > 0.1
        actual = equivariant(jnp.asarray(turned), t)
        np.testing.assert_allclose(
            actual, transform(h, np.asarray(equivariant(y, t))), atol=2e-6, rtol=1e-6
        )


def test_c2_of_images_that_are_not_square(rng):
    shape = (4, 6, 1)
    group = image_group("c2", shape)
    assert group is not None
    y = rng.normal(size=(3, 24))
    np.testing.assert_allclose(
        group.act(jnp.asarray(y, jnp.float32))[1],
        transform(lambda x: np.rot90(x, 2), y, shape),
        rtol=1e-6,
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_symmetrised_scores_of_the_plane_are_the_mean_over_the_group(n, rng):
    """Against the sum written out with matrices; D_3 and D_5 are no signed permutations."""
    elements = dihedral(n)
    equivariant = symmetrise(any_score(2), matrices(elements))
    y = rng.normal(size=(4, 3, 2)).astype(np.float32)
    t = jnp.asarray(rng.uniform(size=(4, 3)), jnp.float32)
    score = any_score(2)
    terms = [np.asarray(score(jnp.asarray(y @ g.T, jnp.float32), t)) @ g for g in elements]
    np.testing.assert_allclose(equivariant(y, t), np.mean(terms, axis=0), rtol=1e-5, atol=2e-6)
    for g in elements:
        moved = equivariant(jnp.asarray(y @ g.T, jnp.float32), t)
        np.testing.assert_allclose(moved, equivariant(y, t) @ g.T, rtol=1e-5, atol=3e-6)


def test_signed_permutations_are_the_matrices_they_stand_for(rng):
    """The four changes of two signs and a swap generate the square's group D_4 in the plane."""
    rows = np.array([[0, 1]] * 4 + [[1, 0]] * 4)
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 2)
    dense = np.zeros((8, 2, 2))
    for g in range(8):
        dense[g, [0, 1], rows[g]] = signs[g]
    y = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    sparse, full = permutations(rows, signs), matrices(dense)
    np.testing.assert_allclose(sparse.act(y), full.act(y), rtol=1e-6)
    np.testing.assert_allclose(sparse.undo(sparse.act(y)), np.stack([y] * 8), rtol=1e-6)
    np.testing.assert_allclose(full.undo(full.act(y)), np.stack([y] * 8), rtol=1e-5)


def test_the_score_of_an_invariant_law_is_left_as_it_is(rng):
    """Three equal Gaussians at the corners of a triangle are invariant under D_3."""
    corners = dihedral(3)[:3] @ np.array([1.0, 0.0])
    law = references.mixture(np.ones(3), corners, [0.2] * 3)
    y = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    t = jnp.zeros(6)
    equivariant = symmetrise(lambda y, t: law.score(y), matrices(dihedral(3)))
    np.testing.assert_allclose(equivariant(y, t), law.score(y), rtol=1e-4, atol=1e-5)


def test_the_score_is_called_once():
    calls = []

    def score(y, t):
        calls.append((y.shape, t.shape))
        return y

    group = image_group("d4", (2, 2, 1))
    assert group is not None
    symmetrise(score, group)(jnp.ones((7, 3, 4)), jnp.ones((7, 3)))
    assert calls == [((8, 7, 3, 4), (8, 7, 3))]


TURN, MIRROR = np.array([[0.0, -1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])
SHEAR = np.array([[1.0, 1.0], [0.0, -1.0]])  # its own inverse, not orthogonal


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([TURN @ TURN], "identity is missing"),
        ([np.eye(2), TURN], "product of elements 1 and 1 is missing"),
        ([np.eye(2), MIRROR, -np.eye(2)], "product of elements . and . is missing"),
        ([np.eye(2), MIRROR, MIRROR], "elements 1 and 2 are equal"),
        ([np.eye(2), np.diag([1.0, 0.0])], "element 1 has no inverse"),
        ([np.eye(2), SHEAR], "element 1 is not orthogonal"),
        ([np.eye(2)[0]], r"must be \[\|G\|, d, d\]"),
    ],
)
def test_what_is_no_group_is_refused(elements, message):
    with pytest.raises(ValueError, match=message):
        matrices(np.array(elements))


def test_permutations_are_checked():
    with pytest.raises(ValueError, match=r"product of elements 1 and 1"):
        permutations(np.array([[0, 1, 2], [1, 2, 0]]))
    with pytest.raises(ValueError, match="must lie in"):
        permutations(np.array([[0, 1, 3]]))
    with pytest.raises(ValueError, match="differ in shape"):
        permutations(np.array([[0, 1]]), np.ones(2))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("c2", (4,), r"network\.symmetry='c2' needs images"),
        ("c4", (4, 6, 1), r"network\.symmetry='c4' needs square images"),
        ("c3", (4, 4, 1), r"network\.symmetry='c3': choose one of none, c2, c4, d4"),
    ],
)
def test_groups_that_do_not_fit_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        image_group(name, shape)


def built(parameterisation: str, process: str) -> Experiment:
    config = Config.from_dict(
        {
            "process": {"name": process},
            "objective": {"name": "dsm" if process == "variance_preserving" else "path_dsm"},
            "mixture": {"num_components": 2},
            "network": {
                "width": 8,
                "depth": 1,
                "symmetry": "c4",
                "parameterisation": parameterisation,
            },
        }
    )
    parts = stand_in(config, (4, 4, 1))
    if process == "langevin":
        means = np.random.default_rng(0).normal(size=(2, 16))
        reference = references.mixture([0.4, 0.6], means, [0.3, 0.4])
        parts = Parts(frame=Identity(), reference=reference)
    return build(config, (4, 4, 1), parts)


@pytest.mark.parametrize(
    ("parameterisation", "process"),
    [("raw", "variance_preserving"), ("residual", "langevin")],
)
def test_network_symmetry_makes_the_whole_score_equivariant(parameterisation, process, rng):
    """Also where the prior, two Gaussians at random means, is not invariant."""
    model = built(parameterisation, process).model
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    params = jax.tree.unflatten(tree, [0.3 * rng.normal(size=x.shape) for x in leaves])
    y = rng.normal(size=(3, 2, 16)).astype(np.float32)
    t = jnp.full((3, 2), 0.2)
    turned = transform(np.rot90, y.reshape(6, 16), (4, 4, 1)).reshape(y.shape)
    expected = transform(np.rot90, np.asarray(model(params, y, t)).reshape(6, 16), (4, 4, 1))
    actual = jax.jit(lambda m, y: m(params, y, t))(model, turned)
    np.testing.assert_allclose(actual.reshape(6, 16), expected, rtol=1e-4, atol=1e-5)


def test_symmetry_of_a_network_of_one_component_is_refused():
    config = Config.from_dict(
        {
            "process": {"name": "component_ou"},
            "objective": {"name": "dsm"},
            "mixture": {"num_components": 2},
            "network": {"symmetry": "c2"},
        }
    )
    with pytest.raises(
        ValueError, match=r"network\.symmetry='c2' .* process 'component_ou' are not"
    ):
        build(config, (4, 4, 1), stand_in(config, (4, 4, 1)))


def test_symmetrised_gradients_are_those_of_the_sum(rng):
    """The loss's gradient through the group, against one through matrices written out."""
    group = image_group("c2", (2, 2, 1))
    assert group is not None
    turn = np.eye(4, dtype=np.float32)[::-1]
    y, target = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)

    def loss(score):
        return jnp.sum((score - target) ** 2)

    def grouped(w):
        return loss(symmetrise(lambda y, t: jnp.tanh(y @ w), group)(y, jnp.zeros(3)))

    def written(w):
        return loss(0.5 * (jnp.tanh(y @ w) + jnp.tanh(y @ turn @ w) @ turn))

    np.testing.assert_allclose(
        jax.grad(grouped)(weights), jax.grad(written)(weights), rtol=1e-5, atol=1e-6
    )
