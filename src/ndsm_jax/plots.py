"""Figures, as matplotlib objects; `render` and `png` turn them into pixels and bytes."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ndsm_jax.columns import Column


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


UNLIKE = 5.0
"""Ratio of the ranges of two coordinates from which they have a scale each."""


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
    shortest, longest = sorted(limits[:2, 1] - limits[:2, 0])
    like = longest < UNLIKE * shortest
    axis.set(xlim=limits[0], ylim=limits[1], aspect="equal" if like else "auto")
    if x.shape[1] > 2:
        dim = x.shape[1]
        axis.set(xlabel=f"coordinate 1 of {dim}", ylabel=f"coordinate 2 of {dim}")


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
    one dimension a histogram, in common limits of the density, too. Images where `framed` [n] of
    their title is true get a red frame; `grey` are the values that are black and white.
    """
    framed = framed or {}
    titles = [textwrap.fill(title, int(9 * size)) for title in sets]
    columns = -(-len(sets) // -(-len(sets) // 5))  # rows of the same length
    height = size + 0.05 + 0.25 * max(title.count("\n") + 1 for title in titles)
    figure, axes = _grid(len(sets), columns, size, height)
    points = next(iter(sets.values()))[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * (high - low)
    if margin.max() < UNLIKE * margin.min():
        margin = margin.max()
    margin = np.where(margin > 0, margin, 1e-6)
    limits = np.stack([low - margin, high + margin], axis=1)
    for axis, wrapped, (title, x) in zip(axes, titles, sets.items(), strict=False):
        _show(axis, x, shape, limits, framed.get(title, np.zeros(len(x), bool)), grey)
        axis.set_title(wrapped)
    if points.shape[1] == 1:
        highest = max(axis.get_ylim()[1] for axis in axes[: len(sets)])
        for axis in axes[: len(sets)]:
            axis.set_ylim(0, highest)
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
    finite = [x[np.isfinite(x).all(axis=1), 0] for x in groups.values()]
    bins = np.histogram_bin_edges(np.concatenate(finite), 60)
    for i, (name, x) in enumerate(groups.items()):
        colour = f"C{i % 10}"
        if x.shape[1] == 1:
            axis.hist(finite[i], bins=bins, density=True, histtype="step", color=colour, label=name)
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


FEW = 5
"""Points that are marked in a curve."""


def curves_figure(
    rows: Sequence[Mapping[str, float]],
    panels: Mapping[str, Sequence[str]],
    *,
    kept: int | None = None,
) -> Any:
    """Training curves over steps: a panel for each title, of those of its names that occur.

    A panel of which no name occurs is left out. `kept`: a step to mark, in panels of several.
    """
    occurring = {name for row in rows for name in row}
    found = {title: [n for n in names if n in occurring] for title, names in panels.items()}
    found = {title: names for title, names in found.items() if names} or {"step": ["step"]}
    figure, axes = _new(4.0 * len(found), 3.0, ncols=len(found), squeeze=False)
    for axis, (title, names) in zip(axes[0], found.items(), strict=True):
        drawn = []
        for name in names:
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            drawn.append(np.array(points, float))
            marker = "." if len(points) < FEW else ""  # of a single one there is no line
            axis.plot(*drawn[-1].T, lw=1, marker=marker, label=name.replace("_", " "))
        values = np.concatenate([points[:, 1] for points in drawn])
        positive = values[np.isfinite(values)]
        if positive.size and positive.min() > 0 and positive.max() > 20 * positive.min():
            axis.set_yscale("log")
        if len(names) > 1:
            if kept is not None:
                axis.axvline(kept, color="#999999", lw=0.8, ls=":", label=f"kept: step {kept}")
            axis.legend(fontsize="x-small")
        axis.set(xlabel="step", title=title)
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


def intervals_figure(
    labels: Sequence[str],
    sets: Mapping[str, Sequence[tuple[float, float, float]]],
    data: np.ndarray,
) -> Any:
    """Shares of classes with confidence intervals, a panel a set: (share, low, high) a class.

    Behind them the shares of the data as bars; intervals that hold those are dark, others red.
    """
    figure, axes = _grid(len(sets), min(3, len(sets)), 3.4, 2.3)
    at = np.arange(len(labels))
    for axis, (title, shares) in zip(axes, sets.items(), strict=False):
        axis.bar(at, 100 * data, color="#dddddd", width=0.8)
        for x, (share, low, high), expected in zip(at, shares, data, strict=True):
            colour = "#1f4e79" if low <= expected <= high else "#a23b3b"
            around = 100 * np.array([[share - low], [high - share]])
            axis.errorbar(x, 100 * share, around, fmt="o", ms=3, capsize=2, lw=1, color=colour)
        axis.set_xticks(at, labels)
        axis.set_title(textwrap.fill(title, 36), fontsize="small")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("share of each class, %")
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


def ladder_figure(ladders: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """Noise levels [L], and the coverage of neighbouring ones [L - 1], by the name of a ladder."""
    figure, axes = _grid(2, 2, 4.2, 3.0)
    for name, (levels, covered) in ladders.items():
        axes[0].plot(np.linspace(0, 1, len(levels)), levels, marker=".", ms=3, label=name)
        axes[1].plot(levels[1:], covered, marker=".", ms=3, label=name)
    axes[0].set(yscale="log", xlabel="share of the levels", ylabel="noise level")
    axes[1].set(xscale="log", ylim=(-0.02, 1.02), xlabel="noise level", ylabel="coverage")
    axes[1].axhline(0.5, ls="--", lw=1, color="#777777")
    axes[1].invert_xaxis()
    for axis in axes:
        axis.grid(alpha=0.3)
    if len(ladders) > 1:
        axes[0].legend(fontsize="small")
    return figure


def lines_figure(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    columns: int,
    x: str = "t",
    y: str = "",
    scale: str = "log",
) -> Any:
    """Curves (x, y) by name, one panel a title, on axes of one scale; panels share the legend."""
    figure, axes = _grid(len(panels), columns, 3.6, 2.8, extra=0.3)
    handles: dict[str, Any] = {}
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for i, (name, points) in enumerate(curves.items()):
            axis.plot(*points, marker=".", ms=4, lw=1, color=f"C{i}", label=name)
        axis.set(xscale=scale, yscale=scale, xlabel=x, title=textwrap.fill(title, 42))
        axis.title.set_fontsize("medium")
        axis.grid(alpha=0.3)
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    axes[0].set_ylabel(y)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return figure


def levels_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    *,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    log: Collection[str] = (),
    columns: int = 3,
) -> Any:
    """Metrics over the levels of a factor: means with standard errors, one panel a metric.

    Args:
      panels: title -> name of a series -> level -> the values of several runs. A series may lack
        some levels of a panel, and some panels; it has one colour in all.
      lines: title -> name -> height of a horizontal line, such as a floor.
      log: titles of panels whose axis is logarithmic.
      columns: panels in a row.
    """
    figure, axes = _grid(len(panels), min(columns, len(panels)), 4.2, 3.1, extra=0.3)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        levels = list(dict.fromkeys(level for by_level in series.values() for level in by_level))
        for i, (name, by_level) in enumerate(series.items()):
            there = [n for n, level in enumerate(levels) if level in by_level]
            at = np.array(there) + 0.12 * (i - (len(series) - 1) / 2)
            x = [np.asarray(by_level[levels[n]], float) for n in there]
            errors = [v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in x]
            means = [v.mean() for v in x]
            color = f"C{names.index(name)}"
            axis.errorbar(at, means, errors, fmt="o", ms=4, capsize=3, color=color, label=name)
        for i, (name, height) in enumerate((lines or {}).get(title, {}).items()):
            axis.axhline(height, ls=("--", ":")[i % 2], lw=1, color="#777777", label=name)
        axis.set_xticks(np.arange(len(levels)), levels, rotation=30, ha="right")
        axis.set(title=title, xlim=(-0.5, len(levels) - 0.5))
        axis.set_yscale("log" if title in log else "linear")
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


# --- tables ---

_DATA, _SAMPLES, _PRIOR = "#b9bcc2", "#1f4e79", "#d08a2e"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Positions:
    """Where on an axis the values of a column are.

    Attributes:
      centre, width: position = arcsinh((value - centre) / width); a width of 0: the value itself.
      edges: positions of the edges of bins.
      ticks: position -> words; None: those of numbers.
      spread: by which points of equal value are drawn apart, either way.
    """

    centre: float = 0.0
    width: float = 0.0
    edges: np.ndarray
    ticks: Mapping[float, str] | None = None
    spread: float = 0.0

    def __call__(self, values: Any) -> Any:
        return np.arcsinh((values - self.centre) / self.width) if self.width else values

    def label(self, axis: Any) -> None:
        """Sets limits and ticks of an axis, matplotlib's `xaxis` or `yaxis`."""
        axis.axes.set(**{f"{axis.axis_name}lim": (self.edges[0], self.edges[-1])})
        axis.axes.locator_params(axis=axis.axis_name, nbins=5)
        if self.ticks is not None:
            axis.set_ticks(list(self.ticks), list(self.ticks.values()))
        axis.set_tick_params(labelsize="x-small")
        axis.get_offset_text().set_fontsize("x-small")


def _positions(column: Column, values: np.ndarray) -> _Positions:
    """For the values that were seen: levels and few whole numbers side by side; a range many times
    that of the bulk by its arcsinh; a margin, that what lies beyond the values shows."""
    if not column.ordered:
        count = len(column.levels)
        words = [textwrap.shorten(str(level), 12, placeholder="...") for level in column.levels]
        step = -(-count // 6)
        ticks = {float(i): words[i] for i in range(0, count, step)}
        return _Positions(edges=np.arange(count + 1) - 0.5, ticks=ticks, spread=0.3)
    values = values if len(values) else np.array([column.low, column.high])
    low, high = values.min(), values.max()
    if column.kind == "integer" and high - low <= 40:
        return _Positions(edges=np.arange(low - 1.5, high + 2.5), spread=0.3)
    bulk = np.diff(np.quantile(values, [0.05, 0.95]))[0]
    made = _Positions(edges=np.zeros(0))
    if 0 < bulk < (high - low) / 8:
        middle = float(np.median(values))
        at = (low, middle, high)
        made = dataclasses.replace(made, centre=middle, width=bulk / 4)
        ticks = {float(made(value)): f"{value:.2g}" for value in at}
        made = dataclasses.replace(made, ticks=ticks)
    low, high = made(low), made(high)
    margin, bins = 0.1 * (high - low) or 1.0, int(np.clip(2 * len(values) ** 0.5, 8, 36))
    return dataclasses.replace(made, edges=np.linspace(low - margin, high + margin, bins + 1))


def marginals_figure(
    columns: Sequence[Column], sets: Mapping[str, np.ndarray], *, most: int = 40
) -> Any:
    """The columns of tables [n, D], a panel each: the first table filled, the others as outlines.

    Missing cells and what is not finite are left out, and so are columns from the `most`-th on.
    """
    shown = columns[:most]
    figure, axes = _grid(len(shown), min(5, len(shown)), 2.8, 2.0, extra=0.4)
    colours = (_DATA, _SAMPLES, _PRIOR)
    for i, (axis, column) in enumerate(zip(axes, shown, strict=False)):
        finite = {name: x[np.isfinite(x[:, i]), i] for name, x in sets.items()}
        positions = _positions(column, next(iter(finite.values())))
        for (name, values), colour in zip(finite.items(), colours, strict=False):
            shares = np.histogram(positions(values), positions.edges)[0] / max(len(values), 1)
            fill = colour == _DATA
            axis.stairs(shares, positions.edges, fill=fill, color=colour, lw=1.3, label=name)
        axis.set_title(textwrap.shorten(column.name, 32, placeholder="..."), fontsize="small")
        axis.set_yticks([])
        positions.label(axis.xaxis)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(sets), fontsize="small")
    return figure


def associations_figure(names: Sequence[str], matrices: Mapping[str, np.ndarray]) -> Any:
    """Matrices [D, D] of -1 to 1 side by side, one a title."""
    figure, axes = _grid(len(matrices), len(matrices), 3.6, 3.4, extra=0.6)
    words = [textwrap.shorten(name, 22, placeholder="...") for name in names]
    words = words if len(names) <= 40 else []  # which nobody could read
    places = np.arange(len(words))
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        image = axis.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize="medium")
        axis.set_xticks(places, words, rotation=90)
        axis.set_yticks(places, words if axis is axes[0] else [""] * len(words))
        axis.tick_params(labelsize=7 if len(names) <= 20 else 4.5)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def scores_figure(
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Mapping[str, np.ndarray],
    *,
    limits: Limits,
) -> Any:
    """Matrices [R, C] of scores, written into their cells, one a title; nan is grey.

    The colours, from yellow to red between the `limits`, are those of all panels.
    """
    across, dark = min(2, len(panels)), 0.3 * limits[0] + 0.7 * limits[1]
    figure, axes = _grid(len(panels), across, 0.9 + 0.45 * len(columns), 3.6, extra=0.4)
    for axis, (title, matrix) in zip(axes, panels.items(), strict=False):
        axis.imshow(matrix, cmap="YlOrRd", vmin=limits[0], vmax=limits[1], aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if value > dark else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axis.set_facecolor("#dddddd")
        axis.set_title(title, fontsize="medium")
        axis.set_xticks(np.arange(len(columns)), columns, rotation=40, ha="right")
        axis.set_yticks(np.arange(len(rows)), rows)
        axis.tick_params(labelsize=7)
    return figure


def pairs_figure(
    columns: Sequence[Column],
    pairs: Sequence[tuple[int, int]],
    sets: Mapping[str, np.ndarray],
    *,
    most: int = 1000,
) -> Any:
    """Pairs of columns of tables [n, D]: a panel for each pair and table, pairs in rows of two.

    Values of categories, and whole numbers, are drawn apart. The first `most` rows of each table.
    """
    figure, axes = _grid(len(pairs) * len(sets), 2 * len(sets), 2.6, 2.3, extra=0.3)
    rng, places = np.random.default_rng(0), iter(axes)
    for i, j in pairs:
        first = next(iter(sets.values()))
        across, up = (_positions(columns[k], first[np.isfinite(first[:, k]), k]) for k in (i, j))
        for (title, x), colour in zip(sets.items(), ("#555555", _SAMPLES, _PRIOR), strict=False):
            axis, x = next(places), x[np.isfinite(x[:, [i, j]]).all(axis=1)][:most]
            at = [
                position(x[:, k]) + position.spread * rng.uniform(-1, 1, len(x))
                for k, position in ((i, across), (j, up))
            ]
            axis.scatter(*at, s=3, alpha=0.6, linewidths=0, color=colour, rasterized=True)
            across.label(axis.xaxis)
            up.label(axis.yaxis)
            axis.set_title(title, fontsize="small")
            for k, name in ((i, "xlabel"), (j, "ylabel")):
                words = textwrap.shorten(columns[k].name, 26, placeholder="...")
                axis.set(**{name: words})
            axis.xaxis.label.set_fontsize("small")
            axis.yaxis.label.set_fontsize("small")
    return figure


def clouds_figure(
    groups: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], *, size: float = 2.2
) -> Any:
    """Points in the plane: group -> name of a row -> title of a panel -> points [n, 2].

    All panels of a group are within the limits of its first row, which is what the others are
    compared with.
    """
    rows = [(g, name, panels) for g, sets in groups.items() for name, panels in sets.items()]
    columns = max(len(panels) for _, _, panels in rows)
    figure, axes = _grid(len(rows) * columns, columns, size, 0.85 * size)
    firsts = {group: next(iter(sets.items())) for group, sets in groups.items()}
    for n, (group, name, panels) in enumerate(rows):
        reference, shown = firsts[group]
        points = np.concatenate(list(shown.values()))
        low, high = np.quantile(points, [0.001, 0.999], axis=0)
        margin = 0.15 * (high - low)
        limits = np.stack([low - margin, high + margin], axis=1)
        for axis, (title, x) in zip(axes[n * columns :], panels.items(), strict=False):
            colour = "#555555" if name == reference else _SAMPLES
            axis.scatter(*x.T, s=2, alpha=0.5, linewidths=0, color=colour, rasterized=True)
            axis.set(xlim=limits[0], ylim=limits[1])
            axis.tick_params(labelsize=6)
            if name == reference:
                axis.set_title(f"{group}, {title}", fontsize="small")
        axes[n * columns].set_ylabel(textwrap.fill(name, 18), fontsize="small")
    return figure


def energies_figure(
    panels: Mapping[str, np.ndarray],
    axis: np.ndarray,
    points: np.ndarray,
    *,
    highest: float = 12.0,
) -> Any:
    """Energies [a, a] over the plane, above their least, as contours with points [n, 2] on top.

    title -> energy at the positions `axis` [a] of both coordinates (rows: the first).
    """
    figure, axes = _grid(len(panels), min(2, len(panels)), 3.8, 3.4)
    for axes_of, (title, energy) in zip(axes, panels.items(), strict=False):
        levels = np.linspace(0, highest, 25)
        image = axes_of.contourf(axis, axis, energy.T, levels, cmap="viridis", extend="max")
        axes_of.scatter(*points.T, s=1.5, linewidths=0, color="white", alpha=0.7, rasterized=True)
        axes_of.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="energy", shrink=0.8)
    return figure


def currents_figure(
    panels: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray], np.ndarray]],
) -> Any:
    """Densities of points [n, 2], and the current [2, a, b] as arrows in the cells between edges
    ([a + 1], [b + 1]): title -> (points, edges, current). Arrows are to scale within a panel."""
    figure, axes = _grid(len(panels), min(3, len(panels)), 4.0, 3.4)
    for axis, (title, (points, edges, current)) in zip(axes, panels.items(), strict=False):
        limits = [(e[0], e[-1]) for e in edges]
        axis.hist2d(*points.T, bins=80, range=limits, cmap="Greys", density=True)
        middles = [0.5 * (e[1:] + e[:-1]) for e in edges]
        at = np.meshgrid(*middles, indexing="ij")
        length = np.hypot(*current)
        strong = length > 0.02 * length.max()
        axis.quiver(
            *(a[strong] for a in (*at, *current)), color="#a23b3b", angles="xy", width=0.005
        )
        axis.set_title(title)
    return figure
