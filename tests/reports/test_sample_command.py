"""What experiments/sample.py refuses, of a run whose states are not the data's coordinates."""

import pathlib
import subprocess
import sys

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
