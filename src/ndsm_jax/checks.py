"""Arguments of public functions, checked once, where the function is entered.

    @arguments(process=Process, y="[..., d]", t="[...]", key=KEY, k=whole(1))
    def step(key, process, y, t, *, k=4): ...

What each argument has to be stands in the decorator, shapes as the docstrings write them. Types and
shapes are looked at as Python runs the function, which under `jax.jit` is once a compilation, and
values only of arrays that are at hand. So compiled code is what it would be without.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import reprlib
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax.rows import Stored

Function = TypeVar("Function", bound=Callable[..., Any])

SEED = 2**32 - 1
"""The largest seed: `jax.random.key` drops further bits unsaid, scikit-learn refuses them."""

MANY = 2**31 - 1
"""The largest count, which int32 holds."""

LARGE = 1e12
"""The largest number where nothing else is said: its square and its inverse are some in float32."""


# --- what an argument can have to be ---


@dataclasses.dataclass(frozen=True)
class Needs:
    """A condition on a value.

    Attributes:
      wanted: in words.
      holds: whether a value meets it.
    """

    wanted: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of floats, or real numbers, of a shape; see `shape_of` for its form.

    Attributes:
      text: as the docstrings write it.
      axes: sizes, names, or "..." for any leading ones.
      finite, integers: conditions on the numbers.
      below: an axis whose size they are below.
      least: what they are from on.
      like: whether lists and single numbers are taken for arrays.
    """

    text: str
    axes: tuple[int | str, ...]
    finite: bool = False
    integers: bool = False
    below: str = ""
    least: int = 0
    like: bool = False


Wanted = str | Shape | Needs | type | tuple[Any, ...]
"""A shape, a condition, a type (also a runtime-checkable protocol), or several, of which one."""


def shape_of(text: str) -> Shape:
    """`"[..., d]"`, `"finite numbers [N, 3]"`, `"integers below K [n]"` (from 0 on), parsed.

    A name is one size in all arguments of a call, and `...` are as many axes in all of them, which
    broadcast; `d`, `r` and `K` are those of the process, the reference or the object itself;
    `n + 1` is one more than n. What else is no name and no number is any size. Where the text says
    `numbers`, lists are taken, too, and their leading axes broadcast as NumPy's do; `finite` ones
    are some.
    """
    words, _, sizes = text.rstrip("]").partition("[")
    axes = [size.strip() for size in sizes.split(",") if size.strip()]
    parsed = tuple(int(size) if size.isdigit() else size for size in axes)
    return Shape(
        text,
        parsed,
        finite="finite" in words,
        integers="integers" in words,
        below=words.partition("below ")[2].strip(),
        least=-1 if "from -1" in words else 0,
        like="numbers" in words or "integers" in words,
    )


def _is_number(value: Any, kind: Any = np.number) -> bool:
    """Whether it is a single real number; a traced one is."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float):
        return kind is np.number or isinstance(value, int)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return (
        shape == () and dtype is not None and _is_real(dtype) and bool(jnp.issubdtype(dtype, kind))
    )


def _is_real(dtype: Any) -> bool:
    return dtype is not None and any(
        jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer)
    )


def _known(value: Any) -> bool:
    """Whether a value can be looked at: not while JAX traces it, nor where it is stored."""
    return not isinstance(value, jax.core.Tracer | Stored)


def _within(value: Any, low: float, above: float, high: float) -> bool:
    """For infinite bounds, too: a value is finite in any case."""
    if not _known(value):
        return True
    if isinstance(value, int):  # of any size
        return low <= value <= high and value > above
    return math.isfinite(value) and low <= float(value) <= high and float(value) > above


def whole(low: int = 0, high: int = MANY) -> Needs:
    """A whole number within bounds."""
    wanted = (
        f"a whole number from {low:,} to {high:,}" if high < MANY else f"a whole number >= {low}"
    )
    return Needs(wanted, lambda v: _is_number(v, np.integer) and _within(v, low, -math.inf, high))


def number(*, low: float = -LARGE, above: float = -math.inf, high: float = LARGE) -> Needs:
    """A number within bounds."""
    least = f"> {above:g}" if math.isfinite(above) else f">= {low:g}"
    return Needs(
        f"a number {least} and <= {high:g}",
        lambda v: _is_number(v) and _within(v, low, above, high),
    )


def function(*counts: int) -> Needs:
    """A function of so many arguments, or of one of several numbers of them."""

    def takes(value: Any, count: int) -> bool:
        try:
            inspect.signature(value).bind(*range(count))
        except TypeError:
            return False
        except ValueError:  # one that Python knows no signature of
            return True
        return True

    return Needs(
        f"a function of {' or '.join(map(str, counts))} argument{'s' * (counts != (1,))}",
        lambda v: callable(v) and not inspect.isclass(v) and any(takes(v, n) for n in counts),
    )


def one_of(names: Iterable[str]) -> Needs:
    """One of some names."""
    names = tuple(names)
    return Needs(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def sequence(of: Needs, wanted: str, *, fewest: int = 0) -> Needs:
    """A list or a tuple of such."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, list | tuple) and len(value) >= fewest and all(map(of.holds, value))
        )

    return Needs(wanted, holds)


def _is_key(value: Any, ndim: int) -> bool:
    dtype = getattr(value, "dtype", None)
    return (
        dtype is not None
        and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        and value.ndim == ndim
    )


def _is_path(value: Any) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return isinstance(path, str) and path != "" and "\0" not in path


def _is_grid(value: Any, fewest: int, start: float | None) -> bool:
    """Increasing times; from 0 there are three at least: a step, and what is left to 0."""
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, list | tuple):
        return all(map(_is_number, value)) and _is_grid(np.asarray(value, float), fewest, start)
    if shape is None or len(shape) != 1 or shape[0] < fewest or not _is_real(value.dtype):
        return False
    if not _known(value):
        return True
    times = np.asarray(value, np.float64)
    starts = start is None or times[0] == start
    return bool(np.isfinite(times).all() and starts and np.all(np.diff(times) > 0))


KEY = Needs("one typed PRNG key, jax.random.key(seed)", lambda v: _is_key(v, 0))
KEYS = Needs("typed PRNG keys [B], jax.random.split(key, B)", lambda v: _is_key(v, 1))
FUNCTION = Needs("a function", lambda v: callable(v) and not inspect.isclass(v))
CONSTRUCTOR = Needs("a constructor", callable)
SCORE = function(2, 3)
NONE = Needs("None", lambda v: v is None)
FLAG = Needs("True or False", lambda v: isinstance(v, bool | np.bool_))
COUNT = whole(1)
SEEDS = whole(0, SEED)
POSITIVE = number(above=0)
DIMENSIONS = whole(1, 2**24)
SHAPE = sequence(whole(), "a tuple of whole numbers")
FOLDER = Needs("the path of a folder", _is_path)
FILE = Needs("the path of a file", _is_path)
GRID = Needs("increasing finite times [n + 1] from 0, n >= 2", lambda v: _is_grid(v, 3, 0.0))
TIMES = Needs("increasing finite times [n + 1], n >= 1", lambda v: _is_grid(v, 2, None))
STEPS = whole(2, 1_000_000)
"""Of a grid that is made of their number."""


def _is(wanted: Any, value: Any, sizes: dict[str, Any] | None = None) -> bool:
    """Whether a value is what is wanted; of a shape that is new, `sizes` learns the axes."""
    if isinstance(wanted, tuple):
        return any(_is(one, value, sizes) for one in wanted)
    if isinstance(wanted, Shape):
        return _why_not(value, wanted, {} if sizes is None else sizes) is None
    return wanted.holds(value) if isinstance(wanted, Needs) else isinstance(value, wanted)


# --- the check ---


def arguments(**wanted: Wanted) -> Callable[[Function], Function]:
    """A decorator that checks arguments by name, see the module.

    An argument whose default is None may be None. Those that are not named are not checked. A name
    that is no argument of a method is a field of its object: what a pytree of arrays holds can be
    checked where it is used only, as JAX rebuilds it with other leaves.

    Raises:
      ValueError: from the function, for an argument that is something else: function, argument,
        what was given and what is needed.
    """
    rules = {name: _rule(want) for name, want in wanted.items()}

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        open_to_none = {n for n, p in signature.parameters.items() if p.default is None}
        of_self = rules.keys() - signature.parameters.keys()
        if of_self and "self" not in signature.parameters:  # a slip in this package
            raise TypeError(f"{function.__qualname__} has no arguments {', '.join(of_self)}")
        name = _name(function)

        @functools.wraps(function)
        def checked(*args: Any, **more: Any) -> Any:
            try:
                given = signature.bind(*args, **more).arguments
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from None
            sizes = _sizes(given)
            for argument, rule in rules.items():
                if argument in of_self:
                    value = getattr(given["self"], argument)
                    needed = getattr(type(given["self"]), argument, ...) is not None
                elif argument in given:
                    value, needed = given[argument], argument not in open_to_none
                else:
                    continue
                if value is not None or needed:
                    _check(f"{name}: {argument}", value, rule, sizes)
            return function(*args, **more)

        return typing.cast(Function, checked)

    return decorate


def fields(instance: Any, **wanted: Wanted) -> None:
    """The same of a dataclass's fields, for its `__post_init__`. Raises ValueError likewise."""
    defaults = {field.name: field.default for field in dataclasses.fields(instance)}
    for name, want in wanted.items():
        value = getattr(instance, name)
        if value is not None or defaults[name] is not None:
            _check(f"{type(instance).__name__}: {name}", value, _rule(want), {})


def check(what: str, value: Any, wanted: Wanted, **sizes: int) -> None:
    """The same of one value, `function: argument` in words, and the sizes of axes that are known.

    Raises ValueError likewise.
    """
    _check(what, value, _rule(wanted), sizes)


def score(where: str, function: Callable[..., Any], dim: int) -> Callable[..., Any]:
    """A score whose values are held to [..., dim], those of the coordinates that noise drives.

    Another shape would broadcast. Raises ValueError from the call.
    """

    def checked(y: Any, t: Any, *more: Any) -> Any:
        value = function(y, t, *more)
        output(f"{where}: the score of states {list(y.shape)}", value, (*y.shape[:-1], dim))
        return value

    return checked


def output(what: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError where what a user's function returned is no array of a shape."""
    found = getattr(value, "shape", None)
    if found != shape or not _is_real(getattr(value, "dtype", None)):
        raise ValueError(f"{what} is {shown(value)}; real numbers {list(shape)} are needed")


def shown(value: Any) -> str:
    """A value in a message: type and shape of an array, and a few words of all else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and isinstance(shape, tuple):
        single = shape == () and _known(value) and _is_real(dtype)
        return f"{float(value):g}" if single else f"{dtype}{list(shape)}"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1}..."
    plain = isinstance(value, str | int | float | list | tuple | dict | None)
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def _rule(wanted: Any) -> Any:
    if isinstance(wanted, tuple):
        return tuple(map(_rule, wanted))
    return shape_of(wanted) if isinstance(wanted, str) else wanted


def _name(function: Any) -> str:
    """`GaussianMixture.score` of a method, `references.fit` of a function.

    Of `_velocity`, which computes what `velocity` returns a function for, that one's.
    """
    if "." in function.__qualname__:
        return str(function.__qualname__).removesuffix(".__call__")
    package, *modules = function.__module__.split(".")
    within = f"{modules[0]}." if package == "ndsm_jax" and modules else ""
    return f"{within}{function.__name__.lstrip('_')}"


def _sizes(given: dict[str, Any]) -> dict[str, Any]:
    """Sizes that the arguments themselves state: d, r, K."""
    sizes: dict[str, Any] = {}
    if isinstance(given.get("dim"), int):
        sizes["d"] = given["dim"]
    for name in ("self", "process", "reference", "mixture", "prior"):
        one = given.get(name)
        one = getattr(getattr(one, "experiment", one), "process", one)
        for axis, attribute in (("d", "dim"), ("r", "noise_dim"), ("K", "num_components")):
            size = getattr(one, attribute, None)
            if isinstance(size, int):
                sizes.setdefault(axis, size)
    return sizes


def _check(what: str, value: Any, rule: Any, sizes: dict[str, Any]) -> None:
    before = dict(sizes)
    if not _is(rule, value, sizes):
        lacking = _why_not(value, rule, dict(before)) if isinstance(rule, Shape) else ""
        raise ValueError(f"{what}={shown(value)}{lacking}: {_in_words(rule, before)} is needed")


def _in_words(rule: Any, sizes: dict[str, Any]) -> str:
    if isinstance(rule, tuple):
        return " or ".join(_in_words(one, sizes) for one in rule)
    if isinstance(rule, Shape):
        names = dict.fromkeys(str(axis).partition(" + ")[0] for axis in (*rule.axes, rule.below))
        where = ", ".join(f"{name} = {sizes[name]}" for name in names if name in sizes)
        return (
            ("" if rule.like else "an array of floats ")
            + rule.text
            + (f" with {where}" * bool(where))
        )
    return rule.wanted if isinstance(rule, Needs) else f"a {rule.__name__}"


def _why_not(value: Any, rule: Shape, sizes: dict[str, Any]) -> str | None:
    """What is wrong with a value, beyond its type and shape; None: nothing."""
    if rule.like and not hasattr(value, "dtype"):
        try:
            value = np.asarray(value)
            value = value if value.size else value.astype(int)  # an empty list is one of integers
        except (ValueError, TypeError, OverflowError):  # ragged, or too large
            return ""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return ""
    if rule.integers:
        real = bool(jnp.issubdtype(dtype, np.integer))
    else:  # lists may be of whole numbers; states are of floats, as noise of their type is drawn
        real = _is_real(dtype) if rule.like else bool(jnp.issubdtype(dtype, np.floating))
    if not real or not _fits(shape, rule, sizes):
        return ""
    if rule.finite and not math.prod(shape):
        return " of which there are none"
    if rule.finite and _known(value) and not _is_finite(value):
        return " of which some are not finite"
    if rule.below in sizes and _known(value):
        values = np.asarray(value)
        wrong = values[(values < rule.least) | (values >= sizes[rule.below])]
        if wrong.size:
            return f" with {wrong.flat[0]}"
    return None


def _is_finite(array: Any) -> bool:
    """By pieces: one in a file may be larger than memory."""
    shape = array.shape
    step = max(2**24 * shape[0] // math.prod(shape), 1) if shape else 1
    pieces = (array[i : i + step] for i in range(0, shape[0], step)) if shape else [array]
    return all(np.isfinite(np.asarray(piece)).all() for piece in pieces)


def _fits(shape: tuple[int, ...], rule: Shape, sizes: dict[str, Any]) -> bool:
    """Whether a shape is that of a rule; axes that are new get their sizes."""
    axes = rule.axes
    if axes and axes[0] == "...":
        axes, cut = axes[1:], len(shape) - len(axes) + 1
        if cut < 0:
            return False
        leading, shape = shape[:cut], shape[cut:]
        before = sizes.get("...", leading)
        if not rule.like and len(leading) != len(before):
            return False
        try:
            sizes["..."] = np.broadcast_shapes(before, leading)
        except ValueError:
            return False
    if len(shape) != len(axes):
        return False
    for size, axis in zip(shape, axes, strict=True):
        if isinstance(axis, int):
            if size != axis:
                return False
            continue
        name, _, more = axis.partition(" + ")
        size -= int(more or 0)
        if name.isidentifier() and sizes.setdefault(name, size) != size:
            return False
    return True
