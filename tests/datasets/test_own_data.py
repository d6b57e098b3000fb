"""Data from a user's own function, named by `file.py:function`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ndsm_jax import evaluation
from ndsm_jax.datasets import load
from ndsm_jax.evaluation.evaluator import shipped

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a function `wells` with the given body, and returns its name for `load`."""

    def write(body: str, parameters: str = "") -> str:
        path = tmp_path / "mine.py"
        path.write_text(
            "import numpy as np\n"
            "from ndsm_jax.datasets import Raw, Samples\n"
            "rng = np.random.default_rng(0)\n"
            f"def wells({parameters}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        )
        return f"{path}:wells"

    return write


X = np.random.default_rng(0).normal(size=(40, 3))  # what `rng.normal(size=(40, 3))` is there
LABELS = np.arange(40) % 3


def rows(*splits: np.ndarray) -> np.ndarray:
    together = np.concatenate(splits)
    return together[np.lexsort(together.T)]


def test_an_array_is_split_and_keeps_float64(write: Write) -> None:
    data = load(write("return rng.normal(size=(40, 3))"), test_fraction=0.25)
    assert (data.name, data.shape, data.value_range) == ("mine.py:wells", (3,), None)
    assert (data.train.dtype, len(data.train), len(data.test)) == (np.float64, 30, 10)
    np.testing.assert_array_equal(rows(data.train, data.test), rows(X))
    assert (data.train_labels, data.class_names) == (None, ())
    assert data.source == "wells() of mine.py"


def test_it_is_the_same_data_set_as_from_a_file(write: Write, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, labels=LABELS)
    settings: dict[str, Any] = {"num_train": 20, "num_test": 10, "test_fraction": 0.4, "seed": 4}
    read = load("array", dir=str(tmp_path / "a.npz"), **settings)
    for kind in ("Samples", "dict"):
        name = write(f"return {kind}(x=rng.normal(size=(40, 3)), labels=np.arange(40) % 3)")
        assert load(name, **settings).digest == read.digest
        assert load(name, **settings | {"seed": 5}).digest != read.digest


def test_a_dict_with_all_parts(write: Write) -> None:
    body = """
        x = rng.normal(size=(40, 3))
        labels = np.array(["high", "low", "deep"])[np.arange(40) % 3]
        return {"data": x, "y": list(labels), "test": x[:12] + 1, "test_labels": labels[:12]}
    """
    data = load(write(body))
    np.testing.assert_array_equal(data.train, X)
    np.testing.assert_array_equal(data.test, X[:12] + 1)
    assert data.class_names == ("deep", "high", "low")
    np.testing.assert_array_equal(data.train_labels, np.array([1, 2, 0])[LABELS])
    np.testing.assert_array_equal(data.test_labels, np.array([1, 2, 0])[LABELS[:12]])


def test_absent_parts_of_a_dict_may_be_none(write: Write) -> None:
    data = load(write("return {'x': rng.normal(size=(40, 3)), 'labels': None, 'test': None}"))
    np.testing.assert_array_equal(rows(data.train, data.test), rows(X))


def test_a_raw_with_its_own_source_and_range(write: Write) -> None:
    body = """
        x = np.tanh(rng.normal(size=(40, 4, 3))).astype(np.float32)
        train, test = Samples(x[:25]), Samples(x[25:])
        return Raw(train=train, test=test, source="a laboratory", value_range=(-1.0, 1.0))
    """
    data = load(write(body))
    assert (data.shape, data.is_image, data.value_range) == ((4, 3, 1), True, (-1.0, 1.0))
    assert (data.train.shape, data.test.shape) == ((25, 12), (15, 12))
    assert data.train.dtype == np.float32
    assert data.source == "a laboratory; wells() of mine.py"


def test_pixels_are_scaled(write: Write) -> None:
    data = load(write("return np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)"))
    assert (data.shape, data.value_range) == ((4, 4, 1), (-1.0, 1.0))
    expected = (np.arange(640) % 256).reshape(40, 16) / 127.5 - 1
    np.testing.assert_allclose(rows(data.train, data.test), rows(expected), atol=1e-6)


def test_arrays_of_jax_and_words_as_objects(write: Write) -> None:
    body = """
        import jax.numpy as jnp
        words = np.array(["b", "a"], dtype=object)[np.arange(40) % 2]
        return Samples(jnp.asarray(rng.normal(size=(40, 3))), words)
    """
    data = load(write(body))
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(rows(data.train, data.test), rows(X.astype(np.float32)))


def test_options_and_seed(write: Write) -> None:
    body = "return shift + np.random.default_rng(seed).normal(size=(n, 2))"
    name = write(body, "shift, n=20, seed=None")

    def expected(seed: int) -> np.ndarray:
        return rows(1.5 + np.random.default_rng(seed).normal(size=(30, 2)))

    data = load(name, options="shift=1.5, n=30", seed=3)
    np.testing.assert_array_equal(rows(data.train, data.test), expected(3))
    assert data.source == "wells(shift=1.5, n=30) of mine.py"
    data = load(name, options="shift=1.5,n=30,seed=8", seed=3)
    np.testing.assert_array_equal(rows(data.train, data.test), expected(8))

    for options, message in {
        "n=30": r"data\.options: wells\(shift, n=20, seed=None\) cannot be called.*'shift'",
        "shift=1,force=2": r"data\.options: .*'force'",
        "shift": r"data\.options='shift': give name=value pairs",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(name, options=options)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"the function returned None; it must return an array \[N, \.\.\.\]"),
        ("return rng.normal(size=(40, 3)), np.arange(40)", "the function returned a tuple"),
        ("return [[1.0, 2.0]] * 40", "the function returned a list"),
        ("return Raw", "the function returned a type"),
        ("return {'x': rng.normal(size=(40, 3)), 'lables': 1}", r"a dict with \['lables'\]"),
        ("return {'labels': np.arange(40)}", "Name it 'x' or 'data'"),
        ("return {}", "Name it 'x' or 'data'"),
        ("return {'x': rng.normal(size=(40, 3)), 'test_labels': [1]}", "'test_labels' needs both"),
        ("return {'x': 3.0}", "x of the function is a float, not an array"),
        ("return {'x': [[1.0], [2.0, 3.0]]}", "x of the function cannot become a NumPy array"),
        ("return Samples(None)", "x of the function is None, not an array"),
        ("return Raw(train=rng.normal(size=(40, 3)))", "splits of a Raw are Samples"),
        ("x = rng.normal(size=(40, 3)); s = Samples(x, np.arange(40)); return Raw(Samples(x), s)",
         "the test data have labels, the training data have none"),
        ("return 1 / 0", "the function failed with ZeroDivisionError: division by zero"),
        ("raise ValueError('no wells')", "the function failed with ValueError: no wells"),
        ("return open('/nowhere/at/all')", "the function failed with FileNotFoundError"),
    ],
)  # fmt: skip
def test_what_a_function_may_not_do(write: Write, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.name='.*mine\.py:wells': .*{message}"):
        load(write(body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return rng.normal(size=40)", r"shape \(40,\) is not usable"),
        ("return np.zeros((40, 3), complex)", "type complex128 has no known scale"),
        ("return np.full((40, 3), np.nan)", "NaN or Inf in 40 of 40 rows"),
        ("return Samples(rng.normal(size=(40, 3)), np.arange(39))", "39 labels for 40 samples"),
        ("return np.array([['a']] * 40)", "type <U1 has no known scale"),
    ],
)
def test_data_of_a_function_are_checked_like_all_data(
    write: Write, body: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"mine\.py:wells data: {message}"):
        load(write(body))


def test_no_such_file_or_function(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.name=.*absent\.py:wells': no file"):
        load(f"{tmp_path}/absent.py:wells")
    name = write("return 1")
    with pytest.raises(ValueError, match=r"data\.name=.*has no function 'walls'; it has wells"):
        load(name.replace(":wells", ":walls"))


def test_a_function_with_the_name_of_a_toy_is_not_the_toy(write: Write, tmp_path: Path) -> None:
    write("return rng.normal(size=(40, 3))")
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace("wells", "moons"))
    assert load(f"{path}:moons").dim == 3


@pytest.mark.slow
def test_a_function_named_as_data_of_ours_is_not_taken_for_them(tmp_path: Path) -> None:
    """No distance to our support, and no evaluator of MNIST, for data of the same name."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def circle8():\n    return np.random.default_rng(0).normal(size=(60, 2))\n"
        "def mnist():\n"
        "    x = np.random.default_rng(0).normal(size=(60, 28, 28)).astype(np.float32)\n"
        "    return {'x': x, 'labels': np.arange(60) % 2}\n"
    )
    data = load(f"{path}:circle8")
    assert data.name == "mine.py:circle8"
    metrics = evaluation.evaluate(data.train, data.train, data)["metrics"]
    assert "support_distance" not in metrics
    images = load(f"{path}:mnist")
    classifier = evaluation.evaluator(images)
    assert classifier.digest != shipped().digest
    assert classifier.probabilities(images.test).shape == (len(images.test), 2)
    evaluation.reference(images, classifier, split="test", folder=tmp_path)
    (cached,) = tmp_path.glob("*.npz")
    assert cached.name.startswith(
        "mine.py_mnist-"
    )  # a colon is no part of a file's name everywhere


def test_names_of_classes_of_a_raw_are_kept(write: Write) -> None:
    body = """
        x = rng.normal(size=(40, 3))
        return Raw(train=Samples(x, np.arange(40) % 3), class_names=("a", "b", "c"))
    """
    assert load(write(body)).class_names == ("a", "b", "c")


def test_images_of_few_levels_are_told(write: Write) -> None:
    body = "return rng.integers(0, 2, size=(40, 4, 4)).astype(np.uint8)"
    with pytest.warns(UserWarning, match="largest grey level is 1, and uint8 is scaled as 0 to"):
        load(write(body))
