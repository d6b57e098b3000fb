"""Data sets: shapes, ranges, splits, toys against closed forms, file formats, every error."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ndsm_jax import datasets
from ndsm_jax.datasets import DATASETS, TOYS, Samples, load, support_distance, validate

NOT_ORIGINAL = pytest.mark.filterwarnings("ignore:Not the original MNIST")


def sort_rows(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T)]


# --- toys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TOYS))
def test_toy_shapes_and_determinism(name: str) -> None:
    data = load(name, num_train=300, num_test=200, seed=1)
    assert data.train.shape == (300, 2)
    assert data.test.shape == (200, 2)
    assert data.train.dtype == np.float32
    assert data.train_labels is not None
    assert data.train_labels.dtype == np.int32
    assert (data.dim, data.is_image, data.value_range) == (2, False, None)
    assert np.abs(data.train).max() < 3.0
    assert load(name, num_train=300, num_test=200, seed=1).digest == data.digest
    assert load(name, num_train=300, num_test=200, seed=2).digest != data.digest
    assert not np.isin(data.train, data.test).all(axis=1).any()


def test_toys_have_ten_thousand_samples_by_default() -> None:
    data = load("circle8")
    assert len(data.train) == len(data.test) == 10_000
    assert data.num_classes == 8


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("rings_and_bars", (0.4, 0.3, 0.2, 0.1)),
        ("gaussians", datasets.GAUSSIANS_WEIGHTS),
        ("moons", (0.5, 0.5)),
        ("circle8", (0.125,) * 8),
        ("bars", (0.35, 0.25, 0.2, 0.15, 0.05)),
        ("arcs", (0.45, 0.3, 0.15, 0.1)),
        ("rings", (0.4, 0.3, 0.2, 0.1)),
        ("checkerboard", (0.125,) * 8),
    ],
)
def test_mode_fractions(name: str, weights: tuple[float, ...]) -> None:
    """A fraction of n draws has standard error sqrt(w (1 - w) / n), at most 0.0035 here."""
    n = 20_000
    _, labels = TOYS[name](np.random.default_rng(0), n)
    expected = np.array(weights)
    assert np.isclose(expected.sum(), 1.0)
    error = np.abs(np.bincount(labels, minlength=len(weights)) / n - expected)
    assert np.all(error < 4 * np.sqrt(expected * (1 - expected) / n))


def test_gaussians_have_the_stated_moments() -> None:
    points, labels = TOYS["gaussians"](np.random.default_rng(0), 60_000)
    moments = zip(datasets.GAUSSIANS_MEANS, datasets.GAUSSIANS_COVARIANCES, strict=True)
    for k, (mean, covariance) in enumerate(moments):
        x = points[labels == k]
        variance = np.diag(covariance)
        assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * np.sqrt(variance / len(x)))
        # Var of a sample covariance of a Gaussian: (C_ii C_jj + C_ij^2) / n.
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(x))
        assert np.all(np.abs(np.cov(x.T) - covariance) < 4 * error)


def test_checkerboard_squares_are_dark_and_labelled() -> None:
    points, labels = TOYS["checkerboard"](np.random.default_rng(0), 4000)
    column, row = np.floor(points + 2).astype(int).T
    assert set(column) == set(row) == {0, 1, 2, 3}
    assert np.all((column + row) % 2 == 0)
    assert np.all((row * 4 + column) // 2 == labels)
    assert stats.kstest(points[:, 0] % 1, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", datasets.CURVES)
def test_noise_is_half_normal_about_the_curves(name: str) -> None:
    """The offset along the normal is N(0, 0.02^2), so the distance is half normal."""
    points, _ = TOYS[name](np.random.default_rng(0), 20_000)
    distance = support_distance(name, points)
    assert stats.kstest(distance / datasets.CURVES_NOISE, "halfnorm").pvalue > 1e-3


def dense_support(name: str) -> np.ndarray:
    """The support written out by hand, as closely spaced points (spacing below 1e-3)."""
    angle = np.linspace(0, 2 * np.pi, 8001)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bar = np.stack([np.linspace(-0.4, 0.4, 2001), np.zeros(2001)], axis=1)
    if name == "circle8":
        return circle[:-1:1000]
    if name == "rings":
        rings = ((-0.8, 0.8, 0.6), (0.9, 0.9, 0.4), (0.7, -0.8, 0.5), (-0.9, -0.9, 0.3))
        return np.concatenate([np.add(r * circle, (x, y)) for x, y, r in rings])
    if name == "bars":
        diagonal = np.repeat(np.linspace(-0.3, 0.3, 2001)[:, None], 2, axis=1)
        upright, level = np.add(bar[:, ::-1], [[1, 1]]), np.add(bar, [[-1, 1]])
        return np.concatenate([level, -level, upright, -upright, diagonal])
    if name == "arcs":
        x, y = circle.T
        return np.concatenate(
            [
                np.add(0.6 * circle[y >= -1e-9], (-0.8, 0.8)),
                np.add(0.6 * circle[y <= 1e-9], (0.8, 0.6)),
                np.add(0.6 * circle[x <= 1e-9], (-0.8, -0.6)),
                np.add(0.4 * circle[x >= -np.sqrt(0.5)], (0.8, -0.9)),
            ]
        )
    if name == "moons":
        upper, lower = circle[circle[:, 1] >= -1e-9], circle[circle[:, 1] <= 1e-9]
        return np.concatenate([upper, np.add(lower, [1.0, 0.5])])
    parts = [0.4 * circle, bar, 0.4 * circle, bar[:, ::-1]]
    middles = [(-1, 1), (1, 1), (1, -1), (-1, -1)]
    return np.concatenate([np.add(x, c) for x, c in zip(parts, middles, strict=True)])


@pytest.mark.parametrize("name", ["rings_and_bars", "rings", "bars", "arcs", "moons", "circle8"])
def test_support_distance_against_dense_sampling(name: str) -> None:
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (5000, 2))
    dense, _ = cKDTree(dense_support(name)).query(points)
    np.testing.assert_allclose(support_distance(name, points), dense, atol=1e-3)


def test_moons_support_is_scikit_learn_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOONS_NOISE", None)
    points, _ = TOYS["moons"](np.random.default_rng(0), 500)
    np.testing.assert_allclose(support_distance("moons", points), 0.0, atol=1e-12)


def test_support_distance_closed_forms() -> None:
    points = np.array([[-1.0, 1.0], [1.7, 1.4], [1.0, 0.75], [1.0, -1.5], [-0.7, -1.8]])
    expected = [0.4, 0.5, 0.25, 0.1, 0.5]  # ring centre, bar end, bar side, outside a ring, bar end
    np.testing.assert_allclose(support_distance("rings_and_bars", points), expected, atol=1e-12)
    centre = np.zeros((1, 2))
    np.testing.assert_allclose(support_distance("circle8", centre), [1.0])
    moons = np.array([[0.0, 2.0], [0.0, -2.0], [-1.0, -1.0]])  # outside each moon, and below an end
    expected = [1.0, np.hypot(1.0, 2.5) - 1.0, 1.0]
    np.testing.assert_allclose(support_distance("moons", moons), expected)


def test_support_distance_errors() -> None:
    with pytest.raises(ValueError, match="No support distance for 'checkerboard'"):
        support_distance("checkerboard", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"points must be \[n, 2\]"):
        support_distance("moons", np.zeros(2))


# --- digits, splits and subsets -------------------------------------------------------------------


def test_digits_is_a_split_of_scikit_learn() -> None:
    data = load("digits")
    images, labels = load_digits(return_X_y=True)
    assert data.shape == (8, 8, 1)
    assert (data.dim, data.is_image, data.num_classes) == (64, True, 10)
    assert data.value_range == (-1.0, 1.0)
    assert (data.train.min(), data.train.max()) == (-1.0, 1.0)
    assert len(data.test) == round(0.2 * 1797)
    together = np.concatenate([data.train, data.test])
    assert data.train_labels is not None
    assert data.test_labels is not None
    ours = np.column_stack([together, np.concatenate([data.train_labels, data.test_labels])])
    theirs = np.column_stack([images / 8 - 1, labels])
    np.testing.assert_array_equal(sort_rows(ours), sort_rows(theirs))


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


def test_stratified_order_takes_single_items_and_starts_at_random() -> None:
    labels = np.array([0] * 9 + [1])
    first = {int(datasets.stratified_order(np.random.default_rng(s), labels)[0]) for s in range(60)}
    assert first == set(range(9))
    order = datasets.stratified_order(np.random.default_rng(0), labels)
    assert sorted(order) == list(range(10))


# --- MNIST ----------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    """IDX written by hand from its specification."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    }


def write_mnist(
    folder: Path, arrays: dict[str, np.ndarray], *, dotted: bool = False, zipped: bool = False
) -> str:
    for stem, array in arrays.items():
        name = stem.replace("-idx", ".idx") if dotted else stem
        content = idx_bytes(array)
        if zipped:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / name).write_bytes(content)
    return str(folder)


@NOT_ORIGINAL
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_round_trip(tmp_path: Path, dotted: bool, zipped: bool) -> None:
    arrays = small_mnist()
    data = load("mnist", dir=write_mnist(tmp_path, arrays, dotted=dotted, zipped=zipped))
    assert data.shape == (28, 28, 1)
    assert data.value_range == (-1.0, 1.0)
    expected = arrays["train-images-idx3-ubyte"].reshape(40, 784) / 127.5 - 1.0
    np.testing.assert_allclose(data.train, expected, atol=1e-6)
    assert (data.train.min(), data.train.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(data.test_labels, arrays["t10k-labels-idx1-ubyte"])


@NOT_ORIGINAL
def test_mnist_plain_content_under_a_gz_name_is_read(tmp_path: Path) -> None:
    write_mnist(tmp_path, small_mnist())
    name = "train-images-idx3-ubyte"
    (tmp_path / name).rename(tmp_path / f"{name}.gz")
    assert len(load("mnist", dir=str(tmp_path)).train) == 40


def test_mnist_warns_of_other_content(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, small_mnist())
    with pytest.warns(UserWarning, match="Not the original MNIST"):
        data = load("mnist", dir=folder)
    assert "other than the original" in data.source


def cut_gzip(content: bytes) -> bytes:
    return gzip.compress(content)[:-20]


def flip_gzip(content: bytes) -> bytes:
    zipped = bytearray(gzip.compress(content))
    zipped[len(zipped) // 2] ^= 0xFF
    return bytes(zipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-5], "truncated: 5 bytes missing"),
        (lambda b: b + b"\0\0", "2 bytes too long"),
        (lambda b: b"\0\0\x0d\x03" + b[4:], "not an IDX file of unsigned bytes"),
        (lambda b: b"<html>", "not an IDX file of unsigned bytes"),
        (lambda b: b[:9], "not an IDX file of unsigned bytes"),
        (lambda b: b"", "not an IDX file of unsigned bytes"),
        (cut_gzip, "corrupted gzip"),
        (flip_gzip, "corrupted gzip"),
        (lambda b: idx_bytes(np.zeros(40)), "IDX shape"),
    ],
)
def test_mnist_damaged_file(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    write_mnist(tmp_path, small_mnist())
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        load("mnist", dir=str(tmp_path))
    assert path.name in str(raised.value)


@NOT_ORIGINAL
def test_mnist_label_length_mismatch(tmp_path: Path) -> None:
    arrays = small_mnist()
    arrays["train-labels-idx1-ubyte"] = np.zeros(39, np.uint8)
    with pytest.raises(ValueError, match="39 labels for 40 samples"):
        load("mnist", dir=write_mnist(tmp_path, arrays))


def test_mnist_missing_file(tmp_path: Path) -> None:
    write_mnist(tmp_path, small_mnist())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.dir.*t10k-labels-idx1-ubyte or "):
        load("mnist", dir=str(tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mnist_from_tensorflow_datasets(tmp_path: Path) -> None:
    """Prepare a small real tensorflow-datasets folder, as a user would, and read it back."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")  # needed to prepare, not to read
    from tensorflow_datasets.image_classification import mnist

    arrays = small_mnist()
    with tfds.core.registered.skip_registration():

        class MNIST(mnist.MNIST):
            pkg_dir_path = None

            def _split_generators(self, dl_manager):
                return {"train": self._generate("train"), "test": self._generate("t10k")}

            def _generate(self, prefix):
                images = arrays[f"{prefix}-images-idx3-ubyte"]
                for i, (image, label) in enumerate(
                    zip(images, arrays[f"{prefix}-labels-idx1-ubyte"], strict=True)
                ):
                    file = io.BytesIO()
                    Image.fromarray(image).save(file, "PNG")
                    file.seek(0)
                    yield i, {"image": file, "label": int(label)}

    MNIST(data_dir=tmp_path, file_format="array_record").download_and_prepare()

    data = load("mnist", dir=str(tmp_path))
    assert data.shape == (28, 28, 1)
    for x, labels, prefix in (
        (data.train, data.train_labels, "train"),
        (data.test, data.test_labels, "t10k"),
    ):
        assert labels is not None
        images = arrays[f"{prefix}-images-idx3-ubyte"].reshape(len(x), -1)
        expected = np.column_stack([images, arrays[f"{prefix}-labels-idx1-ubyte"]])
        ours = np.column_stack([np.rint((x + 1) * 127.5), labels])
        # The examples come back in another order, so compare sorted rows.
        np.testing.assert_array_equal(sort_rows(ours), sort_rows(expected))


def test_fetch_joins_blocks() -> None:
    class Source:
        def __len__(self) -> int:
            return 25

        def __getitems__(self, keys: range) -> list[dict[str, np.ndarray]]:
            return [{"image": np.full((2, 2, 1), k), "label": np.array(k % 3)} for k in keys]

    x, labels = datasets._fetch(Source(), block=10)
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(25))
    np.testing.assert_array_equal(labels, np.arange(25) % 3)


def test_mnist_without_any_source(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()  # a data folder of tensorflow-datasets with nothing prepared
    with pytest.raises(FileNotFoundError, match=r"Set data\.dir to a folder .* or prepare 'mnist'"):
        load("mnist", dir=str(tmp_path))


def test_real_mnist() -> None:
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    data = load("mnist", dir=folder, num_train=6000)  # no warning: pytest would show one
    assert data.train.shape == (6000, 784)
    assert data.test.shape == (10_000, 784)
    assert data.source.startswith("MNIST (LeCun")
    # Class sizes as published with MNIST.
    train_sizes = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_sizes = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train_labels is not None
    assert data.test_labels is not None
    np.testing.assert_array_equal(np.bincount(data.test_labels), test_sizes)
    assert np.abs(np.bincount(data.train_labels) - np.array(train_sizes) / 10).max() <= 1
    # The mean pixel of the 10,000 test images is known to be 0.1325 on [0, 1].
    assert np.isclose((data.test.mean(dtype=np.float64) + 1) / 2, 0.1325, atol=1e-4)


def halved(image: np.ndarray) -> np.ndarray:
    """Pillow's own average of 2 x 2 blocks, pasted in the middle of black."""
    canvas = Image.new("L", (28, 28))
    canvas.paste(Image.fromarray(image).reduce(2), (7, 7))
    return np.asarray(canvas)


def test_half_size_is_that_of_pillow() -> None:
    images = small_mnist()["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(
        datasets.half_size(images), np.stack([halved(image) for image in images])
    )


@NOT_ORIGINAL
def test_approx_c2_mnist_holds_large_upright_and_small_turned_digits(tmp_path: Path) -> None:
    arrays = small_mnist()
    folder = write_mnist(tmp_path, arrays)
    data = load("approx_c2_mnist", dir=folder)
    assert data.shape == (28, 28, 1)
    assert data.num_classes == 20
    for split, x, labels in (
        ("train", data.train, data.train_labels),
        ("t10k", data.test, data.test_labels),
    ):
        assert labels is not None
        small = labels >= 10
        assert 0 < small.sum() < len(small)
        np.testing.assert_array_equal(labels % 10, arrays[f"{split}-labels-idx1-ubyte"])
        images = arrays[f"{split}-images-idx3-ubyte"]
        turned = np.stack([np.rot90(halved(image), 2) for image in images])
        expected = np.where(small[:, None, None], turned, images).reshape(len(x), 784)
        np.testing.assert_allclose((x + 1) * 127.5, expected, atol=1e-3)
    assert load("approx_c2_mnist", dir=folder).digest == data.digest
    other = load("approx_c2_mnist", dir=folder, seed=1)
    assert other.digest != data.digest
    subset = load("approx_c2_mnist", dir=folder, num_train=20)
    assert subset.train_labels is not None
    assert all((data.train == x).all(axis=1).any() for x in subset.train)


def test_approx_c2_mnist_halves_are_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 coins: the share of small digits is 1/2 with a standard error of 0.0035."""
    x, labels = np.zeros((20_000, 28, 28), np.uint8), np.zeros(20_000, np.uint8)
    x[:, 0, 0] = 1
    x[0, 0, 0] = 2
    raw = datasets.Raw(train=Samples(x, labels), test=Samples(x, labels), source="")
    monkeypatch.setattr(datasets, "_mnist", lambda options: raw)
    data = load("approx_c2_mnist")
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert abs(np.mean(data.train_labels == 10) - 0.5) < 4.5 * 0.0035
    assert abs(np.mean(data.train_labels == data.test_labels) - 0.5) < 4.5 * 0.0035


@NOT_ORIGINAL
def test_mnist_orientations_are_the_four_combinations(tmp_path: Path) -> None:
    arrays = small_mnist()
    data = load("mnist_orientations", dir=write_mnist(tmp_path, arrays))
    assert data.num_classes == 40
    assert data.test.shape == (80, 784)
    assert data.test_labels is not None
    first = arrays["t10k-images-idx3-ubyte"][0]  # a 0
    for label, image in {
        0: first,
        10: halved(first),
        20: np.rot90(first, 2),
        30: np.rot90(halved(first), 2),
    }.items():
        found = data.test[np.argmax(data.test_labels == label)]
        np.testing.assert_allclose((found + 1) * 127.5, image.ravel(), atol=1e-3)


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "item"), [((50, 5), (5,)), ((50, 4, 6), (4, 6, 1)), ((50, 4, 6, 3), (4, 6, 3))]
)
def test_array_ranks_and_types(
    tmp_path: Path, shape: tuple[int, ...], item: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(0, 9, shape)
    np.save(tmp_path / "float.npy", values)
    data = load("array", dir=str(tmp_path / "float.npy"))
    assert (data.shape, data.dim, data.value_range) == (item, int(np.prod(item)), None)
    assert (data.train_labels, data.num_classes) == (None, 0)
    assert len(data.train) == 40
    rows = np.concatenate([data.train, data.test])
    flat = values.reshape(50, -1).astype(np.float32)
    np.testing.assert_array_equal(sort_rows(rows), sort_rows(flat))

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.flat[:2] = 0, 255
    np.save(tmp_path / "uint8.npy", pixels)
    data = load("array", dir=str(tmp_path / "uint8.npy"))
    assert data.value_range == (-1.0, 1.0)
    rows = np.concatenate([data.train, data.test])
    assert (rows.min(), rows.max()) == (-1.0, 1.0)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes keywords for options


@pytest.mark.parametrize("key", ["x", "data", "anything"])
def test_npz_names(tmp_path: Path, key: str) -> None:
    x, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    path = tmp_path / "a.npz"
    write_npz(path, {key: x, "labels": labels, "test": x[:12] + 9, "test_labels": labels[:12]})
    data = load("array", dir=str(path))
    np.testing.assert_allclose(data.train, x, rtol=1e-6)
    np.testing.assert_allclose(data.test, x[:12] + 9, rtol=1e-6)
    np.testing.assert_array_equal(data.test_labels, labels[:12])
    assert data.num_classes == 3


def test_array_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = np.random.default_rng(0).normal(size=(30, 2))

    def load_array(content: dict[str, np.ndarray] | bytes) -> datasets.Dataset:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_npz(path, content)
        return load("array", dir=str(path))

    with pytest.raises(ValueError, match="Name it 'x' or 'data'"):
        load_array({"a": good, "b": good})
    with pytest.raises(ValueError, match="'test_labels' needs both"):
        load_array({"x": good, "test_labels": np.zeros(30, int)})
    with pytest.raises(ValueError, match=r"train items are float64\[2\], test items float64\[3\]"):
        load_array({"x": good, "test": np.random.default_rng(1).normal(size=(30, 3))})
    with pytest.raises(ValueError, match=r"array test data: 4 samples"):
        load_array({"x": good, "test": good[:4]})
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_array(b"PK\x03\x04 and then rubbish")
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_array({"x": np.array([{"an": "object"}] * 30)})
    np.savez_compressed(path, x=good)
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_array(path.read_bytes()[:300])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY rubbish", b"text"])
def test_npy_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable \.npy"):
        load("array", dir=str(path))


@pytest.mark.parametrize("path", ["", "absent.npy", "a.txt", "."])
def test_array_missing(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.dir=.*needs the path"):
        load("array", dir=path)


# --- image folders --------------------------------------------------------------------------------


def write_images(folder: Path, count: int, size: tuple[int, int] = (6, 4), start: int = 0) -> None:
    """Grey images whose left half is `start + i` and right half 255, so they can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size[1], size[0]), 255, np.uint8)
        pixels[:, : size[0] // 2] = start + i
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_folder_without_labels(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"hidden")
    data = load("folder", dir=str(tmp_path))
    assert data.shape == (4, 6, 1)
    assert data.train_labels is None
    assert data.value_range == (-1.0, 1.0)
    images = np.concatenate([data.train, data.test]).reshape(20, 4, 6)
    levels = np.sort((images[:, 0, 0] + 1) * 127.5)
    np.testing.assert_allclose(levels, np.arange(20), atol=1e-4)
    assert np.all(images[:, :, 3:] == 1.0)


def test_folder_classes_colour_and_resize(tmp_path: Path) -> None:
    write_images(tmp_path / "cats", 15, start=0)
    write_images(tmp_path / "dogs", 15, size=(9, 5), start=100)
    data = load("folder", dir=str(tmp_path), channels=3, image_size=4, test_fraction=0.4)
    assert data.shape == (4, 4, 3)
    assert data.num_classes == 2
    assert data.train_labels is not None
    np.testing.assert_array_equal(np.bincount(data.train_labels), [9, 9])
    left = (data.train.reshape(-1, 4, 4, 3)[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_array_equal(left > 50, data.train_labels == 1)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.dir=''.*folder of images"):
        load("folder")
    with pytest.raises(FileNotFoundError, match="no images"):
        load("folder", dir=str(tmp_path))
    write_images(tmp_path, 12)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png: size \(3, 3\) .*set data\.image_size"):
        load("folder", dir=str(tmp_path))
    Image.fromarray(np.full((4, 6), 4000, np.uint16)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png: more than 8 bits"):
        load("folder", dir=str(tmp_path))
    content = (tmp_path / "0.png").read_bytes()
    for damaged in (b"not an image", content[:-25], content[:40]):
        (tmp_path / "odd.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"odd\.png: unreadable image"):
            load("folder", dir=str(tmp_path))
    (tmp_path / "odd.png").unlink()
    write_images(tmp_path / "sub", 2)
    with pytest.raises(ValueError, match="both beside and inside"):
        load("folder", dir=str(tmp_path))


# --- checks ---------------------------------------------------------------------------------------


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
        (Samples(with_bad_rows(1e300)), "NaN or Inf in 2 of 20 rows, first in row 7"),
        (Samples(np.ones((20, 3))), "constant, all 20 samples are equal"),
        (Samples(np.tile(np.arange(3.0), (20, 1))), "constant, all 20 samples are equal"),
        (Samples(GOOD[:9]), "9 samples; at least 10"),
        (Samples(GOOD[:, 0]), r"shape \(20,\) is not usable"),
        (Samples(GOOD[:, :0]), r"shape \(20, 0\) is not usable"),
        (Samples(np.zeros((20, 1, 2, 3, 4))), "is not usable"),
        (Samples(np.zeros((20, 3, 8, 8))), "channels first"),
        (Samples(np.zeros((20, 1, 8, 8))), "channels first"),
        (Samples(np.zeros((20, 3), np.int64)), "type int64 has no known scale"),
        (Samples(GOOD, np.zeros(19, int)), "19 labels for 20 samples"),
        (Samples(GOOD, np.zeros((20, 2), int)), r"labels must be integers \[N\]"),
        (Samples(GOOD, np.zeros(20)), r"labels must be integers \[N\], not float64"),
        (Samples(GOOD, np.full(20, -1)), "negative label -1"),
    ],
)
def test_validate_rejects(samples: Samples, message: str) -> None:
    with pytest.raises(ValueError, match=f"^my data: .*{message}"):
        validate(samples, what="my data")


def test_validate_accepts_feature_maps() -> None:
    validate(Samples(np.random.default_rng(0).normal(size=(20, 4, 4, 8))), what="latents")


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
    ],
)
def test_option_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits", **options})


def test_every_name_is_documented_in_the_error() -> None:
    with pytest.raises(ValueError, match=", ".join(sorted(DATASETS))):
        load("")


def test_digest_sees_data_labels_and_split() -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)

    def digest(cut: int, label: int | None = None) -> str:
        return datasets.Dataset(
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
