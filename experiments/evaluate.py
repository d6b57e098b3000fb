"""Evaluate a trained model: metrics.json, pictures and report.html in the run's folder.

python experiments/evaluate.py --workdir=runs/digits
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from ndsm_jax import app
from ndsm_jax.reports.report import evaluate_run

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.", required=True)
NUM = flags.DEFINE_integer("num", None, "Number of samples; default: sample.num.", lower_bound=20)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data are now; default: data.dir.")

ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Go on although a file named file.py:function has changed."
)


def main(argv: Sequence[str]) -> None:
    result = evaluate_run(
        pathlib.Path(WORKDIR.value),
        num=NUM.value,
        data_dir=DATA_DIR.value,
        allow_changed_source=ALLOW_CHANGED_SOURCE.value,
    )
    print(result.table())
    print(f"metrics: {result.metrics_path}")
    print(f"report:  {result.report_path}")


if __name__ == "__main__":
    app.run(main)
