"""What is particular to tables: their columns one by one, and how these hang together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ndsm_jax.columns import Column
from ndsm_jax.evaluation.distances import total_variation

Array = np.ndarray


def column_distances(columns: Sequence[Column], x: Array, y: Array) -> dict[str, float]:
    """Distances of each column of two tables [n, D] and [m, D], without missing cells: 0 to 1.

    Of numbers the largest difference of the distribution functions (Kolmogorov-Smirnov), of
    categories the total variation of the levels' shares.
    """
    return {c.name: _distance(c, a, b) for c, a, b in zip(columns, x.T, y.T, strict=True)}


def associations(columns: Sequence[Column], x: Array) -> Array:
    """How the columns of a table [n, D] without missing cells hang together: [D, D], -1 to 1.

    The first canonical correlation (Hotelling 1936) between ranks of numbers and indicators of
    levels: Spearman's rank correlation of two columns of numbers, with its sign; the correlation
    ratio of ranks between levels; of two categories the first singular value of their
    correspondence analysis. 0 for a column that is constant.
    """
    bases = [_basis(column, values) for column, values in zip(columns, x.T, strict=True)]
    found = np.zeros((len(bases), len(bases)))
    for i, a in enumerate(bases):
        for j, b in enumerate(bases[: i + 1]):
            products = a.T @ b
            if columns[i].ordered and columns[j].ordered:
                found[i, j] = products.sum()  # one number, or none of a constant column
            elif products.size:
                found[i, j] = np.linalg.norm(products, 2)
            found[j, i] = found[i, j]
    return found.clip(-1, 1)


def most_associated(matrix: Array, count: int, *, each: int = 2) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of the largest `associations`, each column in so many at most."""
    rows, others = np.triu_indices(len(matrix), 1)
    chosen: list[tuple[int, int]] = []
    for at in np.argsort(-np.abs(matrix[rows, others]), kind="stable"):
        pair = (int(rows[at]), int(others[at]))
        if all(sum(i in other for other in chosen) < each for i in pair):
            chosen.append(pair)
        if len(chosen) == count:
            break
    return chosen


def table_scores(
    columns: Sequence[Column],
    held_out: Array,
    sets: dict[str, Array],
    *,
    seed: int = 0,
    max_points: int = 5000,
) -> dict[str, Any]:
    """`column_distances` and the mean error of `associations` of several tables to held-out rows.

    Args:
      columns: of all of them.
      held_out: [m, D].
      sets: tables [n, D] by name, of which equally many rows are used; rows that are not finite are
        left out.
      seed: of the choice of rows.
      max_points: most rows of each.

    Returns:
      {"columns": {name: {"kind", name of a set: distance}}, "associations": {name of a set: mean
      absolute difference over pairs of columns}}, of JSON types; None for a set without rows.
    """
    rng = np.random.default_rng(seed)
    finite = {name: x[np.isfinite(x).all(axis=1)] for name, x in sets.items()}
    size = min([max_points, *(len(x) for x in finite.values() if len(x))])
    rows = {name: rng.permutation(x)[:size] for name, x in finite.items() if len(x)}
    distances = {name: column_distances(columns, x, held_out) for name, x in rows.items()}
    truth, above = associations(columns, held_out), np.triu_indices(len(columns), 1)
    errors = {
        name: float(np.abs(associations(columns, x) - truth)[above].sum() / max(len(above[0]), 1))
        for name, x in rows.items()
    }
    return {
        "columns": {
            c.name: {"kind": c.kind, **{s: distances.get(s, {}).get(c.name) for s in sets}}
            for c in columns
        },
        "associations": {name: errors.get(name) for name in sets},
    }


def _distance(column: Column, x: Array, y: Array) -> float:
    from scipy.stats import ks_2samp

    if column.ordered:
        return float(ks_2samp(x, y, method="asymp").statistic)
    count = len(column.levels)
    shares = [np.bincount(a.astype(int), minlength=count) / len(a) for a in (x, y)]
    return total_variation(*shares)


def _basis(column: Column, values: Array) -> Array:
    """Orthonormal functions of a column, of mean 0: [n, r]."""
    from scipy.stats import rankdata

    if column.ordered:
        functions = rankdata(values)[:, None]
    else:
        functions = np.eye(len(column.levels))[values.astype(int)]
    functions = functions - functions.mean(axis=0)
    left, sizes, right = np.linalg.svd(functions, full_matrices=False)
    kept = sizes > 1e-6  # what rounding of the mean leaves is less
    return (left @ right if column.ordered else left)[:, kept]  # a number keeps its sign
