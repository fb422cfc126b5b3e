"""Where the noise of a training comes from, and what beta should be, measured on any average velocity.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235). Mixing v_hat into the tangent changes
the noise in the residual from S xi (beta = 0) to xi (beta = 1), S the Jacobian of the flow map from t to r. So it
lowers the noise where the map expands and raises it where the map contracts, and how much is measured here on real
pairs (x, e) at a frozen u, with xi = v_c - v_hat, p = M xi, q = A xi, M = (t - r) du/dz, A = M - I = -S, and b a
stand-in for the bias of v_hat. Where training guides v_c or hides labels, so do the pairs:

    amplification   E||q||^2 / E||xi||^2                     in each cell of the (t, gap) plane        [5]
    beta*           E<q, p> / (E||p||^2 + E||M b||^2)        in each cell, and over the training law   [30, 14]
    predicted MSE   E||q||^2 - 2 beta E<q, p> + beta^2 (E||p||^2 + E||M b||^2)                          [27] at G = I
    measured        the variance of the very gradient that training averages, for each beta            [6, 10]

The predicted curve lives in the space of outputs, the measured one in that of parameters: they are compared relative to
beta = 0, where they agree by construction (the anchor of [13]). b is the diagonal of the moving average minus that of
the network: how far the average trails, a stand-in for a bias that nobody knows.
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
"""Blocks of rows drawn from the training law; also the groups of the jackknife."""


Gradient = Callable[[Float[Array, ""], Key[Array, ""]], Any]


def diagnose(
    u: AverageVelocity,
    x: Float[Array, "n *event"],
    label: Cond = None,
    *,
    average: AverageVelocity | None = None,
    times: TimeDistribution | None = None,
    start: Float[Array, "n *event"] | None = None,
    path: Path = STRAIGHT_LINE,
    told: Callable[[Key[Array, ""], Array, Array, Cond], Cond] | None = None,
    raw: Callable[[Array, Array, Cond, Array], Array] | None = None,
    gradient: Gradient | None = None,
    rao_blackwell: Callable[[Key[Array, ""]], Any] | None = None,
    own: Callable[[Key[Array, ""]], Any] | None = None,
    key: Key[Array, ""] | None = None,
    cells: int = 8,
    samples: int = 768,
    replicas: int = 32,
) -> Diagnosis:
    """Measure an average velocity on data.

    Args:
        u: any average velocity.
        x: data in u's units.
        label: what u is told of each.
        average: v_hat is its diagonal; u itself where none is given, and then the bias counts as 0.
        times: law of (r, t) in training.
        start: that belongs to each row of x, where data come in pairs.
        path: from data to the prior, in training.
        told: (key, r, t, label) -> what the rows are told in training, some without their label.
        raw: (z, t, told, v_c) -> the velocity that training puts in v_c's place, such as the guided one.
        gradient: (beta, key) -> the gradient of one batch's loss, a tree. With it, the measured curve is that
            gradient's variance; without, it is the mean squared residual in the space of outputs.
        rao_blackwell: key -> the gradient of one batch with the bank in both roles.
        own: key -> the gradient of one batch of the training itself, where its loss is none of a tangent mix.
        cells: along each axis of the plane.
        samples: pairs (x, e) in each cell; BLOCKS times as many for the training law.
        replicas: batches for the gradient's variance.

    Raises:
        UserError: a count that is too small to measure anything.
    """
    require(len(x) >= 1, "data: rows", len(x), "1 or more")
    require(cells >= 2, "cells", cells, "2 or more")
    require(samples >= 32, "samples", samples, "32 or more")
    require(replicas >= 4, "replicas", replicas, "4 or more")
    times = Uniform() if times is None else times
    key = jax.random.key(0) if key is None else key
    row_key, law_key, replica_key = jax.random.split(key, 3)

    def rows(block):
        """Row terms of fresh pairs (x, e) at times (samples,)."""
        key, r, t = block
        pick_key, noise_key, probe_key = jax.random.split(key, 3)
        pick = jax.random.randint(pick_key, t.shape, 0, len(x))
        noise = path.prior(noise_key, x[pick], None if start is None else start[pick])
        probe = jax.random.rademacher(probe_key, noise.shape, x.dtype)
        shown = None if label is None else label[pick]
        if told is not None:
            shown = told(jax.random.fold_in(key, 1), r, t, shown)

        def in_training(z, v_c):
            return v_c if raw is None else raw(z, t, shown, v_c)

        return residual_terms(u, average, x[pick], noise, r, t, probe, shown, in_training, path)

    # One program for the cells, a block of rows each, and for the blocks drawn from the training law.
    lines = tuple(float(line) for line in np.linspace(0, 1, cells + 1))
    plane, weights = _plane(lines, times)
    r, t = times.draw_off_diagonal(law_key, BLOCKS * samples)
    t_cell, gap = (jnp.repeat(column[:, None], samples, axis=1) for column in jnp.asarray(plane).T)
    blocks = [
        jnp.concatenate([of_cells, of_law.reshape(BLOCKS, samples)]).astype(x.dtype)
        for of_cells, of_law in ((t_cell - gap, r), (t_cell, t))
    ]
    keys = jax.random.split(row_key, len(plane) + BLOCKS)
    terms = jax.jit(lambda blocks: jax.lax.map(rows, blocks))((keys, *blocks))
    terms = {name: np.asarray(values, np.float64) for name, values in terms.items()}
    in_cells = {name: values[: len(plane)] for name, values in terms.items()}
    law = {name: values[len(plane) :].reshape(-1) for name, values in terms.items()}

    measured_cells = [
        _cell(t, gap, weight, {name: values[index] for name, values in in_cells.items()})
        for index, ((t, gap), weight) in enumerate(zip(plane.tolist(), weights.tolist(), strict=True))
    ]
    squares = law["moved"] + law["biased"]
    predicted = _curve([law["noise"] - 2 * beta * law["cross"] + beta**2 * squares for beta in BETAS])

    ratios: dict[str, Estimate | None] = {"rao_blackwell": None, "own": None}
    if gradient is None:
        # R is affine in beta: R_0 - beta p.
        measured = _curve([law["residual"] - 2 * b * law["along"] + b**2 * law["moved"] for b in BETAS])
    else:
        keys = jax.random.split(replica_key, replicas)
        contrasts = jax.jit(
            lambda betas: jax.lax.map(lambda b: gradient_contrasts(lambda key: gradient(b, key), keys), betas)
        )(jnp.asarray(BETAS, x.dtype))
        measured = _curve(list(np.asarray(contrasts, np.float64)))
        for name, other in (("rao_blackwell", rao_blackwell), ("own", own)):
            if other is not None:
                found = jax.jit(lambda keys, other=other: gradient_contrasts(other, keys))(keys)
                ratios[name] = ratio_of(found, contrasts[0])

    return Diagnosis(
        cells=measured_cells,
        lines=lines,
        amplification=ratio_of(law["noise"], law["floor"]),
        optimum=_optimum(law),
        predicted=predicted,
        measured=measured,
        of_gradient=gradient is not None,
        by_time=_by_time(weights, in_cells),
        rao_blackwell=ratios["rao_blackwell"],
        own=ratios["own"],
        tracking_gap=mean_of(law["lag"]),
        shrinkage=ratio_of(law["floor"], law["floor"] + law["lag"]),
    )


def residual_terms(
    u: AverageVelocity,
    average: AverageVelocity | None,
    x: Float[Array, "n *event"],
    e: Float[Array, "n *event"],
    r: Float[Array, " n"],
    t: Float[Array, " n"],
    probe: Float[Array, "n *event"],
    label: Cond,
    raw: Callable[[Array, Array], Array] = lambda z, v_c: v_c,
    path: Path = STRAIGHT_LINE,
) -> dict[str, Float[Array, " n"]]:
    """Everything that is measured, row by row: the terms of the formulas above, `floor` ||xi||^2, `noise` ||q||^2,
    `cross` <q, p>, `moved` ||p||^2, `biased` ||M b||^2, `lag` ||b||^2, sizes of S and of the derivative, and of the
    residual at beta = 0 `residual` ||R||^2 and `along` <R, p>.

    Args:
        probe: random signs.
        raw: (z, v_c) -> the velocity that training puts in v_c's place, such as the guided one.
    """
    v_hat = u if average is None else average
    z, d = path.interpolate(x, e, t), x[0].size
    v_c = raw(z, path.velocity(x, e, t))
    xi = v_c - instantaneous_velocity(v_hat, z, t, label)
    cross, moved = row_terms(u, z, r, t, xi, label)
    expanded = expansion_product(u, z, r, t, xi, label)  # S xi = -q
    image = expansion_product(u, z, r, t, probe, label)
    value, dudt = total_derivative(u, z, r, t, v_c, label)
    scaled = expand(t - r, z) * dudt
    residual = value + scaled - v_c
    p = xi - expanded
    b = jnp.zeros_like(z) if average is None else v_c - xi - instantaneous_velocity(u, z, t, label)
    mb = jnp.zeros_like(z) if average is None else b - expansion_product(u, z, r, t, b, label)
    return {
        "floor": _dot(xi, xi),
        "noise": _dot(expanded, expanded),
        "cross": cross,
        "moved": moved,
        "biased": _dot(mb, mb),
        "lag": _dot(b, b),
        "trace": _dot(probe, image) / d,
        "frobenius": _dot(image, image) / d,
        "derivative": _dot(scaled, scaled),
        "residual": _dot(residual, residual),
        "along": _dot(residual, p),
    }


def _plane(lines: Sequence[float], times: TimeDistribution) -> tuple[np.ndarray, np.ndarray]:
    """Centres (t, gap) of the cells with gap <= t, and the training law's share of each."""
    r, t = times.draw_off_diagonal(jax.random.key(0), 2**18)
    t, gap = np.asarray(t, np.float64), np.asarray(t - r, np.float64) * (1 - 1e-6)  # a capped gap is on an edge
    counts = np.histogram2d(t, gap, bins=[lines, lines])[0]  # rows t, columns gap
    centres = (np.array(lines[1:]) + np.array(lines[:-1])) / 2
    inside = [(i, j) for i in range(len(centres)) for j in range(i + 1)]
    weights = np.array([counts[i, j] for i, j in inside])
    return np.array([(centres[i], centres[j]) for i, j in inside]), weights / weights.sum()


def _cell(t: float, gap: float, weight: float, rows: dict[str, np.ndarray]) -> Cell:
    deterministic = rows["residual"] - 2 * rows["along"] + rows["moved"]
    return Cell(
        t=t,
        gap=gap,
        weight=weight,
        amplification=ratio_of(rows["noise"], rows["floor"]),
        beta=ratio_of(rows["cross"], rows["moved"] + rows["biased"]),
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
        def statistic(kept):
            mean = {name: values[kept].mean() for name, values in groups.items()}
            a = -mean["trace"] if sign_known else np.sqrt(mean["frobenius"])
            return float(optimal_beta_isotropic(a, mean["floor"], mean["lag"]))

        return jackknife(statistic, BLOCKS)

    return Optimum(
        bound=ratio_of(rows["cross"], rows["moved"]),
        biased=ratio_of(rows["cross"], rows["moved"] + rows["biased"]),
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

    beta* is found on one half of a cell's rows and judged on the other, and the reverse: on the same rows it would
    look better than it is.
    """
    cross, squares = rows["cross"], rows["moved"] + rows["biased"]
    mse = np.empty_like(squares)
    half = squares.shape[1] // 2
    for fit, judge in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        means = squares[:, fit].mean(axis=1)
        beta = np.divide(cross[:, fit].mean(axis=1), means, out=np.zeros_like(means), where=means > 0)
        beta = np.clip(beta, 0, 1)[:, None]
        mse[:, judge] = rows["noise"][:, judge] - 2 * beta * cross[:, judge] + beta**2 * squares[:, judge]
    ratio = float((weights @ mse.mean(axis=1)) / (weights @ rows["noise"].mean(axis=1)))
    spread = (mse - ratio * rows["noise"]).var(axis=1, ddof=1) / mse.shape[1]
    return Estimate(ratio, float(np.sqrt(weights**2 @ spread) / (weights @ rows["noise"].mean(axis=1))))


def _dot(left, right):
    return jnp.sum(left * right, axis=tuple(range(1, left.ndim)))
