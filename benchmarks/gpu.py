"""All that is to be measured on a GPU, in one command of bounded time that goes on where it ended.

Runs the benchmarks of `PARTS` one after the other, each in a process of its own, and writes what
they found to one JSON; a part that is there already is not run again. What is left of the time goes
into the MNIST study as published, `reproduce.py --experiment=mnist --scale=full`, which saves when
the time is over and resumes when the command is given again.

    python benchmarks/gpu.py --minutes=20 --folder=runs/gpu --data_dir=IDX_FOLDER
    python benchmarks/gpu.py --quick --minutes=2 --folder=runs/gpu_quick
"""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import common
from absl import flags

from ndsm_jax import app
from ndsm_jax.runs import json_text, replace_file

MINUTES = flags.DEFINE_float("minutes", 20, "How long it may take.", lower_bound=0)
FOLDER = flags.DEFINE_string("folder", "runs/gpu", "Of the results.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "MNIST's IDX files; without them: no study.")

PARTS = ("throughput", "step_cost", "noising_cost", "samplers", "likelihood")
SAVE_SECONDS = 60
"""What the study may take to save after it was asked to end."""

HERE = pathlib.Path(__file__).parent


def main(argv: Sequence[str]) -> None:
    end = time.monotonic() + 60 * MINUTES.value
    folder = pathlib.Path(FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        out = folder / f"{part}.json"
        if out.exists():
            continue
        command: list[str | pathlib.Path] = [HERE / f"{part}.py", f"--out={out}"]
        command.append(f"--seed={common.SEED.value}")
        if common.QUICK.value:
            command.append("--quick")
        if not run(command, end):
            print(f"{part}: not finished in the time given; the same command goes on with it")
            break
    done = {
        part: json.loads((folder / f"{part}.json").read_text())
        for part in PARTS
        if (folder / f"{part}.json").exists()
    }
    replace_file(folder / "gpu.json", json_text(done).encode())
    print(f"{len(done)} of {len(PARTS)} parts: {folder / 'gpu.json'}")
    if len(done) == len(PARTS) and DATA_DIR.value is not None and time.monotonic() < end:
        scale = "smoke" if common.QUICK.value else "full"
        study = ["--experiment=mnist", f"--scale={scale}", f"--workdir={folder / 'study'}"]
        data = f"--data_dir={DATA_DIR.value}"
        finished = run([HERE.parent / "experiments/reproduce.py", *study, data], end)
        print(f"the study is {'complete' if finished else 'saved; the same command resumes it'}")


def run(command: Sequence[str | pathlib.Path], end: float) -> bool:
    """Whether a script ended well before `end`, on the monotonic clock; it is asked to stop then.

    Raises:
      SystemExit: it failed.
    """
    words = [sys.executable, *map(str, command)]
    print(f"{' '.join(words[1:])} ...", flush=True)
    process = subprocess.Popen(words)
    try:
        code = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        return False
    if code:
        raise SystemExit(f"{words[1]} ended with exit code {code}")
    return True


if __name__ == "__main__":
    app.run(main)
