"""Reproduce the experiments of arXiv 2405.15625, and our own: figures, tables and metrics.json.

  python experiments/reproduce.py --experiment=low_dimensional --scale=cpu
  python experiments/reproduce.py --experiment=mnist --scale=smoke --data_dir=IDX_FOLDER

`smoke` takes seconds and shows that everything runs, `cpu` is what docs/results.md reports where it
does not say otherwise, `full` is as published and wants a GPU. The same command resumes an
interrupted one. The results are in WORKDIR/EXPERIMENT_SCALE.

Where a study is of parts that need nothing of one another, as `densities`, processes with --only
measure some of them each, in one folder; the command without it then writes the results.
"""

import importlib
import inspect
import pathlib
from collections.abc import Sequence

from absl import flags

from ndsm_jax import app
from ndsm_jax.reports.study import SCALES, Study

STUDIES = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parent / "studies").glob("*.py")
    if path.stem != "__init__"
)
EXPERIMENT = flags.DEFINE_enum("experiment", None, STUDIES, "What to reproduce.", required=True)
SCALE = flags.DEFINE_enum("scale", "cpu", SCALES, "How long it may take.")
WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "Folder of the results.")
ONLY = flags.DEFINE_string("only", "", "Parts to measure, with commas between: iris_0,wine_*.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of MNIST's IDX files; '': as for data.dir.")


def main(argv: Sequence[str]) -> None:
    study = Study(
        scale=SCALE.value,
        root=pathlib.Path(WORKDIR.value) / f"{EXPERIMENT.value}_{SCALE.value}",
        data_dir=DATA_DIR.value,
    )
    reproduce = importlib.import_module(f"studies.{EXPERIMENT.value}").reproduce
    if ONLY.value and "only" not in inspect.signature(reproduce).parameters:
        raise ValueError(f"--only: {EXPERIMENT.value} is measured as a whole; leave it out")
    reproduce(study, **({"only": ONLY.value} if ONLY.value else {}))
    print(f"results: {study.root}")


if __name__ == "__main__":
    app.run(main)
