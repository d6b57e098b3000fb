"""The README's code runs as it stands."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_library_example():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["samples"].shape == (100, 2)
    assert np.isfinite(names["samples"]).all()
    assert np.isfinite(names["gradient"]).all()


def test_every_command_names_a_file_that_exists():
    text = README.read_text()
    for path in re.findall(r"(?:experiments|configs|docs)/[\w/]+\.(?:py|md|png)", text):
        assert (README.parent / path).exists(), path
