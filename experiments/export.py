"""Export a trained model to one file: programs that JAX alone runs, or its parameters.

python experiments/export.py --workdir=runs/digits --out=digits.zip
python experiments/export.py --workdir=runs/digits --out=digits.safetensors
python experiments/export.py --workdir=runs/mine --out=mine.zip --licence="CC0 1.0" --steps=20

FILE.zip has sample, score and log_prob for batches of any size, and a card (README.md) with the few
lines that run them. FILE.safetensors has the parameters, and the card beside it. docs/export.md.
"""

from collections.abc import Sequence

from absl import flags

from ndsm_jax import app
from ndsm_jax.export import PLATFORMS, export_run
from ndsm_jax.sampling import SAMPLERS

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.", required=True)
OUT = flags.DEFINE_string("out", None, "FILE.zip or FILE.safetensors.", required=True)
SAMPLER = flags.DEFINE_enum("sampler", None, list(SAMPLERS), "Sampler; default: the run's config.")
STEPS = flags.DEFINE_integer("steps", None, "Grid steps; default: the run's config.", lower_bound=3)
LICENCE = flags.DEFINE_string(
    "licence", None, "Of the data, for the card; default: what is known of data that come by name."
)
TARGETS = flags.DEFINE_list("platforms", list(PLATFORMS), "On which the programs are to run.")
ALLOW_CHANGED_SOURCE = flags.DEFINE_bool(
    "allow_changed_source", False, "Go on although a file named file.py:function has changed."
)


def main(argv: Sequence[str]) -> None:
    changes = {"sampler": SAMPLER.value, "steps": STEPS.value}
    written = export_run(
        WORKDIR.value,
        OUT.value,
        sample={key: value for key, value in changes.items() if value is not None},
        licence=LICENCE.value,
        platforms=TARGETS.value,
        allow_changed_source=ALLOW_CHANGED_SOURCE.value,
    )
    print(written)


if __name__ == "__main__":
    app.run(main)
