"""Components of the noise of a guided run on images, measured at a state of that run.

Two views of the same network:

* `plain`: labels dropped and v_c unguided, as arXiv:2605.09235 measures its diagnostics;
* as trained: with labels, and MeanFlow's guided velocity v_g in place of v_c (`vamf.objectives.guidance`). The
  tangent of the paper is (1 - beta) v_g + beta v_hat: all formulas of `vamf.diagnosis.measure` hold with v_g for v_c.

v_hat is the diagonal of the EMA, and b = v_hat - u(z, t, t), its lag, a proxy for its bias.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf.conditioning import NULL_LABEL, label_of
from vamf.data import Dataset
from vamf.diagnosis.measure import residual_terms
from vamf.diagnosis.results import BETAS
from vamf.networks import Network
from vamf.objectives import Objective
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.guidance import Guided
from vamf.objectives.posterior_mean import ClassMemoryBank
from vamf.objectives.velocity import Conditional
from vamf.theory.estimate import Estimate, mean_of, ratio_of
from vamf.theory.estimators import variance_of

TIMES = tuple(round(0.1 * index, 1) for index in range(1, 10))
GAP = 0.25
"""t - r where t allows it; otherwise r = 0."""
PAPER_TIMES = TIMES[::2]
"""The times over which the paper takes the bound of beta*."""
MIDDLE = TIMES.index(0.5)
TERMS = ("floor", "noise", "cross", "jvp_energy", "bias_energy", "ema_lag", "residual", "residual_jvp")
Terms = dict[str, np.ndarray]
"""The terms of `residual_terms` that are used here, each (times, rows)."""


class NoiseProbe:
    """Measures a network on data: one compiled program for all parameters and both views."""

    def __init__(self, dataset: Dataset, network: Network, objective: Objective, rows: int):
        self._dataset, self._objective, self._rows = dataset, objective, rows
        guided = Guided(objective.guidance, Conditional())

        def block(params, ema_params, arrays, plain, key, r, t):
            data_key, noise_key, probe_key = jax.random.split(key, 3)
            u, v_hat = network.bind(params), network.bind(ema_params)
            x, cond = dataset.draw(arrays, data_key, len(t))
            label = label_of(cond)
            assert label is not None
            e = jax.random.normal(noise_key, x.shape)
            input_label = jnp.where(plain, NULL_LABEL, label)

            def target_velocity(z, v_c):  # v_c itself where the label is dropped
                rows = PathBatch(x, e, t, t, z, v_c, input_label)
                return guided(rows, Context(objective, u, rows, 0))

            probe = jax.random.rademacher(probe_key, x.shape, x.dtype)
            terms = residual_terms(u, v_hat, x, e, r, t, probe, input_label, target_velocity)
            return {name: terms[name] for name in TERMS}

        @jax.jit
        def measure(params, ema_params, arrays, keys, r, t, plain):
            return jax.lax.map(lambda one: block(params, ema_params, arrays, plain, *one), (keys, r, t))

        self._measure = measure

    def at_times(self, params: Any, ema_params: Any, plain: bool) -> Terms:
        """At each of TIMES, with the same data and noise for all parameters."""
        t = jnp.repeat(jnp.asarray(TIMES)[:, None], self._rows, axis=1)
        return self._terms(params, ema_params, jnp.maximum(t - GAP, 0.0), t, plain)

    def at_training_times(self, params: Any, ema_params: Any) -> Terms:
        """As trained, over the training distribution of the rows with r < t."""
        r, t = self._objective.times.draw_off_diagonal(jax.random.key(8), len(TIMES) * self._rows)
        return self._terms(params, ema_params, r.reshape(len(TIMES), -1), t.reshape(len(TIMES), -1), False)

    def _terms(self, params: Any, ema_params: Any, r, t, plain: bool) -> Terms:
        keys = jax.random.split(jax.random.key(7), len(TIMES))
        terms = self._measure(params, ema_params, self._dataset.arrays, keys, r, t, plain)
        return {name: np.asarray(values, np.float64) for name, values in terms.items()}


def bias_history(terms: Terms) -> dict[str, Estimate]:
    """At t = 0.5 the tracking gap E||b||^2, the noise and the shrinkage factor; the bound of beta* over PAPER_TIMES."""
    floor, lag = terms["floor"][MIDDLE], terms["ema_lag"][MIDDLE]
    chosen = [TIMES.index(t) for t in PAPER_TIMES]
    return {
        "tracking_gap": mean_of(lag),
        "noise": mean_of(floor),
        "shrinkage": ratio_of(floor, floor + lag),
        "bound": ratio_of(terms["cross"][chosen].reshape(-1), terms["jvp_energy"][chosen].reshape(-1)),
    }


def loss_variance(terms: Terms) -> dict[str, list[Estimate]]:
    """Variance of the per-sample loss at each of TIMES with the tangent v_c (or v_g) and with v_hat."""
    deterministic = terms["residual"] - 2 * terms["residual_jvp"] + terms["jvp_energy"]
    return {
        "stochastic": [variance_of(rows) for rows in terms["residual"]],
        "deterministic": [variance_of(rows) for rows in deterministic],
    }


def predicted_mse(terms: Terms) -> list[Estimate]:
    """MSE of the residual for each of BETAS over that at beta = 0 [27 at G = I]."""
    noise, cross, squares = (terms[name].reshape(-1) for name in ("noise", "cross", "jvp_energy"))
    squares = squares + terms["bias_energy"].reshape(-1)
    return [ratio_of(noise - 2 * beta * cross + beta**2 * squares, noise) for beta in BETAS]


def effective_sizes(
    dataset: Dataset, memory: ClassMemoryBank, count: int, times: Sequence[float]
) -> dict[str, list[float]]:
    """Median effective number of points, against t, of a memory of data points: of the row's class, and of all."""
    data_key, noise_key = jax.random.split(jax.random.key(7))
    x, cond = dataset.draw(dataset.arrays, data_key, count)
    label = label_of(cond)
    assert label is not None
    e = jax.random.normal(noise_key, x.shape)

    @jax.jit
    def median(memory: Any, t, label):
        return jnp.median(memory.posterior_mean(x, e, jnp.full(count, t), label).effective_size)

    return {
        name: [float(median(memory, t, labels)) for t in times]
        for name, labels in (("class", label), ("all", jnp.full_like(label, NULL_LABEL)))
    }
