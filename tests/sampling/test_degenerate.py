"""Degenerate noise: critically damped Langevin dynamics reversed with its exact score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from jax.scipy.linalg import expm

from ndsm_jax import processes, sampling
from ndsm_jax.integrators import time_grid

MASS, RATE = 0.25, 4.0
PROCESS = processes.critically_damped(2, mass=MASS, rate=RATE)
POSITIONS = np.array([[0.5, 0.3], [0.3, 0.4]])
DATA_MEAN = np.array([0.6, -0.4, 0.0, 0.0])
DATA_COVARIANCE = np.kron([[1, 0], [0, 0]], POSITIONS) + np.kron([[0, 0], [0, 1]], 0.1 * np.eye(2))
"""Gaussian positions with correlations, velocities N(0, 0.1 I)."""
FRICTION = 2 * MASS**0.5
GENERATOR = RATE * np.kron([[0, 1 / MASS], [-1, -FRICTION / MASS]], np.eye(2))
STATIONARY = np.kron(np.diag([1.0, MASS]), np.eye(2))


def law(t, exponential, lib):
    """Mean and covariance at t: A m and S + A (C - S) A^T, A = exp(F t), S stationary."""
    A = exponential(t * lib.asarray(GENERATOR))
    spread = A @ lib.asarray(DATA_COVARIANCE - STATIONARY) @ A.T
    return A @ lib.asarray(DATA_MEAN), spread + lib.asarray(STATIONARY)


def score(y, t):
    """E^T grad log p_t: the rows of the velocities. All rows have the same time."""
    mean, covariance = law(t[0], expm, jnp)
    return -jnp.linalg.solve(covariance, (y - mean[None]).T).T[:, 2:]


@pytest.mark.parametrize(
    ("sampler", "steps", "bias"),
    [
        (sampling.ReverseSDE(), 300, 0.015),
        (sampling.HeunFlow(), 60, 0.01),
        (sampling.HeunFlow(churn=0.5), 600, 0.015),
        (sampling.MultistepFlow(), 60, 0.01),
    ],
    ids=["reverse_sde", "heun_flow", "heun_flow, churn", "multistep_flow"],
)
def test_the_datas_covariance_is_recovered(sampler, steps, bias):
    """10,000 samples: mean and covariance of positions and velocities within 4.5 standard errors
    (at most 0.5 sqrt(2) / 100 = 0.007 for a covariance) and what is stated for the steps."""
    x = sampling.sample(
        jax.random.key(0),
        score,
        PROCESS,
        10_000,
        grid=time_grid(PROCESS, steps),
        sampler=sampler,
        chunk=10_000,
    )
    assert_mean(x, DATA_MEAN, bias=bias)
    deviation = x - DATA_MEAN
    assert_mean(deviation[:, :, None] * deviation[:, None, :], DATA_COVARIANCE, bias=bias)


def test_adaptive_flow_agrees_with_a_fine_heun_grid():
    """Paths of 8 samples to 5e-4, at tolerance 1e-5."""
    fine, adaptive = (
        sampling.sample(
            jax.random.key(0), score, PROCESS, 8, grid=time_grid(PROCESS, 1000), sampler=sampler
        )
        for sampler in (sampling.HeunFlow(), sampling.AdaptiveFlow(rtol=1e-5, atol=1e-5))
    )
    np.testing.assert_allclose(adaptive, fine, atol=5e-4)


def test_denoise_is_the_mean_of_one_reverse_euler_step():
    """x + t (-b + g^2 E u), which is E[Y_0 | Y_t] up to terms of order t^2: halving t divides the
    difference by 4 (within 15 %). The posterior mean is that of the Gaussian, by SciPy's expm."""
    import scipy.linalg

    x = np.array([[0.9, 0.1, -0.2, 0.3], [0.0, -1.0, 0.2, 0.1]])
    errors = []
    for t in (0.004, 0.002):
        actual = sampling.denoise(score, PROCESS, jnp.asarray(x, jnp.float32), jnp.float32(t))
        mean, covariance = law(t, scipy.linalg.expm, np)
        gain = DATA_COVARIANCE @ scipy.linalg.expm(t * GENERATOR).T @ np.linalg.inv(covariance)
        errors.append(np.asarray(actual) - (DATA_MEAN + (x - mean) @ gain.T))
    ratio = np.linalg.norm(errors[0]) / np.linalg.norm(errors[1])
    assert ratio == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_samplers_that_need_the_whole_score_are_refused(name):
    sampler = sampling.SAMPLERS[name]()
    if name in sampling.DEGENERATE:
        sampler.check(PROCESS)
        return
    with pytest.raises(ValueError, match=rf"sample\.sampler='{name}'.*2 of 4.*adaptive_flow"):
        sampling.sample(jax.random.key(0), score, PROCESS, 2, grid=8, sampler=sampler)
