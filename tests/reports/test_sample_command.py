"""What experiments/sample.py completes, and what it refuses."""

import pathlib
import subprocess
import sys

import numpy as np

from tests.training.tiny_runs import run, tiny


def test_labels_need_a_mixture_over_the_data(tmp_path):
    """Positions and velocities: the mixture has twice the dimensions of the labelled data."""
    config = tiny(
        process={"name": "critically_damped"},
        objective={"name": "dsm"},
        sample={"sampler": "reverse_sde"},
        train={"steps": 2},
    )
    run(config, tmp_path)
    script = pathlib.Path(__file__).parents[2] / "experiments" / "sample.py"
    words = [sys.executable, str(script), f"--workdir={tmp_path}", "--num=4", "--label=0"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: --label=0: labels cannot choose among the components" in result.stderr
    assert "states have 4 dimensions and the data 2" in result.stderr
    assert "process.name='critically_damped'" in result.stderr


def test_given_coordinates_are_completed_and_what_says_nothing_is_refused(tmp_path):
    run(tiny(train={"steps": 2}), tmp_path)
    known = np.array([[0.5, np.nan], [np.nan, -0.25]])
    np.save(tmp_path / "known.npy", known)
    np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
    script = pathlib.Path(__file__).parents[2] / "experiments" / "sample.py"
    words = [sys.executable, str(script), f"--workdir={tmp_path}", "--num=4"]

    def command(*flags):
        return subprocess.run([*words, *flags], capture_output=True, text=True)

    result = command(f"--given={tmp_path / 'known.npy'}", "--guidance=twisted", "--particles=2")
    assert result.returncode == 0, result.stderr
    x = np.load(tmp_path / "samples.npy")
    np.testing.assert_array_equal(x[[0, 2], 0], [0.5, 0.5])
    np.testing.assert_array_equal(x[[1, 3], 1], [-0.25, -0.25])
    assert np.isfinite(x).all()
    result = command(f"--given={tmp_path / 'wide.npy'}")
    assert result.returncode == 1
    assert "an array [n, 2] is needed" in result.stderr
    assert "Traceback" not in result.stderr


def test_labels_of_a_table_choose_components_by_states(tmp_path):
    """A number and five words have as many coordinates as what a row is prepared to."""
    own = tmp_path / "own.py"
    own.write_text(TABLE)
    config = tiny(
        data={"name": f"{own}:table", "num_train": 0, "num_test": 0},
        mixture={"num_components": 5, "num_inits": 3},
        train={"steps": 2},
        network={"width": 8},
    )
    run(config, tmp_path / "run")
    script = pathlib.Path(__file__).parents[2] / "experiments" / "sample.py"
    words = [sys.executable, str(script), f"--workdir={tmp_path / 'run'}", "--num=60", "--label=0"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    words = (tmp_path / "run" / "samples.csv").read_text().split()[1:]
    assert np.mean([word.endswith(",a") for word in words]) > 0.9


TABLE = """
import numpy as np
from ndsm_jax.datasets import tables
from ndsm_jax.datasets.dataset import Raw, Samples

def table():
    rng = np.random.default_rng(0)
    k = np.arange(200) % 5
    made = tables.read([[float(x), "abcde"[i]] for x, i in zip(rng.normal(size=200) + 9 * k, k)])
    return Raw(train=Samples(made.x, k), source="here", columns=made.columns)
"""
