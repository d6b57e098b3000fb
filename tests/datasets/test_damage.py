"""Files damaged at random: what is not read is a ValueError, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ndsm_jax.datasets import load


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, with other bytes, with more of them, or with another one in the header."""
    changed = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(changed[: rng.integers(len(changed))])
    if kind == 1:
        for i in rng.integers(len(changed), size=rng.integers(1, 6)):
            changed[i] = rng.integers(256)
    elif kind == 2:
        i = rng.integers(len(changed))
        changed[i:i] = rng.bytes(int(rng.integers(1, 50)))
    else:
        changed[rng.integers(min(len(changed), 64))] = rng.integers(256)
    return bytes(changed)


def read(name: str, path: Path) -> bool:
    """Whether it was read, or refused as it should be: any other error is raised."""
    try:
        load(name, dir=str(path), image_size=8)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["npy", "npz", "npz, compressed"])
def test_arrays(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    x, labels, file = rng.normal(size=(30, 2)), np.arange(30) % 3, io.BytesIO()
    if name == "npy":
        np.save(file, x)
    elif name == "npz":
        np.savez(file, x=x, labels=labels)
    else:
        np.savez_compressed(file, x=x, labels=labels)
    path = tmp_path / f"a.{name[:3]}"
    found = []
    for _ in range(150):
        path.write_bytes(mutated(file.getvalue(), rng))
        found.append(read("array", path))
        if name == "npy":
            read("table", path)
    assert not all(found)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".webp", ".jpg", ".bmp", ".ico"])
@pytest.mark.filterwarnings("ignore:.*several frames", "ignore:.*have colours")
def test_images(tmp_path: Path, suffix: str, rng: np.random.Generator) -> None:
    for i in range(20):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}{suffix}")
    path = tmp_path / f"00{suffix}"
    content = path.read_bytes()
    found = []
    for _ in range(40):
        path.write_bytes(mutated(content, rng))
        found.append(read("folder", tmp_path))
    assert not all(found)
