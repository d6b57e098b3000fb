"""Turn original files of images into a set of TensorFlow Datasets that trainings read.

  python experiments/prepare.py --dataset=cifar10 --source=FOLDER
  python experiments/prepare.py --dataset=stanford_cars --source=FOLDER_OF_IMAGES --image_size=64
  python experiments/train.py --config=configs/cifar10.py --workdir=runs/cifar10

The folder has cifar-10-binary.tar.gz or the six files in it, the four IDX files of a set like
MNIST, or images, in sub-folders if they have classes. Once for a set; no network, no TensorFlow.
docs/data.md.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from ndsm_jax import app
from ndsm_jax.datasets.prepared import data_folder
from ndsm_jax.datasets.preparing import prepare

DATASET = flags.DEFINE_string("dataset", None, "Name of the set, for data.tfds.", required=True)
SOURCE = flags.DEFINE_string("source", None, "Folder of the original files.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Data folder, for data.dir; default: TFDS_DATA_DIR or ~/tensorflow_datasets."
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Side to which a folder's images are cropped and resized; 0: as they are."
)
CHANNELS = flags.DEFINE_integer("channels", 3, "Of a folder's images: 1, grey, or 3, colour.")
BACKGROUND = flags.DEFINE_string("background", "white", "Colour behind transparent pixels.")


def main(argv: Sequence[str]) -> None:
    root = data_folder(DATA_DIR.value)
    written = prepare(
        DATASET.value,
        pathlib.Path(SOURCE.value).expanduser(),
        root,
        channels=CHANNELS.value,
        image_size=IMAGE_SIZE.value,
        background=BACKGROUND.value,
    )
    where = f" --config.data.dir={root}" if DATA_DIR.value else ""
    print(
        f"{written}\nread it by --config.data.name=tfds --config.data.tfds={DATASET.value}{where}"
    )


if __name__ == "__main__":
    app.run(main)
