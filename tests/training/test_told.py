"""Training and sampling of networks that are told a condition."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from ndsm_jax import conditioning, conditions, frames, measurements, processes, references
from ndsm_jax.conditions import Both
from ndsm_jax.contrast import Contrast
from ndsm_jax.experiment import experiment
from ndsm_jax.guidance import Twisted
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.noising import exact_kernel
from ndsm_jax.optimisation import adam
from ndsm_jax.training import (
    HeldOut,
    draw,
    draw_labels,
    init_state,
    log_prob,
    make_noise,
    noised,
    train,
)

MEANS = np.array([[-1.0, 0.5], [1.0, -0.5]])
NETWORK = ScoreMLP(width=32, depth=3, time_features=16, skip=True, zero_output=True, classes=2)


def data(num=600, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=num) > share).astype(np.int32)
    return MEANS[labels] + 0.2 * rng.normal(size=(num, 2)), labels


X, LABELS = data()


def told(process=None, **options):
    """Of two labelled classes, by VP if nothing else is said."""
    process = process or processes.variance_preserving(2)
    options = {"condition": LABELS, "network": NETWORK, "sample_grid": 30, "dropout": 0.2} | options
    kernel = "dsm" if process.kernel is not None else "path_dsm"
    return experiment(process, **{"objective": kernel} | options)


def trained(made, *, steps, x=X, condition=LABELS, **options):
    return train(
        made, x, steps=steps, condition=condition, batch_size=64, progress=False, **options
    )


@pytest.fixture(scope="module")
def two_classes():
    """An experiment of two separated classes, and its state after 400 steps."""
    classes = conditioning.classes(LABELS, 2)
    made = told(classes=classes, optimiser=adam(5e-3, ema_decay=0.98))
    return made, trained(made, steps=400)


def nearest(x):
    return np.linalg.norm(x[:, None] - MEANS, axis=-1).argmin(axis=1)


def test_samples_are_of_the_class_asked_for(two_classes):
    """Of each, of none, and by the shares; guided ones too. 300 samples."""
    made, state = two_classes
    label = np.arange(300) % 3 - 1
    for contrast in (None, Contrast(scale=2.0, high=0.9)):
        x = draw(made, state, 300, condition=label, contrast=contrast, progress=False)
        for c in range(2):
            assert (nearest(x[label == c]) == c).mean() > 0.97
    plain = draw(made, state, 300, condition=label, progress=False)
    share = LABELS.mean()
    deviation = np.sqrt(share * (1 - share))
    assert abs(nearest(plain[label == -1]).mean() - share) < 4.5 * deviation / 10
    drawn = draw_labels(made, 300, seed=3)
    assert abs(drawn.mean() - share) < 4.5 * deviation / np.sqrt(300)
    by_shares = draw(made, state, 300, seed=3, progress=False)
    assert (nearest(by_shares) == drawn).mean() > 0.97


def test_another_model_can_be_the_weaker_score(two_classes):
    """A weaker score that is the model's own changes nothing at any scale."""
    made, state = two_classes
    label = np.zeros(50, np.int32)
    options: dict[str, Any] = {"condition": label, "progress": False}
    own = Contrast(scale=3.0, weaker=made.model.bind(state.chosen))
    same = draw(made, state, 50, contrast=own, **options)
    np.testing.assert_allclose(same, draw(made, state, 50, **options), atol=1e-3)
    start = init_state(made, seed=0)
    weaker = Contrast(scale=1.5, weaker=made.model.bind(start.params))
    assert np.abs(draw(made, state, 50, contrast=weaker, **options) - same).max() > 0.01


def test_labels_stay_with_their_items():
    """Noised at once, in blocks, with a share of them left out: 3 steps of 64 items."""
    process = processes.variance_preserving(2)
    noise = exact_kernel(process, np.array([0.0, 1e-4, 1.0]), k=2)
    small = dataclasses.replace(
        noise, times=dataclasses.replace(noise.times, cdf=jnp.array([0.0, 1.0, 1.0]))
    )
    made = told(noise=small)
    x, labels = jnp.asarray(X, jnp.float32), jnp.asarray(LABELS)
    rows = np.stack([np.arange(i, 600, 600 // 64)[:64] for i in range(3)])
    ahead = make_noise(0)(made, x[rows], 5, labels[rows])
    of_state = (np.asarray(ahead.y)[..., 0] > 0).astype(int)
    np.testing.assert_array_equal(of_state[..., 0], LABELS[rows])
    kept = np.asarray(ahead.condition)
    assert kept.shape == (3, 64, 1)
    known = kept[..., 0] >= 0
    np.testing.assert_array_equal(kept[..., 0][known], LABELS[rows][known])
    assert_mean(~known.ravel(), 0.2)
    assert (known[0] != known[1]).any()  # each step leaves out others
    alone = make_noise(0)(made, x[rows[1:2]], 6, labels[rows[1:2]])  # the same, whatever the block
    np.testing.assert_array_equal(alone.condition[0], ahead.condition[1])


def test_resumed_bitwise_with_labels(tmp_path):
    """8 steps at once = 3 and 5 more from the folder, with held-out labels; in other blocks, which
    are another program, up to rounding."""
    made = told(network=ScoreMLP(width=8, depth=2, zero_output=True, classes=2))
    held, held_labels = data(40, seed=1)
    options: dict[str, Any] = {"held_out": HeldOut(data=held, condition=held_labels, every=4)}
    trained(made, steps=3, run=tmp_path, **options)
    resumed = trained(made, steps=8, run=tmp_path, **options)
    chex.assert_trees_all_equal(resumed, trained(made, steps=8, **options))
    in_blocks = trained(made, steps=8, ahead_mb=1e-6, **options)
    chex.assert_trees_all_close(resumed, in_blocks, rtol=1e-5, atol=1e-6)
    others = trained(made, steps=8, condition=1 - LABELS, **options)
    assert np.abs(resumed.best.loss - others.best.loss) > 0 or resumed.best.step != others.best.step
    with pytest.raises(ValueError, match=r"\n  condition: "):
        trained(made, steps=9, condition=1 - LABELS, run=tmp_path, **options)


class Shift:
    """A network of one's own that is told a pytree: net = A v + b[label] - y, in the place of what
    a score of one point needs; `init` and `apply` are all that it has."""

    def init(self, key, y, c, *, condition):
        return {"A": jnp.zeros((2, 2)), "b": jnp.zeros((3, y.shape[-1]))}

    def apply(self, params, y, c, *, condition):
        at, label = condition["at"], condition["label"]
        known = jnp.where(label < 0, 2, label)
        return jnp.nan_to_num(at) @ params["A"].T + params["b"][known] + 0 * y


def test_a_pytree_goes_to_a_network_of_ones_own_and_is_regressed_on():
    """VP with x = 2 v + (label, label): the loss of a network that is told v and the label is far
    below that of one that is told nothing, and samples follow what they are given."""
    rng = np.random.default_rng(0)
    v, label = rng.normal(size=(800, 2)), rng.integers(0, 2, 800)
    x = 0.5 * v[:, ::-1] + np.array([-0.4, 0.4])[label, None] + 0.05 * rng.normal(size=(800, 2))
    condition = {"at": v, "label": label}
    network = ScoreMLP(width=32, depth=3, time_features=16, skip=True, zero_output=True, classes=2)
    made = told(condition=condition, network=network, optimiser=adam(5e-3, ema_decay=0.98))
    state = trained(made, steps=400, x=x, condition=condition)
    asked = {"at": np.array([[1.0, -1.0], [-0.5, 1.5]] * 40), "label": np.arange(80) // 40}
    found = draw(made, state, 80, condition=asked, progress=False)
    expected = 0.5 * asked["at"][:, ::-1] + np.array([-0.4, 0.4])[asked["label"], None]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.15  # of x: 0.65
    own = told(condition=condition, network=Shift())
    first = init_state(own, seed=0)
    after = trained(own, steps=1, x=x, condition=condition)
    changed = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0), first.params, after.params)
    assert changed == {"A": True, "b": True}


# --- where samples start, and densities: a network that says nothing ---

VARIANCES = np.array([0.3, 0.2, 0.25])
MIXTURE = references.mixture([0.5, 0.3, 0.2], [[-4.0, 0.0], [0.0, 0.5], [4.5, 0.0]], VARIANCES)
GIVEN = np.array([[0.9, 0.1, 0.0], [0.0, 0.25, 0.75], [0.5, 0.3, 0.2]])
"""P(component | class) of two classes and of none."""
CLASSES = conditions.Classes(
    shares=jnp.array([0.6, 0.4]), log_weights=jnp.log(jnp.float32(GIVEN + 1e-9))
)


def silent(in_frame: bool, **options):
    """A score that is the reference's at all times: samples are where they start."""
    process, frame = processes.langevin(MIXTURE), None
    if in_frame:
        process, frame = processes.ornstein_uhlenbeck(2), frames.OfComponent(mixture=MIXTURE)
    made = told(process, frame=frame, classes=CLASSES, sample_grid=40, **options)
    return made, init_state(made, seed=0)


@pytest.mark.parametrize("in_frame", [False, True], ids=["langevin", "component"])
def test_a_class_starts_in_its_components_and_a_component_has_its_classes(in_frame):
    """The mean of 3,000 samples of each class and of none, and the classes of those of component 0
    and 1 by Bayes."""
    made, state = silent(in_frame)
    options: dict[str, Any] = {"progress": False, "chunk": 3000}
    means = np.asarray(MIXTURE.means)
    for c in (0, 1, -1):
        x = draw(made, state, 3000, condition=np.full(3000, c), **options)
        assert_mean(x, GIVEN[c] @ means, bias=0.03)
    k = np.arange(3000) % 2
    labels = draw_labels(made, 3000, components=k)
    assert (labels[k == 0] == 0).all()  # (0.6 0.9) against 0, and (0.6 0.1) against (0.4 0.25)
    assert_mean(labels[k == 1] == 0, 0.06 / 0.16)


@pytest.mark.parametrize("in_frame", [False, True], ids=["langevin", "component"])
def test_the_density_given_a_class_is_that_of_its_components(in_frame):
    """log sum_k P(k | c) N_k(x) by SciPy."""
    made, state = silent(in_frame)
    x = np.array([[-4.0, 0.1], [0.3, 0.4], [4.0, -0.5], [0.1, 0.6]])
    laws = [
        scipy.stats.multivariate_normal(m, v)
        for m, v in zip(np.asarray(MIXTURE.means), VARIANCES, strict=True)
    ]
    density = np.stack([law.pdf(x) for law in laws], axis=1)
    label = np.array([0, 1, 1, -1])
    expected = np.log(np.sum((GIVEN[label] + 1e-9) * density, axis=1))
    options: dict[str, Any] = {"progress": False, "steps": 40}
    found = log_prob(made, state, x, condition=label, **options).value
    np.testing.assert_allclose(found, expected, atol=0.01)
    of_all = log_prob(made, state, x, **options).value
    np.testing.assert_allclose(of_all, np.log(density @ GIVEN[2]), atol=0.01)


def test_a_measurement_and_a_class_choose_components_together():
    """P(k | m, c) is proportional to P(k | c) p(m | k): in a frame, of a first coordinate."""
    made, state = silent(True)
    known = measurements.given(np.array([[-1.0, np.nan]]), noise=1.0)
    density = scipy.stats.norm.pdf(-1.0, [-4.0, 0.0, 4.5], np.sqrt(1 + VARIANCES))
    x = draw(made, state, 2000, condition=np.zeros(2000, int), measurement=known, progress=False)
    weights = (GIVEN[0] + 1e-9) * density
    share = 1 - weights[0] / weights.sum()
    assert 0.1 < share < 0.9
    assert_mean(MIXTURE.most_likely(jnp.asarray(x, jnp.float32)) != 0, share, bias=0.03)
    plain, start = silent(False)
    with pytest.raises(ValueError, match="Twisted: particles start in components"):
        draw(plain, start, 4, condition=np.zeros(4, int), measurement=known, guidance=Twisted)


def test_both_conditions_reach_the_network():
    """The component's mean beside the state, and the label, in a frame of components."""
    made, _ = silent(True)
    batch = jax.jit(noised)(made, jax.random.key(0), jnp.asarray(X, jnp.float32), LABELS)
    assert isinstance(batch.condition, Both)
    assert batch.condition.frame.shape == batch.condition.told.shape == (600, 1)
    for objective in ("ndsm", "ndsm_cv"):  # scores at y and at mu of one condition
        once = told(
            processes.ornstein_uhlenbeck(2),
            frame=frames.OfComponent(mixture=MIXTURE),
            objective=objective,
        )
        assert np.isfinite(jax.tree.leaves(trained(once, steps=1).params)[0]).all()


# --- what is refused ---


def test_what_does_not_go_together_is_refused():
    plain = told(condition=None, dropout=0.0)
    state = init_state(plain, seed=0)
    with pytest.raises(ValueError, match=r"train: a condition is given.*network\.condition"):
        trained(plain, steps=1)
    with pytest.raises(ValueError, match=r"train: the network is told a condition, and none"):
        trained(told(), steps=1, condition=None)
    with pytest.raises(ValueError, match=r"train: class 2; classes go from 0 to 1"):
        trained(told(), steps=1, condition=LABELS + 1)
    with pytest.raises(ValueError, match=r"train: held_out: the network is told"):
        trained(told(), steps=1, held_out=HeldOut(data=X[:20]))
    with pytest.raises(ValueError, match=r"sample\.guidance_scale=2 .*is told no labels"):
        draw(plain, state, 2, contrast=Contrast(scale=2.0))
    always = told(dropout=0.0)
    with pytest.raises(ValueError, match=r"label_dropout is 0.*label_dropout=0\.1"):
        draw(always, init_state(always, seed=0), 2, contrast=Contrast(scale=2.0))
    with pytest.raises(ValueError, match=r"log_prob: the network was always told"):
        log_prob(always, init_state(always, seed=0), X[:2])
    with pytest.raises(ValueError, match="draw: the network is told a condition, and none"):
        draw(always, init_state(always, seed=0), 2)
    with pytest.raises(ValueError, match="draw: class 5"):
        draw(always, init_state(always, seed=0), 2, condition=np.array([0, 5]))
    with pytest.raises(ValueError, match="the shares of classes are not known"):
        draw_labels(always, 2)
    for wrong in ({"dropout": 1.0}, {"condition": None, "dropout": 0.1}):
        with pytest.raises(ValueError, match="experiment: dropout="):
            told(**wrong)
    with pytest.raises(ValueError, match="experiment: a condition of the structure"):
        told(model=told().model, condition={"label": LABELS})
