"""A denoising autoencoder is denoising score matching of an energy (Vincent 2011)."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from ndsm_jax import noising, objectives, processes
from ndsm_jax.clock import loss_weight, time_coordinate
from ndsm_jax.experiment import experiment
from ndsm_jax.networks import DenoisingAutoencoder, Raw, ScoreModel
from ndsm_jax.optimisation import adam
from ndsm_jax.training import train

PROCESS = processes.variance_exploding(2, sigma_min=0.01, sigma_max=1.2)
STD = float(PROCESS.clock.std(PROCESS.horizon))
GRID = np.array([0.0, 1.0], np.float32)
NETWORK = DenoisingAutoencoder(dim=2, hidden=16, std=STD)


def noise():
    """One level of noise, weight 1."""
    times = noising.time_law(PROCESS.clock, GRID, kind="levels")
    weight = loss_weight(PROCESS.clock, "unit")
    return noising.exact_kernel(PROCESS, GRID, times=times, weight=weight)


def parameters():
    return NETWORK.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))


def test_the_score_is_minus_the_energys_gradient(rng):
    params, y = parameters(), jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
    slope = jax.grad(lambda y: NETWORK.apply(params, y, method="energy").sum())(y)
    score = NETWORK.apply(params, y, jnp.zeros(20))
    np.testing.assert_allclose(score, -slope, rtol=1e-4, atol=1e-4)
    w, b, c = (np.asarray(params["params"][k], float) for k in ("weight", "bias", "centre"))
    formula = 1 / (1 + np.exp(-(np.asarray(y) @ w.T + b))) @ w + c - np.asarray(y)
    np.testing.assert_allclose(score, formula / STD**2, rtol=1e-4, atol=1e-4)


def test_its_reconstruction_error_is_the_loss_of_dsm(rng):
    x = jnp.asarray(rng.normal(size=(50, 2)), jnp.float32)
    params, batch = parameters(), noise()(jax.random.key(1), x)
    loss = objectives.dsm(lambda y, t: NETWORK.apply(params, y, t), batch)
    error = NETWORK.apply(params, batch.y, method="reconstruct") - x[:, None]
    np.testing.assert_allclose(loss, (error**2).sum(-1) / (2 * STD**4), rtol=1e-3)


def test_trained_it_has_the_score_of_noisy_data(rng):
    """A line of data, x_1 uniform on [-3, 3] and x_2 = 0: the score of x_2 is -y_2 / sigma^2, and
    that of x_1 points inwards, beyond its ends. 600 steps: a tenth of the error of no score."""
    data = np.stack([rng.uniform(-3, 3, 500), np.zeros(500)], axis=1)
    coordinate = time_coordinate(PROCESS.clock, PROCESS.horizon, "time", first=0.1)
    raw = Raw(process=PROCESS, coordinate=coordinate)
    model = ScoreModel(network=NETWORK, dim=2, precondition=raw)
    made = experiment(PROCESS, objective="dsm", noise=noise(), model=model, optimiser=adam(1e-2))
    state = train(made, data, steps=600, batch_size=64, progress=False)
    y = jnp.stack([jnp.linspace(-4, 4, 29), jnp.linspace(-1.5, 1.5, 29)], axis=1)
    score = np.asarray(model(state.params, y, jnp.ones(29)))
    edges = (np.asarray(y)[:, :1] + np.array([[3.0, -3.0]])) / STD
    density = norm.pdf(edges) / STD
    exact = np.stack(
        [
            (density[:, 0] - density[:, 1]) / (norm.cdf(edges[:, 0]) - norm.cdf(edges[:, 1])),
            -np.asarray(y)[:, 1] / STD**2,
        ],
        axis=1,
    )
    assert ((score - exact) ** 2).mean() < 0.1 * (exact**2).mean()
