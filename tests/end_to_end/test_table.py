"""From a CSV file to samples: by the commands, and what is restored without the data."""

import json

import jax
import numpy as np
import pytest

from ndsm_jax.config import Config, assemble
from ndsm_jax.config.parts import data_frame, fit, stand_in
from ndsm_jax.datasets import load, tables
from ndsm_jax.launch import columns_of, restore
from ndsm_jax.reports import report
from ndsm_jax.training import init_state
from tests.end_to_end.test_commands import command

FEW_STEPS = {
    "train": {
        "steps": 4,
        "batch_size": 16,
        "select": "last",
        "checkpoint_every": 4,
        "picture_every": 4,
    },
    "mixture": {"num_components": 2, "num_inits": 1, "covariance": "spherical"},
    "noising": {"steps": 24, "smallest_variance": 0.01},
    "sample": {"steps": 24, "smallest_variance": 0.01},
}


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """120 rows of numbers, whole numbers and words, a twentieth of the cells empty."""
    rng = np.random.default_rng(0)
    sky = rng.choice(3, size=120, p=[0.1, 0.3, 0.6])
    wind = rng.normal(size=120) + sky
    rows = zip(
        (f"{1e6 * w:.1f}" for w in wind),
        (str(k) for k in rng.poisson(2 + sky)),
        (("snow, wet", "rain", "sun")[s] for s in sky),
        (f"{v:.6g}" for v in 1e-6 * rng.standard_t(2, size=120)),
        strict=True,
    )
    path = tmp_path_factory.mktemp("table") / "weather.csv"
    lines = [";".join("" if rng.random() < 0.05 else cell for cell in row) for row in rows]
    path.write_text("wind;days;sky;leak\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_from_the_shell(csv, tmp_path):
    """Train, sample, evaluate; samples have names, kinds and levels of the file, and no gaps."""
    keys = [
        f"--config.{section}.{key}={value}"
        for section, values in FEW_STEPS.items()
        for key, value in values.items()
    ]
    folder = tmp_path / "run"
    where = [f"--workdir={folder}", "--config=configs/table.py:smoke"]
    assert "trained: " in command("train", *where, f"--config.data.dir={csv}", *keys)
    assert list((folder / "images").rglob("*.png"))
    host = json.loads((folder / "config.json").read_text())
    columns = columns_of(host["data"])
    assert columns == load("table", dir=str(csv)).columns
    assert "samples.csv" in command("sample", f"--workdir={folder}", "--num=40")
    made = tables.read(folder / "samples.csv")
    assert [c.name for c in made.columns] == ["wind", "days", "sky", "leak"]
    assert [c.kind for c in made.columns] == ["numeric", "integer", "categorical", "numeric"]
    assert not any(c.missing for c in made.columns)
    assert set(made.columns[2].levels) <= {"rain", "snow, wet", "sun"}
    encoded = tables.encode(columns, folder / "samples.csv")
    np.testing.assert_allclose(encoded, np.load(folder / "samples.npy"), rtol=1e-12)

    result = report.evaluate_run(folder, num=60, progress=False)
    assert result.metrics["finite_fraction"]["value"] == 1
    found = json.loads((folder / "metrics.json").read_text())
    assert set(found["table"]["columns"]) == {"wind", "days", "sky", "leak"}
    assert found["facts"]["units of distances"].startswith("standard deviations of each column")
    pictures = {path.stem for path in (folder / "evaluation").glob("*.png")}
    assert {"samples", "associations", "pairs", "modes", "curves"} <= pictures
    page = result.report_path.read_text()
    assert "<h2>Columns</h2>" in page
    assert "all pairs of columns" in page
    csv.write_text(csv.read_text().replace("sun", "dry"))
    with pytest.raises(ValueError, match="the data differ"):
        report.evaluate_run(folder, num=60, progress=False)
    assert restore(folder).shape == (4,)  # without the data


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"process": {"name": "component_ou"}, "objective": {"name": "dsm"}},
    ],
    ids=["langevin", "component_ou"],
)
def test_what_is_built_without_rows_has_the_structure_of_what_was_fitted(csv, sections):
    config = Config.from_dict(
        {"mixture": FEW_STEPS["mixture"]} | {"data": {"name": "table", "dir": str(csv)}} | sections
    )
    dataset = load("table", dir=str(csv))
    parts = [fit(config, dataset), stand_in(config, dataset.shape, columns=dataset.columns)]
    saved = [(p.frame, p.reference) for p in parts]
    assert jax.tree.structure(saved[0]) == jax.tree.structure(saved[1])
    built = [assemble.build(config, dataset.shape, p, quiet=True) for p in parts]
    states = [jax.eval_shape(lambda e=e: init_state(e, seed=0)) for e in built]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert jax.tree.leaves(states[0]) == jax.tree.leaves(states[1])
    assert built[0].process.dim == 5  # three numbers, and three levels


def test_a_table_has_a_frame_of_its_own(csv):
    config = Config.from_dict({"data": {"name": "table", "frame": "standardised"}})
    with pytest.raises(ValueError, match=r"data\.frame='standardised': a table has a frame of its"):
        data_frame(config, load("table", dir=str(csv)))
