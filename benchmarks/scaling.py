"""The same work on one device, on several, and in several processes, on the cores of this machine.

  python benchmarks/scaling.py
  python benchmarks/scaling.py --quick

For noising, training with a control variate (its products of per-sample gradients every step),
sampling and likelihood, at a fixed number of rows:

  share   of the arithmetic that one device does, as the compiler counts it, 1 / n being the least
  ratio   seconds over those of one device, called in turn; simulated devices share the same cores,
          so that what is above 1 is the cost of dividing the work

The numbers of devices are each a process of their own, as JAX fixes them when it starts.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from ndsm_jax import likelihood, parallel
from ndsm_jax.config import Config
from ndsm_jax.launch import fitted, load_data
from ndsm_jax.sampling import sample
from ndsm_jax.training import init_state, make_dispatch, make_noise

ROWS = flags.DEFINE_integer("rows", 512, "Of a minibatch, a chunk of samples and of densities.")
CHILD = flags.DEFINE_bool("child", False, "A process that measures when it is asked to.")
ADDRESS = flags.DEFINE_string("address", None, "Of several processes, of the first.")
PROCESSES = flags.DEFINE_integer("processes", 1, "How many.")
ME = flags.DEFINE_integer("me", 0, "Which one.")

PARTS = ("noising", "training", "sampling", "likelihood")


class Layout(NamedTuple):
    """Devices a process, and processes."""

    devices: int
    processes: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}" if self.processes > 1 else f"{self.devices}"


LAYOUTS = (Layout(1, 1), Layout(2, 1), Layout(4, 1), Layout(8, 1), Layout(1, 2), Layout(4, 2))


def parts() -> dict[str, tuple[Callable[[], Any], float]]:
    """What is timed, by name, with the arithmetic of one device in its longest program."""
    num = ROWS.value
    config = Config.from_dict(
        {
            "data": {"name": "digits"},
            "mixture": {"num_components": 10},
            "network": {"name": "mlp", "width": 256, "depth": 4},
            "objective": {"name": "ndsm_cv"},
            "control_variate": {"period": 1},
            "train": {"batch_size": num, "select": "last"},
        }
    )
    dataset = load_data(config)
    _, experiment = fitted(config, dataset)
    x = experiment.frame.prepare(dataset.train)
    state = init_state(experiment, seed=0)
    where = parallel.shardings(state)
    state = parallel.placed(state, where)
    experiment = parallel.replicated(experiment)
    noise, dispatch = make_noise(0), make_dispatch(0, where=where)
    rows = np.random.default_rng(0).integers(len(x), size=(4, num))
    items = parallel.gathered(x, rows, axis=1)
    ahead = noise(experiment, items, 0, None)
    score = experiment.model.bind(jax.tree.map(jnp.copy, state.params))  # the state is donated
    y = np.resize(x, (num, x.shape[1]))
    key = jax.random.key(0)

    def train() -> Any:
        nonlocal state
        state, metrics = dispatch(state, experiment, ahead, 0, 4)
        return metrics

    def draw() -> Any:
        return sample(key, score, experiment.process, num, grid=20, chunk=num)

    def density() -> Any:
        found = likelihood.log_prob(key, score, experiment.process, y, grid=10, chunk=num)
        return found.value

    counted = {
        "noising": flops(noise, experiment, items, 0, None),
        "training": flops(dispatch, state, experiment, ahead, 0, 4),
    }
    calls = (lambda: noise(experiment, items, 0, None), train, draw, density)
    return {
        name: (call, counted.get(name, float("nan")))
        for name, call in zip(PARTS, calls, strict=True)
    }


def flops(call: Any, *arguments: Any) -> float:
    """Of one device in the compiled program of a partial function; loops count once."""
    program: Any = call.func.lower(*call.args, *arguments).compile()
    return float(program.cost_analysis()["flops"])


def child() -> None:
    """Says what its parts count, and then times the part that each line of the input names."""
    if ADDRESS.value:
        jax.distributed.initialize(ADDRESS.value, PROCESSES.value, ME.value)
    measured = parts()
    for call, _ in measured.values():
        jax.block_until_ready(call())  # compiles
    say({name: count for name, (_, count) in measured.items()})
    for line in sys.stdin:
        call, _ = measured[line.strip()]
        start = time.perf_counter()
        jax.block_until_ready(call())
        say(time.perf_counter() - start)


MARK = "measured: "


def say(what: Any) -> None:
    print(f"{MARK}{json.dumps(what)}", flush=True)


def hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise SystemExit("a process of the benchmark has ended; run it with --child to see why")


def start(layout: Layout) -> list[subprocess.Popen[str]]:
    """The processes of a layout."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        address = f"localhost:{one.getsockname()[1]}"
    devices = f"--xla_force_host_platform_device_count={layout.devices}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
    }
    several = [f"--address={address}", f"--processes={layout.processes}"]
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--child", f"--rows={ROWS.value}", f"--me={me}"]
            + (several if layout.processes > 1 else []),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for me in range(layout.processes)
    ]


def ask(processes: Sequence[subprocess.Popen[str]], name: str) -> float:
    """Seconds of a part: the slowest process's."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    return max(hear(process) for process in processes)


def main(argv: Sequence[str]) -> None:
    del argv
    if CHILD.value:
        child()
        return
    layouts = (LAYOUTS[0], LAYOUTS[3], LAYOUTS[5]) if common.QUICK.value else LAYOUTS
    started = {layout: start(layout) for layout in layouts}
    heard = {layout: [hear(p) for p in processes] for layout, processes in started.items()}
    counts = {layout: each[0] for layout, each in heard.items()}
    rows = []
    for name in PARTS:
        seconds: dict[Layout, list[float]] = {layout: [] for layout in layouts}
        for _ in range(3 if common.QUICK.value else 7):
            for layout in layouts:
                seconds[layout].append(ask(started[layout], name))
        one = layouts[0]
        for layout in layouts:
            pairs = zip(seconds[layout], seconds[one], strict=True)
            share = counts[layout][name] / counts[one][name]
            rows.append(
                {
                    "name": name,
                    "devices": str(layout),
                    "share": None if np.isnan(share) else share,
                    "ratio": statistics.median(a / b for a, b in pairs),
                    "seconds": statistics.median(seconds[layout]),
                }
            )
    for processes in started.values():
        for process in processes:
            process.kill()
    common.report(rows)


if __name__ == "__main__":
    app.run(main)
