"""Data sets by name: toys, torsion angles, digits, colour shapes, MNIST, and a user's own.

`load(name, ...)` returns a `Dataset` of flat states, split into train and test. It reads local
files only and never downloads. A loader in `DATASETS` returns raw items; checking, splitting,
subsetting, scaling and flattening then happen once, in `load`, in the same way for every data set.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np

from ndsm_jax import plugins
from ndsm_jax.datasets import dataset, forms, stored
from ndsm_jax.datasets.dataset import Dataset, Options, Raw, Samples
from ndsm_jax.datasets.digits import digits
from ndsm_jax.datasets.files import array
from ndsm_jax.datasets.images import folder
from ndsm_jax.datasets.mnist import approx_c2_mnist, mnist, mnist_orientations
from ndsm_jax.datasets.own import own, short_name
from ndsm_jax.datasets.prepared import tfds as prepared
from ndsm_jax.datasets.shapes import colour_shapes
from ndsm_jax.datasets.tables import table
from ndsm_jax.datasets.toys import TOYS, torsion, torsion_angles, toy

Loader = Callable[[Options], Raw]
DATASETS: dict[str, Loader] = {
    **{name: functools.partial(toy, name) for name in TOYS},
    "torsion": torsion,
    "torsion_angles": torsion_angles,
    "digits": digits,
    "colour_shapes": colour_shapes,
    "mnist": mnist,
    "approx_c2_mnist": approx_c2_mnist,
    "mnist_orientations": mnist_orientations,
    "tfds": prepared,
    "array": array,
    "folder": folder,
    "table": table,
}

DARK = 17
"""Levels of own images below which all lie that are hardly of 256: masks, four bits, 0 to 16."""

_IN_OWN_FILES = ("array", "folder")  # whose labels may be any integers or strings


def load(
    name: str,
    *,
    dir: str = "",
    num_train: int = 0,
    num_test: int = 0,
    test_fraction: float = 0.2,
    seed: int = 0,
    channels: int = 1,
    image_size: int = 0,
    options: str = "",
    columns: str = "",
    header: str = "auto",
    background: str = "white",
    all_frames: bool = False,
    layout: str = "auto",
    tfds: str = "",
    in_memory: str = "auto",
) -> Dataset:
    """Load a data set by name. The result depends on the arguments and the files alone.

    Args:
      name: a key of `DATASETS`, or `path/to/file.py:function`, a function of the user's that
        returns the data (see `own.own`).
      dir: for `mnist` and the data made of it the folder with the IDX files, or the data folder of
        tensorflow-datasets ("" for its default); for `array` a .npy or .npz file; for `table` a
        file that `tables.read` takes; for `folder` a folder of images; for `tfds` the data
        folder of tensorflow-datasets, too.
      num_train: size of the training set; 0 means all (toys: 10,000). A smaller set is a seeded
        subset, stratified when labelled; with one seed, smaller subsets lie in larger ones.
      num_test: the same for the held-out set.
      test_fraction: share held out where the source has no split; stratified when labelled.
      seed: seeds the toys, the sizes of `approx_c2_mnist`, the split and the subsets; also given to
        a user's function with a parameter of this name.
      channels: 1 (grey) or 3 (RGB), for `folder`.
      image_size: side in pixels to which `folder` and `tfds` centre-crop and resize; 0 keeps the
        size.
      options: keyword arguments of a user's function, such as `force=3.0,steps=10`.
      columns: of a table, such as `target=categorical,id=drop`, see `tables.read`.
      header: of a table, whether its first row has the names.
      background: the colour, a name or #rrggbb, behind transparent pixels of `folder`.
      all_frames: whether `folder` takes all frames of an animation or pages of a file as items.
      layout: of images [N, a, b, c] of `array` and a user's function: channels_last,
        channels_first, or auto, where their shape tells.
      tfds: of `tfds` the name of a set that tensorflow-datasets or `preparing.prepare` has
        written as array_record, such as cifar10.
      in_memory: whether the items of `array`, `tfds` and a user's function are kept in memory: yes,
        no, or auto, unless their states take more than a share of it. Those that are not are read
        row by row when they are needed, and the data are the same.

    Raises:
      ValueError: unknown name, option out of range, unusable data (see `validate`), damaged file,
        a user's function that fails or returns something else.
      FileNotFoundError: `dir` is not set, or lacks what the loader needs; no file of that name.
    """
    settings = Options(
        dir=dir,
        num_train=num_train,
        num_test=num_test,
        test_fraction=test_fraction,
        seed=seed,
        channels=channels,
        image_size=image_size,
        columns=columns,
        header=header,
        background=background,
        all_frames=all_frames,
        layout=layout,
        tfds=tfds,
        in_memory=in_memory,
    )
    if plugins.is_plugin(name):
        raw = own(name, options, seed)
    elif name not in DATASETS:
        raise ValueError(
            f"Unknown data.name={name!r}. {dataset.did_you_mean(name, DATASETS)} "
            "For data of your own: path/to/file.py:function."
        )
    elif options.strip():
        raise ValueError(
            f"data.options={options!r}: data.name={name!r} takes none; they are for "
            "path/to/file.py:function."
        )
    else:
        raw = DATASETS[name](settings)

    train = _placed(raw.train, in_memory)
    test = None if raw.test is None else _placed(raw.test, in_memory)
    if (plugins.is_plugin(name) or name == "array") and not raw.columns:
        train = forms.usual(train, layout=layout, what=f"{name} data")
        if test is not None:
            test = forms.usual(test, layout=layout, what=f"{name} test data")
    class_names = raw.class_names
    dataset.validate(train, what=f"{name} data", missing=bool(raw.columns))
    if test is not None:
        dataset.validate(test, what=f"{name} test data", missing=bool(raw.columns))
        if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
            raise ValueError(
                f"{name}: train items are {train.x.dtype}{list(train.x.shape[1:])}, test items "
                f"{test.x.dtype}{list(test.x.shape[1:])}; make shape and type agree."
            )
    of_user = plugins.is_plugin(name) or name in _IN_OWN_FILES
    bytes_there = isinstance(train.x, np.ndarray) and train.x.dtype == np.uint8
    if of_user and bytes_there and train.x.max() < DARK:
        warnings.warn(
            f"{name}: the largest grey level is {train.x.max()}, and uint8 is scaled as 0 to 255;"
            " of images with fewer levels give floats (x.astype(float)), which are standardised",
            stacklevel=2,
        )
    if of_user:
        train, test, found = dataset.number_classes(train, test, what=name)
        class_names = found or class_names
    if test is None:
        train, test = dataset.split(train, test_fraction, seed, what=f"{name} data")
    rng_train, rng_test = (np.random.default_rng([seed, s]) for s in (dataset.TRAIN, dataset.TEST))
    train = dataset.subset(train, num_train, rng_train, option="data.num_train")
    test = dataset.subset(test, num_test, rng_test, option="data.num_test")

    item_shape = train.x.shape[1:]
    return Dataset(
        name=short_name(name) if plugins.is_plugin(name) else name,
        train=dataset.states(train.x),
        test=dataset.states(test.x),
        train_labels=_labels(train.labels),
        test_labels=_labels(test.labels),
        shape=(*item_shape, 1) if len(item_shape) == 2 else item_shape,
        value_range=(-1.0, 1.0) if train.x.dtype == np.uint8 else raw.value_range,
        source=raw.source,
        class_names=class_names,
        columns=raw.columns,
    )


def _placed(samples: Samples, in_memory: str) -> Samples:
    """Items in memory, or where they are stored."""
    return samples._replace(x=stored.placed(samples.x, in_memory))


def _labels(labels: np.ndarray | None) -> np.ndarray | None:
    return None if labels is None else labels.astype(np.int32)
