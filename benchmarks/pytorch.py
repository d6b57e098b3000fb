"""A training step of the U-Net beside the same step in PyTorch, on this machine's CPU.

The peer runs the same network from the same weights, as is checked on a minibatch first, in either
order of dimensions; its loss is a plain squared error, then Adam and the average of the parameters.
Ours has path-space DSM's loss in local coordinates. Noising is in neither. Needs PyTorch beside
ndsm_jax: pip install torch.

    python benchmarks/pytorch.py --out=runs/benchmarks/pytorch.json
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import common
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from network_step import Step
from step_cost import SHAPE

from ndsm_jax import app
from ndsm_jax.networks.embedding import GaussianFourierFeatures

try:
    torch: Any = importlib.import_module("torch")
except ImportError as error:
    raise SystemExit(f"{error}: this benchmark needs PyTorch (pip install torch)") from error
F = torch.nn.functional

BATCH = 64
WIDTHS = {"U-Net 32-64-128-256": (32, 64, 128, 256), "U-Net 16-32-64": (16, 32, 64)}
QUICK = {"U-Net 8-16": (8, 16)}
FEATURES, LEARNING_RATE, DECAY = 128, 1e-3, 0.999


def convolution(p: Mapping[str, Any], x: Any, strides: int = 1) -> Any:
    """With Flax's padding, which is all at the end where an even size is halved."""
    size = p["kernel"].shape[-1]
    if strides == 2 and x.shape[-1] % 2 == 0:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), p["kernel"], p.get("bias"), stride=2)
    return F.conv2d(x, p["kernel"], p.get("bias"), stride=strides, padding=size // 2)


def block(p: Mapping[str, Any], x: Any, time: Any, strides: int = 1) -> Any:
    """`networks.unet.Block`."""
    x = convolution(p["Conv_0"], x, strides)
    width = x.shape[1]
    groups = int(np.gcd(width, max(1, width // 4)))
    norm = p["GroupNorm_0"]
    x = F.group_norm(x, groups, norm["scale"], norm["bias"], eps=1e-6)
    shifts = F.linear(time, p["Dense_0"]["kernel"], p["Dense_0"]["bias"])[:, :, None, None]
    scale, shift = shifts.chunk(2, dim=1)
    return F.silu(x * (1 + scale) + shift)


def network(p: Mapping[str, Any], x: Any, features: Any, widths: Sequence[int]) -> Any:
    """`networks.UNet` of images [n, channels, h, w] and the features of their times [n, e]."""
    time = F.silu(F.linear(features, p["Dense_0"]["kernel"], p["Dense_0"]["bias"]))
    skips = []
    for level in range(len(widths)):
        x = block(p[f"Block_{level}"], x, time, 2 if level else 1)
        skips.append(x)
    skips.pop()
    for i, skip in enumerate(reversed(skips)):
        x = F.interpolate(convolution(p[f"Conv_{i}"], x), skip.shape[2:], mode="nearest-exact")
        x = block(p[f"Block_{len(widths) + i}"], torch.cat([x, skip], dim=1), time)
    return convolution(p[f"Conv_{len(widths) - 1}"], x)


class Peer:
    """A training step in PyTorch from the weights of ours.

    Args:
      step: ours.
      widths: of the U-Net.
      last: whether channels are the last dimension in memory.
    """

    def __init__(self, step: Step, widths: Sequence[int], *, last: bool) -> None:
        experiment, state, _, batch = step.args
        order = torch.channels_last if last else torch.contiguous_format
        flat = flatten_dict(jax.device_get(state.params)["params"], sep="/")
        self.flat = {name: _tensor(leaf, order).requires_grad_() for name, leaf in flat.items()}
        self.params = unflatten_dict(self.flat, sep="/")
        self.average = [leaf.detach().clone() for leaf in self.flat.values()]
        self.adam = torch.optim.Adam(self.flat.values(), lr=LEARNING_RATE, foreach=True)
        self.widths = widths

        y, c = np.asarray(batch.y).reshape(step.batch, -1), np.asarray(batch.t).reshape(-1)
        fourier = GaussianFourierFeatures(FEATURES, experiment.model.network.time_scale)
        self.features = torch.tensor(np.asarray(fourier.apply({}, c)))
        # What the network is told is an image like y, the mean of its component.
        images = np.tile(y.reshape(-1, *SHAPE), 2)
        x = torch.tensor(images).permute(0, 3, 1, 2)
        self.x = x.contiguous(memory_format=order)
        self.target = torch.randn(step.batch, SHAPE[2], *SHAPE[:2])

        ours = experiment.model.network.apply(state.params, y, c, y)
        with torch.no_grad():
            theirs = network(self.params, self.x, self.features, widths).permute(0, 2, 3, 1)
        np.testing.assert_allclose(theirs.reshape(step.batch, -1).numpy(), ours, atol=1e-4)

    def __call__(self) -> float:
        self.adam.zero_grad(set_to_none=True)
        out = network(self.params, self.x, self.features, self.widths)
        loss = torch.mean((out - self.target) ** 2)
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.flat.values()), 1 - DECAY)
        return float(loss.detach())


def _tensor(leaf: Any, order: Any) -> Any:
    """A leaf of Flax in PyTorch's order of dimensions."""
    tensor = torch.tensor(np.asarray(leaf))
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous(memory_format=order)
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def main(argv: Sequence[str]) -> None:
    quick = common.QUICK.value
    rows = []
    for name, widths in (QUICK if quick else WIDTHS).items():
        config = {"name": "unet", "widths": widths, "time_features": FEATURES}
        ours = Step(config, 4 if quick else BATCH)
        peer, other = (Peer(ours, widths, last=last) for last in (False, True))
        calls: dict[str, Callable[[], Any]] = {
            "PyTorch": peer,
            "PyTorch, channels last": other,
            "ndsm_jax": ours,
        }
        timings = common.ratios(calls, "PyTorch", rounds=1 if quick else 9)
        rows += [
            {
                "name": f"{name}, {key}",
                "milliseconds": 1e3 * timing.seconds,
                "ratio": timing.ratio,
            }
            for key, timing in timings.items()
        ]
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
