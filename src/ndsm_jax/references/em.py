"""Expectation-maximisation of Gaussian mixtures on JAX devices, in blocks of rows.

One iteration is one pass over the data. The E-step gives each row x_n its responsibilities

    r_nk = w_k N(x_n; mu_k, Sigma_k) / sum_j w_j N(x_n; mu_j, Sigma_j),

and what the M-step needs of them are sums over rows: n_k = sum_n r_nk, sum_n r_nk x_n and second
moments about the last means. They are summed in float32 over the rows of a block, on all devices,
and over blocks in float64 on the host, where the M-step is. So neither the number of rows nor the
memory bounds a fit, and blocks may come from a file.

float32 is enough as the rows are centred in float64 before they are cast, responsibilities are a
softmax, and the log-likelihood is summed as its difference to that of the last iteration. Squared
distances are |x|^2 - 2 x.mu + |mu|^2, which a batch turns into one matrix product; what cancels is
about 1e-7 |x|^2, so a standard deviation may be a thousandth of the spread of the means. In few
dimensions the differences are taken as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from ndsm_jax import parallel
from ndsm_jax.references.mixtures import DIRECT, LowRank
from ndsm_jax.rows import Rows

TOLERANCE = 1e-3
"""Gain of the mean log-likelihood below which EM has converged, scikit-learn's."""

KEPT = 2**31
"""Bytes of rows that stay on the devices from pass to pass; more of them are read anew."""

BLOCK = 2**24
"""Numbers in a block of rows, at most."""

SEEDED = 20_000
"""Rows on which starts are made and compared, at least."""

_ROWS_A_COMPONENT = 50  # of the rows that starts are made on
_LLOYD = 30  # iterations of k-means, at most
_SETTLED = 1e-3  # relative gain of k-means below which it ends
_EMPTY = 10 * np.finfo(np.float64).eps  # added to counts, as scikit-learn does: no division by zero


class Estimate(NamedTuple):
    """Parameters in float64 on the host; `covariances` as `references.mixture` takes them."""

    weights: np.ndarray
    means: np.ndarray
    covariances: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What EM did.

    Attributes:
      estimate: its end.
      log_likelihoods: a row's mean one, as each E-step found it.
      converged: whether its last gain was below the tolerance.
    """

    estimate: Estimate
    log_likelihoods: tuple[float, ...]
    converged: bool


# --- rows on devices ---


def _chunk() -> int:
    """Rows whose responsibilities exist at once: on a CPU as many as its caches hold."""
    return 256 if jax.default_backend() == "cpu" else 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Rows less a centre, in float32 blocks of one shape; iterated over, once a pass.

    The rows of a block are spread over all devices, and a process reads those of its own.

    Attributes:
      rows: the data, N of them at least.
      index: numbers of those that are taken, increasing; None: all.
      centre: what is taken off, [d].
      chunk: rows of a device that are worked on at once.
      numbers: in a block, at most.
    """

    rows: Rows
    index: np.ndarray | None
    centre: np.ndarray
    chunk: int
    numbers: int = BLOCK

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows) if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        """d."""
        return len(self.centre)

    @functools.cached_property
    def size(self) -> int:
        """Rows of a block: whole chunks on every device, with the least padding."""
        step = self.chunk * parallel.num_devices()
        most = max(self.numbers // self.dim // step, 1) * step
        count = -(-len(self) // most)
        return -(-len(self) // (count * step)) * step

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Blocks [size, d], and the numbers of their rows [size], -1 where there is none."""
        return iter(self._kept) if 4 * len(self) * self.dim <= KEPT else self._read()

    @functools.cached_property
    def _kept(self) -> list[tuple[Array, Array]]:
        return list(self._read())

    def _read(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self), self.size):
            number = np.arange(start, start + self.size, dtype=np.int32)
            number[number >= len(self)] = -1
            x = jnp.asarray(parallel.gathered(self, number))
            yield x, jnp.asarray(parallel.spread(number))

    def __getitem__(self, number: np.ndarray) -> np.ndarray:
        """Rows of consecutive numbers, and zeros where they end with -1: [n, d], on the host."""
        there = number[number >= 0]
        found = np.zeros((len(number), self.dim), np.float32)
        if len(there):
            taken = slice(there[0], there[-1] + 1)
            index = taken if self.index is None else self.index[taken]
            found[: len(there)] = np.asarray(self.rows[index], np.float64) - self.centre
        return found

    @functools.cached_property
    def scatter(self) -> np.ndarray:
        """sum_n x_n x_n^T: [d, d]."""
        return np.asarray(_total(self, partial(_sums, _products, self.chunk, {})))


def blocks(rows: Rows, index: np.ndarray | None = None, centre: np.ndarray | None = None) -> Blocks:
    """Rows as `Blocks`, around their mean where no centre is given.

    Raises:
      ValueError: rows that are not finite.
    """
    if centre is None:
        total, size = np.zeros(rows.shape[1]), max(BLOCK // rows.shape[1], 1)
        num = len(rows) if index is None else len(index)
        for start in range(0, num, size):
            stop = min(start + size, num)
            taken = slice(start, stop) if index is None else index[start:stop]
            total += np.sum(rows[taken], axis=0, dtype=np.float64)
        if not np.isfinite(total).all():
            raise ValueError("references.fit: data are not finite; leave out rows with NaN or inf")
        centre = total / num
    # No chunk is longer than the rows of a device: few rows are not padded to many.
    own = -(-(len(rows) if index is None else len(index)) // parallel.num_devices())
    return Blocks(rows=rows, index=index, centre=centre, chunk=min(_chunk(), own))


@partial(jax.jit, static_argnames=("sums", "chunk"))
def _sums(sums: Callable[..., Any], chunk: int, params: Any, x: Array, number: Array) -> Any:
    """sums(params, rows, numbers) over the chunks of a block, on all devices."""

    def of_device(params: Any, x: Array, number: Array) -> Any:
        parts = x.reshape(-1, chunk, x.shape[1]), number.reshape(-1, chunk)
        shapes = jax.eval_shape(sums, params, parts[0][0], parts[1][0])
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, sums(params, *part)), None

        return jax.lax.psum(jax.lax.scan(add, zeros, parts)[0], parallel.ROWS)

    rows, whole = PartitionSpec(parallel.ROWS), PartitionSpec()
    # TF32, the default of recent GPUs, has 10 bits: too few for squared distances.
    with jax.default_matmul_precision("highest"):
        return jax.shard_map(
            of_device,
            mesh=parallel.mesh(),
            in_specs=(whole, rows, rows),
            out_specs=whole,
            check_vma=False,
        )(params, x, number)


def _total(data: Blocks, one: Callable[[Array, Array], Any]) -> Any:
    """Sums of blocks, added in float64; the next block is read while devices work on one."""
    total, last = None, None
    for block in data:
        found = one(*block)
        if last is not None:
            total = _added(total, last)
        last = found
    return _added(total, last)


def _added(total: Any, found: Any) -> Any:
    found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
    return found if total is None else jax.tree.map(np.add, total, found)


def _products(_: Any, x: Array, __: Array) -> Array:
    return x.T @ x


# --- kinds of covariances ---


def _square_distances(x: Array, means: Array) -> Array:
    """|x_n - mu_k|^2: [n, d], [K, d] -> [n, K]."""
    if x.shape[1] <= DIRECT:
        return jnp.sum((x[:, None, :] - means[None]) ** 2, axis=2)
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(means**2, axis=1)[None, :]
    return jnp.maximum(norms - 2 * x @ means.T, 0.0)


class _Kind(NamedTuple):
    """What differs between kinds of covariances.

    Attributes:
      roots: of covariances and d: what distances need of them, and log det Sigma_k, [K] or scalar.
      distances: of these, means and rows: Mahalanobis distances [n, K], and what moments reuse.
      moments: of the same, responsibilities and what is reused: second moments about the means.
      maximise: of second moments a component about its new mean, see `_maximised`: covariances.
    """

    roots: Callable[[Any, int], tuple[dict[str, Any], Any]]
    distances: Callable[[Any, Array], tuple[Array, Any]]
    moments: Callable[[Any, Array, Array, Any], Any]
    maximise: Callable[..., Any]


# Spherical, tied_spherical: S_k = sum_n r_nk |x_n - mu_k|^2, sigma_k^2 = S_k / (n_k d).


def _round_roots(variances: Any, dim: int) -> tuple[dict[str, Any], Any]:
    return {"precision": np.atleast_1d(1 / variances)}, dim * np.log(variances)


def _round_distances(p: Any, x: Array) -> tuple[Array, Any]:
    squares = _square_distances(x, p["means"])
    return squares * p["precision"][None, :], squares


def _round_moments(p: Any, x: Array, r: Array, squares: Array) -> Array:
    return jnp.sum(r * squares, axis=0)


def _round_maximise(squares: Any, counts: Any, shifts: Any, **_: Any) -> Any:
    dim = shifts.shape[1]
    return np.maximum(squares / counts - np.sum(shifts**2, axis=1), 0.0) / dim


def _tied_round_maximise(squares: Any, counts: Any, shifts: Any, **_: Any) -> Any:
    return counts @ _round_maximise(squares, counts, shifts) / counts.sum()


# Diagonal: the same a coordinate.


def _diagonal_roots(variances: Any, dim: int) -> tuple[dict[str, Any], Any]:
    return {"precision": 1 / variances}, np.log(variances).sum(axis=1)


def _diagonal_distances(p: Any, x: Array) -> tuple[Array, Any]:
    means, precision = p["means"], p["precision"]
    if x.shape[1] <= DIRECT:
        return jnp.sum((x[:, None, :] - means[None]) ** 2 * precision[None], axis=2), None
    scaled = means * precision
    squares = x**2 @ precision.T + jnp.sum(means * scaled, axis=1)[None, :]
    return jnp.maximum(squares - 2 * x @ scaled.T, 0.0), None


def _diagonal_moments(p: Any, x: Array, r: Array, _: Any) -> Array:
    means = p["means"]
    if x.shape[1] <= DIRECT:
        return jnp.sum(r[:, :, None] * (x[:, None, :] - means[None]) ** 2, axis=0)
    crossed = 2 * means * (r.T @ x) - means**2 * jnp.sum(r, axis=0)[:, None]
    return r.T @ x**2 - crossed


def _diagonal_maximise(squares: Any, counts: Any, shifts: Any, **_: Any) -> Any:
    return np.maximum(squares / counts[:, None] - shifts**2, 0.0)


# Tied and full: with Sigma^{-1} = P P^T the distance is |P^T (x - mu)|^2.


def _matrix_roots(matrices: Any, dim: int) -> tuple[dict[str, Any], Any]:
    from scipy.linalg.lapack import dtrtri

    try:
        factor = np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "a covariance is not positive definite; raise mixture.min_covariance"
        ) from error
    log_det = 2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
    inverses = [dtrtri(one, lower=1)[0].T for one in factor.reshape(-1, dim, dim)]
    return {"root": np.reshape(inverses, factor.shape)}, log_det


def _tied_distances(p: Any, x: Array) -> tuple[Array, Any]:
    return _square_distances(x @ p["root"], p["means"] @ p["root"]), None


def _no_moments(p: Any, x: Array, r: Array, _: Any) -> tuple[()]:
    return ()


def _tied_maximise(_: Any, counts: Any, shifts: Any, *, means: Any, data: Blocks, **__: Any) -> Any:
    """The scatter about the means is that of the data, which is the same in all iterations, less
    sum_k n_k mu_k mu_k^T."""
    return (data.scatter - (counts[:, None] * means).T @ means) / counts.sum()


def _full_distances(p: Any, x: Array) -> tuple[Array, Any]:
    def one(component: tuple[Array, Array]) -> Array:
        mean, root = component
        return jnp.sum(((x - mean[None]) @ root) ** 2, axis=1)

    return jax.lax.map(one, (p["means"], p["root"])).T, None


def _full_moments(p: Any, x: Array, r: Array, _: Any) -> Array:
    def one(component: tuple[Array, Array]) -> Array:
        mean, weights = component
        away = x - mean[None]
        return (weights[:, None] * away).T @ away

    return jax.lax.map(one, (p["means"], r.T))


def _full_maximise(scatters: Any, counts: Any, shifts: Any, **_: Any) -> Any:
    return scatters / counts[:, None, None] - shifts[:, :, None] * shifts[:, None, :]


# Low rank: Sigma_k = W_k W_k^T + s_k^2 I with W_k = U_k (Lambda_k - s_k^2)^{1/2}.


def _low_rank_roots(c: LowRank, dim: int) -> tuple[dict[str, Any], Any]:
    variances, directions, along = c
    rank = along.shape[1]
    extra = 1 / along - 1 / variances[:, None]
    log_det = (dim - rank) * np.log(variances) + np.log(along).sum(axis=1)
    return {"precision": 1 / variances, "directions": directions, "extra": extra}, log_det


def _low_rank_distances(p: Any, x: Array) -> tuple[Array, Any]:
    squares = _square_distances(x, p["means"])
    along = jnp.einsum("nd,kdq->nkq", x, p["directions"])
    along -= jnp.einsum("kd,kdq->kq", p["means"], p["directions"])[None]
    distances = squares * p["precision"][None, :] + jnp.sum(p["extra"][None] * along**2, axis=2)
    return jnp.maximum(distances, 0.0), (squares, along)


def _low_rank_moments(p: Any, x: Array, r: Array, kept: tuple[Array, Array]) -> tuple[Array, Array]:
    """n_k times trace of S_k, and n_k S_k U_k, with S_k the covariance weighted by r_k."""
    squares, along = kept
    weighted = r[:, :, None] * along
    images = jnp.einsum("nd,nkq->kdq", x, weighted)
    images -= p["means"][:, :, None] * jnp.sum(weighted, axis=0)[:, None, :]
    return jnp.sum(r * squares, axis=0), images


def _low_rank_maximise(
    moments: Any, counts: Any, shifts: Any, *, last: LowRank, **_: Any
) -> LowRank:
    """One step of EM with expanded parameters (Liu, Rubin and Wu 1998, Biometrika 85(4)).

    For mixtures of probabilistic PCA (Tipping and Bishop 1999, appendix C) the covariance S of a
    component enters by S W and its trace alone. With M = W^T W + s^2 I and

        B = S W M^{-1},   G = s^2 M^{-1} + M^{-1} W^T S W M^{-1}

    the step is Sigma = B G^{-1} B^T + s^2 I, s^2 = (tr S - tr B G^{-1} B^T) / d. Plain EM, which
    takes W = B G^{-1}, approaches variances far above s^2 slowly; this does not, and the likelihood
    rises, too. It forms no S.
    """
    trace, images = moments
    variances, directions, along = last
    dim = directions.shape[1]
    trace = np.maximum(trace / counts - np.sum(shifts**2, axis=1), 0.0)
    images = images / counts[:, None, None]
    images -= shifts[:, :, None] * np.einsum("kd,kdq->kq", shifts, directions)[:, None, :]
    scale = np.sqrt(np.maximum(along - variances[:, None], 0.0))  # W = U scale, and M is `along`
    to_latent: np.ndarray = (scale / along)[:, None, :]
    b = images * to_latent
    g: np.ndarray = (
        to_latent * (directions.transpose(0, 2, 1) @ images) * to_latent.transpose(0, 2, 1)
    )
    g += np.eye(scale.shape[1]) * (variances[:, None] / along)[:, None, :]
    values, vectors = np.linalg.eigh((g + g.transpose(0, 2, 1)) / 2)
    root = vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny))[:, None, :]
    new, singular = np.linalg.svd(b @ root, full_matrices=False)[:2]
    residual = np.maximum(trace - np.sum(singular**2, axis=1), 0.0) / dim
    return LowRank(residual, new, singular**2 + residual[:, None])


_KINDS = {
    "spherical": _Kind(_round_roots, _round_distances, _round_moments, _round_maximise),
    "tied_spherical": _Kind(_round_roots, _round_distances, _round_moments, _tied_round_maximise),
    "diag": _Kind(_diagonal_roots, _diagonal_distances, _diagonal_moments, _diagonal_maximise),
    "tied": _Kind(_matrix_roots, _tied_distances, _no_moments, _tied_maximise),
    "full": _Kind(_matrix_roots, _full_distances, _full_moments, _full_maximise),
    "low_rank": _Kind(_low_rank_roots, _low_rank_distances, _low_rank_moments, _low_rank_maximise),
}


def _plus(kind: str, covariances: Any, variance: float) -> Any:
    """Covariances with a variance added in all directions."""
    if kind == "low_rank":
        across, directions, along = covariances
        return LowRank(across + variance, directions, along + variance)
    return covariances + (
        variance * np.eye(covariances.shape[-1]) if kind in ("tied", "full") else variance
    )


# --- steps ---


def _log_joint(kind: _Kind, p: Any, x: Array) -> tuple[Array, Any]:
    """log w_k N(x; mu_k, Sigma_k) less a constant: [n, K], and what moments reuse."""
    distances, kept = kind.distances(p, x)
    return p["offset"][None, :] - 0.5 * distances, kept


def _step_sums(kind: _Kind, p: Any, x: Array, number: Array) -> dict[str, Any]:
    """What the M-step needs, from rows [n, d] and their numbers, -1 where there is none."""
    joint, kept = _log_joint(kind, p, x)
    there = number >= 0
    log_prob = jax.nn.logsumexp(joint, axis=1)
    r = jnp.exp(joint - log_prob[:, None])
    if "key" in p:  # at random instead: a row's own, whatever the blocks and devices
        keys = jax.vmap(jax.random.fold_in, (None, 0))(p["key"], number)
        r = jax.vmap(lambda key: jax.random.uniform(key, r.shape[1:]))(keys)
        r /= jnp.sum(r, axis=1, keepdims=True)
    r = jnp.where(there[:, None], r, 0.0)
    return {
        "counts": jnp.sum(r, axis=0),
        "first": r.T @ x,
        "second": kind.moments(p, x, r, kept),
        "log_likelihood": jnp.sum(jnp.where(there, log_prob, 0.0)),
    }


def _log_likelihood_sum(kind: _Kind, p: Any, x: Array, number: Array) -> Array:
    log_prob = jax.nn.logsumexp(_log_joint(kind, p, x)[0], axis=1)
    return jnp.sum(jnp.where(number >= 0, log_prob, 0.0))


_STEPS = {name: partial(_step_sums, kind) for name, kind in _KINDS.items()}
_LOG_LIKELIHOODS = {name: partial(_log_likelihood_sum, kind) for name, kind in _KINDS.items()}


def _params(kind: str, e: Estimate, constant: float) -> dict[str, Any]:
    """What devices need of an estimate, in float32; `constant` is taken off log-likelihoods."""
    num, dim = e.means.shape
    roots, log_det = _KINDS[kind].roots(e.covariances, dim)
    offset = np.log(e.weights) - 0.5 * (log_det + dim * np.log(2 * np.pi)) - constant
    values: dict[str, Any] = {"offset": offset, "means": e.means, **roots}
    if kind == "tied_spherical":
        values["precision"] = np.broadcast_to(roots["precision"], num)
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def step(
    data: Blocks,
    kind: str,
    e: Estimate,
    *,
    min_covariance: float,
    constant: float = 0.0,
    key: Array | None = None,
) -> tuple[Estimate, float]:
    """One iteration of EM: the next estimate, and the mean log-likelihood of the given one.

    Args:
      data: rows.
      kind: of covariance.
      e: the last estimate, its means less the centre of the data.
      min_covariance: added to all variances.
      constant: about the mean log-likelihood, if it is known: the sum of differences to it keeps
        digits that a sum of log-likelihoods in float32 would lose.
      key: of random responsibilities, in place of those of `e`.
    """
    params = _params(kind, e, constant) | ({} if key is None else {"key": key})
    sums = _total(data, partial(_sums, _STEPS[kind], data.chunk, params))
    counts = sums["counts"] + _EMPTY
    # A component without rows stays where it is.
    means = (sums["first"] + _EMPTY * e.means) / counts[:, None]
    covariances = _KINDS[kind].maximise(
        sums["second"], counts, means - e.means, means=means, last=e.covariances, data=data
    )
    found = Estimate(counts / counts.sum(), means, _plus(kind, covariances, min_covariance))
    return found, sums["log_likelihood"] / len(data) + constant


def mean_log_likelihood(data: Blocks, kind: str, e: Estimate, constant: float = 0.0) -> float:
    """Of a row; see `step`."""
    params = _params(kind, e, constant)
    total = _total(data, partial(_sums, _LOG_LIKELIHOODS[kind], data.chunk, params))
    return float(total) / len(data) + constant


def iterate(
    data: Blocks,
    kind: str,
    start: Estimate,
    *,
    min_covariance: float,
    max_iterations: int,
    tolerance: float = TOLERANCE,
) -> Run:
    """EM from an estimate until the mean log-likelihood gains less than the tolerance.

    As in scikit-learn the gain is that between two E-steps, and the M-step after the last one is
    kept.
    """
    estimate, found = start, [-np.inf]
    for _ in range(max_iterations):
        constant = found[-1] if np.isfinite(found[-1]) else 0.0
        estimate, log_likelihood = step(
            data, kind, estimate, min_covariance=min_covariance, constant=constant
        )
        found.append(_finite(log_likelihood))
        if abs(found[-1] - found[-2]) < tolerance:
            break
    return Run(
        estimate=estimate,
        log_likelihoods=tuple(found[1:]),
        converged=bool(abs(found[-1] - found[-2]) < tolerance),
    )


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise FloatingPointError(
            "references.fit: numbers are too large or too small for float32; standardise the data,"
            " or set mixture.solver to scikit-learn"
        )
    return value


# --- starts ---


@partial(jax.jit, static_argnames=("num", "trials"))
def _seeds(key: Array, x: Array, num: int, trials: int) -> Array:
    """Seeds of greedy k-means++ (Arthur and Vassilvitskii 2007): of rows [n, d], [num, d].

    A seed is drawn with probability in proportion to the squared distance to the seeds before it;
    of some trials that is taken which leaves the least sum of them.
    """
    first, rest = jax.random.split(key)
    start = x[jax.random.randint(first, (), 0, len(x))]
    means = jnp.zeros((num, x.shape[1])).at[0].set(start)

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        means, nearest = state
        one = jax.random.fold_in(rest, i)
        drawn = jax.random.categorical(one, jnp.log(nearest), shape=(trials,))
        left = jnp.minimum(_square_distances(x, x[drawn]), nearest[:, None])
        best = jnp.argmin(left.sum(axis=0))
        return means.at[i].set(x[drawn[best]]), left[:, best]

    nearest = _square_distances(x, start[None])[:, 0]
    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(1, num, add, (means, nearest))[0]


def _round(kind: str, means: np.ndarray, variance: float) -> Estimate:
    """Equal round components of almost no variance: their E-step is k-means' partition."""
    num, dim = means.shape
    covariances: Any = np.full(num, variance)
    if kind == "tied_spherical":
        covariances = np.float64(variance)
    elif kind == "diag":
        covariances = np.full((num, dim), variance)
    elif kind == "tied":
        covariances = variance * np.eye(dim)
    elif kind == "full":
        covariances = np.tile(variance * np.eye(dim), (num, 1, 1))
    return Estimate(np.full(num, 1 / num), means, covariances)


def _lloyd(data: Blocks, means: np.ndarray, variance: float) -> np.ndarray:
    """k-means from given means [K, d]."""
    last = np.inf
    for _ in range(_LLOYD):
        found, _ = step(
            data, "tied_spherical", _round("tied_spherical", means, variance), min_covariance=0
        )
        means, inertia = found.means, float(found.covariances)
        if inertia >= (1 - _SETTLED) * last:
            break
        last = inertia
    return means


def start(
    data: Blocks, kind: str, num: int, *, init: str, min_covariance: float, seed: int
) -> Estimate:
    """The M-step of a first partition of the rows.

    Args:
      data: rows, as many as are to be held in memory.
      kind: of covariance, not low_rank.
      num: K.
      init: kmeans, the clusters of k-means from the seeds of k-means++; k-means++ and
        random_from_data, what is nearest to such seeds, or to rows drawn at random; random,
        responsibilities at random.
      min_covariance: added to all variances.
      seed: of the start.
    """
    x = data[np.arange(len(data))]
    variance = _finite(1e-6 * max(float(np.vdot(x, x)) / x.size, 1e-30))
    rng = np.random.default_rng(seed)
    key = jax.random.key(int(rng.integers(2**32)))
    means = np.zeros((num, data.dim))
    if init in ("kmeans", "k-means++"):
        means = np.asarray(_seeds(key, x, num, 2 + int(np.log(num))), np.float64)
    elif init == "random_from_data":
        means = np.asarray(x[rng.choice(len(data), num, replace=False)], np.float64)
    if init == "kmeans":
        means = _lloyd(data, means, variance)
    by_chance = key if init == "random" else None
    first = _round(kind, means, variance)
    return step(data, kind, first, min_covariance=min_covariance, key=by_chance)[0]


def _first_directions(e: Estimate, rank: int, seed: int) -> Estimate:
    """A spherical estimate as one of low rank, with a hint of variance along random directions."""
    normals = np.random.default_rng(seed).normal(size=(*e.means.shape, rank))
    along = np.repeat(1.01 * np.asarray(e.covariances)[:, None], rank, axis=1)
    return e._replace(covariances=LowRank(e.covariances, np.linalg.qr(normals).Q, along))


def seeded_rows(num: int, dim: int, num_components: int, kind: str) -> int:
    """Rows, of num, on which starts are made: enough for each component's covariance."""
    a_component = max(_ROWS_A_COMPONENT, 2 * dim if kind == "full" else 0)
    return min(num, max(SEEDED, a_component * num_components, 2 * dim if kind == "tied" else 0))


def fit(
    data: Blocks,
    num_components: int,
    *,
    covariance: str,
    rank: int = 8,
    num_inits: int = 1,
    init: str = "kmeans",
    min_covariance: float = 1e-4,
    max_iterations: int = 200,
    seed: int = 0,
    first: Estimate | None = None,
) -> Run:
    """A mixture by EM; its means are less the centre of the data.

    Starts are made, and run, on some of the rows (`seeded_rows`), and the best of them goes on with
    all: short runs of EM before a long one (Biernacki, Celeux and Govaert 2003, Comput. Stat. Data
    Anal. 41). One of low rank is made of a spherical run.

    Args:
      data: rows.
      first: an estimate to start from, in place of others.
      num_components, covariance, rank, num_inits, init, min_covariance, max_iterations, seed: see
        `references.fit`.

    Raises:
      FloatingPointError: a likelihood that is not finite.
    """
    em = partial(iterate, min_covariance=min_covariance, max_iterations=max_iterations)
    if first is not None:
        return em(data, covariance, first)
    some = _some(data, seeded_rows(len(data), data.dim, num_components, covariance), seed)

    def run_from(seed: int) -> Run:
        kind = "spherical" if covariance == "low_rank" else covariance
        first = start(
            some, kind, num_components, init=init, min_covariance=min_covariance, seed=seed
        )
        if covariance == "low_rank":
            first = _first_directions(em(some, kind, first).estimate, rank, seed)
        return em(some, covariance, first)

    run = max((run_from(seed + i) for i in range(num_inits)), key=lambda r: r.log_likelihoods[-1])
    return run if some is data else em(data, covariance, run.estimate)


def _some(data: Blocks, size: int, seed: int) -> Blocks:
    """So many of the rows, drawn at random."""
    if size == len(data):
        return data
    own = np.sort(np.random.default_rng(seed).choice(len(data), size, replace=False))
    return blocks(data.rows, own if data.index is None else data.index[own], data.centre)
