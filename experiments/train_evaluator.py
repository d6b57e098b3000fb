"""Train the evaluator of MNIST that the package ships, or a wider one.

  python experiments/train_evaluator.py --data_dir=IDX_FOLDER --out=evaluator.npz

Prints the test accuracy of the weights as written: batch norms folded, half precision. The same
command resumes an interrupted training.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from ndsm_jax import app, datasets
from ndsm_jax.evaluation.classifier import train_classifier
from ndsm_jax.evaluation.evaluator import save
from ndsm_jax.networks.resnet import ResNet18

DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of MNIST's IDX files; '': as for data.dir.")
WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first stage.", lower_bound=1)
STEM_STRIDE = flags.DEFINE_integer("stem_stride", 2, "Of the first convolution.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 4, "Passes over the training images.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a step.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Of initialisation, batches and shifts.", lower_bound=0)
NUM_TRAIN = flags.DEFINE_integer("num_train", 0, "Training images; 0: all.", lower_bound=0)
OUT = flags.DEFINE_string("out", "runs/evaluator/evaluator.npz", "Where the weights go.")
SHIFT = 2


def main(argv: Sequence[str]) -> None:
    out = pathlib.Path(OUT.value)
    dataset = datasets.load("mnist", dir=DATA_DIR.value, num_train=NUM_TRAIN.value)
    network = ResNet18(
        shape=(28, 28, 1),
        num_classes=dataset.num_classes,
        width=WIDTH.value,
        stem_stride=STEM_STRIDE.value,
    )
    trained = train_classifier(
        dataset,
        network=network,
        seed=SEED.value,
        epochs=EPOCHS.value,
        batch_size=BATCH_SIZE.value,
        shift=SHIFT,
        folder=out.with_name(f"{out.name.removesuffix('.npz')}.training"),
        progress=True,
    )
    shipped, digest = save(out, trained, dataset)
    print(f"test accuracy as trained: {trained.test_accuracy:.4f}")
    print(f"test accuracy as written: {shipped.test_accuracy:.4f}")
    print(f"{out}: {out.stat().st_size} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    app.run(main)
