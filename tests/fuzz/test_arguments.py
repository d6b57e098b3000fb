"""Public functions with one argument that is something else."""

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from ndsm_jax import (
    augmentation,
    conditioning,
    conditions,
    contrast,
    currents,
    derivatives,
    evaluation,
    guidance,
    integrators,
    likelihood,
    linear_maps,
    measurements,
    networks,
    noising,
    objectives,
    processes,
    references,
    sampling,
    training,
)
from ndsm_jax.experiment import experiment
from ndsm_jax.sampling import noise_levels, origin
from tests.fuzz.trial import examples, judge

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
POINTS = RNG.normal(size=(40, 2)).astype(np.float32)
MIXTURE = references.mixture([0.5, 0.3, 0.2], RNG.normal(size=(3, 2)), [1.0, 0.5, 0.7])
OU = processes.ornstein_uhlenbeck(2)
LANGEVIN = processes.langevin(MIXTURE)
GRID = integrators.time_grid(OU, 4)
STUDENT = references.student_t(2, degrees=4.0)
PARTITION = references.centres([[0.0, 0.0], [1.0, 1.0]], 0.5)
NETWORK = networks.ScoreMLP(width=4, depth=1)
PARAMS = NETWORK.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))
EXPERIMENT = experiment(OU, objective="dsm", network=NETWORK, sample_grid=4)
STATE = training.init_state(EXPERIMENT, seed=0)
LABELS = np.arange(40) % 2
CLASSES = conditions.Classes(shares=jnp.full(2, 0.5), log_weights=jnp.log(jnp.full((3, 3), 1 / 3)))
READ = measurements.given([[0.0, np.nan]])


def score(y: Any, t: Any) -> Any:
    return -y


def energy(y: Any) -> Any:
    return 0.5 * jnp.sum(y**2)


BATCH = noising.exact_kernel(OU, GRID, k=2)(KEY, jnp.asarray(POINTS[:4]))
Y, T = jnp.asarray(POINTS[:4]), jnp.full(4, 0.5)

Case = tuple[Callable[..., Any], dict[str, Any]]

POINTWISE: dict[str, Case] = {
    **{
        f"GaussianMixture.{name}": (getattr(MIXTURE, name), {"y": Y})
        for name in ("component_log_prob", "log_prob", "responsibilities", "score", "most_likely")
    },
    "GaussianMixture.score_hvp": (MIXTURE.score_hvp, {"y": Y, "v": Y}),
    "GaussianMixture.sample_component": (
        MIXTURE.sample_component,
        {"index": jnp.array([0, 1, 2, 0]), "noise": Y},
    ),
    "GaussianMixture.standardise": (
        MIXTURE.standardise,
        {"index": jnp.array([0, 1, 2, 0]), "y": Y},
    ),
    "StudentT.log_prob": (STUDENT.log_prob, {"y": Y}),
    "StudentT.score": (STUDENT.score, {"y": Y}),
    "Centres.responsibilities": (PARTITION.responsibilities, {"y": Y}),
    "processes.pull_back": (
        processes.pull_back,
        {"process": LANGEVIN, "y": Y, "t": T, "v": Y},
    ),
    "ScoreMLP": (
        lambda y, c: NETWORK.apply(PARAMS, y, c),
        {"y": Y, "c": T},
    ),
    "ScoreModel": (
        lambda y, t: EXPERIMENT.model(STATE.params, y, t),
        {"y": Y, "t": T},
    ),
    "sampling.denoise": (
        sampling.denoise,
        {"score": score, "process": OU, "x": Y, "t": jnp.float32(0.1)},
    ),
    "integrators.simulate": (
        integrators.simulate,
        {"key": KEY, "process": OU, "y0": Y, "grid": GRID},
    ),
    "noising.ExactKernel": (
        noising.exact_kernel(OU, GRID),
        {"key": KEY, "x0": Y},
    ),
    "currents.current": (
        currents.current,
        {"process": OU, "score": score, "log_prob": -T, "y": Y, "t": T},
    ),
    "currents.velocity": (
        lambda process, score, y, t: currents.velocity(process, score)(y, t),
        {"process": OU, "score": score, "y": Y, "t": T},
    ),
    "currents.transport": (
        currents.transport,
        {"process": OU, "score": score, "y0": Y, "grid": GRID, "log_prob": -T},
    ),
    "currents.reversed_drift": (
        lambda process, odd, y, t: currents.reversed_drift(process, odd)(y, t),
        {"process": OU, "odd": (1,), "y": Y, "t": T},
    ),
    "currents.entropy_rates": (
        currents.entropy_rates,
        {"process": OU, "score": score, "y": Y, "t": T, "odd": (1,)},
    ),
    "derivatives.divergence": (
        derivatives.divergence,
        {"function": lambda y: -y, "y": Y, "probe": Y, "noisy": (0, 1)},
    ),
    **{
        f"{kind.__name__}.{method}": (
            lambda y, method=method, kind=kind, **field: getattr(kind(**field), method)(y),
            {"y": Y, **field},
        )
        for kind, field in (
            (linear_maps.Scalar, {"value": T}),
            (linear_maps.Diagonal, {"values": Y}),
            (linear_maps.Blocks, {"matrix": jnp.stack([jnp.eye(2)] * 4)}),
            (linear_maps.Dense, {"matrix": jnp.stack([jnp.eye(2)] * 4)}),
        )
        for method in ("mv", "solve_t")
    },
    **{
        f"{kind.__name__}.log_det": (
            lambda dim, kind=kind, **field: kind(**field).log_det(dim),
            {"dim": 2, **field},
        )
        for kind, field in (
            (linear_maps.Scalar, {"value": T}),
            (linear_maps.Diagonal, {"values": Y}),
            (linear_maps.Blocks, {"matrix": jnp.eye(2)}),
            (linear_maps.Dense, {"matrix": jnp.eye(2)}),
        )
    },
    "linear_maps.Gaussian": (
        lambda x, z, **fields: linear_maps.Gaussian(**fields).sample(x, z),
        {"scale": linear_maps.Scalar(value=T), "root": linear_maps.Scalar(value=T), "x": Y, "z": Y},
    ),
    "linear_maps.isotropic": (
        lambda scale, std, z: linear_maps.isotropic(scale, std).score(z),
        {"scale": T, "std": T, "z": Y},
    ),
    "linear_maps.wrapped": (
        lambda std, period, z: linear_maps.wrapped(std, period).score(z),
        {"std": T, "period": jnp.float32(6.0), "z": Y},
    ),
    "linear_maps.wrapped_score": (
        linear_maps.wrapped_score,
        {"x": Y, "std": T, "period": jnp.float32(6.0)},
    ),
    "linear_maps.select": (linear_maps.select, {"y": Y, "indices": (1,)}),
    "linear_maps.embed": (linear_maps.embed, {"u": Y, "indices": (2, 0), "dim": 3}),
    "contrast.extrapolated": (
        lambda y, t, **of: contrast.extrapolated(**of)(y, t),
        {
            "score": score,
            "weaker": score,
            "process": OU,
            "scale": 2.0,
            "low": 0.0,
            "high": 1.0,
            "y": Y,
            "t": T,
        },
    ),
    "conditions.null": (conditions.null, {"condition": LABELS}),
    "conditions.dropped": (
        conditions.dropped,
        {
            "key": KEY,
            "condition": {"class": jnp.asarray(LABELS), "at": Y[:1].repeat(40, 0)},
            "rate": 0.5,
        },
    ),
    "conditions.Classes": (
        lambda labels, components, **fields: (
            conditions.Classes(**fields).start_log_weights(labels),
            conditions.Classes(**fields).of_components(components),
        ),
        {
            "labels": [0],
            "components": [1],
            "shares": CLASSES.shares,
            "log_weights": CLASSES.log_weights,
        },
    ),
    "conditions.example": (conditions.example, {"condition": LABELS}),
    "Mirrored": (
        lambda shape, key, x: augmentation.Mirrored(shape=shape)(key, x),
        {"shape": (2, 1, 1), "key": KEY, "x": Y},
    ),
    "Shifted": (
        lambda shape, pixels, key, x: augmentation.Shifted(shape=shape, pixels=pixels)(key, x),
        {"shape": (2, 1, 1), "pixels": 1, "key": KEY, "x": Y},
    ),
}
"""Functions of states that say of a NaN what arithmetic does."""

FUNCTIONS: dict[str, Case] = {
    "GaussianMixture.sample": (MIXTURE.sample, {"key": KEY, "shape": (3,)}),
    "StudentT.sample": (STUDENT.sample, {"key": KEY, "shape": (3,)}),
    "references.mixture": (
        references.mixture,
        {
            "weights": [0.5, 0.5],
            "means": POINTS[:2],
            "covariances": [1.0, 2.0],
            "covariance": "spherical",
        },
    ),
    "references.standard_normal": (references.standard_normal, {"dim": 2, "variance": 1.0}),
    "references.reweighted": (references.reweighted, {"mixture": MIXTURE, "power": 0.5}),
    "references.floored": (references.floored, {"mixture": MIXTURE, "smallest": 0.1}),
    "references.fit": (
        references.fit,
        {
            "data": POINTS,
            "num_components": 2,
            "covariance": "diag",
            "rank": 1,
            "subset": 0,
            "num_inits": 1,
            "init": "kmeans",
            "min_covariance": 1e-3,
            "max_iterations": 5,
            "solver": "auto",
            "criterion": "bic",
            "seed": 0,
            "start": None,
        },
    ),
    "references.choose": (
        references.choose,
        {
            "data": POINTS,
            "covariances": ("spherical",),
            "numbers": (1, 2),
            "num_inits": 1,
            "min_covariance": 1e-3,
            "criterion": "cross_validation",
            "seed": 0,
        },
    ),
    "references.student_t": (
        references.student_t,
        {"dim": 2, "degrees": 4.0, "location": 0.0, "scale": [1.0, 2.0]},
    ),
    "references.logistic": (references.logistic, {"dim": 2, "location": 0.0, "scale": 1.0}),
    "references.uniform_torus": (references.uniform_torus, {"dim": 2, "period": 6.0}),
    "references.fit_student_t": (
        references.fit_student_t,
        {"data": POINTS, "degrees": 4.0, "shared": False, "max_iterations": 5, "tolerance": 1e-3},
    ),
    "references.fit_logistic": (references.fit_logistic, {"data": POINTS, "shared": True}),
    "references.energy": (references.energy, {"function": energy, "samples": POINTS, "dim": 2}),
    "references.centres": (
        references.centres,
        {"positions": POINTS[:2], "bandwidth": 0.5, "period": None},
    ),
    "references.metastable_states": (
        references.metastable_states,
        {"samples": POINTS, "num": 2, "bandwidth": 0.0, "period": None, "seed": 0},
    ),
    "references.tilted": (
        references.tilted,
        {"reference": MIXTURE, "partition": PARTITION, "weights": [1.0, 2.0]},
    ),
    "references.conditional": (
        references.conditional,
        {"mixture": MIXTURE, "measurement": measurements.given([[0.0, np.nan]])},
    ),
    "processes.langevin": (processes.langevin, {"reference": MIXTURE, "horizon": 1.0}),
    "processes.ornstein_uhlenbeck": (
        processes.ornstein_uhlenbeck,
        {"dim": 2, "variance": 1.0, "horizon": None},
    ),
    "processes.variance_preserving": (
        processes.variance_preserving,
        {"dim": 2, "beta_min": 0.1, "beta_max": 20.0, "horizon": None},
    ),
    "processes.variance_exploding": (
        processes.variance_exploding,
        {"dim": 2, "sigma_min": 0.01, "sigma_max": 5.0, "horizon": None},
    ),
    "processes.wrapped": (
        processes.wrapped,
        {"dim": 2, "period": 6.0, "sigma_min": 0.01, "sigma_max": 0.0, "horizon": None},
    ),
    "processes.critically_damped": (
        processes.critically_damped,
        {"dim": 2, "mass": 0.25, "rate": 4.0, "horizon": None},
    ),
    "processes.process": (
        processes.process,
        {
            "drift": score,
            "diffusion": 1.0,
            "reference": MIXTURE,
            "horizon": 1.0,
            "clock": None,
            "noisy": None,
            "known": None,
            "name": "own",
        },
    ),
    "processes.reverse_drift": (processes.reverse_drift, {"process": OU, "score": score}),
    "processes.active_swimmer": (processes.active_swimmer, {"gamma": 0.1, "horizon": None}),
    "processes.duffing": (processes.duffing, {"damping": 0.3, "linear": -1.0, "noise": 0.3}),
    "processes.lorenz63": (processes.lorenz63, {"sigma": 10.0, "rho": 28.0, "unit": 1.0}),
    "integrators.time_grid": (
        integrators.time_grid,
        {"process": OU, "num_steps": 4, "kind": "clock", "smallest_variance": 1e-3},
    ),
    "noising.time_law": (
        noising.time_law,
        {"clock": OU.clock, "grid": GRID, "kind": "clock", "stratified": True},
    ),
    "noising.exact_kernel": (
        noising.exact_kernel,
        {
            "process": OU,
            "grid": GRID,
            "k": 2,
            "times": None,
            "first": None,
            "weight": None,
            "stable": True,
        },
    ),
    "noising.local_steps": (
        noising.local_steps,
        {
            "process": LANGEVIN,
            "grid": GRID,
            "k": 2,
            "noises": 1,
            "loss_step": 0.0,
            "loss_fraction": 2.0,
            "simulation": "auto",
            "integrator": "euler",
            "times": None,
            "stable": True,
        },
    ),
    "noising.path_windows": (
        noising.path_windows,
        {
            "process": LANGEVIN,
            "grid": GRID,
            "k": 2,
            "window": 0.0,
            "weights": "sinh",
            "curvature": 0.0,
            "companion": False,
            "simulation": "full",
            "integrator": "euler",
        },
    ),
    "noising.make_chain": (
        noising.make_chain,
        {"process": LANGEVIN, "grid": GRID, "kind": "full", "integrator": "euler", "paths": 1},
    ),
    "noising.linearise": (noising.linearise, {"process": LANGEVIN, "jacobian": "dense"}),
    "objectives.dsm": (objectives.dsm, {"score_fn": score, "batch": BATCH}),
    "objectives.ism": (objectives.ism, {"score_fn": score, "batch": BATCH}),
    "objectives.ndsm": (objectives.ndsm, {"score_fn": score, "batch": BATCH}),
    "objectives.check_process": (
        objectives.check_process,
        {"objective": "dsm", "process": OU},
    ),
    "sampling.sample": (
        sampling.sample,
        {
            "key": KEY,
            "score": score,
            "process": OU,
            "num": 3,
            "grid": GRID,
            "sampler": None,
            "components": None,
            "chunk": 3,
            "hook": None,
            "on_chunk": None,
        },
    ),
    "sampling.trajectories": (
        sampling.trajectories,
        {
            "key": KEY,
            "score": score,
            "process": OU,
            "num": 3,
            "grid": GRID,
            "sampler": None,
            "components": None,
            "chunk": 3,
        },
    ),
    "sampling.MultistepSDE": (sampling.MultistepSDE, {"order": 2}),
    "sampling.HeunFlow": (sampling.HeunFlow, {"churn": 0.5}),
    "sampling.AnnealedLangevin": (
        sampling.AnnealedLangevin,
        {"langevin_steps": 2, "langevin_length": 0.1},
    ),
    "sampling.AdaptiveFlow": (sampling.AdaptiveFlow, {"rtol": 1e-3, "atol": 1e-3}),
    "sampling.PredictorCorrector": (
        lambda **fields: sampling.PredictorCorrector(**fields).check(OU),
        {"corrector_steps": 2, "snr": 0.1, "predictor": sampling.ReverseSDE()},
    ),
    "sampling.RestartFlow": (
        lambda **fields: sampling.RestartFlow(**fields).check(OU),
        {"restarts": 2, "restart_low": 0.1, "restart_high": 0.5, "flow": sampling.HeunFlow()},
    ),
    "noise_levels.largest_distance": (
        noise_levels.largest_distance,
        {"x": POINTS, "max_items": 10},
    ),
    "noise_levels.coverage": (noise_levels.coverage, {"levels": [2.0, 1.0, 0.5], "dim": 8}),
    "noise_levels.level_ratio": (noise_levels.level_ratio, {"dim": 8}),
    "noise_levels.num_levels": (
        noise_levels.num_levels,
        {"sigma_min": 0.1, "sigma_max": 1.0, "dim": 8},
    ),
    "noise_levels.langevin_step": (noise_levels.langevin_step, {"gamma": 1.1, "repeats": 3}),
    "guidance.Twisted": (
        lambda **fields: guidance.Twisted(**fields).check(OU),
        {
            "sampler": sampling.ReverseSDE(),
            "measurement": READ,
            "particles": 4,
            "threshold": 0.5,
            "error": 0.1,
        },
    ),
    "guidance.Replacement": (
        lambda **fields: guidance.Replacement(**fields).check(OU),
        {"sampler": sampling.ReverseSDE(), "measurement": READ, "repeats": 2},
    ),
    "guidance.Reconstruction": (
        lambda **fields: guidance.Reconstruction(**fields).check(OU),
        {"sampler": sampling.ReverseSDE(), "measurement": READ, "error": 0.1},
    ),
    "guidance.log_likelihood": (
        guidance.log_likelihood,
        {
            "process": OU,
            "measurement": measurements.given(np.zeros((4, 2))),
            "law": origin.origin(OU, origin.components(OU), Y, jnp.float32(0.5), -Y),
        },
    ),
    "contrast.untold": (contrast.untold, {"score": score}),
    "contrast.unconditional": (contrast.unconditional, {"score": score}),
    "contrast.Contrast": (
        lambda score, process, **fields: contrast.Contrast(**fields)(score, process),
        {
            "score": score,
            "process": OU,
            "scale": 2.0,
            "low": 0.0,
            "high": 0.5,
            "weaker": score,
        },
    ),
    "conditions.check": (
        conditions.check,
        {
            "what": "f",
            "condition": LABELS,
            "like": conditions.example(LABELS),
            "num": 40,
            "num_classes": 2,
        },
    ),
    "Classes.start_log_weights": (CLASSES.start_log_weights, {"labels": [0, -1]}),
    "Classes.of_components": (CLASSES.of_components, {"components": [0, 2]}),
    "likelihood.Flow": (likelihood.Flow, {"probes": 1, "law": "rademacher", "tolerance": None}),
    "likelihood.Bound": (likelihood.Bound, {"paths": 2, "importance": 1}),
    "likelihood.log_prob": (
        likelihood.log_prob,
        {
            "key": KEY,
            "score": score,
            "process": OU,
            "y": POINTS[:3],
            "method": None,
            "grid": GRID,
            "start": None,
            "chunk": 3,
            "on_chunk": None,
        },
    ),
    "measurements.given": (measurements.given, {"x": POINTS[:2], "noise": 0.1}),
    "measurements.linear": (
        measurements.linear,
        {"matrix": [[1.0, 1.0]], "value": [[0.5]], "noise": 0.1, "covariance": None},
    ),
    "measurements.mean_pooling": (
        measurements.mean_pooling,
        {"shape": (4, 4, 1), "factor": 2},
    ),
    "conditioning.most_likely_component": (
        conditioning.most_likely_component,
        {"prior": MIXTURE, "x": POINTS},
    ),
    "conditioning.labelled_subset": (
        conditioning.labelled_subset,
        {"labels": LABELS, "per_class": 2, "seed": 0},
    ),
    "conditioning.class_table": (
        conditioning.class_table,
        {"prior": MIXTURE, "x": POINTS, "labels": LABELS, "num_classes": 2, "prior_count": 0.1},
    ),
    "conditioning.class_log_weights": (
        conditioning.class_log_weights,
        {"prior": MIXTURE, "table": np.full((3, 2), 0.5), "label": 1},
    ),
    "conditioning.classes": (
        conditioning.classes,
        {"labels": LABELS, "num_classes": 2, "prior": None, "states": None},
    ),
    **{
        f"evaluation.{name}": (getattr(evaluation, name), {"x": POINTS, "y": POINTS[:20] + 1})
        for name in (
            "sliced_wasserstein",
            "energy_distance",
            "mmd",
            "nearest_distances",
            "frechet_distance",
            "two_sample_accuracy",
        )
    },
    **{
        f"evaluation.{name}": (
            getattr(evaluation, name),
            {"x": POINTS, "z": POINTS[:30] - 1, "y": POINTS[:20] + 1},
        )
        for name in ("energy_gap_error", "sliced_gap_error")
    },
    "evaluation.median_distance": (evaluation.median_distance, {"x": POINTS, "max_points": 20}),
    "evaluation.total_variation": (
        evaluation.total_variation,
        {"p": [0.5, 0.5], "q": [0.25, 0.75]},
    ),
    "evaluation.moments": (evaluation.moments, {"features": POINTS}),
    "evaluation.inception_score": (
        evaluation.inception_score,
        {"probabilities": np.full((4, 2), 0.5)},
    ),
    "evaluation.precision_recall_density_coverage": (
        evaluation.precision_recall_density_coverage,
        {"real": POINTS, "fake": POINTS + 1, "k": 3},
    ),
    "networks.harmonics": (networks.harmonics, {"period": 6.0, "number": 2}),
    "training.init_state": (
        training.init_state,
        {"experiment": EXPERIMENT, "seed": 0},
    ),
    "training.draw": (
        training.draw,
        {
            "experiment": EXPERIMENT,
            "state": STATE,
            "num": 3,
            "seed": 0,
            "components": None,
            "ema": True,
            "chunk": 3,
            "progress": False,
        },
    ),
    "training.log_prob": (
        training.log_prob,
        {
            "experiment": EXPERIMENT,
            "state": STATE,
            "x": POINTS[:3],
            "seed": 0,
            "method": None,
            "steps": 4,
            "draws": 1,
            "ema": True,
            "chunk": 3,
            "progress": False,
        },
    ),
    "training.train": (
        training.train,
        {
            "experiment": EXPERIMENT,
            "data": POINTS,
            "steps": 1,
            "batch_size": 4,
            "seed": 0,
            "held_out": None,
            "state": None,
            "ahead_mb": 4.0,
            "progress": False,
        },
    ),
}

ARRAYS = [
    np.zeros((4, 1)),
    np.zeros((4, 3), np.float32),
    np.zeros(2),
    np.zeros(()),
    np.zeros((0, 2)),
    np.zeros((4, 2), complex),
    np.array([["a", "b"]]),
    np.array([[None, 1.0]]),
    np.full((4, 2), np.nan),
    np.full((40, 2), np.inf),
    np.array([99, 0, 1, 2]),
    np.array([-1, 0, 1, 2]),
    np.array([0.0, 0.5, 0.3, 1.0]),
    np.array([0.0, np.nan, 1.0]),
    jnp.zeros((4, 1)),
    jnp.zeros((2, 4, 3)),
    jnp.zeros((4, 2), bool),
    jax.random.split(KEY),
    jax.random.PRNGKey(0),
]
BAD: list[Any] = [
    None, True, 0, -1, 1.5, -0.5, 1e30, float("nan"), float("inf"), 2**32, 2**63, 10**400, 1j, "a",
    b"a", "", [], {}, (), [1, "a"], [[1.0], [1.0, 2.0]], object(), int, KEY, MIXTURE, OU,
    EXPERIMENT, lambda: None, *ARRAYS,
]  # fmt: skip
"""Of any type; a function may take a few of them."""


@st.composite
def calls(draw: Any, cases: dict[str, Case]) -> tuple[str, str, int]:
    name = draw(st.sampled_from(sorted(cases)))
    argument = draw(st.sampled_from(sorted(cases[name][1])))
    return name, argument, draw(st.integers(0, len(BAD) - 1))


def try_call(family: str, cases: dict[str, Case], case: tuple[str, str, int]) -> None:
    name, argument, place = case
    function, arguments = cases[name]
    value = BAD[place]
    what = f"{name}({argument}={value!r:.80})"
    # Infinity says of a reading that there is none.
    of_readings = "measurement" in arguments or name.startswith("measurements.")
    finite = family != "states" and not of_readings
    judge(family, what, lambda: function(**arguments | {argument: value}), finite=finite)


@hypothesis.given(calls(FUNCTIONS))
@examples(short=60, long=1200)
def test_functions_refuse_what_is_no_argument_of_theirs(case):
    try_call("arguments", FUNCTIONS, case)


@hypothesis.given(calls(POINTWISE))
@examples(short=20, long=300)
def test_functions_of_states_refuse_other_shapes_and_types(case):
    try_call("states", POINTWISE, case)


NARROW = [
    ("the loss", lambda s: objectives.dsm(s, BATCH)),
    ("ndsm", lambda s: objectives.ndsm(s, BATCH)),
    ("ism", lambda s: objectives.ism(s, BATCH)),
    ("sampling", lambda s: sampling.sample(KEY, s, OU, 2, grid=GRID)),
    ("a flow", lambda s: sampling.sample(KEY, s, OU, 2, grid=GRID, sampler=sampling.HeunFlow())),
    ("log_prob", lambda s: likelihood.log_prob(KEY, s, OU, POINTS[:2], grid=GRID)),
    ("the bound", lambda s: likelihood.log_prob(
        KEY, s, OU, POINTS[:2], grid=GRID, method=likelihood.Bound(paths=1))),
    ("the reverse drift", lambda s: processes.reverse_drift(OU, s)(Y, T)),
]  # fmt: skip
SCORES = [
    lambda y, t: -y[..., :1],
    lambda y, t: -jnp.sum(y, axis=-1),
    lambda y, t: jnp.concatenate([y, y], axis=-1),
    lambda y, t: None,
    lambda y, t: 0.0,
    lambda y, t: y.shape,
    lambda y, t: -y[None],
]


def test_a_score_of_another_shape_does_not_broadcast():
    for name, use in NARROW:
        for number, wrong in enumerate(SCORES):
            what = f"{name} with score {number}"
            judge("scores", what, lambda u=use, w=wrong: u(w), takes=False)
