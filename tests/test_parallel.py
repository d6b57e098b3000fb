"""One code path: a device, eight of one process, and those of two processes, agree.

In processes of their own, as the number of devices is fixed when JAX starts.
"""

import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from ndsm_jax import parallel
from ndsm_jax.runs import read_metrics
from tests import journey

FLAGS = os.environ.get("XLA_FLAGS", "")


def start(devices, *arguments):
    flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, journey.__file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """8 steps on one device, in a folder that has a checkpoint of step 4, too."""
    folder = tmp_path_factory.mktemp("single")
    journey.main(str(folder / "half"), str(folder / "run"), "4")
    shutil.copytree(folder / "run", folder / "half_run")
    journey.main(str(folder / "out"), str(folder / "run"), "8")
    return folder


def assert_same(found, single):
    """Up to the order of reductions: 8 steps, float32."""
    wanted = np.load(single / "out.0.npz")
    for name in ("params", "control", "samples", "density"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_eight_devices_agree_with_one_and_share_what_is_large(single, tmp_path):
    finish(start(8, tmp_path / "out", tmp_path / "run", 8, "--shard_parameters"))
    found = np.load(tmp_path / "out.0.npz")
    assert found["devices"] == 8
    assert found["parts"] == 8
    assert_same(found, single)
    rows = [read_metrics(folder / "run") for folder in (tmp_path, single)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for name in ("loss", "held_out_loss", "grad_variance"):
        values = [[row[name] for row in some if name in row] for some in rows]
        np.testing.assert_allclose(*values, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint_of_one_device(single, tmp_path):
    shutil.copytree(single / "half_run", tmp_path / "run")
    address = f"localhost:{free_port()}"
    finish(*[start(2, tmp_path / "out", tmp_path / "run", 8, address, 2, me) for me in range(2)])
    for me in range(2):  # each has all samples
        found = np.load(tmp_path / f"out.{me}.npz")
        assert found["devices"] == 4
        assert found["parts"] == 1
        assert_same(found, single)
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert steps == sorted(set(steps))  # one of them writes
    assert steps[-1] == 8


def test_on_one_device_nothing_moves():
    """So that results are bitwise what they were, and no program is compiled for a mesh."""
    assert jax.device_count() == 1
    x = np.arange(6.0).reshape(3, 2)
    rows = np.array([[2, 0], [1, 1]])
    np.testing.assert_array_equal(parallel.gathered(x, rows), x[rows])
    assert parallel.spread(x) is x
    assert parallel.replicated(x) is x
    assert parallel.shardings({"a": x}) is None
    assert parallel.whole_rows(7) == 7
    assert parallel.least(3) == parallel.largest(3) == 3


@pytest.mark.parametrize("batch_size", [12, 30])
def test_a_batch_that_does_not_divide_names_one_that_does(batch_size, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(ValueError, match=r"train\.batch_size=.* 8 devices; set it to (16|32)"):
        parallel.check_divides("train.batch_size", batch_size)
