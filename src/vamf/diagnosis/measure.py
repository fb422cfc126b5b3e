"""The sources of gradient noise and the best beta, measured on any average velocity.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235). Mixing v_hat into the tangent changes
the noise in the residual from S xi (beta = 0) to xi (beta = 1), S the Jacobian of the flow map from t to r. So it
lowers the noise where the map expands and raises it where the map contracts. This module measures by how much, on real
pairs (x, e) at a frozen u, with xi = v_c - v_hat, p = M xi, q = A xi, M = (t - r) du/dz, A = M - I = -S, and b a
surrogate of the bias of v_hat. Guidance of v_c and label dropout apply to the pairs as in training:

    amplification   E||q||^2 / E||xi||^2                     in each cell of the (t, gap) plane        [5]
    beta*           E<q, p> / (E||p||^2 + E||M b||^2)        in each cell, and over the training times  [30, 14]
    predicted MSE   E||q||^2 - 2 beta E<q, p> + beta^2 (E||p||^2 + E||M b||^2)                          [27] at G = I
    measured        the variance of the gradient that the run computes, for each beta            [6, 10]

The predicted curve is in output space, the measured one in parameter space: they are compared relative to beta = 0,
where they agree by construction (the anchor of [13]). b is the diagonal of the EMA minus that of the network: the lag
of the EMA, a surrogate of the unknown bias.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vamf.average_velocity import AverageVelocity, instantaneous_velocity, total_derivative
from vamf.conditioning import Cond
from vamf.diagnosis.results import BETAS, Cell, Curve, Diagnosis, Optimum
from vamf.errors import require
from vamf.path import STRAIGHT_LINE, Path, expand
from vamf.theory.control_variate import optimal_beta_isotropic, row_terms
from vamf.theory.estimate import Estimate, mean_of, ratio_of
from vamf.theory.estimators import expansion_product, gradient_contrasts, jackknife, variance_of
from vamf.times import TimeDistribution, Uniform

BLOCKS = 16
"""Blocks of rows at random times of training; also the groups of the jackknife."""


Gradient = Callable[[Float[Array, ""], Key[Array, ""]], Any]


def diagnose(
    u: AverageVelocity,
    x: Float[Array, "n *event"],
    label: Cond = None,
    *,
    proxy: AverageVelocity | None = None,
    times: TimeDistribution | None = None,
    start: Float[Array, "n *event"] | None = None,
    path: Path = STRAIGHT_LINE,
    training_cond: Callable[[Key[Array, ""], Array, Array, Cond], Cond] | None = None,
    target_velocity: Callable[[Array, Array, Cond, Array], Array] | None = None,
    gradient: Gradient | None = None,
    rao_blackwell: Callable[[Key[Array, ""]], Any] | None = None,
    run_gradient: Callable[[Key[Array, ""]], Any] | None = None,
    key: Key[Array, ""] | None = None,
    cells: int = 8,
    samples: int = 768,
    replicas: int = 32,
) -> Diagnosis:
    """Measure an average velocity on data.

    Args:
        u: any average velocity.
        x: data in u's units.
        label: the conditioning of each.
        proxy: its diagonal is v_hat; by default u, with bias 0.
        times: distribution of (r, t) in training.
        start: of each row of x, where data come in pairs.
        path: from data to the prior, in training.
        training_cond: (key, r, t, label) -> the conditioning in training, with dropped labels.
        target_velocity: (z, t, cond, v_c) -> the velocity that the run uses in place of v_c, such as the guided one.
        gradient: (beta, key) -> the gradient of one batch's loss, a tree. With it, the measured curve is that
            gradient's variance; without, it is the mean squared residual in output space.
        rao_blackwell: key -> the gradient of one batch with the bank in both roles.
        run_gradient: key -> the gradient of one batch of the run itself, where its loss has no tangent mix.
        cells: number along each axis of the plane.
        samples: pairs (x, e) in each cell; BLOCKS times as many at random times of training.
        replicas: batches for the gradient's variance.

    Raises:
        UserError: a count that is too small.
    """
    require(len(x) >= 1, "data: rows", len(x), "1 or more")
    require(cells >= 2, "cells", cells, "2 or more")
    require(samples >= 32, "samples", samples, "32 or more")
    require(replicas >= 4, "replicas", replicas, "4 or more")
    times = Uniform() if times is None else times
    key = jax.random.key(0) if key is None else key
    row_key, time_key, replica_key = jax.random.split(key, 3)

    def rows(block):
        """Row terms of fresh pairs (x, e) at times (samples,)."""
        key, r, t = block
        index_key, noise_key, probe_key = jax.random.split(key, 3)
        indices = jax.random.randint(index_key, t.shape, 0, len(x))
        noise = path.prior(noise_key, x[indices], None if start is None else start[indices])
        probe = jax.random.rademacher(probe_key, noise.shape, x.dtype)
        cond = None if label is None else label[indices]
        if training_cond is not None:
            cond = training_cond(jax.random.fold_in(key, 1), r, t, cond)

        def velocity(z, v_c):
            return v_c if target_velocity is None else target_velocity(z, t, cond, v_c)

        return residual_terms(u, proxy, x[indices], noise, r, t, probe, cond, velocity, path)

    # One program for the cells, a block of rows each, and for the blocks at random times of training.
    lines = tuple(float(line) for line in np.linspace(0, 1, cells + 1))
    plane, weights = _plane(lines, times)
    r, t = times.draw_off_diagonal(time_key, BLOCKS * samples)
    t_cell, gap = (jnp.repeat(column[:, None], samples, axis=1) for column in jnp.asarray(plane).T)
    blocks = [
        jnp.concatenate([cell_times, random_times.reshape(BLOCKS, samples)]).astype(x.dtype)
        for cell_times, random_times in ((t_cell - gap, r), (t_cell, t))
    ]
    keys = jax.random.split(row_key, len(plane) + BLOCKS)
    terms = jax.jit(lambda blocks: jax.lax.map(rows, blocks))((keys, *blocks))
    terms = {name: np.asarray(values, np.float64) for name, values in terms.items()}
    cell_terms = {name: values[: len(plane)] for name, values in terms.items()}
    overall = {name: values[len(plane) :].reshape(-1) for name, values in terms.items()}

    measured_cells = [
        _cell(t, gap, weight, {name: values[index] for name, values in cell_terms.items()})
        for index, ((t, gap), weight) in enumerate(zip(plane.tolist(), weights.tolist(), strict=True))
    ]
    squares = overall["jvp_energy"] + overall["bias_energy"]
    predicted = _curve([overall["noise"] - 2 * beta * overall["cross"] + beta**2 * squares for beta in BETAS])

    ratios: dict[str, Estimate | None] = {"rao_blackwell": None, "run_gradient": None}
    if gradient is None:
        # R is affine in beta: R_0 - beta p.
        measured = _curve(
            [overall["residual"] - 2 * b * overall["residual_jvp"] + b**2 * overall["jvp_energy"] for b in BETAS]
        )
    else:
        keys = jax.random.split(replica_key, replicas)
        contrasts = jax.jit(
            lambda betas: jax.lax.map(lambda b: gradient_contrasts(lambda key: gradient(b, key), keys), betas)
        )(jnp.asarray(BETAS, x.dtype))
        measured = _curve(list(np.asarray(contrasts, np.float64)))
        for name, other in (("rao_blackwell", rao_blackwell), ("run_gradient", run_gradient)):
            if other is not None:
                other_contrasts = jax.jit(lambda keys, other=other: gradient_contrasts(other, keys))(keys)
                ratios[name] = ratio_of(other_contrasts, contrasts[0])

    return Diagnosis(
        cells=measured_cells,
        lines=lines,
        amplification=ratio_of(overall["noise"], overall["floor"]),
        optimum=_optimum(overall),
        predicted=predicted,
        measured=measured,
        of_gradient=gradient is not None,
        by_time=_by_time(weights, cell_terms),
        rao_blackwell=ratios["rao_blackwell"],
        run_gradient=ratios["run_gradient"],
        tracking_gap=mean_of(overall["ema_lag"]),
        shrinkage=ratio_of(overall["floor"], overall["floor"] + overall["ema_lag"]),
    )


def residual_terms(
    u: AverageVelocity,
    proxy: AverageVelocity | None,
    x: Float[Array, "n *event"],
    e: Float[Array, "n *event"],
    r: Float[Array, " n"],
    t: Float[Array, " n"],
    probe: Float[Array, "n *event"],
    label: Cond,
    target_velocity: Callable[[Array, Array], Array] = lambda z, v_c: v_c,
    path: Path = STRAIGHT_LINE,
) -> dict[str, Float[Array, " n"]]:
    """All measured terms of each row: those of the formulas above, `floor` ||xi||^2, `noise` ||q||^2, `cross` <q, p>,
    `jvp_energy` ||p||^2, `bias_energy` ||M b||^2, `ema_lag` ||b||^2, sizes of S and of the derivative, and for the
    residual at beta = 0 `residual` ||R||^2 and `residual_jvp` <R, p>.

    Args:
        probe: random signs.
        target_velocity: (z, v_c) -> the velocity that the run uses in place of v_c, such as the guided one.
    """
    v_hat = u if proxy is None else proxy
    z, d = path.interpolate(x, e, t), x[0].size
    v_c = target_velocity(z, path.velocity(x, e, t))
    xi = v_c - instantaneous_velocity(v_hat, z, t, label)
    cross, jvp_energy = row_terms(u, z, r, t, xi, label)
    expanded = expansion_product(u, z, r, t, xi, label)  # S xi = -q
    image = expansion_product(u, z, r, t, probe, label)
    value, dudt = total_derivative(u, z, r, t, v_c, label)
    scaled = expand(t - r, z) * dudt
    residual = value + scaled - v_c
    p = xi - expanded
    b = jnp.zeros_like(z) if proxy is None else v_c - xi - instantaneous_velocity(u, z, t, label)
    mb = jnp.zeros_like(z) if proxy is None else b - expansion_product(u, z, r, t, b, label)
    return {
        "floor": _dot(xi, xi),
        "noise": _dot(expanded, expanded),
        "cross": cross,
        "jvp_energy": jvp_energy,
        "bias_energy": _dot(mb, mb),
        "ema_lag": _dot(b, b),
        "trace": _dot(probe, image) / d,
        "frobenius": _dot(image, image) / d,
        "derivative": _dot(scaled, scaled),
        "residual": _dot(residual, residual),
        "residual_jvp": _dot(residual, p),
    }


def _plane(lines: Sequence[float], times: TimeDistribution) -> tuple[np.ndarray, np.ndarray]:
    """Centres (t, gap) of the cells with gap <= t, and the fraction of the training pairs (r, t) in each."""
    r, t = times.draw_off_diagonal(jax.random.key(0), 2**18)
    t, gap = np.asarray(t, np.float64), np.asarray(t - r, np.float64) * (1 - 1e-6)  # a capped gap is on an edge
    counts = np.histogram2d(t, gap, bins=[lines, lines])[0]  # rows t, columns gap
    centres = (np.array(lines[1:]) + np.array(lines[:-1])) / 2
    inside = [(i, j) for i in range(len(centres)) for j in range(i + 1)]
    weights = np.array([counts[i, j] for i, j in inside])
    return np.array([(centres[i], centres[j]) for i, j in inside]), weights / weights.sum()


def _cell(t: float, gap: float, weight: float, rows: dict[str, np.ndarray]) -> Cell:
    deterministic = rows["residual"] - 2 * rows["residual_jvp"] + rows["jvp_energy"]
    return Cell(
        t=t,
        gap=gap,
        weight=weight,
        amplification=ratio_of(rows["noise"], rows["floor"]),
        beta=ratio_of(rows["cross"], rows["jvp_energy"] + rows["bias_energy"]),
        noise=mean_of(rows["noise"]),
        floor=mean_of(rows["floor"]),
        derivative=mean_of(rows["derivative"]),
        trace=mean_of(rows["trace"]),
        frobenius=mean_of(rows["frobenius"]),
        stochastic=variance_of(rows["residual"]),
        deterministic=variance_of(deterministic),
    )


def _optimum(rows: dict[str, np.ndarray]) -> Optimum:
    """The estimates of one beta; ||A||^2 = ||S||^2 and tr A = -tr S."""
    groups = {name: np.array([part.mean() for part in np.array_split(values, BLOCKS)]) for name, values in rows.items()}

    def isotropic(sign_known: bool):
        def statistic(indices):
            mean = {name: values[indices].mean() for name, values in groups.items()}
            a = -mean["trace"] if sign_known else np.sqrt(mean["frobenius"])
            return float(optimal_beta_isotropic(a, mean["floor"], mean["ema_lag"]))

        return jackknife(statistic, BLOCKS)

    return Optimum(
        bound=ratio_of(rows["cross"], rows["jvp_energy"]),
        biased=ratio_of(rows["cross"], rows["jvp_energy"] + rows["bias_energy"]),
        signed=isotropic(True),
        unsigned=isotropic(False),
    )


def _curve(samples: Sequence[np.ndarray]) -> Curve:
    """A curve from samples at each beta that share their random numbers; the first is beta = 0."""
    least = samples[int(np.argmin([values.mean() for values in samples]))]
    relative = tuple(ratio_of(values, samples[0]) for values in samples)
    return Curve(relative, tuple(ratio_of(values - least, samples[0]) for values in samples))


def _by_time(weights: np.ndarray, rows: dict[str, np.ndarray]) -> Estimate:
    """Predicted MSE with beta* of each cell over that with beta = 0.

    beta* is fitted on one half of a cell's rows and evaluated on the other, and the reverse: on the same rows the
    estimate would be too optimistic.
    """
    cross, squares = rows["cross"], rows["jvp_energy"] + rows["bias_energy"]
    mse = np.empty_like(squares)
    half = squares.shape[1] // 2
    for fit, test in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        means = squares[:, fit].mean(axis=1)
        beta = np.divide(cross[:, fit].mean(axis=1), means, out=np.zeros_like(means), where=means > 0)
        beta = np.clip(beta, 0, 1)[:, None]
        mse[:, test] = rows["noise"][:, test] - 2 * beta * cross[:, test] + beta**2 * squares[:, test]
    ratio = float((weights @ mse.mean(axis=1)) / (weights @ rows["noise"].mean(axis=1)))
    variance = (mse - ratio * rows["noise"]).var(axis=1, ddof=1) / mse.shape[1]
    return Estimate(ratio, float(np.sqrt(weights**2 @ variance) / (weights @ rows["noise"].mean(axis=1))))


def _dot(left, right):
    return jnp.sum(left * right, axis=tuple(range(1, left.ndim)))
