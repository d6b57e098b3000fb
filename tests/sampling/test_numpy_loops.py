"""Every sampler, number by number, against a loop in NumPy (float64) driven by the same normals.

OU noising of N(DATA_MEAN, 0.2 I): kernel, clock, score and flow are closed forms, written out here.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import processes, sampling
from ndsm_jax.integrators import time_grid
from ndsm_jax.sampling.noise_levels import langevin_step

DATA_MEAN, DATA_VARIANCE = np.array([[0.6, -0.4]]), 0.2
PROCESS = processes.ornstein_uhlenbeck(2, variance=0.5, horizon=2.5)
STEPS, NUM = 12, 5
GRID = time_grid(PROCESS, STEPS, smallest_variance=1e-2)
TIMES = np.asarray(GRID, np.float64)[:0:-1]
KEY = jax.random.key(3)


def a(t):
    return np.exp(-2 * t)


def s(t):
    return np.sqrt(0.5 * (1 - np.exp(-4 * t)))


def score(y, t):
    """For NumPy and JAX alike, at a time or at one a row."""
    lib, t = (jnp, t[:, None]) if isinstance(y, jax.Array) else (np, t)
    signal = lib.exp(-2 * t)
    variance = signal**2 * DATA_VARIANCE + 0.5 * (1 - signal**2)
    return -(y - signal * lib.asarray(DATA_MEAN)) / variance


def normals(index, numbers):
    """Start [2] and normals [len(numbers), 2] of the path of sample `index`."""
    start, path = jax.random.split(jax.random.fold_in(KEY, index))
    noise = jax.random.split(start)[1]
    z = [jax.random.normal(jax.random.fold_in(path, n), (2,)) for n in numbers]
    return np.sqrt(0.5) * np.asarray(jax.random.normal(noise, (2,)), np.float64), np.asarray(z)


def batch(count):
    parts = [normals(jnp.uint32(i), range(count)) for i in range(NUM)]
    return np.stack([x for x, _ in parts]), np.stack([z for _, z in parts], axis=1)


def denoised(x, t):
    return (x + s(t) ** 2 * score(x, t)) / a(t)


def velocity(x, t):
    return 2 * x + score(x, t)  # -b + g^2 u / 2 with b = -2 x, g^2 = 2


def reverse_sde():
    x, z = batch(STEPS - 1)
    path = [x]
    for n, (t, after) in enumerate(pairwise(TIMES)):
        h = t - after
        x = x + h * (2 * x + 2 * score(x, t)) + np.sqrt(2 * h) * z[n]
        path.append(x)
    return path


def multistep_sde(order):
    x, z = batch(STEPS - 1)
    path, last, h_last = [x], None, None
    for n, (t, after) in enumerate(pairwise(TIMES)):
        h = np.log(a(after) / s(after)) - np.log(a(t) / s(t))
        new = denoised(x, t)
        guess = new
        if order == 2 and last is not None and h_last > 0.1 * h:
            guess = new + h / (2 * h_last) * (new - last)
        gain = 1 - np.exp(-2 * h)
        x = s(after) / s(t) * np.exp(-h) * x + a(after) * gain * guess
        x = x + s(after) * np.sqrt(gain) * z[n]
        path.append(x)
        last, h_last = new, h
    return path


def ddim(eta):
    """2010.02502, Eq. 12, with a, s and a', s' for the roots of alpha and 1 - alpha."""
    x, z = batch(STEPS - 1)
    path = [x]
    for n, (t, after) in enumerate(pairwise(TIMES)):
        new = denoised(x, t)
        ratio = a(t) / a(after)
        sigma = eta * s(after) / s(t) * np.sqrt(s(t) ** 2 - ratio**2 * s(after) ** 2)
        predicted = (x - a(t) * new) / s(t)
        x = a(after) * new + np.sqrt(s(after) ** 2 - sigma**2) * predicted + sigma * z[n]
        path.append(x)
    return path


def annealed_langevin(repeats):
    x, z = batch(repeats * STEPS)
    ratio = (s(TIMES[0]) / s(TIMES[-1])) ** (1 / (STEPS - 1))
    path, length = [x], langevin_step(ratio, repeats)
    for n, t in enumerate(TIMES):
        alpha = length * s(t) ** 2
        for i in range(repeats):
            x = x + alpha * score(x, t) + np.sqrt(2 * alpha) * z[n * repeats + i]
        path.append(x)
    return path


def churned(x, z, t, length):
    """By the transition of an Ornstein-Uhlenbeck process, exactly."""
    return a(length) * x + s(length) * z, t + length


def heun_flow(churn):
    x, z = batch(STEPS - 1)
    path, before = [x], TIMES[0]
    for n, (t, after) in enumerate(pairwise(TIMES)):
        x, start = churned(x, z[n], t, churn * (before - t))
        h = start - after
        slope = velocity(x, start)
        x = x + h / 2 * (slope + velocity(x + h * slope, after))
        path.append(x)
        before = t
    return path


def multistep_flow(churn):
    def clock(t):  # log v - log(1 - v / v(infinity)), and its derivative
        return np.log(s(t) ** 2 / np.exp(-4 * t)), 4 / (1 - np.exp(-4 * t))

    x, z = batch(STEPS - 1)
    path, before, last, c_last = [x], TIMES[0], None, None
    for n, (t, after) in enumerate(pairwise(TIMES)):
        x, start = churned(x, z[n], t, churn * (before - t))
        c, rate = clock(start)
        h, new = c - clock(after)[0], velocity(x, start) / rate
        guess = new
        if last is not None and c_last - c > 0.1 * h:
            guess = new + h / (2 * (c_last - c)) * (new - last)
        x = x + h * guess
        path.append(x)
        before, last, c_last = t, new, c
    return path


LOOPS = {
    "reverse_sde": ({}, reverse_sde),
    "multistep_sde": ({}, lambda: multistep_sde(2)),
    "ancestral": ({}, lambda: multistep_sde(1)),
    "ddim": ({}, lambda: ddim(0.0)),
    "ddim, eta": ({"eta": 0.6}, lambda: ddim(0.6)),
    "annealed_langevin": ({"langevin_steps": 3}, lambda: annealed_langevin(3)),
    "heun_flow": ({}, lambda: heun_flow(0)),
    "heun_flow, churn": ({"churn": 0.5}, lambda: heun_flow(0.5)),
    "multistep_flow": ({}, lambda: multistep_flow(0)),
    "multistep_flow, churn": ({"churn": 0.5}, lambda: multistep_flow(0.5)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_states_are_those_of_the_loop(name):
    """The whole path of 5 samples, from the reference to 0, to float32 rounding."""
    options, loop = LOOPS[name]
    sampler = sampling.SAMPLERS[name.split(",")[0]](**options)
    paths = sampling.trajectories(KEY, score, PROCESS, NUM, grid=GRID, sampler=sampler, chunk=3)
    expected = loop()
    expected.append(denoised(expected[-1], TIMES[-1]))
    np.testing.assert_allclose(paths, np.stack(expected, axis=1), rtol=1e-4, atol=2e-5)


def test_adaptive_flow_is_the_closed_form():
    """The flow of a Gaussian maps quantiles; tolerance 1e-6."""
    sampler = sampling.AdaptiveFlow(rtol=1e-6, atol=1e-6)
    x = sampling.sample(KEY, score, PROCESS, NUM, grid=GRID, sampler=sampler)
    start, end = TIMES[0], TIMES[-1]
    deviation = [np.sqrt(a(t) ** 2 * DATA_VARIANCE + s(t) ** 2) for t in (start, end)]
    flowed = a(end) * DATA_MEAN + deviation[1] / deviation[0] * (batch(0)[0] - a(start) * DATA_MEAN)
    np.testing.assert_allclose(x, denoised(flowed, end), atol=2e-5)
