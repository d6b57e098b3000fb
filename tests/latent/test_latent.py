"""Autoencoder, its latent space as a frame, and the joint objective against closed forms."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy import integrate, stats

from ndsm_jax import datasets, latent, processes, references
from ndsm_jax.codec import Latent, standard_codec
from ndsm_jax.config import Config
from ndsm_jax.config.assemble import build
from ndsm_jax.config.parts import fit
from ndsm_jax.integrators import time_grid
from ndsm_jax.latent.objective import normal_divergence, normal_entropy
from ndsm_jax.latent.training import _upgraded
from ndsm_jax.launch import Restored, launch, load_data, restore
from ndsm_jax.networks import Autoencoder
from ndsm_jax.noising import time_law
from ndsm_jax.reports.measure import measure
from ndsm_jax.runs import fingerprint
from ndsm_jax.training import draw, init_state
from ndsm_jax.training.state import Best

PIECES = 5000
MIXTURE = references.mixture([0.3, 0.7], [[-1.0], [1.0]], [0.04, 0.09])


def estimates(score, process, grid, z0, *, k=2, kind="uniform", seed=1):
    times = time_law(process.clock, grid, kind=kind)
    key = jax.random.key(seed)
    return np.asarray(
        jax.jit(lambda z: latent.cross_entropy(key, score, process, times, z, k=k))(z0)
    )


# --- the cross entropy ---


def gaussian_bound(variance, start, grid, factor=1.0):
    """The bound of the Euler chain of dY = -Y / variance dt + sqrt(2) dW from N(0, start).

    The sum of the Kullback-Leibler divergences of linear Gaussian steps, in closed form, for the
    score -y / (factor v) where v is the variance of the chain.
    """
    h = np.diff(grid.astype(np.float64))
    v = [start]
    for step in h:
        v.append((1 - step / variance) ** 2 * v[-1] + 2 * step)
    v = np.array(v)
    # z | z' is N(gain z', spread) for the chain, N((1 + h/variance - 2h / (factor v')) z', 2h) for
    # the reverse one.
    gain = (1 - h / variance) * v[:-1] / v[1:]
    spread = v[:-1] - gain**2 * v[1:]
    modelled = 1 + h / variance - 2 * h / (factor * v[1:])
    divergence = 0.5 * (spread / (2 * h) - 1 - np.log(spread / (2 * h)))
    divergence += (gain - modelled) ** 2 * v[1:] / (4 * h)
    end = 0.5 * (v[-1] / variance - 1 - np.log(v[-1] / variance))
    entropy = 0.5 * np.log(2 * np.pi * np.e * start)
    return entropy + end + divergence.sum(), v, entropy


@pytest.mark.parametrize("kind", ["uniform", "clock"])
def test_cross_entropy_of_a_gaussian_is_entropy_plus_divergences(kind):
    """Closed form on the chain itself: nothing is allowed for the length of the steps."""
    variance, start = 0.5, 0.1
    process = processes.ornstein_uhlenbeck(1, variance=variance)
    grid = time_grid(process, 20, smallest_variance=1e-2)
    z0 = np.sqrt(start) * np.random.default_rng(0).normal(size=(PIECES, 1)).astype(np.float32)
    expected, v, _ = gaussian_bound(variance, start, grid, factor=1.2)

    def score(y, t):
        return -y / jnp.interp(t, jnp.asarray(grid), jnp.asarray(1.2 * v, jnp.float32))[..., None]

    assert_mean(estimates(score, process, grid, z0, kind=kind), expected)


def test_cross_entropy_of_the_exact_score_falls_to_the_entropy_as_steps_shrink():
    process = processes.ornstein_uhlenbeck(1, variance=0.5)
    excess = []
    for num in (50, 400):
        grid = time_grid(process, num, smallest_variance=1e-3)
        bound, _, entropy = gaussian_bound(0.5, 0.1, grid)
        excess.append(bound - entropy)
    assert 0 < excess[1] < 0.2 * excess[0] < 0.02


def test_cross_entropy_of_a_mixture_is_its_entropy_with_the_exact_score():
    """Data of the law of the prior keep it, so that the score of all times is the prior's."""
    process = processes.langevin(MIXTURE)
    grid = time_grid(process, 100, kind="uniform")
    z0 = MIXTURE.sample(jax.random.key(0), (PIECES,))

    def density(y):
        return 0.3 * stats.norm.pdf(y, -1, 0.2) + 0.7 * stats.norm.pdf(y, 1, 0.3)

    entropy = integrate.quad(lambda y: -density(y) * np.log(density(y)), -3, 3, limit=200)[0]
    exact = estimates(lambda y, t: MIXTURE.score(y), process, grid, z0)
    assert_mean(exact, entropy, bias=0.02)  # the Euler chain's own law
    # A wrong score costs int g^2 / 2 E|s - score|^2 = T E|y|^2 for s = score + y.
    wrong = estimates(lambda y, t: MIXTURE.score(y) + y, process, grid, z0)
    second = 0.3 * (1 + 0.04) + 0.7 * (1 + 0.09)
    assert_mean(wrong - exact, float(process.horizon) * second, bias=0.02)


def test_cancelled_terms_keep_the_variance_from_growing_with_shorter_steps():
    process = processes.langevin(MIXTURE)
    z0 = MIXTURE.sample(jax.random.key(0), (2000,))
    spread = [
        estimates(
            lambda y, t: MIXTURE.score(y),
            process,
            time_grid(process, num, kind="uniform"),
            z0,
            k=1,
        ).std()
        for num in (50, 400)
    ]
    assert spread[1] < 1.3 * spread[0]  # uncancelled: by about sqrt(8)


def test_gradient_in_the_latents_is_that_of_the_estimate(rng):
    """The path is differentiated too: central differences of the same draws."""
    with jax.enable_x64(True):
        prior = jax.tree.map(lambda a: a.astype(jnp.float64), MIXTURE)
        process = processes.langevin(prior)
        grid = time_grid(process, 40, kind="uniform")
        times = time_law(process.clock, grid, kind="uniform")
        z0 = jnp.asarray(rng.normal(size=(3, 1)))

        def total(z):
            key = jax.random.key(0)
            score = lambda y, t: prior.score(y) + jnp.sin(y)  # noqa: E731
            return latent.cross_entropy(key, score, process, times, z, k=3).sum()

        gradient = jax.jit(jax.grad(total))(z0)
        step = 1e-5 * np.eye(3)[:, :, None]
        value = jax.jit(total)
        numeric = [(value(z0 + e) - value(z0 - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(np.ravel(gradient), numeric, rtol=2e-3, atol=1e-3)


# --- the autoencoder ---


def test_divergence_and_entropy_agree_with_scipy():
    mean, std = np.array([[0.5, -1.0]]), np.array([[0.3, 1.5]])
    q = [stats.norm(m, s) for m, s in zip(mean[0], std[0], strict=True)]
    kl = sum(d.expect(lambda y, d=d: d.logpdf(y) - stats.norm.logpdf(y)) for d in q)
    np.testing.assert_allclose(normal_divergence(jnp.asarray(mean), jnp.asarray(std)), [kl], 1e-5)
    entropy = sum(d.entropy() for d in q)
    np.testing.assert_allclose(normal_entropy(jnp.asarray(std)), [entropy], rtol=1e-5)


def test_a_codec_in_other_coordinates_decodes_to_the_same_image():
    network = Autoencoder(dim=6, latent_dim=2, widths=(8,))
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 6)))
    plain = standard_codec(network, params)
    moved = dataclasses.replace(plain, shift=jnp.array([1.0, 2.0]), scale=jnp.array([3.0, 0.5]))
    x = jnp.linspace(-1, 1, 12).reshape(2, 6)

    @jax.jit
    def both(codec):
        mean, std = codec.posterior(x)
        return codec.decode(mean), std

    (image, std), (image_moved, std_moved) = both(plain), both(moved)
    np.testing.assert_allclose(image_moved, image, atol=1e-6)
    np.testing.assert_allclose(std_moved * moved.scale[None], std, rtol=1e-6)


def small(kind="vae", steps=300, **joint):
    section = {"kind": kind, "latent_dim": 6, "widths": [64], "steps": steps, "batch_size": 64}
    return Config.from_dict(
        {
            "data": {"name": "digits", "num_train": 600},
            "autoencoder": section | {"anneal_steps": 100, "beta": 0.2, "learning_rate": 3e-3},
            "mixture": {"num_components": 5, "num_inits": 1},
            "noising": {"steps": 60},
            "network": {"width": 16, "depth": 2, "time_features": 16},
            "train": {
                "steps": 40,
                "checkpoint_every": 20,
                "log_every": 20,
                "picture_every": 0,
                "tensorboard": False,
            },
            "sample": {"num": 20, "chunk": 20},
            "joint": {"batch_size": 64, "learning_rate": 1e-3} | joint,
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Digits, a variational autoencoder of them, and an untrained score model of its latents."""
    config = small()
    dataset = load_data(config)
    folder = tmp_path_factory.mktemp("latent")
    codec = latent.train_autoencoder(config, dataset, folder / "autoencoder", progress=False)
    score = latent.score_config(config)
    parts = fit(score, dataset, frame=latent.frame_of(config, codec))
    experiment = build(score, dataset.shape, parts)
    model = Restored(
        config=score,
        experiment=experiment,
        state=init_state(experiment, seed=0),
        parts=parts,
        examples=None,
        shape=dataset.shape,
        host={},
        folder=folder,
    )
    return config, dataset, model, folder


def test_reconstructions_beat_principal_components_of_a_third_of_the_size(trained):
    from sklearn.decomposition import PCA

    _, dataset, model, _ = trained
    codec = model.experiment.frame.codec
    z = latent.encode(codec, dataset.test, seed=0)
    error = np.mean((latent.decode(codec, z) - dataset.test) ** 2)
    pca = PCA(2).fit(dataset.train)
    baseline = np.mean((pca.inverse_transform(pca.transform(dataset.test)) - dataset.test) ** 2)
    assert error < baseline < np.mean(dataset.test.var(axis=0))


def test_latents_are_standardised_draws_that_leave_as_their_reconstructions(trained):
    config, dataset, model, folder = trained
    frame = model.experiment.frame
    assert isinstance(frame, Latent)
    states = frame.prepare(dataset.train)
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(states.std(axis=0), 1, atol=1e-4)
    assert frame.prepare(dataset.test).shape == (len(dataset.test), 6)
    drawn = latent.encode(frame.codec, dataset.train, seed=config.autoencoder.seed)
    np.testing.assert_array_equal(states, drawn)
    np.testing.assert_array_equal(frame.leave(states), latent.decode(frame.codec, states))
    assert not (folder / "autoencoder" / "latents.npz").exists()
    assert (folder / "autoencoder" / "reconstructions.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no change of variables"):
        frame.log_det(dataset.test)


def test_all_stages_in_one_folder_resume_and_draw_images(trained, tmp_path):
    """The score model's folder alone is enough to sample from, in the space of the data."""
    config, dataset, model, folder = trained
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
    shutil.copytree(folder / "autoencoder", tmp_path / "autoencoder")
    first = latent.train_latent(config, dataset, tmp_path, progress=False)
    codec = first.experiment.frame.codec
    assert isinstance(first.experiment.frame, Latent)
    assert fingerprint(codec) == fingerprint(model.experiment.frame.codec)
    assert int(first.state.step) == 20
    again = latent.train_latent(config, dataset, tmp_path, progress=False)
    alone = restore(tmp_path / "score")
    assert fingerprint(first.state) == fingerprint(again.state) == fingerprint(alone.state)
    samples = draw(alone.experiment, alone.state, 7, progress=False)
    assert samples.shape == (7, dataset.dim)
    assert np.abs(samples).max() <= 1


def test_components_of_latents_are_not_looked_for_among_the_data(trained, tmp_path):
    """Latents of as many coordinates as the data have are no data."""
    _, dataset, model, _ = trained
    config = small(steps=2)
    wide = dataclasses.replace(config.autoencoder, latent_dim=dataset.dim)
    config = dataclasses.replace(config, autoencoder=wide)
    codec = latent.train_autoencoder(config, dataset, tmp_path, progress=False)
    score = latent.score_config(config)
    parts = fit(score, dataset, frame=latent.frame_of(config, codec))
    built = build(score, dataset.shape, parts)
    run = dataclasses.replace(model, config=score, experiment=built, parts=parts)
    assert run.experiment.components.dim == dataset.dim
    samples, zeros = dataset.test[:60], np.zeros(60, np.int32)
    found = measure(run, samples, samples, dataset, components=zeros, max_points=60)
    assert found.get("conditioning") is None


def test_a_latent_config_is_not_trained_without_its_autoencoder(tmp_path):
    config = small()
    with pytest.raises(ValueError, match=r"autoencoder\.kind='vae'.*train_latent\.py"):
        launch(config, load_data(config), tmp_path, progress=False)


def rewound(folder, copy, step):
    """A copy of a run as it was before its last checkpoint, of `step`."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / str(step))
    return copy


def test_a_resumed_autoencoder_is_the_uninterrupted_one(trained, tmp_path):
    config, dataset, model, folder = trained
    cut = rewound(folder / "autoencoder", tmp_path / "cut", 300)
    resumed = latent.train_autoencoder(config, dataset, cut, progress=False)
    assert fingerprint(resumed) == fingerprint(model.experiment.frame.codec)
    # Nor does it matter what the other sections say, as of a default that is another now.
    noising = dataclasses.replace(config.noising, integrator="euler")
    elsewhere = dataclasses.replace(config, noising=noising)
    again = latent.train_autoencoder(elsewhere, dataset, cut, progress=False)
    assert fingerprint(again) == fingerprint(resumed)
    other = dataclasses.replace(config.autoencoder, beta=0.3)
    with pytest.raises(ValueError, match=r"autoencoder\.beta: 0\.2 in the checkpoint, 0\.3 now"):
        latent.train_autoencoder(
            dataclasses.replace(config, autoencoder=other), dataset, cut, progress=False
        )


def test_an_autoencoder_of_before_has_sections_that_do_not_matter():
    """Its checkpoints had all of them, with the defaults of then."""
    before = Config().to_dict()
    before["noising"] |= {"integrator": "euler"}
    host = _upgraded(("autoencoder",), {"settings": before, "digest": "0"})
    assert host == {"settings": {"autoencoder": before["autoencoder"]}, "digest": "0"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small("none"), r"autoencoder\.kind='none'"),
        (small("ae", steps=30), r"joint\.steps=10 needs autoencoder\.kind='vae'"),
    ],
)
def test_what_cannot_be_trained_is_refused(config, message, tmp_path):
    config = dataclasses.replace(config, joint=dataclasses.replace(config.joint, steps=10))
    with pytest.raises(ValueError, match=message):
        latent.train_autoencoder(config, load_data(config), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("process", "objective", "steps", "message"),
    [
        ("langevin", "dsm", 0, r"objective\.name='dsm' needs a process with a known kernel"),
        ("component_ou", "dsm", 5, r"process\.name='component_ou' it cannot"),
        ("ornstein_uhlenbeck", "dsm", 5, r"process\.name='ornstein_uhlenbeck' it cannot"),
    ],
)
def test_what_a_later_stage_refuses_is_told_before_the_first(
    process, objective, steps, message, tmp_path
):
    config = small(steps=30)
    config = dataclasses.replace(
        config,
        process=dataclasses.replace(config.process, name=process),
        objective=dataclasses.replace(config.objective, name=objective),
        joint=dataclasses.replace(config.joint, steps=steps),
    )
    with pytest.raises(ValueError, match=message):
        latent.train_latent(config, load_data(config), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_items_outside_the_likelihood_are_refused(tmp_path):
    dataset = datasets.load("moons", num_train=100, num_test=20)
    with pytest.raises(ValueError, match=r"Bernoulli"):
        latent.train_autoencoder(small(), dataset, tmp_path, progress=False)


def test_a_plain_autoencoder_has_no_noise():
    network = Autoencoder(dim=4, latent_dim=2, widths=(8,), variational=False)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4)))
    codec = standard_codec(network, params)
    x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)
    mean = jax.jit(lambda codec: codec.posterior(jnp.asarray(x))[0])(codec)
    np.testing.assert_allclose(latent.encode(codec, x, seed=3), mean, atol=1e-6)


# --- joint training ---


@pytest.mark.slow
def test_joint_training_lowers_its_own_objective_and_resumes(trained, tmp_path):
    config, dataset, model, _ = trained
    joint = dataclasses.replace(config.joint, steps=160, refit_every=100)
    config = dataclasses.replace(config, joint=joint)
    chosen = Best(params=model.state.ema, loss=jnp.float32(0), step=jnp.int32(0))
    state = dataclasses.replace(
        model.state, ema=jax.tree.map(jnp.zeros_like, model.state.ema), best=chosen
    )
    model = dataclasses.replace(model, state=state)  # with an average that was chosen
    after = latent.train_joint(config, dataset, model, tmp_path / "whole", progress=False)

    @jax.jit
    def bound(codec, network, params, process, times):
        key, x = jax.random.key(5), jnp.asarray(dataset.train)
        score = network.bind(params)
        terms = latent.joint_terms(key, codec, score, process, times, x, k=4)
        divergence = terms["cross_entropy"] - terms["entropy"]
        return jnp.mean(terms["reconstruction"] + config.autoencoder.beta * divergence)

    values = [
        float(bound(e.frame.codec, e.model, m.state.chosen, e.process, e.noising.times))
        for m, e in ((m, m.experiment) for m in (model, after))
    ]
    assert values[1] < values[0] - 0.2  # of the same draws
    codecs = [m.experiment.frame.codec for m in (model, after)]
    encoder = [codec.params["params"]["to_posterior"]["kernel"] for codec in codecs]
    assert np.abs(encoder[1] - encoder[0]).max() > 1e-3
    priors = [m.experiment.process.reference.means for m in (model, after)]
    assert 0 < np.abs(priors[1] - priors[0]).max() < 3  # fitted again, from where it was
    kept = (after.parts.frame, after.parts.reference)
    assert fingerprint(kept) == fingerprint(
        (after.experiment.frame, after.experiment.process.reference)
    )
    samples = draw(after.experiment, after.state, 5, progress=False)
    assert samples.shape == (5, dataset.dim)  # decoded by the codec of the joint training

    cut = rewound(tmp_path / "whole", tmp_path / "cut", 160)
    resumed = latent.train_joint(config, dataset, model, cut, progress=False)
    parts = [
        (m.experiment.frame, m.state.chosen, m.experiment.process.reference)
        for m in (after, resumed)
    ]
    assert fingerprint(parts[0]) == fingerprint(parts[1])


def test_joint_training_needs_a_mixture(trained, tmp_path):
    config, dataset, model, _ = trained
    config = dataclasses.replace(config, joint=dataclasses.replace(config.joint, steps=10))
    process = dataclasses.replace(model.config.process, name="ornstein_uhlenbeck")
    linear = dataclasses.replace(model.config, process=process)
    with pytest.raises(ValueError, match=r"process\.name='ornstein_uhlenbeck'"):
        latent.train_joint(
            config, dataset, dataclasses.replace(model, config=linear), tmp_path, progress=False
        )
