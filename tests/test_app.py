"""What a user sees of a command that ends otherwise than it should, in processes of their own."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

SCRIPT = """
import contextlib, io, json, logging, os, pathlib, resource, signal, sys, threading, traceback
import warnings
import jax
from absl import flags
from absl.testing import flagsaver
from ndsm_jax import app
from ndsm_jax.runs.loop import Interrupted
from tests.runs.test_loop import train

flags.DEFINE_string("workdir", None, "A folder.")
flags.DEFINE_string("data_dir", "", "Empty: the default.")
flags.DEFINE_list("label", [], "Words.")
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.

def fail(error):
    raise error

def noisy(argv):
    import absl.logging
    absl.logging.error("of orbax")
    logging.getLogger("asyncio").error("of asyncio")
    warnings.warn("of numpy", RuntimeWarning)
    warnings.warn("of ours", UserWarning)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

def interrupted(number):
    return lambda argv: train(
        folder / str(number), at={17: lambda: os.kill(os.getpid(), number)}, tensorboard=False
    )

def full(argv):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    train(folder / "full", at={17: limit})

def at_config(argv):
    print(app.configured(CONFIG).train.steps)

from ml_collections import config_flags
CONFIG = config_flags.DEFINE_config_file("config", None, "A config.", lock_config=True)
configs = pathlib.Path(sys.argv[2])

CASES = {
    "ok": (["--data_dir=", "--label=a,b"], lambda argv: print("fine")),
    "empty": (["--workdir="], noisy),
    "empty list": (["--label="], noisy),
    "word": (["foo"], noisy),
    "no dashes": (["config.train.steps=5"], noisy),
    "one dash missing": (["workdir=x"], noisy),
    "noisy": ([], noisy),
    "memory": ([], lambda argv: fail(MemoryError("Unable to allocate 14.9 GiB"))),
    "xla memory": ([], lambda argv: fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out"))),
    "bug": ([], lambda argv: {}["key"]),
    "SIGINT": ([], interrupted(signal.SIGINT)),
    "SIGTERM": ([], interrupted(signal.SIGTERM)),
    "SIGHUP": ([], interrupted(signal.SIGHUP)),
    "full": ([], full),
    "unknown flag": (["--nope=3"], noisy),
    "config": ([f"--config={configs / 'default.py'}:smoke", "--config.train.steps=7"], at_config),
    "variant": ([f"--config={configs / 'default.py'}:vpp"], at_config),
    "no such config": ([f"--config={configs / 'nope.py'}"], at_config),
    "key without section": (
        [f"--config={configs / 'default.py'}", "--config.learning_rate=1"],
        at_config,
    ),
}
results = {}
for name, (arguments, main) in CASES.items():
    sys.argv, text, code = ["script", *arguments], io.StringIO(), None
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), flagsaver.flagsaver():
        try:
            app.run(main)
        except SystemExit as stopped:
            code = stopped.code
        except BaseException:
            code = traceback.format_exc()
    logging.getLogger("ndsm_jax").handlers.clear()
    said = isinstance(code, str)
    results[name] = [1 if said else code or 0, text.getvalue() + (code if said else "")]
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("app")), str(ROOT / "configs")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    # What threads wrote past the redirection would be a stray message, too.
    assert found.stderr == ""
    return json.loads(found.stdout.partition("RESULTS")[2])


@pytest.mark.parametrize(
    ("name", "status", "output"),
    [
        ("ok", 0, "fine\n"),
        ("empty", 1, "error: --workdir= is empty (a variable that is not set?); leave it out"),
        ("empty list", 1, "error: --label= is empty (a variable that is not set?); leave it out"),
        ("word", 1, "error: 'foo' is no flag; flags are --NAME=VALUE, see --help"),
        (
            "no dashes",
            1,
            "error: 'config.train.steps=5' is no flag; did you mean --config.train.steps=5?",
        ),
        ("one dash missing", 1, "error: 'workdir=x' is no flag; did you mean --workdir=x?"),
        ("noisy", 0, "warning: of ours\n"),
        ("config", 0, "7\n"),
        ("unknown flag", 1, "error: Unknown command line flag 'nope'; see --help"),
    ],
)
def test_status_and_all_that_is_said(name, status, output, results):
    assert results[name] == [status, output]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "variant",
            r"error: --config=\S+default\.py:vpp: unknown variant 'vpp': choose one of smoke",
        ),
        ("no such config", r"error: --config=\S+nope\.py: no such file; one of \S+approx_c2\.py, "),
        (
            "key without section",
            r"error: learning_rate: .*did you mean .*optimizer\.learning_rate or ",
        ),
    ],
)
def test_a_config_that_does_not_exist_is_one_line(name, said, results):
    assert results[name][0] == 1
    assert re.match(said, results[name][1])
    assert "Traceback" not in results[name][1]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_have_the_status_that_a_shell_gives_them(name, status, results):
    assert results[name][0] == status
    said = r"interrupted: step \d+ is saved; the same command resumes\n"
    assert re.fullmatch(said, results[name][1])


@pytest.mark.parametrize("name", ["memory", "xla memory"])
def test_too_little_memory_is_one_line(name, results):
    status, output = results[name]
    assert status == 1
    assert output.startswith("error: there is not enough memory; lower train.batch_size")
    assert "\n" not in output


def test_a_full_disk_is_one_line(results):
    status, output = results["full"]
    assert status == 1
    assert output.startswith("error: ")
    assert "File too large" in output
    assert "\n" not in output


def test_a_bug_keeps_its_traceback(results):
    assert results["bug"][0] == 1
    assert "Traceback" in results["bug"][1]
    assert "KeyError: 'key'" in results["bug"][1]


def test_what_nobody_foresaw_ends_all_processes_at_once(tmp_path):
    """One of two raises; JAX's own end would wait for the other, and it for the first, minutes."""
    script = tmp_path / "raises.py"
    script.write_text(
        "from ndsm_jax import app\n"
        "app.define_processes()\n"
        "def main(argv):\n"
        "    app.join_processes()\n"
        "    raise ZeroDivisionError('unforeseen')\n"
        "app.run(main)\n"
    )
    with socket.socket() as one:
        one.bind(("localhost", 0))
        address = f"--coordinator=localhost:{one.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, "--num_processes=2", f"--process_id={me}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode != 0
        # Its own error, or what the coordination service says of the other.
        assert "ZeroDivisionError: unforeseen" in errors or "oordinat" in errors
