"""An exported model, read by JAX alone: `load` needs nothing else of this package.

`load` stands word for word in the README.md within the file and in docs/export.md.
"""

# mypy: disallow-untyped-defs=False
import io
import json
import zipfile

import jax
import jax.export
import numpy as np


def load(path):
    """The programs of an exported model by name, functions of arrays, and its manifest."""
    with zipfile.ZipFile(path) as file:
        manifest = json.loads(file.read("manifest.json"))
        arrays = [
            np.load(io.BytesIO(file.read(name)), allow_pickle=False) for name in manifest["arrays"]
        ]
        code = {name: bytearray(file.read(f"{name}.jax")) for name in manifest["programs"]}
    arrays = jax.device_put(arrays)

    def program(content):
        exported = jax.export.deserialize(content)
        call, types = jax.jit(exported.call), exported.in_avals[len(arrays) :]

        def run(*inputs):
            given = [np.asarray(x, of.dtype) for x, of in zip(inputs, types, strict=True)]
            with jax.enable_x64(True):  # data far from zero come and go in float64
                return np.asarray(call(arrays, *given))

        return run

    return {name: program(content) for name, content in code.items()}, manifest
