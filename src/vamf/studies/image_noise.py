"""What the noise of a guided training on pictures is made of, measured at a state of that training.

Two views on the same network:

* `plain`: labels hidden and v_c bare, as arXiv:2605.09235 measures its diagnostics;
* as trained: labels shown, and in the place of v_c MeanFlow's guided velocity v_g (`vamf.objectives.guidance`). The
  tangent of the paper is (1 - beta) v_g + beta v_hat: all formulas of `vamf.diagnosis.measure` hold with v_g for v_c.

v_hat is the diagonal of the moving average, and b = v_hat - u(z, t, t) the stand-in for its bias: how far it trails.
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
PAPERS = TIMES[::2]
"""The times over which the paper takes the bound of beta*."""
MIDDLE = TIMES.index(0.5)
KEPT = ("floor", "noise", "cross", "moved", "biased", "lag", "residual", "along")
Terms = dict[str, np.ndarray]
"""The terms of `residual_terms` that are used here, each (times, rows)."""


class Instrument:
    """Measures a network on data: one compiled program for all parameters and both views."""

    def __init__(self, dataset: Dataset, network: Network, objective: Objective, rows: int):
        self._dataset, self._objective, self._rows = dataset, objective, rows
        guided = Guided(objective.guidance, Conditional())

        def block(params, average, arrays, plain, key, r, t):
            data_key, noise_key, probe_key = jax.random.split(key, 3)
            u, v_hat = network.bind(params), network.bind(average)
            x, cond = dataset.draw(arrays, data_key, len(t))
            label = label_of(cond)
            assert label is not None
            e = jax.random.normal(noise_key, x.shape)
            told = jnp.where(plain, NULL_LABEL, label)

            def raw(z, v_c):  # v_c itself where the label is hidden
                rows = PathBatch(x, e, t, t, z, v_c, told)
                return guided(rows, Context(objective, u, rows, 0))

            probe = jax.random.rademacher(probe_key, x.shape, x.dtype)
            found = residual_terms(u, v_hat, x, e, r, t, probe, told, raw)
            return {name: found[name] for name in KEPT}

        @jax.jit
        def measure(params, average, arrays, keys, r, t, plain):
            return jax.lax.map(lambda one: block(params, average, arrays, plain, *one), (keys, r, t))

        self._measure = measure

    def at_times(self, params: Any, average: Any, plain: bool) -> Terms:
        """At each of TIMES, with the same data and noise for all parameters."""
        t = jnp.repeat(jnp.asarray(TIMES)[:, None], self._rows, axis=1)
        return self._terms(params, average, jnp.maximum(t - GAP, 0.0), t, plain)

    def under_the_law(self, params: Any, average: Any) -> Terms:
        """As trained, over the training law of the rows with r < t."""
        r, t = self._objective.times.draw_off_diagonal(jax.random.key(8), len(TIMES) * self._rows)
        return self._terms(params, average, r.reshape(len(TIMES), -1), t.reshape(len(TIMES), -1), False)

    def _terms(self, params: Any, average: Any, r, t, plain: bool) -> Terms:
        keys = jax.random.split(jax.random.key(7), len(TIMES))
        found = self._measure(params, average, self._dataset.arrays, keys, r, t, plain)
        return {name: np.asarray(values, np.float64) for name, values in found.items()}


def bias_history(terms: Terms) -> dict[str, Estimate]:
    """At t = 0.5 the tracking gap E||b||^2, the noise and the shrinkage factor; the bound of beta* over PAPERS."""
    floor, lag = terms["floor"][MIDDLE], terms["lag"][MIDDLE]
    chosen = [TIMES.index(t) for t in PAPERS]
    return {
        "tracking_gap": mean_of(lag),
        "noise": mean_of(floor),
        "shrinkage": ratio_of(floor, floor + lag),
        "bound": ratio_of(terms["cross"][chosen].reshape(-1), terms["moved"][chosen].reshape(-1)),
    }


def loss_variance(terms: Terms) -> dict[str, list[Estimate]]:
    """Variance of the per-sample loss at each of TIMES with the tangent v_c (or v_g) and with v_hat."""
    deterministic = terms["residual"] - 2 * terms["along"] + terms["moved"]
    return {
        "stochastic": [variance_of(rows) for rows in terms["residual"]],
        "deterministic": [variance_of(rows) for rows in deterministic],
    }


def predicted_mse(terms: Terms) -> list[Estimate]:
    """MSE of the residual for each of BETAS over that at beta = 0 [27 at G = I]."""
    noise, cross, squares = (terms[name].reshape(-1) for name in ("noise", "cross", "moved"))
    squares = squares + terms["biased"].reshape(-1)
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
        name: [float(median(memory, t, known)) for t in times]
        for name, known in (("class", label), ("all", jnp.full_like(label, NULL_LABEL)))
    }
