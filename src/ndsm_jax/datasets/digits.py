"""The 8 x 8 digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from ndsm_jax.datasets.dataset import Options, Raw, Samples


def digits(options: Options) -> Raw:
    """1797 images [8, 8] with values in [-1, 1], labels 0 to 9."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Raw(
        train=Samples((bunch.images / 8.0 - 1.0).astype(np.float32), bunch.target),
        value_range=(-1.0, 1.0),
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits "
        "(Alpaydin and Kaynak 1998), CC BY 4.0",
    )
