"""Monte-Carlo estimates on any average velocity, each with its standard error.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 5 to 7, and the quantities that
its experiments report. With J = du/dz, the flow map's Jacobian is S = I - (t - r) J, minus the Jacobi factor A.

| quantity                  | definition                                           | estimated from                    |
|---------------------------|------------------------------------------------------|-----------------------------------|
| total gradient variance   | tr Cov[g], g the gradient of one batch               | K independent batches             |
| loss variance             | Var ||u + (t - r) D_w u - v_c||^2 at fixed (r, t)    | pairs (x, e), w = v_c, w = v_hat  |
| Jacobian                  | tr S / d and ||S||_F^2 / d                           | probes, E[probe probe^T] = I      |
| noise amplification [5]   | tr(S Sigma S^T) / tr Sigma = E||S xi||^2 / E||xi||^2 | a Jacobian-vector product a row   |
| tracking gap, noise floor | E||u - u_ema||^2 at r = t, E||v_c - v_hat||^2 / d    | pairs (x, e)                      |
| shrinkage [12]            | sigma2 / (sigma2 + gap)                              | the same rows                     |
| semi-gradient gap [7]     | grad of the loss minus grad with D_w u held constant | groups of rows, jackknife         |

Where v is unknown, xi is approximated by v_c - v_hat on real pairs. With v_hat = v + b its second moment given z is
Sigma + b b^T, not Sigma: an amplification or a noise floor measured so includes the proxy's bias.

Rows are samples; events have any shape. Functions that return an `Estimate` compile their computation and return host
numbers; `gradient_contrasts`, `fluctuation` and `expansion_product` are traceable.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vamf.average_velocity import AverageVelocity, instantaneous_velocity, jacobian_product, total_derivative
from vamf.conditioning import Cond
from vamf.errors import require
from vamf.path import STRAIGHT_LINE, Path, expand
from vamf.theory.estimate import Estimate, mean_of, ratio_of


def gradient_contrasts(
    gradient: Callable[[Key[Array, ""]], Any], keys: Key[Array, " batches"]
) -> Float[Array, " contrasts"]:
    """K - 1 squared norms whose mean is the total gradient variance sum_k ||g_k - mean||^2 / (K - 1).

    They are the increments of Welford's recursion, ||g_k - mean of the earlier ones||^2 (k - 1)/k: squared norms of
    uncorrelated contrasts, each with expectation tr Cov[g]. Only the running mean and one gradient are in memory.

    Args:
        gradient: a key to the gradient of one batch, a tree of arrays.
        keys: one for each batch, K >= 2 of them.
    """
    require(len(keys) >= 2, "keys", len(keys), "2 or more")

    def add(carry, key):
        mean, count = carry
        change = jax.tree.map(jnp.subtract, gradient(key), mean)
        mean = jax.tree.map(lambda m, c: m + c / (count + 1), mean, change)
        squared = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(change))
        return (mean, count + 1), squared * count / (count + 1)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, keys[0]))
    dtype = jax.tree.leaves(zeros)[0].dtype
    return jax.lax.scan(add, (zeros, jnp.zeros((), dtype)), keys)[1][1:]


def total_gradient_variance(gradient: Callable[[Key[Array, ""]], Any], keys: Key[Array, " batches"]) -> Estimate:
    """tr Cov[g] = E||g - E g||^2 of the gradient of a batch, from K independent batches at the same parameters.

    The error is that of the mean of the K - 1 contrasts: exact for Gaussian gradients, to which those of a batch are
    close, and to O(1/K) otherwise.
    """
    return mean_of(jax.jit(lambda keys: gradient_contrasts(gradient, keys))(keys))


def variance_of(samples: Float[Array, " n"] | np.ndarray) -> Estimate:
    """The variance of independent samples (n - 1 in the denominator); its error from their fourth moment."""
    values = np.asarray(samples, np.float64)
    n = len(values)
    require(n >= 4, "samples", n, "4 or more")
    variance = float(values.var(ddof=1))
    fourth = float(np.mean((values - values.mean()) ** 4))
    return Estimate(variance, float(np.sqrt(max(fourth - variance**2 * (n - 3) / (n - 1), 0.0) / n)))


def jackknife(statistic: Callable[[np.ndarray], float], groups: int) -> Estimate:
    """A smooth function of means over independent groups: its bias of order 1/groups removed, and its error.

    Args:
        statistic: a function of the indices of the included groups.
    """
    require(groups >= 2, "groups", groups, "2 or more")
    indices = np.arange(groups)
    leave_one_out = np.array([statistic(np.delete(indices, index)) for index in indices], np.float64)
    value = groups * statistic(indices) - (groups - 1) * leave_one_out.mean()
    return Estimate(float(value), float(np.sqrt((groups - 1) * leave_one_out.var())))


class LossVariance(NamedTuple):
    """Variance of the per-sample loss at each of several (r, t)."""

    stochastic: list[Estimate]
    """With the tangent v_c."""
    deterministic: list[Estimate]
    """With the tangent v_hat."""


def loss_variance(
    u: AverageVelocity,
    proxy: AverageVelocity,
    x: Float[Array, "n *event"],
    e: Float[Array, "n *event"],
    r: Float[Array, " points"],
    t: Float[Array, " points"],
    label: Int[Array, " n"] | None = None,
    path: Path = STRAIGHT_LINE,
) -> LossVariance:
    """Variance over pairs (x, e) of ||u + (t - r) D_w u - v_c||^2, u frozen, with w = v_c and with w = v_hat.

    Args:
        proxy: v_hat is its diagonal.
        r, t: the points; the same pairs are used for all of them. Vary t at a fixed gap, or the gap at a fixed t.
    """

    def at(times):
        r, t = (jnp.full(x.shape[:1], time) for time in times)
        z, v_c = path.interpolate(x, e, t), path.velocity(x, e, t)

        def squared(w):
            value, dudt = total_derivative(u, z, r, t, w, label)
            return _squared(value + expand(t - r, z) * dudt - v_c)

        return squared(v_c), squared(instantaneous_velocity(proxy, z, t, label))

    stochastic, deterministic = jax.jit(lambda times: jax.lax.map(at, times))((r, t))
    return LossVariance([variance_of(row) for row in stochastic], [variance_of(row) for row in deterministic])


def expansion_product(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    direction: Float[Array, "batch *event"],
    label: Cond = None,
) -> Float[Array, "batch *event"]:
    """S direction, with S = I - (t - r) du/dz the Jacobian of the flow map from t to r."""
    return direction - expand(t - r, z) * jacobian_product(u, z, r, t, direction, label)


class JacobianSize(NamedTuple):
    """Size of the flow map's Jacobian S, averaged over rows; both are 1 for the identity."""

    trace: Estimate
    """tr S / d, with its sign: above 1 where the map expands on average, below where it contracts."""
    frobenius: Estimate
    """||S||_F^2 / d: blind to the sign."""


def jacobian_size(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    key: Key[Array, ""],
    label: Int[Array, " batch"] | None = None,
    probe: Literal["rademacher", "gaussian"] = "rademacher",
    probes: int = 1,
) -> JacobianSize:
    """tr S / d and ||S||_F^2 / d by Hutchinson's estimator; the errors cover rows and probes together.

    Args:
        probe: distribution of the probes. Random signs make the trace of a diagonal S exact.
        probes: for each row, one Jacobian-vector product each.
    """
    require(probe in ("rademacher", "gaussian"), "probe", probe, "rademacher or gaussian")
    require(probes >= 1, "probes", probes, "1 or more")
    draw = jax.random.rademacher if probe == "rademacher" else jax.random.normal
    d = z[0].size

    def one(key):
        direction = draw(key, z.shape, z.dtype)
        image = expansion_product(u, z, r, t, direction, label)
        return _dot(direction, image) / d, _squared(image) / d

    trace, frobenius = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, probes))
    return JacobianSize(mean_of(trace.mean(axis=0)), mean_of(frobenius.mean(axis=0)))


def fluctuation(
    proxy: AverageVelocity,
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
    path: Path = STRAIGHT_LINE,
) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
    """z and xi = v_c - v_hat(z, t) of pairs (x, e), v_hat the diagonal of `proxy`.

    With v_hat = v + b, E[xi xi^T | z] = Sigma + b b^T.
    """
    z = path.interpolate(x, e, t)
    return z, path.velocity(x, e, t) - instantaneous_velocity(proxy, z, t, label)


class Amplification(NamedTuple):
    """Amplification of the noise by the stochastic tangent [5]."""

    amplified: Estimate
    """E||S xi||^2 = tr(S Sigma S^T): the noise in the residual at beta = 0."""
    floor: Estimate
    """E||xi||^2 = tr Sigma: the noise at beta = 1, and of the target alone."""
    ratio: Estimate
    """The first over the second: above 1 the deterministic tangent has less noise, below 1 it has more."""


def noise_amplification(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    xi: Float[Array, "batch *event"],
    label: Int[Array, " batch"] | None = None,
) -> Amplification:
    """E||S xi||^2, E||xi||^2 and their ratio over rows.

    Args:
        xi: the fluctuation v_c - v at z: exact conditional samples, or `fluctuation` on real pairs.
    """
    image = jax.jit(lambda z, r, t, xi: expansion_product(u, z, r, t, xi, label))(z, r, t, xi)
    amplified, floor = _squared(image), _squared(xi)
    return Amplification(mean_of(amplified), mean_of(floor), ratio_of(amplified, floor))


def tracking_gap(
    u: AverageVelocity,
    proxy: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
) -> Estimate:
    """E||u(z, t, t) - proxy(z, t, t)||^2, summed over components: the lag of the EMA, not the bias of v_hat."""
    return mean_of(jax.jit(lambda z, t: _gap_rows(u, proxy, z, t, label))(z, t))


def noise_floor(
    proxy: AverageVelocity,
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
) -> Estimate:
    """E||v_c - v_hat||^2 per component: (sigma2 + E||b||^2) / d."""
    return mean_of(jax.jit(lambda x, e, t: _noise_rows(proxy, x, e, t, label)[1])(x, e, t) / x[0].size)


def shrinkage(
    u: AverageVelocity,
    proxy: AverageVelocity,
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
) -> Estimate:
    """sigma2 / (sigma2 + gap), the second factor of [12], with the noise E||v_c - v_hat||^2 and the tracking gap."""

    def rows(x, e, t):
        z, noise = _noise_rows(proxy, x, e, t, label)
        return noise, noise + _gap_rows(u, proxy, z, t, label)

    return ratio_of(*jax.jit(rows)(x, e, t))


class SemiGradientGap(NamedTuple):
    """The part of the gradient that the stop-gradient removes [7]."""

    norm: Estimate
    """||grad E||R||^2 - semi-gradient||."""
    relative: Estimate
    """The norm over that of the semi-gradient; large where the semi-gradient is small, as it is at a solution."""


def semi_gradient_gap(
    bind: Callable[[Any], AverageVelocity],
    params: Any,
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
    groups: int = 16,
    path: Path = STRAIGHT_LINE,
) -> SemiGradientGap:
    """Norm of the gradient of E||u + (t - r) D_{v_c} u - v_c||^2 minus the one that holds D_{v_c} u constant.

    Args:
        bind: parameters -> u.
        groups: of rows, for the jackknife; a remainder of rows is left out. Two gradients a group are in memory.
    """
    require(2 <= groups <= len(x), "groups", groups, f"2 to the number of rows, {len(x)}")

    def gradients(rows):
        x, e, r, t, label = rows
        z, v_c = path.interpolate(x, e, t), path.velocity(x, e, t)

        def loss(params, hold):
            value, dudt = total_derivative(bind(params), z, r, t, v_c, label)
            residual = value + expand(t - r, z) * (jax.lax.stop_gradient(dudt) if hold else dudt) - v_c
            return _squared(residual).mean()

        semi, full = (jax.grad(loss)(params, hold) for hold in (True, False))
        return semi, jax.tree.map(jnp.subtract, full, semi)

    def grams(rows):
        semi, gap = jax.lax.map(gradients, rows)
        return _gram(semi), _gram(gap)

    size = len(x) // groups
    rows = jax.tree.map(lambda leaf: leaf[: size * groups].reshape(groups, size, *leaf.shape[1:]), (x, e, r, t, label))
    semi, gap = (np.asarray(gram, np.float64) for gram in jax.jit(grams)(rows))

    def norm(gram, indices):
        return float(np.sqrt(max(gram[np.ix_(indices, indices)].mean(), 0.0)))

    relative = jackknife(lambda indices: norm(gap, indices) / max(norm(semi, indices), 1e-300), groups)
    return SemiGradientGap(jackknife(lambda indices: norm(gap, indices), groups), relative)


def _gap_rows(u, proxy, z, t, label):
    return _squared(instantaneous_velocity(u, z, t, label) - instantaneous_velocity(proxy, z, t, label))


def _noise_rows(proxy, x, e, t, label):
    z, xi = fluctuation(proxy, x, e, t, label)
    return z, _squared(xi)


def _gram(stacked: Any) -> Float[Array, "groups groups"]:
    """Inner products of the rows of a tree of arrays with a leading axis."""
    flat = (leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(stacked))
    return sum((jnp.matmul(leaf, leaf.T, precision=jax.lax.Precision.HIGHEST) for leaf in flat), jnp.zeros(()))


def _dot(left: Float[Array, "batch *event"], right: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return jnp.sum(left * right, axis=tuple(range(1, left.ndim)))


def _squared(rows: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return _dot(rows, rows)
