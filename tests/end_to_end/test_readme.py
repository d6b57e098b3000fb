"""The README's code runs as it stands."""

import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
FAST = "NDSM(steps=3, num_components=2, covariance='diag')"


def run(page: pathlib.Path, block: int, *changes: tuple[str, str]) -> dict:
    """The names that a block of Python of a page defines, with shorter trainings."""
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[block]
    for old, new in changes:
        assert old in code, old
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, str(page), "exec"), names)
    return names


def test_library_example():
    names = run(README, 0)
    assert names["samples"].shape == (100, 2)
    assert np.isfinite(names["samples"]).all()
    assert np.isfinite(names["gradient"]).all()


@pytest.mark.slow
def test_estimator_example():
    names = run(README, 1, ("NDSM()", FAST))
    assert names["new"].shape == (100, 13)
    assert np.isfinite(names["nats"])
    np.testing.assert_allclose(names["strong"][:, 0].astype(float), 14.5, rtol=1e-6)
    assert np.isfinite(names["whole"].astype(float)).all()


@pytest.mark.slow
def test_table_example():
    names = run(ROOT / "docs" / "tables.md", 0, ("steps=500", "steps=3"))
    assert {len(column) for column in names["samples"].values()} == {200}


def test_all_blocks_are_run():
    assert README.read_text().count("```python") == 2


def test_every_command_names_a_file_that_exists():
    text = README.read_text()
    for path in re.findall(r"(?:experiments|configs|docs)/[\w/]+\.(?:py|md|png)", text):
        assert (README.parent / path).exists(), path
