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
