"""ResNet-18 and its folding, shipped weights, cached reference statistics, the FID report."""

import dataclasses
import hashlib
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ndsm_jax import evaluation
from ndsm_jax.datasets import Dataset, load
from ndsm_jax.evaluation import classifier as classifier_of
from ndsm_jax.evaluation.classifier import ImageClassifier, train_classifier
from ndsm_jax.evaluation.evaluator import SHIPPED, SHIPPED_SHA256, save, shipped
from ndsm_jax.evaluation.evaluator import load as load_evaluator
from ndsm_jax.evaluation.reference import fid_report, reference, subset, summarise
from ndsm_jax.networks.resnet import ResNet18, fold
from ndsm_jax.runs import Checkpoints
from tests.datasets.dataset_files import small_mnist, write_mnist

SHAPE = (8, 8, 1)


def bars(num_train=48, num_test=24):
    """Horizontal against vertical bars, with noise."""
    rng = np.random.default_rng(0)

    def draw(n):
        labels = (np.arange(n) % 2).astype(np.int32)
        x = rng.normal(size=(n, 8, 8)) * 0.1 - 0.5
        x[labels == 0, 3:5, :] += 1
        x[labels == 1, :, 3:5] += 1
        return x.reshape(n, -1).astype(np.float32), labels

    (train, train_labels), (test, test_labels) = draw(num_train), draw(num_test)
    return Dataset(
        name="bars",
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        shape=SHAPE,
        value_range=(-1, 1),
        source="test",
    )


NETWORK = ResNet18(shape=SHAPE, num_classes=2, width=2)


@pytest.fixture(scope="module")
def dataset():
    return bars()


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    result = train_classifier(dataset, network=NETWORK, epochs=4, batch_size=16, folder=folder)
    return result, folder


@pytest.fixture(scope="module")
def saved(trained, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    return path, *save(path, trained[0], dataset)


# --- network --------------------------------------------------------------------------------------


def test_resnet_18_has_its_layers_and_parameters():
    """Width 64, 3 channels, 1000 classes: 11,689,512 as published; the stem's kernel is ours."""
    network = ResNet18(shape=(32, 32, 3), num_classes=1000, width=64)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 3072)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 11_689_512 - 64 * 3 * (7 * 7 - 3 * 3)
    convolutions = [k for k in jax.tree_util.tree_leaves_with_path(params) if k[1].ndim == 4]
    assert len(convolutions) == 1 + 16 + 3  # with the dense layer, and without the skips, 18


def test_folding_is_exact(rng):
    network = ResNet18(shape=SHAPE, num_classes=3, width=2, stem_stride=2)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64)))
    # Norms that do something: no scale and variance is 1, no bias and mean 0.
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(np.float32), variables
    )
    x = rng.uniform(-1, 1, size=(5, 64)).astype(np.float32)
    logits, features = jax.jit(network.apply)(variables, x)
    folded = network.clone(folded=True)
    folded_logits, folded_features = jax.jit(folded.apply)(fold(variables), x)
    np.testing.assert_allclose(folded_logits, logits, rtol=1e-4)
    np.testing.assert_allclose(folded_features, features, rtol=1e-4)
    assert features.shape == (5, 16)
    structure = jax.eval_shape(folded.init, jax.random.key(0), jnp.zeros((1, 64)))
    assert jax.tree.structure(fold(variables)) == jax.tree.structure(structure)


# --- training and weights -------------------------------------------------------------------------


def test_a_finished_training_is_read_back(trained, dataset):
    """Without a step more; another one is refused."""
    result, folder = trained
    options = {"network": NETWORK, "epochs": 4, "batch_size": 16, "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_of, "_train_step", None)  # would raise
        again = train_classifier(dataset, **options)
    assert again.digest == result.digest
    with pytest.raises(ValueError, match="seed: 0 in the checkpoint, 1 now"):
        train_classifier(dataset, seed=1, **options)


@pytest.mark.slow
def test_an_interrupted_training_ends_the_same(trained, dataset, tmp_path, monkeypatch):
    """Stopped after 5 of 12 steps, then resumed: bitwise the weights of the other training."""
    monkeypatch.setattr(classifier_of, "SAVE_EVERY", 5)
    saved_steps = []
    save = Checkpoints.save

    def save_and_stop(self, step, state, host):
        save(self, step, state, host)
        saved_steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    options = {"network": NETWORK, "epochs": 4, "batch_size": 16, "folder": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(dataset, **options)
    assert saved_steps == [0, 5]
    result = train_classifier(dataset, **options)
    assert result.digest == trained[0].digest


def test_weights_are_written_and_read(saved, trained, dataset):
    path, written, sha256 = saved
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    read = load_evaluator(path, sha256=sha256)
    assert read.digest == written.digest != trained[0].digest
    assert read.test_accuracy == written.test_accuracy
    probabilities, features = read(dataset.test)
    expected, expected_features = trained[0](dataset.test)
    # Half precision has a rounding error of 5e-4, of every weight and in 18 layers.
    np.testing.assert_allclose(features, expected_features, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(probabilities, expected, atol=0.02)


def test_damaged_weights_are_refused(saved, trained, tmp_path):
    path, _, sha256 = saved
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.npz").write_bytes(content)
    with pytest.raises(ValueError, match="has SHA-256"):
        load_evaluator(tmp_path / "damaged.npz", sha256=sha256)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"not a file of evaluator\.save"):
        load_evaluator(tmp_path / "other.npz")
    other = dataclasses.replace(trained[0], value_range=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"images in \[-1, 1\], got the range \(0\.0, 1\.0\)"):
        save(tmp_path / "again.npz", other, bars())
    with pytest.raises(ValueError, match="needs a trained ResNet18"):
        save(tmp_path / "again.npz", load_evaluator(path), bars())


def test_digest_tells_classifiers_apart(trained):
    result = trained[0]

    def digest(network, variables):
        return ImageClassifier(network=network, variables=variables, test_accuracy=1).digest

    assert digest(result.network, result.variables) == result.digest
    nudged = jax.tree.map(lambda x: x * np.float32(1 + 1e-6), result.variables)
    assert digest(result.network, nudged) != result.digest
    assert digest(NETWORK.clone(stem_stride=2), result.variables) != result.digest
    assert result.digest[:8] in result.name


# --- the shipped evaluator ------------------------------------------------------------------------


def test_shipped_weights_are_small_and_verified():
    assert SHIPPED.stat().st_size <= 3e6
    classifier = shipped()
    assert classifier.test_accuracy >= 0.993
    assert classifier.features(np.zeros((2, 784))).shape == (2, 128)
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == SHIPPED_SHA256


def test_evaluator_of_other_images_is_trained(dataset, monkeypatch):
    monkeypatch.setattr(classifier_of, "MIN_STEPS", 20)
    classifier = evaluation.evaluator(dataset)
    assert "ImageCNN" in classifier.name


@pytest.mark.filterwarnings("ignore:Not the original MNIST")
def test_other_data_under_the_names_of_mnist_are_not_judged_by_its_evaluator(tmp_path, monkeypatch):
    """Such as Fashion-MNIST: a network is trained on them, instead."""
    other = load("mnist", dir=write_mnist(tmp_path, small_mnist()))
    assert (other.name, other.shape) == ("mnist", (28, 28, 1))
    module = sys.modules["ndsm_jax.evaluation.evaluator"]  # the package has a function of that name
    monkeypatch.setattr(module, "train_classifier", lambda dataset, **_: dataset.digest)
    assert evaluation.evaluator(other) == other.digest


def test_shipped_evaluator_on_mnist():
    """Of 1,000 held-out images; accuracy 0.993 has a standard error of 0.0026 with so many."""
    folder = os.environ.get("NDSM_MNIST_DIR")
    if not folder:
        pytest.skip("NDSM_MNIST_DIR is not set to a folder with the four MNIST files")
    mnist = load("mnist", dir=folder, num_train=100)
    classifier = evaluation.evaluator(mnist)
    assert classifier.digest == shipped().digest
    chosen = np.random.default_rng(0).permutation(len(mnist.test))[:1000]
    right = classifier.predict(mnist.test[chosen]) == mnist.test_labels[chosen]
    assert right.mean() >= 0.993 - 2.5 * 0.0026


# --- reference statistics and the report ----------------------------------------------------------


class Linear:
    """A stand-in: features x[:, :3], and probabilities of the sign of the first coordinate."""

    digest = "a" * 64
    name = "Linear"
    test_accuracy = 1.0

    def __call__(self, x):
        p = 1 / (1 + np.exp(-x[:, :1].astype(np.float64)))
        return np.concatenate([1 - p, p], axis=1), x[:, :3]


def test_moments_are_of_float64(rng):
    """A large mean would leave float32 no digits for the covariance."""
    x = rng.normal(size=(500, 3)) + 1e4
    moments = evaluation.moments(x.astype(np.float32))
    assert moments.covariance.dtype == np.float64
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), atol=2e-3)
    assert moments.count == 500


def test_frechet_distance_of_moments(rng):
    x, y = rng.normal(size=(60, 4)), 1.5 * rng.normal(size=(70, 4)) + 0.3
    cx, cy = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cx @ cy)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * root).real
    moments = evaluation.moments(x), evaluation.moments(y)
    assert evaluation.frechet_distance(*moments) == pytest.approx(expected)
    assert evaluation.frechet_distance(x, moments[1]) == pytest.approx(expected)


def test_reference_is_cached_and_checked(dataset, tmp_path, monkeypatch):
    linear = Linear()
    first = reference(dataset, linear, split="train", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(Linear, "__call__", lambda self, x: pytest.fail("not read from the cache"))
    again = reference(dataset, linear, split="train", folder=tmp_path)
    np.testing.assert_array_equal(again.moments.covariance, first.moments.covariance)
    np.testing.assert_array_equal(again.moments.mean, first.moments.mean)
    np.testing.assert_array_equal(again.histogram, first.histogram)
    assert again.moments.count == first.moments.count == len(dataset.train)
    assert again.inception_score == first.inception_score

    # The file's name has the first digits of the digests only; its facts have all.
    other = Linear()
    other.digest = "a" * 63 + "b"
    with pytest.raises(ValueError, match="another evaluator"):
        reference(dataset, other, split="train", folder=tmp_path)
    path.rename(tmp_path / path.name.replace("-train-48-", "-test-24-"))
    with pytest.raises(ValueError, match="another split, count"):
        reference(dataset, linear, split="test", folder=tmp_path)
    (tmp_path / path.name).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged"):
        reference(dataset, linear, split="train", folder=tmp_path)


def test_reference_names_bad_arguments(dataset, tmp_path):
    with pytest.raises(ValueError, match="split 'validation'"):
        reference(dataset, Linear(), split="validation", folder=tmp_path)
    with pytest.raises(ValueError, match="count 25"):
        reference(dataset, Linear(), split="test", count=25, folder=tmp_path)


def test_summary_counts_classes(rng):
    x = np.concatenate([np.full((30, 4), 9.0), np.full((70, 4), -9.0)])
    summary = summarise(x, Linear())
    assert summary.histogram.tolist() == [70, 30]
    # Certain classes: the exponential of the entropy of their shares.
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    assert summary.inception_score == pytest.approx(np.exp(entropy), rel=1e-2)


def test_fid_report(dataset, tmp_path):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(20, 64)).astype(np.float32)
    report = fid_report(samples, dataset, Linear(), folder=tmp_path)
    json.dumps(report, allow_nan=False)
    train, held_out = dataset.train[:, :3], subset(dataset.test, 20)[:, :3]
    fid = report["fid"]
    assert fid["value"] == pytest.approx(evaluation.frechet_distance(samples[:, :3], train))
    assert fid["floor"] == pytest.approx(evaluation.frechet_distance(held_out, train))
    assert report["count"] == 20
    assert report["reference"] == "48 training images"
    share = np.mean(samples[:, 0] > 0)  # half the training labels are of either class
    assert report["class_tv"]["value"] == pytest.approx(abs(share - 0.5))
    assert report["class_tv_uniform"] == report["class_tv"]
    assert sum(report["histogram"]["floor"]) == 20
    # No more samples than held-out items, so that the floor has the same count.
    report = fid_report(np.repeat(samples, 2, axis=0), dataset, Linear(), folder=tmp_path)
    assert report["count"] == 24


def test_fid_report_keeps_the_precision_of_the_data(dataset, tmp_path):
    """Data far from zero on their scale: of float32 nothing would be left of them."""
    far = np.float64(2.0**30)
    moved = dataclasses.replace(
        dataset, train=dataset.train + far, test=dataset.test + far, value_range=None
    )
    report = fid_report(moved.train[:20], moved, Linear(), folder=tmp_path)
    exact = evaluation.frechet_distance(dataset.train[:20, :3], dataset.train[:, :3])
    assert report["fid"]["value"] == pytest.approx(exact, rel=1e-3)


def test_fid_report_names_bad_samples(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"shape \(20, 63\)"):
        fid_report(np.zeros((20, 63)), dataset, Linear(), folder=tmp_path)
    samples = np.zeros((20, 64))
    samples[3, 5] = np.nan
    with pytest.raises(ValueError, match="1 of 20 samples are not finite"):
        fid_report(samples, dataset, Linear(), folder=tmp_path)
    assert not list(tmp_path.iterdir())
