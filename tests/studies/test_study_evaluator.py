"""The evaluator's sensitivity study at smoke scale, and the ways of spoiling images."""

import json

import numpy as np
import pytest
from studies import evaluator as study_of

from ndsm_jax.reports.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = Study(scale="smoke", root=tmp_path_factory.mktemp("study"), progress=False)
    study_of.reproduce(study)
    return study


@pytest.mark.slow
def test_study_writes_its_results(study):
    metrics = json.loads((study.root / "metrics.json").read_text())
    rows = {row["spoilt by"]: row for row in metrics["rows"]}
    assert set(rows) == {"nothing", *study_of.SPOILS}
    floor = rows["nothing"]
    assert rows["noise"]["fid"] > 1.5 * floor["fid"]
    assert rows["missing"]["class_tv"] > 0.4  # half of the classes are left out
    assert rows["copies"]["nearest_train"] == pytest.approx(0, abs=1e-5)
    assert floor["nearest_train"] > 0.5
    for name in ("figures/sensitivity.png", "figures/images.png", "tables/sensitivity.md"):
        assert (study.root / name).stat().st_size > 500


@pytest.mark.slow
def test_study_keeps_its_parts_and_refuses_others(study):
    path = study.root / "parts" / "pixels_nothing_0.json"
    part = json.loads(path.read_text())
    kept = study.part("pixels_nothing_0", part["of"], pytest.fail)
    assert kept == part["values"]
    with pytest.raises(ValueError, match="other settings"):
        study.part("pixels_nothing_0", part["of"] | {"count": 1}, pytest.fail)


@pytest.fixture
def images(rng):
    x = np.full((200, 6, 6), -1.0)
    x[:, 2:4, 1:3] = rng.uniform(0, 1, size=(200, 2, 2))
    return study_of.Images(
        x=x.reshape(200, -1),
        labels=np.arange(200) % 10,
        train=rng.normal(size=(300, 36)),
        shape=(6, 6, 1),
        count=100,
    )


@pytest.mark.parametrize("name", study_of.SPOILS)
def test_every_way_keeps_the_count(images, name):
    function, strengths, _ = study_of.SPOILS[name]
    for strength in strengths:
        spoilt = function(images, strength)
        assert spoilt.shape == (100, 36)
        assert not np.array_equal(spoilt, images.first)


def test_ways_do_what_they_say(images):
    residual = study_of.noise(images, 0.5) - images.first
    assert residual.std() == pytest.approx(0.5, rel=0.05)  # 3600 draws: standard error 1.2 %
    moved = study_of.shift(images, 2).reshape(-1, 6, 6)
    np.testing.assert_allclose(moved[:, :, 2:], images.first.reshape(-1, 6, 6)[:, :, :-2])
    np.testing.assert_array_equal(moved[:, :, :2], -1)
    np.testing.assert_allclose(
        study_of.contrast(images, 0.25) + 1, 0.75 * (images.first + 1), rtol=1e-12
    )
    blurred = study_of.blur(images, 0.5)
    np.testing.assert_allclose(  # reflecting borders keep the total
        blurred.sum(axis=1), images.first.sum(axis=1), rtol=1e-6
    )
    assert len(np.unique(study_of.repeats(images, 0.9), axis=0)) == 10
    copied = study_of.copies(images, 0.25)
    assert sum(row.tolist() in images.train.tolist() for row in copied) == 25
