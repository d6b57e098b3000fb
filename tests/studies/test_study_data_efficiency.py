"""The study of data efficiency at smoke scale, and how items are read off a curve."""

import json

import numpy as np
import pytest
from studies import data_efficiency

from ndsm_jax.reports.study import Study


@pytest.mark.slow
def test_smoke(tmp_path):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    data_efficiency.reproduce(study, only="*-40-*")
    assert not (tmp_path / "tables" / "rings_and_bars_80.md").exists()
    data_efficiency.reproduce(study)
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]["rings_and_bars"]
    rows = (*data_efficiency.COMPARED, *data_efficiency.BESIDE)
    assert list(scores) == list(rows)
    for by in scores.values():
        assert list(by) == ["40", "80"]
        assert all(np.isfinite(x).all() for columns in by.values() for x in columns.values())
    table = (tmp_path / "tables" / "rings_and_bars_40.md").read_text()
    assert all(f"| {row} |" in table for row in rows)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert "rings_and_bars" in figures
    assert "samples_rings_and_bars-80-path_space_dsm-0" in figures


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Names of the cells that are measured, which takes no time."""
    names = []

    def made(study, cell):
        names.append(cell.name)
        scores = {"value": 0.5, "floor": 0.1, "prior": 0.6, "error": 0.03}
        columns = data_efficiency.DATA[cell.data][2]
        return {"metrics": dict.fromkeys(columns, scores), "kept step": 1, "items": cell.items}

    monkeypatch.setattr(data_efficiency, "_measured", made)
    return names


def test_a_kept_cell_of_other_settings_is_an_error_before_anything_is_measured(tmp_path, measured):
    study = Study(scale="smoke", root=tmp_path, progress=False)
    data_efficiency.reproduce(study, only="*-40-one_gaussian*")
    kept = tmp_path / "parts" / f"{measured.pop()}.json"
    other = json.loads(kept.read_text())
    other["of"]["config"]["train.steps"] += 1
    kept.write_text(json.dumps(other))
    with pytest.raises(ValueError, match=rf"{kept.name} is of other settings; delete it"):
        data_efficiency.reproduce(study, only="*-80-*")
    assert not measured
    kept.unlink()
    data_efficiency.reproduce(study, only="*-80-*")
    assert measured


def test_rows_that_are_not_drawn_are_a_table_alone(tmp_path, measured):
    study = Study(scale="full", root=tmp_path, progress=False)
    data_efficiency.reproduce(study, only="mnist-100-component_wise_ou__shifts-0")
    assert (tmp_path / "tables" / "mnist_100.md").exists()
    assert not (tmp_path / "figures").exists()


def test_every_cell_has_a_config():
    """Of all scales: no key is unknown, and the items of two seeds are others."""
    for scale in data_efficiency.SCALES:
        study = Study(scale=scale, root=None, progress=False)
        for cell in data_efficiency.cells(scale):
            config = data_efficiency.config_of(study, cell)
            assert config.train.select == "held_out"
            assert config.data.num_train == cell.items
            assert config.data.seed == config.train.seed == cell.seed
            if cell.items:
                assert config.mixture.num_components <= max(1, cell.items // 10)
            if cell.method == data_efficiency.GAUSSIAN:
                assert config.mixture.num_components == 1


def test_the_number_of_items_is_read_off_a_power_law():
    """Of distance c / sqrt(N) with c = 1 and 2: four times the items for the same distance."""
    sizes = np.array([10, 100, 1000, 10_000])
    ours = dict(zip(sizes.tolist(), sizes**-0.5, strict=True))
    theirs = {n: 2 * x for n, x in ours.items()}
    assert data_efficiency.fewer(ours, theirs) == {10: ">1", 100: "4", 1000: "4", 10_000: "4"}
    assert data_efficiency.fewer(theirs, ours)[10_000] == "<1"
    assert data_efficiency.fewer(theirs, ours)[1000] == "0.25"
    # A curve that rises again: what fewer items reached, more reach.
    assert data_efficiency.fewer({10: 1.0, 100: 0.1, 1000: 0.5}, {1000: 0.1}) == {1000: "10"}


def test_the_distance_minus_the_reference_has_the_mean_error_of_all_seeds():
    """Errors of 0.03 and 0.04, of one set of held-out items at worst."""
    scores = [
        {"value": 0.5, "prior": 0.4, "error": 0.03},
        {"value": 0.4, "prior": 0.6, "error": 0.04},
    ]
    parts = [{"metrics": {"energy_distance": score}} for score in scores]
    assert data_efficiency._excess(parts) == "-0.050 ± 0.035"
    del scores[0]["error"], scores[1]["error"]  # as measured before errors were
    assert data_efficiency._excess(parts) is None


def test_methods_are_compared_on_the_training_items_that_both_have():
    def cell(method, seed, items=100):
        return data_efficiency.Cell(data="mnist", items=items, method=method, seed=seed)

    ours, theirs = data_efficiency.OURS, data_efficiency.GAUSSIAN
    both = [cell(ours, 0), cell(theirs, 0)]
    alone = [cell(ours, 1), cell(theirs, 0, items=300), cell(data_efficiency.COMPONENTS, 0)]
    found: dict[data_efficiency.Cell, dict] = {key: {} for key in [*both, *alone]}
    assert list(data_efficiency._paired(found, theirs)) == both
