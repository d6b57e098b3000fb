"""The loss on held-out data, and the average of the parameters that it chooses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ndsm_jax import noising, processes, references
from ndsm_jax.datasets import Dataset, batch_indices
from ndsm_jax.datasets.dataset import hold_out
from ndsm_jax.experiment import experiment
from ndsm_jax.launch import load_data, restore
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.optimisation import adam
from ndsm_jax.runs import read_metrics
from ndsm_jax.training import HeldOut, draw, init_state, train
from ndsm_jax.training.held_out import make_look
from tests.training.tiny_runs import run, tiny


def normal(num: int, seed: int, dim: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


def ou(learning_rate: float = 1e-3, **options):
    """Noise towards N(0, I), with a score that starts as that of N(0, I)."""
    network = ScoreMLP(width=32, depth=2, zero_output=True)
    return experiment(
        processes.ornstein_uhlenbeck(2),
        objective="dsm",
        network=network,
        optimiser=adam(learning_rate, ema_decay=0.9),
        **options,
    )


def test_the_loss_of_the_exact_score():
    """For x ~ N(0, I) under OU the loss at the exact score -y is known.

    With y = a x + s z and the target -z / s, E|score - target|^2 = d a^2 / s^2; the weight is s^2,
    so that half of it times the weight is d a^2 / 2, averaged over the times.
    """
    made = ou()
    held = HeldOut(data=normal(512, 1))
    data = np.float32(normal(64, 0))
    unseen = np.float32(held.data)
    look = make_look(made, held, unseen=unseen, fitted=data, batch_size=64, seed=0)
    state, found, stop = look(init_state(made, seed=0, select=True))
    times = made.noising(jax.random.key(7), jnp.zeros((20_000, 2))).t
    expected = float(jnp.mean(jnp.exp(-2 * times)))
    # 8 x 64 states; the loss of one has a standard deviation of about its mean.
    error = expected / np.sqrt(512)
    assert abs(found["held_out_loss"] - expected) < 4 * error
    parts = [found[f"held_out_loss_{i}"] for i in range(1, 5)]
    np.testing.assert_allclose(np.mean(parts), found["held_out_loss"], rtol=0.02)
    assert parts == sorted(parts, reverse=True)  # a falls with time
    assert float(state.best.loss) == pytest.approx(found["held_out_loss"])
    assert not stop


def test_few_data_choose_the_reference():
    """12 points of the reference itself: all that training can do is to learn them by heart."""
    made = ou(learning_rate=3e-2)
    data, held = normal(12, 0), HeldOut(data=normal(400, 1), every=20)
    state = train(made, data, steps=200, batch_size=12, held_out=held, progress=False)
    unseen, fitted = np.float32(held.data), np.float32(data)
    look = make_look(made, held, unseen=unseen, fitted=fitted, batch_size=12, seed=0)
    end = look(state)[1]
    assert int(state.best.step) < 60
    assert float(state.best.loss) < end["held_out_loss"]
    assert end["fitted_loss"] < end["held_out_loss"]  # of what it has seen it knows more
    chosen = draw(made, state, 64, progress=False)
    kept = dataclasses.replace(state, ema=state.best.params, best=None)
    np.testing.assert_array_equal(chosen, draw(made, kept, 64, progress=False))
    patient = train(
        made,
        data,
        steps=200,
        batch_size=12,
        held_out=dataclasses.replace(held, patience=40),
        progress=False,
    )
    assert int(patient.step) - int(patient.best.step) == 40 < 200
    chex.assert_trees_all_equal(patient.best, state.best)


def test_a_run_resumes_bitwise_with_its_best_average(tmp_path):
    made = ou()
    data, held = normal(40, 0), HeldOut(data=normal(40, 1), every=4)

    def trained(steps, folder):
        options = {"steps": steps, "batch_size": 16, "held_out": held, "progress": False}
        return train(made, data, run=folder, **options)

    whole = trained(12, tmp_path / "whole")
    trained(8, tmp_path / "parts")
    chex.assert_trees_all_equal(trained(12, tmp_path / "parts"), whole)
    looks = [row for row in read_metrics(tmp_path / "parts") if "held_out_loss" in row]
    assert [row["step"] for row in looks] == [0, 4, 8, 12]
    assert looks[-1]["kept_step"] == int(whole.best.step)
    (kept,) = [row for row in looks if row["step"] == int(whole.best.step)]
    assert float(whole.best.loss) == pytest.approx(kept["held_out_loss"])
    other = dataclasses.replace(held, data=normal(40, 2))
    with pytest.raises(ValueError, match="held_out"):
        train(made, data, steps=16, batch_size=16, run=tmp_path / "parts", held_out=other)


def test_a_launched_run_holds_out_a_share(tmp_path):
    """200 items: 20 are held out, of fit and training; patience ends the training for good."""
    config = tiny(train={"select": "auto", "held_out_every": 2, "patience": 2, "steps": 40})
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0)
    )
    state = run(config, tmp_path)
    assert int(state.step) < 40
    assert int(state.step) - int(state.best.step) == 2
    restored = restore(tmp_path)
    chex.assert_trees_all_equal(restored.state, state)
    assert "180 samples" in (tmp_path / "mixture.txt").read_text()
    assert int(run(config, tmp_path).step) == int(state.step)


def test_hold_out_keeps_classes_and_order():
    labels = np.repeat(np.arange(4, dtype=np.int32), [40, 30, 20, 10])
    x = np.arange(100, dtype=np.float32)[:, None]
    whole = Dataset(
        name="x",
        train=x,
        test=x[:1],
        train_labels=labels,
        test_labels=labels[:1],
        shape=(1,),
        value_range=None,
        source="",
    )
    rest, (held, held_labels) = hold_out(whole, 20, seed=3)
    np.testing.assert_array_equal(held_labels, labels[held[:, 0].astype(int)])
    assert np.bincount(labels[held[:, 0].astype(int)]).tolist() == [8, 6, 4, 2]
    assert sorted([*held[:, 0], *rest.train[:, 0]]) == x[:, 0].tolist()
    assert (np.diff(rest.train[:, 0]) > 0).all()
    np.testing.assert_array_equal(labels[rest.train[:, 0].astype(int)], rest.train_labels)


def test_a_batch_larger_than_the_data_holds_all_of_them():
    rows = np.stack([batch_indices(0, step, 10, 25) for step in range(40)])
    counts = np.stack([np.bincount(row, minlength=10) for row in rows])
    assert counts.min() == 2
    assert counts.max() == 3
    # The 5 of the third epoch are others each time: 40 draws of 5 in 10, 20 each, +- 3.2.
    assert abs(counts.sum(axis=0) - 100).max() < 4 * 3.2


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda: HeldOut(data=normal(5, 0), every=0), "every=0"),
        (lambda: HeldOut(data=normal(5, 0), patience=3, select=False), "patience"),
    ],
)
def test_what_is_held_out_is_checked(held, message):
    with pytest.raises(ValueError, match=message):
        held()


def test_held_out_data_are_checked_before_training():
    bad = normal(5, 0)
    bad[2, 1] = np.nan
    for data, message in ((bad, "first row 2"), (normal(5, 0, 3), "held-out")):
        with pytest.raises(ValueError, match=message):
            train(ou(), normal(20, 0), steps=1, batch_size=4, held_out=HeldOut(data=data))


def test_a_held_out_row_far_out_is_named():
    held = normal(30, 1)
    held[21] = 1e20
    with pytest.raises(ValueError, match="row 21 of the held-out data is not finite; it lies too"):
        train(ou(), normal(20, 0), steps=1, batch_size=4, held_out=HeldOut(data=held))


def test_of_more_items_than_a_look_takes_some_are_taken_at_random():
    """Of data that lie sorted, with another loss in the second half: the mean of both halves'."""
    made = ou()
    far = np.repeat([0.0, 30.0], 200)[:, None] * np.ones((1, 2))

    def fitted_loss(fitted):
        look = make_look(
            made,
            HeldOut(data=normal(20, 1)),
            unseen=np.float32(normal(20, 1)),
            fitted=np.float32(fitted),
            batch_size=8,
            seed=0,
        )
        return look(init_state(made, seed=0, select=True))[1]["fitted_loss"]

    near, both, all_far = fitted_loss(far[:200]), fitted_loss(far), fitted_loss(far[200:])
    # 64 of 400 items: a share of 1/2 +- 1/16 is far.
    assert abs((both - near) / (all_far - near) - 0.5) < 4 / 16


def test_few_times_have_few_parts():
    process = processes.langevin(references.mixture([1.0], [[0.0, 0.0]], [1.0]))
    made = experiment(
        process,
        noise=noising.path_windows(process, 2),
        network=ScoreMLP(width=8, depth=2, zero_output=True),
    )
    held = HeldOut(data=normal(30, 1))
    unseen = np.float32(held.data)
    look = make_look(made, held, unseen=unseen, fitted=unseen, batch_size=8, seed=0)
    found = look(init_state(made, seed=0, select=True))[1]
    parts = [name for name in found if name.startswith("held_out_loss_")]
    assert 1 <= len(parts) < 4
    assert np.isfinite(list(found.values())).all()


def test_data_of_many_items_hold_out_none():
    from ndsm_jax.launch import selects

    assert selects(tiny(train={"select": "auto"}), len(load_data(tiny()).train))
    assert not selects(tiny(train={"select": "auto"}), 10_000)


def test_several_averages_cost_memory_alone_and_the_best_is_kept(tmp_path):
    """Each is the recursion of its decay; with few data and a large rate the slow one is better."""
    decays = (0.3, 0.5, 0.7)  # below the rise of `averaged` in 30 steps
    made = dataclasses.replace(ou(), optimiser=adam(3e-2, ema_decay=decays))
    data, held = normal(12, 0), HeldOut(data=normal(400, 1), every=10)
    options = {"batch_size": 12, "held_out": held, "progress": False}
    state = train(made, data, steps=30, run=tmp_path, **options)
    for number, decay in enumerate(decays):
        alone = dataclasses.replace(made, optimiser=adam(3e-2, ema_decay=decay))
        one = train(alone, data, steps=30, **options)
        average = (state.ema, *state.others)[number]
        chex.assert_trees_all_close(average, one.ema, rtol=1e-5, atol=1e-7)
    unseen, fitted = np.float32(held.data), np.float32(data)
    look = make_look(made, held, unseen=unseen, fitted=fitted, batch_size=12, seed=0)
    losses = []
    for average in (state.ema, *state.others):
        same = dataclasses.replace(state, ema=average, others=(average, average))
        losses.append(look(same)[1]["held_out_loss"])
    found = look(state)[1]
    assert found["held_out_loss"] == min(losses)
    assert found["ema_decay"] == decays[int(np.argmin(losses))]
    assert len(set(losses)) == 3
    again = train(made, data, steps=40, run=tmp_path, **options)
    whole = train(made, data, steps=40, **options)
    chex.assert_trees_all_equal(again, whole)
    once = dataclasses.replace(held, select=False)
    start = init_state(made, seed=0)
    look = make_look(made, once, unseen=unseen, fitted=fitted, batch_size=12, seed=0)
    assert look(start)[1]["ema_decay"] == decays[0]  # of the one that is sampled with


def test_a_patience_that_nothing_reads_is_refused():
    from ndsm_jax.launch import check_patience

    check_patience(tiny(train={"select": "auto", "patience": 5}), 9999)
    with pytest.raises(ValueError, match=r"train\.patience=5 has no effect: with 10,000 training"):
        check_patience(tiny(train={"select": "auto", "patience": 5}), 10_000)
