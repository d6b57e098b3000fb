"""The comparison of objectives and processes: its cells, the rule of its tables, its page."""

import json

import numpy as np
import pytest
from studies import comparison

from ndsm_jax.config.names import PROCESSES
from ndsm_jax.objectives import OBJECTIVES
from ndsm_jax.reports.study import Study


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        # Means 1, 1.1 and 1.3; variances of the means 0.01 each, so sqrt(0.02) = 0.141 is a tie.
        ({"a": [0.9, 1.1], "b": [1.0, 1.2], "c": [1.2, 1.4]}, "lower", {"a", "b"}),
        ({"a": [0.9, 1.1], "b": [1.0, 1.2], "c": [1.2, 1.4]}, "higher", {"c"}),
        # 0.1 behind, and an error of sqrt(0 + 0.0001 / 2 ...) that is less than that
        ({"a": [1.0, 1.0], "b": [1.09, 1.11]}, "lower", {"a"}),
        # The wide one ties, though the narrow one alone would not.
        ({"a": [1.0, 1.0], "b": [0.5, 1.7]}, "lower", {"a", "b"}),
        # Of one seed there is no error: the same number ties, and another one does not.
        ({"a": [1.0], "b": [1.0], "c": [1.001]}, "lower", {"a", "b"}),
        ({"a": [1.0], "b": [0.9, 1.3]}, "lower", {"a"}),
        ({"a": [np.nan, 0.1], "b": [2.0, 2.1]}, "lower", {"b"}),
        ({"a": [np.nan]}, "lower", set()),
    ],
)
def test_the_best_and_what_ties_with_it(values, better, expected):
    assert comparison.best(values, better) == expected


def test_the_error_of_a_difference():
    """Against SciPy's t statistic for unequal variances (Welch)."""
    from scipy.stats import ttest_ind

    x, y = np.array([1.0, 1.2, 0.7]), np.array([1.4, 1.1, 1.9])
    t = ttest_ind(x, y, equal_var=False).statistic
    np.testing.assert_allclose(comparison._error(x, y), (x.mean() - y.mean()) / t)


def test_every_process_and_objective_is_in_it(monkeypatch):
    """By its name alone, one that is added tomorrow as well."""
    monkeypatch.setitem(PROCESSES, "of_tomorrow", PROCESSES["ornstein_uhlenbeck"])
    cells = list(comparison.cells(comparison.SCALES["cpu"]))
    assert len({cell.name for cell in cells}) == len(cells)
    rows = {cell.row for cell in cells}
    assert rows >= set(PROCESSES)
    assert {cell.objective for cell in cells} == set(OBJECTIVES)
    assert len(cells) == 3 * len(rows) * len(OBJECTIVES) * len(comparison.DATA)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_all_rows_of_a_data_set_have_one_budget(scale):
    """No key is unknown; and one network, minibatch, length and number of samples."""
    for data in comparison.DATA:
        budgets = set()
        for row in comparison.rows():
            cell = comparison.Cell(data=data, row=row, objective="path_dsm", seed=2)
            config = comparison.config_of(scale, cell)
            found = (config.process.name, config.objective.name, config.train.seed)
            assert found == (row.split(",")[0], "path_dsm", 2)
            network, train = config.network, config.train
            sizes = (network.name, network.width, network.depth, network.time_features)
            lengths = (train.steps, train.batch_size, train.select, config.noising.k)
            budgets.add((*sizes, *lengths, config.optimizer, config.sample.num))
        assert len(budgets) == 1


@pytest.mark.slow
def test_cells_and_the_page_of_them(tmp_path, monkeypatch):
    """A cell that is trained, one that the contract refuses, and those that are not there yet."""
    page = tmp_path / "docs" / "comparison.md"
    page.parent.mkdir()
    page.write_text(f"# Comparison\n\nWhat was found.\n\n{comparison.MARK}\n\nof before\n")
    monkeypatch.setattr(comparison, "PAGE", page)
    study = Study(scale="smoke", root=tmp_path, progress=False)
    comparison.reproduce(study, only="*-langevin-*")
    names = {path.stem for path in (tmp_path / "parts").iterdir()}
    assert names == {"rings_and_bars-langevin-dsm-0", "rings_and_bars-langevin-path_dsm-0"}
    text = (tmp_path / "comparison.md").read_text()
    assert "\n\nWhat was found.\n\n" in text
    assert "of before" not in text
    assert "| langevin | does not apply (a) | **" in text
    assert "| straight_line | not yet | not yet |" in text
    assert "- (a) objective.name='dsm' needs a process with a known kernel, and process" in text
    assert "20 steps, 200 samples of 40 evaluations" in text
    table = (tmp_path / "tables" / "rings_and_bars.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == [
        "| langevin",
        f"| {comparison.ALONE}",
        f"| {comparison.FLOOR}",
    ]
    assert rows[2][-1] == "1 of 1 |"
    assert (tmp_path / "figures" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]["rings_and_bars"]
    (measured,) = scores.values()
    assert measured["finite_fraction"] == [1.0]
    assert 0 < measured["steps / s"][0] < np.inf
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    comparison.reproduce(study, only="*-langevin-*")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == written
    with pytest.raises(
        ValueError, match=r"--only=\*-nothing-0: there is no such part; one is rings"
    ):
        comparison.reproduce(study, only="*-nothing-0")


def test_a_training_that_diverged_has_a_row():
    cells = [
        comparison.Cell(data="digits", row="langevin", objective="ndsm", seed=seed)
        for seed in range(2)
    ]
    score = {"value": 3.0, "floor": 1.0, "prior": 5.0}
    found = {
        cells[0]: {"metrics": {"frechet_distance": score, "recall": score}, "steps / s": 10.0},
        cells[1]: {"failed": "training: not finite"},
    }
    measured = comparison.numbers(found)
    line, alone, floor = comparison._table("cpu", measured, comparison._references(found))
    assert line["Frechet distance"] == line["steps / s"] == "diverged"
    assert (line["recall"], line["seeds"]) == ("3", "2 of 3")
    assert (alone["recall"], floor["recall"]) == ("**5**", "1")
