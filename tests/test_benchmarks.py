"""What the benchmarks share."""

import json
import pathlib
import subprocess
import sys
import time

import common
import gpu
import pytest
from absl import flags


def test_ratios_are_of_the_same_round():
    """Sleeps of 2 and 6 ms: no test depends on more of wall time than that sleeps last."""
    calls = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)}
    result = common.ratios(calls, "short", rounds=5)
    assert result["short"].ratio == 1
    assert result["short"].seconds >= 0.002
    assert result["long"].seconds >= 0.006


def test_report_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "folder" / "result.json"
    flags.FLAGS(["benchmark", f"--out={out}", "--quick", "--seed=3"])
    try:
        common.report([{"name": "a", "ratio": 1.23456}, {"name": "bb", "ratio": None}])
    finally:
        flags.FLAGS.unparse_flags()
        for name in ("out", "quick", "seed"):
            flags.FLAGS[name].unparse()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["name  ratio", "a     1.235", "bb        -"]
    result = json.loads(out.read_text())
    assert result["rows"][0] == {"name": "a", "ratio": pytest.approx(1.23456)}
    assert result["quick"] is True
    assert result["seed"] == 3
    assert {"device", "jax", "command"} <= set(result)


def test_a_script_is_run_stopped_in_time_or_its_failure_reported(tmp_path):
    """As benchmarks/gpu.py runs its parts: one that is asked to end saves first."""
    quick, slow, failing = (tmp_path / f"{name}.py" for name in ("quick", "slow", "failing"))
    quick.write_text("")
    failing.write_text("raise SystemExit(3)")
    slow.write_text(
        "import pathlib, signal, sys, time\n"
        f"saved = pathlib.Path({str(tmp_path / 'saved')!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (saved.write_text('x'), sys.exit(0)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).write_text('')\n"
        "time.sleep(60)\n"
    )
    assert gpu.run([quick], time.monotonic() + 60)
    with pytest.raises(SystemExit, match="exit code 3"):
        gpu.run([failing], time.monotonic() + 60)
    start = time.monotonic()
    assert not gpu.run([slow], start + 5)
    assert (tmp_path / "ready").exists()
    assert (tmp_path / "saved").read_text() == "x"


@pytest.mark.slow
def test_networks_in_the_quick_form(tmp_path):
    root, out = pathlib.Path(gpu.__file__).parents[1], tmp_path / "networks.json"
    command = [sys.executable, root / "benchmarks" / "networks.py", "--quick", f"--out={out}"]
    subprocess.run(command, check=True, cwd=root)
    first, again = json.loads(out.read_text())["rows"]
    assert first["parameters"] == again["parameters"] > 0
    assert first["milliseconds"] > 0


@pytest.mark.slow
def test_pytorch_runs_the_same_network(tmp_path):
    """It compares both networks' outputs itself."""
    pytest.importorskip("torch")
    root, out = pathlib.Path(gpu.__file__).parents[1], tmp_path / "pytorch.json"
    command = [sys.executable, root / "benchmarks" / "pytorch.py", "--quick", f"--out={out}"]
    subprocess.run(command, check=True, cwd=root)
    assert len(json.loads(out.read_text())["rows"]) == 3


@pytest.mark.slow
def test_gpu_at_smoke_scale(tmp_path):
    root = pathlib.Path(gpu.__file__).parents[1]
    folder = tmp_path / "results"
    command = [sys.executable, root / "benchmarks" / "gpu.py", "--quick", f"--folder={folder}"]
    subprocess.run([*command, "--minutes=10"], check=True, cwd=root)
    found = json.loads((folder / "gpu.json").read_text())
    assert set(found) == set(gpu.PARTS)
    assert all(row["images_per_second"] > 0 for row in found["throughput"]["rows"])
