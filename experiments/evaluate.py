"""Evaluate a trained model: metrics.json, pictures and report.html in the run's folder.

python experiments/evaluate.py --workdir=runs/digits
python experiments/evaluate.py --workdir=runs/told --guidance_scale=2
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from ndsm_jax import app, parallel
from ndsm_jax.launch import check_replaced
from ndsm_jax.reports.report import evaluate_run

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.", required=True)
NUM = flags.DEFINE_integer("num", None, "Number of samples; default: sample.num.", lower_bound=20)
EVALUATE = {
    key: flags.DEFINE_integer(key, None, f"{name}; default: the run's config.", lower_bound=low)
    for key, name, low in (
        ("max_points", "evaluate.max_points", 20),
        ("labels_per_class", "evaluate.labels_per_class", 1),
        ("likelihood_points", "evaluate.likelihood_points", 0),
        ("evaluate_seed", "evaluate.seed", 0),
    )
}
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "sample.guidance_scale; default: the run's config.", lower_bound=0
)
GUIDANCE_LOW = flags.DEFINE_float("guidance_low", None, "sample.guidance_low, likewise.")
GUIDANCE_HIGH = flags.DEFINE_float("guidance_high", None, "sample.guidance_high, likewise.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data are now; default: data.dir.")

ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Go on although a file named file.py:function has changed."
)


app.define_processes()


def main(argv: Sequence[str]) -> None:
    app.join_processes()
    guidance = {
        "guidance_scale": GUIDANCE_SCALE.value,
        "guidance_low": GUIDANCE_LOW.value,
        "guidance_high": GUIDANCE_HIGH.value,
    }
    sample = {key: value for key, value in guidance.items() if value is not None}
    how = {
        key.removeprefix("evaluate_"): flag.value
        for key, flag in EVALUATE.items()
        if flag.value is not None
    }
    check_replaced(WORKDIR.value, sample=sample, evaluate=how)
    result = evaluate_run(
        pathlib.Path(WORKDIR.value),
        num=NUM.value,
        sample=sample,
        how=how,
        data_dir=DATA_DIR.value,
        allow_changed_source=ALLOW_CHANGED_SOURCE.value,
        progress=parallel.is_first(),
    )
    if parallel.is_first():
        print(result.table())
        print(f"metrics: {result.metrics_path}")
        print(f"report:  {result.report_path}")
        result.check()


if __name__ == "__main__":
    app.run(main)
