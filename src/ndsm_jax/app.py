"""What the commands in `experiments/` share: flags, set-up, and errors as one readable line."""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from ndsm_jax import parallel
from ndsm_jax.config import Config, check_effect, check_key
from ndsm_jax.runs.loop import Interrupted

CACHE = pathlib.Path.home() / ".cache" / "ndsm_jax" / "xla"
"""Compiled programs are kept here between runs, unless JAX_COMPILATION_CACHE_DIR says otherwise."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags and runs `main(argv)`.

    Errors that the user can mend (config, data, files, checkpoints, divergence) end the program
    with status 1 and their message alone; anything else is a bug and keeps its traceback. After a
    signal the status is 128 and its number, as a shell has it.
    """
    app.run(partial(_guard, main), flags_parser=_parse_flags)


def configured(flag: Any) -> Config:
    """The config of a `config_flags` flag, checked.

    Args:
      flag: what `config_flags.DEFINE_config_file` returned.

    Raises:
      ValueError: a key that is unknown, of a wrong type or out of range; or one that was set on the
        command line and that nothing reads.
    """
    config = Config.from_dict(flag.value)
    set_here = config_flags.get_override_values(flags.FLAGS[flag.name])
    check_effect(config, set_here)
    return config


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
    try:
        _check_config(argv[1:])
        rest = flags.FLAGS(list(argv))
        _check_words(rest[1:])
        _check_not_empty()
        return rest
    except flags.Error as error:
        # What a config file raises comes with its traceback, of which a refusal needs none.
        refused = re.search(r"flag (--\S+): .*\nValueError: ([^\n]+)\s*$", str(error), re.DOTALL)
        sys.exit(f"error: {refused[1]}: {refused[2]}" if refused else f"error: {error}; see --help")
    except (AttributeError, KeyError):
        # All that config_flags says of an override is the last part of the key it does not know.
        for override in re.findall(r"--(?:no)?config\.([\w.]+)", " ".join(argv)):
            try:
                check_key(override)
            except ValueError as error:
                sys.exit(f"error: {error}\n(all keys: docs/configuration.md)")
        raise
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _check_config(words: Sequence[str]) -> None:
    """Raises FileNotFoundError for a --config that does not exist."""
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name.lstrip("-") != "config" or "config" not in flags.FLAGS:
            continue
        path = pathlib.Path((value if equals else following).partition(":")[0])
        if not path.is_file():
            beside = sorted(map(str, path.parent.glob("*.py")))
            there = f"; one of {', '.join(beside)}" if beside else ""
            raise FileNotFoundError(f"--config={path}: no such file{there}")


def _check_words(words: Sequence[str]) -> None:
    """Raises ValueError for words that are no flags: absl leaves them to the program."""
    if words:
        flag = re.match(r"-?([\w.]+)(=|$)", words[0])
        known = flag is not None and (flag[1] in flags.FLAGS or flag[1].startswith("config."))
        meant = f"--{flag[1]}{words[0].partition(flag[1])[2]}" if flag is not None and known else ""
        raise ValueError(
            f"{words[0]!r} is no flag; "
            + (f"did you mean {meant}?" if meant else "flags are --NAME=VALUE, see --help")
        )


def _check_not_empty() -> None:
    """Raises ValueError for a flag that was given and is empty, unless that is its default."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        empty = isinstance(flag.value, str | list) and not flag.value
        if flag.present and empty and flag.default != "" and "." not in name:
            raise ValueError(f"--{name}= is empty (a variable that is not set?); leave it out")


def _guard(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    absl.logging.set_verbosity(absl.logging.WARNING)  # orbax tells every file it opens
    if not flags.FLAGS.traceback:
        _quieten()
    logger = logging.getLogger("ndsm_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.propagate = False
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
    # Where nothing is to be saved a signal ends the program at once, and so does a second one: no
    # exception in the midst of somebody's thread.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _told(main, argv)
    except Exception:
        if jax.distributed.is_initialized():
            _end(traceback.format_exc())
        raise


def _told(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Runs main, and ends with a message where the user can mend what was raised."""
    try:
        main(argv)
    except (ValueError, OSError, FloatingPointError) as error:
        if flags.FLAGS.traceback:
            raise
        _end(f"error: {error}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if flags.FLAGS.traceback or not _is_of_memory(error):
            raise
        _end(
            "error: there is not enough memory; lower train.batch_size, noising.k or"
            " noising.ahead_mb in training, sample.chunk or --num in sampling, or the network's"
            f" width ({str(error).splitlines()[0][:200]})"
        )
    except Interrupted as stopped:
        sys.exit(128 + stopped.number)


def _end(message: str) -> NoReturn:
    """Ends the program with status 1 and a message."""
    if jax.distributed.is_initialized():
        # An ordinary end would wait for the other processes, which wait for this one.
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
    sys.exit(message)


def define_processes() -> None:
    """Defines the flags of a command that can run in several processes."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "In several processes: HOST:PORT of the first, or auto (SLURM, Open MPI, Kubernetes). See"
        " docs/scaling.md.",
    )
    flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)


def join_processes() -> None:
    """Joins the processes that flags tell of, before anything is computed; one alone is quick.

    Raises:
      ValueError: flags that do not go together, or processes that do not find one another.
    """
    given = flags.FLAGS
    address, number, me = given.coordinator, given.num_processes, given.process_id
    if address is None and number is None and me is None:
        return
    if address is None or (address != "auto" and (number is None or me is None)):
        raise ValueError(
            "several processes need all of --coordinator=HOST:PORT of the first, --num_processes"
            " and --process_id; or --coordinator=auto alone, under SLURM, Open MPI or Kubernetes"
        )
    if None not in (number, me) and me >= number:
        raise ValueError(f"--process_id={me} is not below --num_processes={number}; count from 0")
    # Signals are ours: `runs.loop` saves before they take effect.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(None if address == "auto" else address, number, me)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--coordinator={address}: {str(error).splitlines()[0]}; is the first process running"
            " there, and are all of them started?"
        ) from error
    if not parallel.is_first():
        logging.getLogger("ndsm_jax").setLevel(logging.ERROR)


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _quieten() -> None:
    """Messages of libraries stay out: what they say is told in the program's own words, or no
    matter of the user's. Their errors are raised all the same."""
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger("absl").propagate = False
    logging.getLogger("absl").addHandler(logging.NullHandler())
    # Of threads in the background, whose errors are raised where their result is waited for.
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
) -> None:
    if category is UserWarning and "site-packages" not in filename:
        print(f"warning: {message}", file=sys.stderr)


flags.DEFINE_bool("traceback", False, "Show tracebacks of errors, and messages of libraries.")
