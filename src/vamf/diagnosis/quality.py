"""Are the samples of a run good? And where they are not: is it the jump, or the velocity itself?

The verdict is that of `vamf.metrics.tables`, for all data whose samples are rows of numbers. Where it is not good and
samples are jumps of the flow map, they are compared with samples of the ODE of u(z, t, t): the same network, asked for
nothing but velocities.
"""

import math

import jax
import numpy as np

from vamf.findings import Finding
from vamf.metrics import distances_to, tables
from vamf.training.run import Run
from vamf.training.step import State

SAMPLES = 4096
"""Samples that are judged; fewer where rows are wide."""
NUMBERS = 2**19
ODE_STEPS = 50
BETTER = 0.5
"""The ODE is better where it exceeds the distance of real rows by at most this fraction of what jumps exceed it by."""


def judge_samples(run: Run, state: State, seed: int = 0) -> list[Finding]:
    """The verdict on samples of a run's EMA by its default sampler, and what is behind it; none of images and latents.

    Args:
        state: as `Run.load` returns it.
    """
    dataset = run.dataset
    if len(dataset.sample_shape) != 1 or dataset.image_shape is not None or dataset.latents is not None:
        return []
    state, count = run.inference.select_ema(state, None), max(64, min(SAMPLES, NUMBERS // dataset.event_shape[0]))
    samples = run.draw(state, count, seed=seed)[0]
    result = tables.evaluate(dataset, samples, seed)
    findings = tables.findings(result)
    if result["verdict"] == "good" or run.default_sampler()[0] != "flow_map":
        return findings
    measure = distances_to(dataset.to_comparable(dataset.reference(count, seed)), (1,))
    by_ode = run.draw(state, count, ODE_STEPS, seed, sampler="heun")[0]
    real = dataset.to_original(np.asarray(dataset.draw(dataset.arrays, jax.random.key(seed), count)[0]))
    distances = [measure(dataset.to_comparable(rows))["sw1"] for rows in (samples, by_ode, real)]
    return [findings[0], _cause(distances, run.config.steps), *findings[1:]]


def _cause(distances: list[float], steps: int) -> Finding:
    """Whether the ODE of the velocity does better than the jumps."""
    jump, ode, real = distances
    text = f"In {ODE_STEPS} steps of its ODE (heun) the same network has SW1 {ode:.3f}, in its own jumps {jump:.3f}"
    longer = f"--steps {2 * steps}"
    if not math.isfinite(ode) or ode - real > BETTER * (jump - real):
        text += ": the velocity itself is to be learnt better. Train for longer, with a larger network or more rows."
        return Finding("advice", text, longer)
    text += ": the velocity is learnt, the jumps lag behind it. Train for longer, or sample in more steps (--steps 4)."
    return Finding("advice", text, longer)
