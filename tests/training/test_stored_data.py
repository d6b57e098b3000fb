"""Training on data that stay in their file: bitwise that on the same data in memory."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from ndsm_jax import frames, processes, references, rows
from ndsm_jax.config.parts import check_data
from ndsm_jax.experiment import experiment
from ndsm_jax.launch import describe, foreseen, load_data, needs
from ndsm_jax.networks import ScoreMLP
from ndsm_jax.rows import Stored
from ndsm_jax.training import train
from ndsm_jax.training.ahead import ReadAhead
from tests.training.tiny_runs import run, tiny

ROOT = pathlib.Path(__file__).parents[2]

# The package has a function of the name of its module.
training_loop = importlib.import_module("ndsm_jax.training.train")


@pytest.fixture
def data(tmp_path):
    """A function: the config of a run on a file, with more sections."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 2)) * [1, 1e3] + 5)

    def config(in_memory, **sections):
        return tiny(
            data={"name": "array", "dir": str(tmp_path / "x.npy"), "in_memory": in_memory}
            | {"num_train": 0, "num_test": 0},
            mixture={"num_components": 3, "num_inits": 1, "subset": 100},
            noising={"steps": 24, "k": 2, "ahead_mb": 0.002},
            objective={"name": "ndsm"},
            **sections,
        )

    return config


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 500)


def leaves(state):
    return jax.tree.map(np.asarray, (state.params, state.ema, state.opt_state, state.best))


@pytest.mark.usefixtures("small_blocks")
def test_a_run_is_bitwise_that_of_data_in_memory_and_resumes_as_either(tmp_path, data):
    train = {"select": "held_out", "held_out_every": 4}
    whole = run(data("yes", train=train), tmp_path / "whole")
    run(data("no", train=train | {"steps": 5}), tmp_path / "parts")
    dataset = load_data(data("no"))
    assert dataset.is_stored
    parts = run(data("no", train=train), tmp_path / "parts", dataset)
    chex.assert_trees_all_equal(leaves(whole), leaves(parts))
    assert int(run(data("auto", train=train), tmp_path / "parts").step) == 8  # the same data


class Source:
    """Items of an array; from read `last` on the file is gone."""

    def __init__(self, array, last=10**9):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.reads, self.last = 0, last

    def __getitem__(self, numbers):
        self.reads += 1
        if self.reads > self.last:
            raise OSError("x.npy: cannot be read any more; put the file back")
        return self.array[numbers]


def trained(x, *, frame=None, **options):
    mixture = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.3])
    network = ScoreMLP(width=8, depth=2, zero_output=True)
    process = processes.langevin(mixture)
    made = experiment(process, network=network, sample_grid=12, frame=frame or frames.Identity())
    return train(made, x, steps=12, batch_size=16, ahead_mb=0.01, progress=False, **options)


def test_the_library_takes_a_source(tmp_path, rng):
    x, frame = rng.uniform(-1, 1, size=(100, 2)).astype(np.float32), frames.Pixels()
    whole = trained(x, frame=frame, run=tmp_path / "run")
    other = trained(Stored.of(Source(x)), frame=frame)
    chex.assert_trees_all_equal(leaves(whole), leaves(other))
    # The same data by their bytes: the folder is that of the run, which is done.
    assert int(trained(Stored.of(Source(x)), frame=frame, run=tmp_path / "run").step) == 12
    with pytest.raises(ValueError, match="data"):
        trained(Stored.of(Source(x + 1)), frame=frame, run=tmp_path / "run")


def test_what_a_source_gives_is_checked_when_it_is_read(rng, monkeypatch):
    monkeypatch.setattr(training_loop, "SEEN", 64)
    x = rng.normal(size=(100, 2))
    x[77, 1] = np.inf
    with pytest.raises(ValueError, match=r"train: 1 of 100 rows .*not finite, first row 77"):
        trained(Stored.of(Source(x)))


def test_a_file_that_goes_while_training_ends_it_with_one_error_and_it_goes_on_after(
    tmp_path, data
):
    config = data("no", train={"steps": 40, "checkpoint_every": 4})
    dataset = load_data(config)
    path, away = tmp_path / "x.npy", tmp_path / "away.npy"
    reads = []

    class Vanishing:
        shape, dtype = dataset.train.source.shape, dataset.train.source.dtype

        def __getitem__(self, numbers):
            if len(numbers) >= 16:
                reads.append(1)
            if len(reads) == 12:
                os.rename(path, away)
            return dataset.train.source[numbers]

    changed = dataclasses.replace(dataset.train, source=Vanishing())
    dataset.digest  # noqa: B018  (cached: it reads all)
    vanishing = dataclasses.replace(dataset, train=changed)
    vanishing.__dict__["digest"] = dataset.digest
    with pytest.raises(OSError, match=r"x\.npy: cannot be read any more .*again to go on"):
        run(config, tmp_path / "run", vanishing)
    os.rename(away, path)
    again = run(config, tmp_path / "run")
    whole = run(data("yes", train={"steps": 40, "checkpoint_every": 4}), tmp_path / "whole")
    chex.assert_trees_all_equal(leaves(whole), leaves(again))


def test_memory_is_not_counted_for_what_is_not_in_it(data):
    sizes = {}
    for how in ("yes", "no"):
        config = data(how)
        dataset = load_data(config)
        _, made, _ = foreseen(config, dataset)
        sizes[how] = needs(config, dataset, made)
    assert sizes["yes"].pop("states") == 4 * 240 * 2
    assert sizes["no"].pop("states") == 0
    assert sizes["yes"] == sizes["no"]
    assert "x.npy, read from there row by row" in describe(data("no"), load_data(data("no")))


def test_far_values_that_no_part_of_the_data_has_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PART", 1000)
    x = np.random.default_rng(0).normal(size=(5000, 2))
    np.savez(tmp_path / "good.npz", x=x, test=x[:20])
    x[4321, 1] = 1e6
    np.savez(tmp_path / "far.npz", x=x, test=x[:20])
    for name in ("good", "far"):
        source = {"name": "array", "dir": str(tmp_path / f"{name}.npz"), "in_memory": "no"}
        config = tiny(data=source | {"num_train": 0, "num_test": 0})
        dataset = load_data(config)
        if name == "good":
            check_data(config, dataset)
            continue
        assert dataset.in_part(0).train.max() < 10
        with pytest.raises(ValueError, match=r"1000000\.0 of feature 1 in row 4321 of the"):
            check_data(config, dataset)


def test_reading_ahead_gives_what_was_asked_for_and_ends():
    asked = []

    def read(n):
        asked.append(n)
        if n == 30:
            raise OSError("gone")
        return 2 * n

    with ReadAhead(read, every=10, last=35) as ahead:
        assert [ahead(0), ahead(10)] == [0, 20]
        assert ahead(0) == 0  # another than the one that was read
        assert [ahead(10), ahead(20)] == [20, 40]
        with pytest.raises(OSError, match="gone"):
            ahead(30)
    assert max(asked) == 30


@pytest.mark.slow
def test_a_file_of_three_gigabytes_trains_in_a_fraction_of_its_size(tmp_path):
    """Peak of the resident memory above that before the data, programs and compiling included."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10**6, 784))
    x[::1000] = np.random.default_rng(0).normal(size=(1000, 784))  # the others are holes
    x.flush()
    command = [sys.executable, ROOT / "benchmarks/stored_data.py", f"--file={tmp_path / 'x.npy'}"]
    command += ["--setting=mlp, 784 float32", "--in_memory=no", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["file_mb"] > 3100
    assert found["peak_mb"] < 1500
