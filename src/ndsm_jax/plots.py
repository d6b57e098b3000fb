"""Figures, as matplotlib objects; `render` and `png` turn them into pixels and bytes."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def _new(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**options)


def _grid(
    count: int, columns: int, width: float, height: float, *, extra: float = 0.0, **options: Any
) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, `columns` a row, of width x height inches each, what is left of
    the last row empty; and all its axes, in order. `extra` inches are added to the height."""
    rows = -(-count // columns)
    shape = {"nrows": rows, "ncols": columns, "squeeze": False}
    figure, axes = _new(width * columns, height * rows + extra, **shape, **options)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat)


def render(figure: Any, dpi: int = 100) -> np.ndarray:
    """A figure as pixels [height, width, 3], uint8."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def png(figure: Any, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


Limits = tuple[float, float]

SCALED: Limits = (-1.0, 1.0)
"""Grey levels of the images that `datasets` scales: black and white."""


def grey_limits(images: np.ndarray, value_range: Limits | None = None) -> Limits:
    """The values to show as black and as white: the range of the data where they have one.

    Else the darkest and the brightest of images [n, d], but for a twentieth of them on either side:
    samples may have diverged.
    """
    finite = images[np.isfinite(images).all(axis=1)]
    if value_range is not None or not finite.size:
        return value_range or SCALED
    low, high = np.quantile(finite.min(axis=1), 0.05), np.quantile(finite.max(axis=1), 0.95)
    return float(low), float(high)


def tile(
    images: np.ndarray, shape: tuple[int, ...], columns: int, *, grey: Limits = SCALED
) -> np.ndarray:
    """Flat images [n, d] as one picture with thin gaps, `grey` to [0, 1] and clipped there."""
    low, span = grey[0], (grey[1] - grey[0]) or 1.0
    height, width, channels = shape
    shown = channels if channels in (1, 3, 4) else 1  # of other images, the first channel
    rows = -(-len(images) // columns)
    canvas = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, shown), np.float32)
    for i, image in enumerate(images):
        top, left = 1 + (i // columns) * (height + 1), 1 + (i % columns) * (width + 1)
        shades = np.nan_to_num((np.clip(image, *grey) - low) / span, nan=0.5)
        pixels = shades.reshape(shape)[..., :shown]
        canvas[top : top + height, left : left + width] = pixels
    return canvas[..., 0] if shown == 1 else canvas


def _show(
    axis: Any,
    x: np.ndarray,
    shape: tuple[int, ...],
    limits: np.ndarray,
    framed: np.ndarray,
    grey: Limits,
) -> None:
    if len(shape) == 3:
        columns = int(np.ceil(np.sqrt(len(x))))
        picture = tile(x, shape, columns, grey=grey)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _frame(axis, np.flatnonzero(framed), shape, columns)
        axis.axis("off")
        return
    if x.shape[1] == 1:
        axis.hist(x[:, 0], bins=60, range=tuple(limits[0]), density=True, color="#1f4e79")
        return
    first_two = x[:, :2]
    axis.scatter(*first_two.T, s=2, alpha=0.5, linewidths=0, color="#1f4e79", rasterized=True)
    axis.set(xlim=limits[0], ylim=limits[1], aspect="equal")


def _frame(axis: Any, which: np.ndarray, shape: tuple[int, ...], columns: int) -> None:
    """Red frames, in the gaps of `tile`, around the images with these indices."""
    from matplotlib.patches import Rectangle

    height, width = shape[0] + 1, shape[1] + 1
    for i in which:
        corner = (i % columns * width, i // columns * height)
        axis.add_patch(Rectangle(corner, width, height, fill=False, color="red", lw=1.5))


def panels(
    sets: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    *,
    framed: Mapping[str, np.ndarray] | None = None,
    size: float = 4.0,
    grey: Limits = SCALED,
) -> Any:
    """Point sets or images [n, d], one panel a title, five a row at most, in common limits.

    Data of more than two dimensions that are no images show their first two coordinates, data of
    one dimension a histogram. Images where `framed` [n] of their title is true get a red frame;
    `grey` are the values that are black and white.
    """
    framed = framed or {}
    titles = [textwrap.fill(title, int(9 * size)) for title in sets]
    columns = -(-len(sets) // -(-len(sets) // 5))  # rows of the same length
    height = size + 0.05 + 0.25 * max(title.count("\n") + 1 for title in titles)
    figure, axes = _grid(len(sets), columns, size, height)
    points = next(iter(sets.values()))[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * (high - low).max() + 1e-6
    limits = np.stack([low - margin, high + margin], axis=1)
    for axis, wrapped, (title, x) in zip(axes, titles, sets.items(), strict=False):
        _show(axis, x, shape, limits, framed.get(title, np.zeros(len(x), bool)), grey)
        axis.set_title(wrapped)
    return figure


def rows_figure(
    rows: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    *,
    columns: int,
    grey: Limits = SCALED,
) -> Any:
    """Images [n, d], one row a name, the first `columns` of each; `grey` as in `panels`.

    Of other data all points in one panel, one colour a name.
    """
    if len(shape) != 3:
        return _groups_figure(rows)
    blank = np.full((columns, next(iter(rows.values())).shape[1]), grey[1], np.float32)
    images = [np.concatenate([x[:columns], blank[len(x) :]]) for x in rows.values()]
    figure, axis = _new(0.5 * columns + 0.1 * max(map(len, rows)), 0.5 * len(rows) + 0.2)
    picture = tile(np.concatenate(images), shape, columns, grey=grey)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_anchor("E")  # constrained layout leaves a square image no room for long names
    middles = (np.arange(len(rows)) + 0.5) * (shape[0] + 1)
    axis.set_yticks(middles, list(rows))
    axis.set_xticks([])
    return figure


def _groups_figure(groups: Mapping[str, np.ndarray]) -> Any:
    figure, axis = _new(6.5, 4.5)
    for i, (name, x) in enumerate(groups.items()):
        colour = f"C{i % 10}"
        if x.shape[1] == 1:
            values = x[np.isfinite(x[:, 0]), 0]
            axis.hist(values, bins=60, histtype="step", color=colour, label=name)
        else:
            axis.scatter(*x[:, :2].T, s=2, linewidths=0, color=colour, label=name, rasterized=True)
    figure.legend(loc="outside right upper", markerscale=4)
    return figure


def samples_figure(
    samples: np.ndarray,
    shape: tuple[int, ...],
    *,
    reference: np.ndarray,
    value_range: Limits | None = None,
) -> Any:
    """Data beside samples; the grey of images spans their range, or else what the data span."""
    grey = grey_limits(reference, value_range)
    return panels({"data": reference, "samples": samples}, shape, grey=grey)


def neighbours_figure(
    samples: np.ndarray, nearest: np.ndarray, shape: tuple[int, ...], *, grey: Limits = SCALED
) -> Any:
    """Images above their nearest training images, to see what is memorised: both [n, d]."""
    figure, axis = _new(0.55 * len(samples) + 1.2, 1.7)
    rows = np.concatenate([samples, nearest])
    axis.imshow(tile(rows, shape, len(samples), grey=grey), cmap="gray", vmin=0, vmax=1)
    axis.set_yticks([shape[0] / 2, 1.5 * shape[0]], ["sample", "nearest\ntraining image"])
    axis.set_xticks([])
    return figure


def curves_figure(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Any:
    """Training curves over steps, one panel a name that occurs in the rows."""
    names = [n for n in names if any(n in row for row in rows)] or ["step"]
    figure, axes = _new(4.0 * len(names), 3.0, ncols=len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        points = np.array([(r["step"], r[name]) for r in rows if r.get(name) is not None], float)
        axis.plot(points[:, 0], points[:, 1], lw=1, color="#1f4e79")
        positive = points[np.isfinite(points[:, 1]), 1]
        if positive.size and positive.min() > 0 and positive.max() > 20 * positive.min():
            axis.set_yscale("log")
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.3)
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """How measures change along x: ratios to a floor by name, and an accuracy from 0.5 to 1."""

    label: str
    x: Sequence[float]
    ratios: Mapping[str, Sequence[float]]
    accuracy: Sequence[float]


def responses_figure(responses: Mapping[str, Response], *, columns: int = 5) -> Any:
    """A panel a response: ratios on the left axis (logarithmic), the accuracy on the right one."""
    figure, axes = _grid(len(responses), columns, 3.2, 2.8, extra=0.4)
    handles: dict[str, Any] = {}
    for axis, (title, response) in zip(axes, responses.items(), strict=False):
        right = axis.twinx()
        for name, ratios in response.ratios.items():
            axis.plot(response.x, ratios, marker=".", label=name)
        right.plot(response.x, response.accuracy, "k:", label="two-sample accuracy (right)")
        right.set(ylim=(0.45, 1.02))
        axis.axhline(1, color="#999999", lw=0.8)
        axis.set(yscale="log", title=title, xlabel=response.label)
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 0.05))  # copies are at distance 0
        for side in (axis, right):
            handles |= dict(zip(*side.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    figure.supylabel("value over its floor")
    return figure


def modes_figure(labels: Sequence[str], fractions: Mapping[str, Sequence[float]]) -> Any:
    """Bars of the mode fractions of several sample sets."""
    figure, axis = _new(8.0, 3.2)
    width = 0.8 / len(fractions)
    colours = ("#444444", "#1f4e79", "#d08a2e", "#7a9e7e", "#a23b3b", "#8a6fae")
    for i, (name, values) in enumerate(fractions.items()):
        offset = (i - (len(fractions) - 1) / 2) * width
        axis.bar(
            np.arange(len(labels)) + offset,
            values,
            width,
            label=name,
            color=colours[i % len(colours)],
        )
    axis.set_xticks(np.arange(len(labels)), labels)
    axis.set(xlabel="mode", ylabel="fraction")
    figure.legend(loc="outside upper right", ncols=min(3, len(fractions)), fontsize="small")
    return figure


def shares_figure(labels: Sequence[str], shares: Mapping[str, np.ndarray]) -> Any:
    """A row of coloured per cents a name: `modes_figure` for more sets than bars can show."""
    figure, axis = _new(3.5 + 0.5 * len(labels), 0.8 + 0.28 * len(shares))
    values = 100 * np.stack(list(shares.values()))
    centre = 100 / len(labels)
    axis.imshow(values, cmap="PuOr", aspect="auto", vmin=0, vmax=2 * centre)
    for (row, column), value in np.ndenumerate(values):
        # Pale cells are in the middle of the scale.
        ink = "white" if abs(value - centre) > 0.7 * centre else "black"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axis.set_xticks(np.arange(len(labels)), labels)
    axis.set_yticks(np.arange(len(shares)), list(shares), fontsize=8)
    axis.set(title="share of each class, %")
    return figure


def eps_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """eps(t) over the training times, one curve (t, eps) a name, as 2405.15625, Figure 2."""
    figure, axis = _new(5.0, 3.2)
    for name, (t, eps) in curves.items():
        axis.plot(t, eps, label=name)
    axis.axhline(0, color="#999999", lw=0.8)
    axis.set(xlabel="t", ylabel="eps(t)", xscale="log")
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend()
    return figure


def levels_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    *,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    columns: int = 3,
) -> Any:
    """Metrics over the levels of a factor: means with standard errors, one panel a metric.

    Args:
      panels: title -> name of a series -> level -> the values of several runs. All series of a
        panel share the levels of its first.
      lines: title -> name -> height of a horizontal line, such as a floor.
      columns: panels in a row.
    """
    figure, axes = _grid(len(panels), min(columns, len(panels)), 4.2, 3.1, extra=0.3)
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        levels = list(next(iter(series.values())))
        for i, (name, by_level) in enumerate(series.items()):
            at = np.arange(len(levels)) + 0.12 * (i - (len(series) - 1) / 2)
            x = [np.asarray(by_level[level], float) for level in levels]
            errors = [v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in x]
            means = [v.mean() for v in x]
            axis.errorbar(at, means, errors, fmt="o", ms=4, capsize=3, color=f"C{i}", label=name)
        for i, (name, height) in enumerate((lines or {}).get(title, {}).items()):
            axis.axhline(height, ls=("--", ":")[i % 2], lw=1, color="#777777", label=name)
        axis.set_xticks(np.arange(len(levels)), levels, rotation=30, ha="right")
        axis.set(title=title, xlim=(-0.5, len(levels) - 0.5))
        axis.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure


def surfaces_figure(surfaces: Mapping[str, np.ndarray], *, highest: float = 8.0) -> Any:
    """Free-energy surfaces [bins, bins] over two angles (rows: the first), in kT above the lowest.

    What is not finite, as a bin that holds no sample, stays white.
    """
    columns = min(4, len(surfaces))
    figure, axes = _grid(len(surfaces), columns, 3.0 + 1.2 / columns, 3.5, sharey=True)
    for axis, (title, surface) in zip(axes, surfaces.items(), strict=False):
        finite = np.where(np.isfinite(surface), surface, np.nan)
        image = axis.imshow(
            (finite - np.nanmin(finite)).T,
            origin="lower",
            extent=(-180, 180, -180, 180),
            vmin=0,
            vmax=highest,
            cmap="viridis",
        )
        axis.set_title(textwrap.fill(title, 24))
        axis.set(xlabel="phi", xticks=(-180, 0, 180), yticks=(-180, 0, 180))
    axes[0].set_ylabel("psi")
    figure.colorbar(image, ax=axes, label="free energy, kT", shrink=0.8)
    return figure
