"""Scores that are exactly equivariant under a finite group of orthogonal maps."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ndsm_jax.processes.process import ScoreFn

SYMMETRIES = ("none", "c2", "c4", "d4")
"""Groups that act on images: turns by 180 degrees, by 90 degrees, and those with reflections."""

TOLERANCE = 1e-5


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("columns", "values", "inverse"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FiniteGroup:
    """A finite group G of orthogonal maps of R^d, as matrices of at most r entries a row.

    (g y)_i = sum_j values[g, i, j] y[columns[g, i, j]]: r = 1 holds permutations and changes of
    sign without waste, r = d any matrices. Build it with `permutations` or `matrices`.

    Attributes:
      columns: [|G|, d, r], int32.
      values: [|G|, d, r].
      inverse: index of the inverse of each element, [|G|]; as G is orthogonal, its transpose.
    """

    columns: Array
    values: Array
    inverse: Array

    @property
    def order(self) -> int:
        """|G|."""
        return self.columns.shape[0]

    def act(self, y: Array) -> Array:
        """g y for every g: [..., d] -> [|G|, ..., d]."""
        return jax.vmap(lambda c, v: _multiply(c, v, y))(self.columns, self.values)

    def undo(self, y: Array) -> Array:
        """g^T y_g: [|G|, ..., d] -> [|G|, ..., d], so that undo(act(y)) is |G| copies of y."""
        columns, values = self.columns[self.inverse], self.values[self.inverse]
        return jax.vmap(_multiply)(columns, values, y)


def _multiply(columns: Array, values: Array, y: Array) -> Array:
    """One matrix [d, r] on y [..., d]; the loop over r keeps memory at that of y."""
    total = jnp.zeros_like(y)
    for j in range(columns.shape[1]):
        value = jnp.broadcast_to(values[:, j], y.shape)
        total = total + value * jnp.take(y, columns[:, j], axis=-1)
    return total


def permutations(rows: np.ndarray, signs: np.ndarray | None = None) -> FiniteGroup:
    """The group of (g y)_i = signs[g, i] y[rows[g, i]]; rows, signs [|G|, d].

    Raises:
      ValueError: as `matrices`.
    """
    rows = np.asarray(rows)
    values = np.ones(rows.shape) if signs is None else np.asarray(signs, np.float64)
    if values.shape != rows.shape:
        raise ValueError(f"group: rows {rows.shape} and signs {values.shape} differ in shape")
    return _group(rows[..., None], values[..., None])


def matrices(elements: np.ndarray) -> FiniteGroup:
    """The group of the orthogonal matrices `elements` [|G|, d, d].

    Raises:
      ValueError: not a group: no identity, a product or an inverse missing, an element twice, or
        one that is not orthogonal.
    """
    elements = np.asarray(elements, np.float64)
    if elements.ndim != 3 or elements.shape[1] != elements.shape[2]:
        raise ValueError(f"group: elements must be [|G|, d, d], not {elements.shape}")
    columns = np.broadcast_to(np.arange(elements.shape[1]), elements.shape)
    return _group(columns, elements)


def _group(columns: np.ndarray, values: np.ndarray) -> FiniteGroup:
    """Checks that it is a group, and finds inverses, by the images of two random vectors u and v.

    Different linear maps differ, and a map that is not orthogonal shows it, at almost every u, v.
    """
    if columns.size == 0 or columns.min() < 0 or columns.max() >= columns.shape[1]:
        raise ValueError(f"group: columns of shape {columns.shape} must lie in [0, d), |G| > 0")

    def act(y: np.ndarray) -> np.ndarray:
        return np.einsum("gir,...gir->...gi", values, y[..., columns])

    u, v = np.random.default_rng(0).standard_normal((2, columns.shape[1]))
    images = act(v)
    products = act(images)  # [h, g, d]: g h v

    def find(y: np.ndarray) -> np.ndarray:
        """Whether y [..., d] is the image of v under each element: [..., |G|]."""
        return np.stack([np.abs(y - image).max(axis=-1) < TOLERANCE for image in images], axis=-1)

    same = find(images)
    if same.sum() > len(images):
        first, second = np.argwhere(same & ~np.eye(len(images), dtype=bool))[0]
        raise ValueError(f"not a group: elements {first} and {second} are equal; list each once")
    if not find(v).any():
        raise ValueError("not a group: the identity is missing")
    table = find(products)
    if not table.any(axis=-1).all():
        h, g = np.argwhere(~table.any(axis=-1))[0]
        raise ValueError(f"not a group: the product of elements {g} and {h} is missing")
    # A closed finite set of matrices with the identity may still hold singular ones.
    is_inverse = table.argmax(axis=-1) == find(v).argmax()  # [h, g]
    if not is_inverse.any(axis=1).all():
        raise ValueError(f"not a group: element {is_inverse.any(axis=1).argmin()} has no inverse")
    inverse = is_inverse.argmax(axis=1)
    mismatch = np.abs(images @ u - act(u)[inverse] @ v)  # u . g v against (g^-1 u) . v
    if mismatch.max() > TOLERANCE * len(u):
        raise ValueError(
            f"group: element {mismatch.argmax()} is not orthogonal; change coordinates so that all"
            " are (the transpose must be the inverse)"
        )
    return FiniteGroup(
        columns=jnp.asarray(columns, jnp.int32),
        values=jnp.asarray(values, jnp.float32),
        inverse=jnp.asarray(inverse, jnp.int32),
    )


def image_group(name: str, shape: tuple[int, ...]) -> FiniteGroup | None:
    """The group `name` of `SYMMETRIES` on flat images of shape (height, width, channels).

    None for 'none'.

    Raises:
      ValueError: an unknown name, states that are no images, or quarter turns of images that are
        not square.
    """
    if name not in SYMMETRIES:
        raise ValueError(f"network.symmetry={name!r}: choose one of {', '.join(SYMMETRIES)}")
    if name == "none":
        return None
    if len(shape) != 3:
        raise ValueError(
            f"network.symmetry={name!r} needs images, the data have shape {shape}; use 'none'"
        )
    if name != "c2" and shape[0] != shape[1]:
        raise ValueError(
            f"network.symmetry={name!r} needs square images, the data have shape {shape}; use 'c2'"
            " or 'none'"
        )
    pixels = np.arange(int(np.prod(shape))).reshape(shape)
    turns = (0, 2) if name == "c2" else (0, 1, 2, 3)
    flips = (pixels, pixels[:, ::-1]) if name == "d4" else (pixels,)
    return permutations(np.stack([np.rot90(x, k).ravel() for x in flips for k in turns]))


def symmetrise(score: ScoreFn, group: FiniteGroup) -> ScoreFn:
    """s_G(y, t) = 1/|G| sum_g g^T s(g y, t), with s_G(h y, t) = h s_G(y, t) for every h in G.

    The score of an invariant law is equivariant; averaging makes any network so (2405.15625,
    Section 5; Hoogeboom et al. 2022). It is one call of `score`, on |G| times the states.
    """

    def equivariant(y: Array, t: Array) -> Array:
        scores = score(group.act(y), jnp.broadcast_to(t, (group.order, *t.shape)))
        return jnp.mean(group.undo(scores), axis=0)

    return equivariant
