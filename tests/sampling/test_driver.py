"""What the driver adds to the samplers: hooks, conditions, starts, chunks, own samplers."""

import dataclasses
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import processes, references, sampling
from ndsm_jax.integrators import broadcast_time, time_grid
from ndsm_jax.linear_maps import Diagonal, Gaussian
from ndsm_jax.processes import probability_flow

PROCESS = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=2.5)
GRID = time_grid(PROCESS, 20)
KEY = jax.random.key(5)


def score(y, t):
    """Of N(0, 0.2 I) under PROCESS."""
    signal = jnp.exp(-4 * t)[:, None]
    return -y / (0.2 * signal + 0.5 * (1 - signal))


def conditional_score(y, t, mean):
    """Of N(mean, 0.2 I), one mean a row."""
    decay = jnp.exp(-2 * t)[:, None]
    return score(y - decay * mean, t)


def sample(num=6, **options):
    return sampling.sample(KEY, options.pop("score", score), PROCESS, num, grid=GRID, **options)


@pytest.fixture(params=sampling.SAMPLERS)
def sampler(request):
    return sampling.SAMPLERS[request.param]()


def test_trajectories_lead_from_the_start_to_the_samples(sampler):
    paths = sampling.trajectories(KEY, score, PROCESS, 6, grid=GRID, sampler=sampler, chunk=4)
    extra = {"AnnealedLangevin": 1, "AdaptiveFlow": 3 - len(GRID), "RestartFlow": 10}
    assert paths.shape == (6, len(GRID) + extra.get(type(sampler).__name__, 0), 2)
    start = sampling.start_states(KEY, jnp.arange(6, dtype=jnp.uint32), PROCESS.reference)
    np.testing.assert_allclose(paths[:, 0], start, rtol=1e-6)
    np.testing.assert_allclose(paths[:, -1], sample(sampler=sampler), rtol=1e-4, atol=1e-5)


def test_samples_are_the_same_where_jax_has_float64(sampler):
    """In float32, from the same draws, on a grid of either precision."""
    expected = sample(sampler=sampler)
    with jax.enable_x64(True):
        x = sampling.sample(KEY, score, PROCESS, 6, grid=np.float64(GRID), sampler=sampler)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-3)


def test_draws_of_any_reference_are_float32():
    process = processes.langevin(references.student_t(2, degrees=5.0))
    with jax.enable_x64(True):
        start = sampling.start_states(KEY, jnp.arange(3), process.reference)
    assert start.dtype == jnp.float32


def pin(x, step):
    return x.at[:, 0].set(0.3), None


def test_a_hook_changes_the_states_that_go_on(sampler):
    """The coordinates of an isotropic Gaussian do not know of each other (but for the common steps
    of the adaptive flow): one is pinned, and its samples are the denoised 0.3."""
    pinned, free = sample(sampler=sampler, hook=pin), sample(sampler=sampler)
    t = jnp.asarray(GRID[1])
    expected = sampling.denoise(score, PROCESS, jnp.array([[0.3, 0.0]]), t)[0, 0]
    np.testing.assert_allclose(pinned[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(pinned[:, 1], free[:, 1], rtol=1e-4, atol=1e-5)
    assert np.abs(free[:, 0] - expected).min() > 1e-3


def test_a_hook_is_told_the_step_and_its_outputs_are_stacked():
    keys = jax.random.split(KEY, 3)
    condition = {"mean": jnp.ones((3, 2))}

    def hook(x, step):
        return x, {"n": step.n, "t": step.t, "mean": step.condition["mean"], "x": x}

    run = sampling.reverse(
        keys,
        lambda y, t, c: conditional_score(y, t, c["mean"]),
        PROCESS,
        jnp.ones((3, 2)),
        GRID,
        sampling.ReverseSDE(),
        condition=condition,
        hook=hook,
    )
    np.testing.assert_array_equal(run.outputs["n"], np.arange(len(GRID) - 2))
    np.testing.assert_array_equal(run.outputs["t"], GRID[1:-1][::-1])
    np.testing.assert_array_equal(run.outputs["x"][-1], run.x)
    assert run.outputs["mean"].shape == (len(GRID) - 2, 3, 2)
    assert run.evaluations == len(GRID) - 2


def test_a_hooks_keys_are_its_own_and_its_samples():
    """Normals of the hook: 38 a sample, none twice, none of the sampler's; chunks do not matter."""

    def hook(x, step):
        z = jax.vmap(lambda k: jax.random.normal(k, (2,)))(step.keys)
        return x + 0.1 * z, z

    whole, parts = (sample(chunk=chunk, hook=hook) for chunk in (6, 4))
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(KEY, 3)
    x = jnp.zeros((3, 2))
    z = sampling.reverse(keys, score, PROCESS, x, GRID, sampling.ReverseSDE(), hook=hook).outputs
    own = [
        jax.random.normal(jax.random.fold_in(k, n), (2,)) for k in keys for n in range(len(GRID))
    ]
    numbers = np.concatenate([np.ravel(z), np.ravel(own)])
    assert len(np.unique(numbers)) == numbers.size


def test_every_row_has_its_own_condition(sampler):
    """Rows of different conditions together, in chunks, against each condition on its own."""
    means = np.array([[0.0, 0.0], [1.0, -1.0], [0.5, 2.0], [-1.0, 0.3], [2.0, 2.0]], np.float32)
    together = sample(5, score=conditional_score, condition=means, chunk=2, sampler=sampler)
    for i in (1, 4):
        alone = sample(5, score=conditional_score, condition=means[[i] * 5], sampler=sampler)
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-3, atol=1e-4)
    free = sample(5, sampler=sampler)
    np.testing.assert_allclose(together[0], free[0], rtol=1e-3, atol=1e-4)


def test_a_condition_of_another_length_is_refused():
    with pytest.raises(ValueError, match="4 rows for 6 samples"):
        sample(score=conditional_score, condition=np.zeros((4, 2)))


def test_chunks_are_told(sampler):
    told = []
    sample(7, sampler=sampler, chunk=3, on_chunk=lambda *args: told.append(args))
    assert [done for done, _ in told] == [3, 6, 7]
    expected = sampler.evaluations(len(GRID) - 1)
    if expected is None:
        assert all(count > 7 for _, count in told)
    else:
        assert [count for _, count in told] == [expected] * 3


def test_a_number_of_steps_is_the_default_grid():
    x = sampling.sample(KEY, score, PROCESS, 3, grid=20)
    np.testing.assert_array_equal(x, sample(3, sampler=sampling.ReverseSDE()))
    assert x.dtype == np.float32


@pytest.mark.parametrize("options", [{"num": 0}, {"chunk": 0}])
def test_nothing_to_do_is_refused(options):
    with pytest.raises(ValueError, match=">= 1 is needed"):
        sample(**options)


def test_components_set_the_start():
    """Two far components of no width: the start is the mean of the one that was asked for."""
    mixture = references.mixture([0.5, 0.5], [[-5.0, 0.0], [5.0, 1.0]], [1e-6, 1e-6])
    process = dataclasses.replace(PROCESS, reference=mixture)
    components = np.array([0, 1, 1, 0, 1])
    draw = partial(sampling.trajectories, KEY, score, process, 5, grid=GRID, chunk=2)
    np.testing.assert_allclose(
        draw(components=components)[:, 0], np.asarray(mixture.means)[components], atol=0.01
    )
    index = jnp.arange(5, dtype=jnp.uint32)
    drawn = np.asarray(sampling.start_components(KEY, index, mixture.log_weights))
    np.testing.assert_array_equal(draw(), draw(components=drawn))


@pytest.mark.parametrize(
    ("components", "problem"),
    [
        (np.zeros(4, int), "integer"),
        (np.zeros(6), "integer"),
        (np.array([0, 0, 1, 0, 0, 0]), "component 1: the reference has 1"),
    ],
)
def test_components_that_do_not_exist_are_refused(components, problem):
    with pytest.raises(ValueError, match=problem):
        sample(components=components)


@partial(jax.tree_util.register_dataclass, data_fields=("dof",), meta_fields=("dim",))
@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentT:
    """Independent Student-t coordinates: a reference that is no mixture."""

    dof: jax.Array
    dim: int

    def sample(self, key, shape=()):
        return jax.random.t(key, self.dof, (*shape, self.dim))

    def log_prob(self, y):
        return -0.5 * (self.dof + 1) * jnp.log1p(y**2 / self.dof).sum(axis=-1)

    def score(self, y):
        return -(self.dof + 1) * y / (self.dof + y**2)

    def typical_variance(self):
        return self.dof / (self.dof - 2)

    def stiffness(self):
        return float((self.dof + 1) / self.dof)


STUDENT = processes.langevin(StudentT(dof=jnp.float32(5.0), dim=2))


@pytest.mark.parametrize("name", ["reverse_sde", "multistep_flow"])
def test_any_reference_starts_the_reverse_process(name):
    """Langevin dynamics of Student's t from its own law, whose score is exact: it starts with that
    law and keeps it. Kolmogorov-Smirnov, 4,000 samples: the statistic exceeds
    sqrt(-ln(p / 2) / (2 n)) = 0.035 with p = 1e-4; 0.01 is allowed for the steps."""
    paths = sampling.trajectories(
        KEY,
        STUDENT.drift,
        STUDENT,
        4000,
        grid=150,
        sampler=sampling.SAMPLERS[name](),
        chunk=3000,
    )
    critical = np.sqrt(-np.log(1e-4 / 2) / 8000)
    for x, bias in ((paths[:, 0], 0.0), (paths[:, -1], 0.01)):
        for column in x.T:
            assert scipy.stats.kstest(column, scipy.stats.t(5).cdf).statistic < critical + bias
    with pytest.raises(ValueError, match="StudentT, which has none"):
        sampling.sample(KEY, STUDENT.drift, STUDENT, 1, grid=9, components=np.zeros(1, int))


def test_a_kernel_that_is_no_scalar_is_left_aside():
    """OU of two variances, noise on both coordinates, told its diagonal kernel: the samplers with a
    local kernel take the clock's, and recover Gaussian data to 4.5 standard errors + 0.015."""
    variances = jnp.array([0.5, 1.0])
    data_mean, data_variance = jnp.array([[0.6, -0.4]]), jnp.array([[0.2, 0.4]])

    def kernel(t):
        decay = jnp.exp(-t[..., None] / variances)
        return Gaussian(
            scale=Diagonal(values=decay),
            root=Diagonal(values=jnp.sqrt(variances * (1 - decay**2))),
        )

    process = processes.process(
        lambda y, t: -y / jnp.broadcast_to(variances, y.shape),
        lambda t: jnp.full_like(t, 2**0.5),
        references.mixture([1.0], jnp.zeros((1, 2)), variances[None], covariance="diag"),
        horizon=4.0,
        known=processes.Known(kernel=jax.tree_util.Partial(kernel)),
    )

    def exact(y, t):
        decay = jnp.exp(-t[:, None] / variances[None])
        variance = decay**2 * data_variance + variances[None] * (1 - decay**2)
        return -(y - decay * data_mean) / variance

    for sampler in (sampling.MultistepSDE(), sampling.ReverseSDE()):
        grid = time_grid(process, 150)
        x = sampling.sample(KEY, exact, process, 8000, grid=grid, sampler=sampler, chunk=8000)
        assert_mean(x, data_mean[0], bias=0.015)
        assert_mean((x - data_mean) ** 2, data_variance[0], bias=0.015)


def test_options_reach_the_samplers_that_have_them():
    assert sampling.SAMPLERS["heun_flow"](churn=0.5).churn == 0.5
    assert sampling.SAMPLERS["adaptive_flow"](rtol=1e-4, atol=1e-5).atol == 1e-5
    assert sampling.SAMPLERS["ancestral"]() == sampling.MultistepSDE(order=1)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: sampling.HeunFlow(churn=1.5), "churn="),
        (lambda: sampling.MultistepFlow(churn=-0.5), "churn="),
        (lambda: sampling.AdaptiveFlow(rtol=0.0), "rtol="),
        (lambda: sampling.AnnealedLangevin(langevin_steps=0), "langevin_steps="),
        (lambda: sampling.AnnealedLangevin(langevin_length=-0.1), "langevin_length="),
        (lambda: sampling.MultistepSDE(order=3), "order"),
        (lambda: sampling.ddim(eta=1.5), r"eta=1\.5"),
        (lambda: sampling.PredictorCorrector(snr=0.0), r"sample\.snr"),
        (lambda: sampling.RestartFlow(restart_low=0.5), r"sample\.restart_low"),
    ],
)
def test_options_out_of_range_are_refused(make, key):
    with pytest.raises(ValueError, match=key):
        make()


def test_annealed_langevin_in_compiled_code_needs_its_length():
    """Found by SciPy; what `plan` returns has it, and has it still when it is planned again."""
    keys, x = jax.random.split(KEY, 3), jnp.ones((3, 2))

    @partial(jax.jit, static_argnums=0)
    def compiled(sampler, grid):
        return sampling.reverse(keys, score, PROCESS, x, grid, sampler).x

    with pytest.raises(ValueError, match="outside of compiled code"):
        compiled(sampling.AnnealedLangevin(), GRID)
    planned, _ = sampling.AnnealedLangevin().plan(PROCESS, jnp.asarray(GRID[:0:-1]))
    eager = sampling.reverse(keys, score, PROCESS, x, GRID, sampling.AnnealedLangevin())
    np.testing.assert_allclose(compiled(planned, GRID), eager.x, rtol=1e-5)


def test_explicit_steps():
    """What counts for stability in a longest step of 0.3, of a clock that saturates at 0.5."""
    lengths = {
        sampling.ReverseSDE(): 0.3,
        sampling.MultistepSDE(): 0.5 * (1 - np.exp(-0.6)),
        sampling.HeunFlow(): 0.0,
        sampling.HeunFlow(churn=0.5): 0.15,
        sampling.MultistepFlow(churn=1.0): 0.3,
        sampling.AdaptiveFlow(): 0.0,
        sampling.AnnealedLangevin(): 0.0,
        sampling.PredictorCorrector(): 0.5 * (1 - np.exp(-0.6)),
        sampling.RestartFlow(): 0.3,
    }
    for sampler, length in lengths.items():
        assert sampler.explicit_step(0.3, PROCESS.clock) == pytest.approx(length)


def test_a_sampler_of_ones_own():
    """Euler's method on the flow, inherited from the contract, against NumPy."""

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class EulerFlow(sampling.Sampler):
        def init(self, process, x, t):
            return sampling.State(x)

        def step(self, process, score, keys, state, n, t, t_next):
            velocity = probability_flow(process, score)(state.x, broadcast_time(t, state.x))
            return sampling.State(state.x + (t - t_next) * velocity)

        def evaluations(self, num_steps):
            return num_steps

    paths = sampling.trajectories(KEY, score, PROCESS, 4, grid=GRID, sampler=EulerFlow())
    x, times = paths[:, 0].astype(np.float64), np.asarray(GRID[:0:-1], np.float64)
    for t, t_next in pairwise(times):
        signal = np.exp(-4 * t)
        x = x + (t - t_next) * (2 * x - x / (0.2 * signal + 0.5 * (1 - signal)))
    np.testing.assert_allclose(paths[:, -2], x, rtol=1e-4)
