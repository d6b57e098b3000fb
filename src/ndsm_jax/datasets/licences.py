"""Under which licence data may be used, as far as it is known."""

from __future__ import annotations

from typing import NamedTuple

from ndsm_jax.datasets.toys import TOYS


class Licence(NamedTuple):
    """A licence of data.

    Attributes:
      name: of the licence.
      stated: where, or why.
      given: what the `source` of the data says where they are the ones that it is of.
    """

    name: str
    stated: str
    given: str = ""


_MADE_HERE = Licence("none needed", "drawn by ndsm_jax itself, from no data of others")
_MNIST = Licence("CC BY-SA 3.0", "https://keras.io/api/datasets/mnist/", "CC BY-SA 3.0")

LICENCES: dict[str, Licence] = {
    **dict.fromkeys((*TOYS, "torsion", "torsion_angles", "colour_shapes"), _MADE_HERE),
    "digits": Licence("CC BY 4.0", "https://doi.org/10.24432/C50P49", "CC BY 4.0"),
    **dict.fromkeys(("mnist", "approx_c2_mnist", "mnist_orientations"), _MNIST),
}
"""Of the data sets that come by name."""


def licence_of(name: str, source: str) -> Licence | None:
    """The licence of the data set `name`, if its source says that it is the one that is known."""
    licence = LICENCES.get(name)
    return licence if licence is not None and licence.given in source else None
