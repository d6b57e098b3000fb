"""What the benchmarks share."""

import json
import time

import common
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
