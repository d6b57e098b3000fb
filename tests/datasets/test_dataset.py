"""Checks, splits, subsets, precision and classes of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ndsm_jax.datasets import DATASETS, Dataset, Samples, load, stratified_order, validate


def test_split_is_seeded_and_stratified_like_scikit_learn() -> None:
    data = load("digits", test_fraction=0.3, seed=5)
    assert data.test_labels is not None
    labels = load_digits().target
    _, reference = train_test_split(labels, test_size=len(data.test), stratify=labels)
    assert np.abs(np.bincount(data.test_labels) - np.bincount(reference)).max() <= 1
    assert load("digits", test_fraction=0.3, seed=5).digest == data.digest
    assert load("digits", test_fraction=0.3, seed=6).digest != data.digest


def test_subsets_are_stratified_nested_and_disjoint_from_test(tmp_path: Path) -> None:
    """Row i of the file holds the value i, so rows can be told apart."""
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    np.savez(tmp_path / "a.npz", x=np.arange(1000.0)[:, None], y=labels)

    def subset(num_train: int) -> set[float]:
        data = load("array", dir=str(tmp_path / "a.npz"), num_train=num_train, num_test=50)
        assert data.train_labels is not None
        assert data.test_labels is not None
        np.testing.assert_array_equal(data.train_labels, labels[data.train[:, 0].astype(int)])
        np.testing.assert_array_equal(np.bincount(data.test_labels), [30, 15, 5])
        if num_train:
            counts = np.bincount(data.train_labels)
            assert np.abs(counts - num_train * np.array([0.6, 0.3, 0.1])).max() <= 1
        assert not set(data.train[:, 0]) & set(data.test[:, 0])
        return set(data.train[:, 0])

    small, large, everything = subset(50), subset(333), subset(0)
    assert (len(small), len(large), len(everything)) == (50, 333, 800)
    assert small < large < everything


def test_enough_is_held_out_to_evaluate_on(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    for count, kept in ((30, 20), (20, 10)):
        np.save(tmp_path / "a.npy", x[:count])
        data = load("array", dir=str(tmp_path / "a.npy"))
        assert (len(data.train), len(data.test)) == (kept, 10)
    assert len(load("array", dir=str(tmp_path / "a.npy"), test_fraction=0.9).train) == 10
    np.save(tmp_path / "a.npy", x[:19])
    with pytest.raises(ValueError, match="19 samples and no test split; 20 are needed"):
        load("array", dir=str(tmp_path / "a.npy"))


def test_stratified_order_takes_single_items_and_starts_at_random() -> None:
    labels = np.array([0] * 9 + [1])
    first = {int(stratified_order(np.random.default_rng(s), labels)[0]) for s in range(60)}
    assert first == set(range(9))
    order = stratified_order(np.random.default_rng(0), labels)
    assert sorted(order) == list(range(10))


def with_bad_rows(value: float) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[[7, 11], [0, 2]] = value
    return x


GOOD = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (Samples(with_bad_rows(np.nan)), "NaN or Inf in 2 of 20 rows, first in row 7"),
        (Samples(with_bad_rows(-np.inf)), "NaN or Inf in 2 of 20 rows, first in row 7"),
        (Samples(with_bad_rows(1e300)), r"of 1e\+150 or more in 2 of 20 rows, first in row 7"),
        (Samples(with_bad_rows(-1e150)), "in 2 of 20 rows, first in row 7.*variance overflows"),
        (Samples(with_bad_rows(np.inf).astype("f4")), "NaN or Inf in 2 of 20 rows, first in row 7"),
        (Samples(np.ones((20, 3))), "constant, all 20 samples are equal"),
        (Samples(np.tile(np.arange(3.0), (20, 1))), "constant, all 20 samples are equal"),
        (Samples(GOOD[:9]), "9 samples; at least 10"),
        (Samples(GOOD[:, 0]), r"shape \(20,\) is not usable"),
        (Samples(GOOD[:, :0]), r"shape \(20, 0\) is not usable"),
        (Samples(np.zeros((20, 1, 2, 3, 4))), "is not usable"),
        (Samples(np.zeros((20, 3), np.int64)), "type int64 has no known scale"),
        (Samples(GOOD, np.zeros(19, int)), "19 labels for 20 samples"),
        (Samples(GOOD, np.zeros((20, 2), int)), r"labels must be integers or strings \[N\]"),
        (Samples(GOOD, np.zeros(20)), r"labels must be integers or strings \[N\], not float64"),
        (Samples(GOOD, np.zeros(20, bool)), r"labels must be integers or strings \[N\], not bool"),
    ],
)
def test_validate_rejects(samples: Samples, message: str) -> None:
    with pytest.raises(ValueError, match=f"^my data: .*{message}"):
        validate(samples, what="my data")


def test_validate_accepts_feature_maps() -> None:
    validate(Samples(np.random.default_rng(0).normal(size=(20, 4, 4, 8))), what="latents")


@pytest.mark.parametrize("x", [with_bad_rows(9e149), with_bad_rows(-3e38).astype("f4")])
def test_validate_accepts_large_values(x: np.ndarray) -> None:
    with np.errstate(over="raise"):
        assert np.isfinite(x.astype(np.float64).var())
        validate(Samples(x), what="my data")


@pytest.mark.parametrize("labels", [np.full(20, -1), np.full(20, 3 * 10**9), np.full(20, "a")])
def test_validate_accepts_any_class_type(labels: np.ndarray) -> None:
    validate(Samples(GOOD, labels), what="my data")


def test_validate_accepts_constant_pixels() -> None:
    validate(Samples(np.column_stack([GOOD, np.zeros(20)]), np.arange(20) % 2), what="my data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnits"}, r"Unknown data\.name='mnits'\. Did you mean 'mnist'\? Known: .*array"),
        ({"name": "zzz"}, r"Unknown data\.name='zzz'\. Known: .*array"),
        ({"num_train": 5}, r"data\.num_train=5"),
        ({"num_test": -1}, r"data\.num_test=-1"),
        ({"num_train": 99_999}, r"data\.num_train=99999: only 1438 samples"),
        ({"num_test": 400}, r"data\.num_test=400: only 359 samples"),
        ({"test_fraction": 1.0}, r"data\.test_fraction=1\.0"),
        ({"seed": -1}, r"data\.seed=-1"),
        ({"channels": 2}, r"data\.channels=2"),
        ({"image_size": -8}, r"data\.image_size=-8"),
        ({"options": "a=1"}, r"data\.options='a=1': data\.name='digits' takes none"),
    ],
)
def test_option_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits", **options})


def written_out_order(rng: np.random.Generator, labels: np.ndarray) -> list[int]:
    """Each item, in random order, is put where the share (r + 1/2) / n of its class is reached."""
    seen: dict[int, int] = {}
    positions: list[tuple[float, int, int]] = []
    for i in rng.permutation(len(labels)):
        rank = seen[labels[i]] = seen.get(labels[i], -1) + 1
        positions.append(((rank + 0.5) / np.sum(labels == labels[i]), len(positions), i))
    return [i for _, _, i in sorted(positions)]


@pytest.mark.parametrize("seed", range(5))
def test_stratified_order_is_its_definition(seed: int) -> None:
    labels = np.random.default_rng([seed, 1]).integers(0, 1 + 3 * seed, 80)
    order = stratified_order(np.random.default_rng(seed), labels)
    np.testing.assert_array_equal(order, written_out_order(np.random.default_rng(seed), labels))


def test_every_name_is_documented_in_the_error() -> None:
    with pytest.raises(ValueError, match=", ".join(sorted(DATASETS))):
        load("")


def test_digest_sees_data_labels_and_split() -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)

    def digest(cut: int, label: int | None = None) -> str:
        return Dataset(
            name="a",
            train=x[:cut],
            test=x[cut:],
            train_labels=None if label is None else np.full(cut, label, np.int32),
            test_labels=None,
            shape=(2,),
            value_range=None,
            source="",
        ).digest

    assert digest(3) == digest(3)
    assert len({digest(3), digest(4), digest(3, 0), digest(3, 1)}) == 4
