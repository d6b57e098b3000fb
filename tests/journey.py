"""A training and what comes of it, on whatever devices there are, for test_parallel.py.

  python tests/journey.py OUT FOLDER STEPS [--shard_parameters] [ADDRESS PROCESSES ME]

Writes the results to OUT.ME.npz, and goes on from the run in FOLDER.
"""

import os
import sys

import jax
import numpy as np


def main(out: str, folder: str, steps: str, *rest: str) -> None:
    shard, processes_of = "--shard_parameters" in rest, [a for a in rest if a[:2] != "--"]
    if processes_of:
        address, number, me = processes_of
        jax.distributed.initialize(address, int(number), int(me))
    from ndsm_jax import parallel, processes, references
    from ndsm_jax.experiment import experiment
    from ndsm_jax.networks import ScoreMLP
    from ndsm_jax.training import HeldOut, draw, log_prob, train

    mixture = references.mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.3])
    made = experiment(
        processes.langevin(mixture),
        network=ScoreMLP(width=64, depth=3),
        objective="ndsm_cv",
        sample_grid=6,
    )
    rng = np.random.default_rng(0)
    state = train(
        made,
        rng.normal(size=(100, 2)),
        steps=int(steps),
        batch_size=16,
        held_out=HeldOut(data=rng.normal(size=(20, 2)), every=4),
        run=folder,
        shard_parameters=shard,
        progress=False,
    )
    # 11 and 7 do not divide among the devices.
    samples = draw(made, state, 11, chunk=6, progress=False)
    density = log_prob(made, state, rng.normal(size=(7, 2)), chunk=5, steps=6, progress=False)
    largest = max(jax.tree.leaves(state.params), key=np.size)
    np.savez(
        f"{out}.{jax.process_index()}.npz",
        devices=jax.device_count(),
        params=np.concatenate([np.ravel(a) for a in jax.tree.leaves(parallel.fetched(state.ema))]),
        control=np.concatenate(
            [np.ravel(a) for a in jax.tree.leaves(parallel.fetched(state.control))]
        ),
        samples=samples,
        density=density.value,
        parts=len({str(s.index) for s in largest.addressable_shards}),
    )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(*sys.argv[1:])
