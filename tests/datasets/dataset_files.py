"""Helpers of tests: small files of MNIST, and a comparison of data sets without their order."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def sort_rows(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T)]


def idx_bytes(array: np.ndarray) -> bytes:
    """IDX written by hand from its specification."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    }


def write_mnist(
    folder: Path, arrays: dict[str, np.ndarray], *, dotted: bool = False, zipped: bool = False
) -> str:
    for stem, array in arrays.items():
        name = stem.replace("-idx", ".idx") if dotted else stem
        content = idx_bytes(array)
        if zipped:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / name).write_bytes(content)
    return str(folder)
