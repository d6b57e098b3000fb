"""What the commands in `experiments/` share: flags, set-up, and errors as one readable line."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from ndsm_jax.config import Config, check_effect, check_key

CACHE = pathlib.Path.home() / ".cache" / "ndsm_jax" / "xla"
"""Compiled programs are kept here between runs, unless JAX_COMPILATION_CACHE_DIR says otherwise."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags and runs `main(argv)`.

    Errors that the user can mend (config, data, files, checkpoints, divergence) end the program
    with status 1 and their message alone; anything else is a bug and keeps its traceback.
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
        return app.parse_flags_with_usage(list(argv))
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


def _guard(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    absl.logging.set_verbosity(absl.logging.WARNING)  # orbax tells every file it opens
    logger = logging.getLogger("ndsm_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.propagate = False
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
    try:
        main(argv)
    except (ValueError, OSError, FloatingPointError) as error:
        if flags.FLAGS.traceback:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


flags.DEFINE_bool("traceback", False, "Show the full traceback of errors.")
