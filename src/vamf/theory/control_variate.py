"""The tangent as a control variate: its gradient MSE, the coefficient beta that minimises it, and both from a batch.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 8 to 12, 27 to 30.

    tangent    w_beta = (1 - beta) v_c + beta v_hat = v + (1 - beta) xi + beta b,   xi = v_c - v,  b = v_hat - v  [8]
    residual   R = rbar + N_beta xi + beta M b,        M = (t - r) du/dz,  N_beta = (1 - beta) M - I              [9]
    gradient   g_beta = 2 (du/dtheta)^T R,             ideal g* = 2 (du/dtheta)^T rbar

Given z, xi has mean 0 and covariance Sigma. With G = (du/dtheta)(du/dtheta)^T,

    E||g_beta - g*||^2 = 4 [ tr(G N_beta Sigma N_beta^T) + beta^2 b^T M^T G M b ]                                 [27]

is a parabola in beta. With A = M - I, hence N_beta = A - beta M, its vertex is at

    beta* = tr(M^T G A Sigma) / ( tr(M^T G M Sigma) + b^T M^T G M b )                                             [30]

and on [0, 1] the minimiser is beta* clipped. For A = a I, Sigma = (sigma2/d) I, G = I it is a product of noise
cancellation and James-Stein shrinkage, [a/(a + 1)] [sigma2/(sigma2 + ||b||^2)]                                   [12].
A is minus the Jacobian of the flow map: a < -1 where that expands (beta* = 1 unless the bias is large), and
-1 < a < 0 where it contracts (beta* = 0).

From a batch no Jacobian is formed: with p = M xi, one Jacobian-vector product a row, and q = p - xi = A xi, the traces
at G = I are tr(M^T A Sigma) = E<q, p> and tr(M^T M Sigma) = E||p||^2                                             [14].
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from vamf.average_velocity import AverageVelocity, jacobian_product
from vamf.conditioning import Cond
from vamf.path import expand
from vamf.theory.estimate import Estimate, mean_of, ratio_of


def gradient_mse(
    beta: Real[ArrayLike, ""],
    jacobian: Float[ArrayLike, "d d"],
    covariance: Float[ArrayLike, "d d"],
    bias: Float[ArrayLike, " d"],
    gap: Real[ArrayLike, ""],
    gram: Float[ArrayLike, "d d"] | None = None,
) -> Float[Array, ""]:
    """E||g_beta - g*||^2 given z [27], with its factor 4: tr Cov of the per-sample gradient plus its squared bias.

    Args:
        jacobian: du/dz at (z, r, t), the direction of z last.
        covariance: Sigma = Cov[v_c | z_t = z].
        bias: b = v_hat - v.
        gap: t - r.
        gram: G = (du/dtheta)(du/dtheta)^T; the identity where None, which gives the MSE in output space.
    """
    m, noise, b, g = _operators(jacobian, covariance, bias, gap, gram)
    n = (1 - beta) * m - _identity(m)
    return 4 * (jnp.trace(g @ n @ noise @ n.T) + beta**2 * (m @ b) @ g @ (m @ b))


def optimal_beta(
    jacobian: Float[ArrayLike, "d d"],
    covariance: Float[ArrayLike, "d d"],
    bias: Float[ArrayLike, " d"],
    gap: Real[ArrayLike, ""],
    gram: Float[ArrayLike, "d d"] | None = None,
    clip: bool = True,
) -> Float[Array, ""]:
    """The beta of least gradient MSE [30]; arguments as of `gradient_mse`. 0 where every beta is as good (M = 0).

    Args:
        clip: clip to [0, 1]; else the vertex of the parabola.
    """
    m, noise, b, g = _operators(jacobian, covariance, bias, gap, gram)
    numerator = jnp.trace(m.T @ g @ (m - _identity(m)) @ noise)
    beta = _quotient(numerator, jnp.trace(m.T @ g @ m @ noise) + (m @ b) @ g @ (m @ b))
    return jnp.clip(beta, 0, 1) if clip else beta


def isotropic_mse(
    beta: Real[ArrayLike, "*#shape"],
    a: Real[ArrayLike, "*#shape"],
    sigma2: Real[ArrayLike, "*#shape"],
    bias2: Real[ArrayLike, "*#shape"],
) -> Float[Array, "*shape"]:
    """(a - beta (a + 1))^2 sigma2 + beta^2 (a + 1)^2 ||b||^2 [11], to which the gradient MSE is proportional.

    Args:
        a: the Jacobi factor, A = a I: minus the factor by which the flow map expands.
        sigma2: tr Sigma.
        bias2: ||b||^2.
    """
    return jnp.asarray((a - beta * (a + 1)) ** 2 * sigma2 + (beta * (a + 1)) ** 2 * bias2)


def optimal_beta_isotropic(
    a: Real[ArrayLike, "*#shape"], sigma2: Real[ArrayLike, "*#shape"], bias2: Real[ArrayLike, "*#shape"]
) -> Float[Array, "*shape"]:
    """The beta in [0, 1] of least `isotropic_mse`: [a/(a + 1)] [sigma2/(sigma2 + bias2)] [12], clipped.

    For a > 0 that is the formula itself; for -1 <= a <= 0 it is 0; for a < -1 the first factor exceeds 1.
    0 where every beta is as good.
    """
    return jnp.clip(_quotient(a, a + 1) * _quotient(sigma2, sigma2 + bias2), 0, 1)


def row_terms(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    xi: Float[Array, "batch *event"],
    label: Cond = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """<A xi, M xi> and ||M xi||^2 of every row: numerator and denominator of the unbiased-proxy optimum [14].

    Args:
        xi: the fluctuation v_c - v, or its surrogate v_c - v_hat.
    """
    p = _gap_product(u, z, r, t, xi, label)
    return _dot(p - xi, p), _dot(p, p)


def estimate_beta(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    xi: Float[Array, "batch *event"],
    label: Cond = None,
    bias: Float[Array, "batch *event"] | None = None,
) -> Estimate:
    """The one beta of least gradient MSE over a batch (G = I), and its standard error. Not clipped to [0, 1].

    A ratio of sums, not a mean of ratios. Without `bias` it is an upper bound wherever it is positive [14].

    Args:
        xi: the fluctuation v_c - v, or its surrogate v_c - v_hat.
        bias: b = v_hat - v of every row, if v is known.
    """
    numerator, denominator = row_terms(u, z, r, t, xi, label)
    if bias is not None:
        mb = _gap_product(u, z, r, t, bias, label)
        denominator = denominator + _dot(mb, mb)
    return ratio_of(numerator, denominator)


def estimate_mse(
    betas: Sequence[float],
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    xi: Float[Array, "batch *event"],
    label: Cond = None,
    bias: Float[Array, "batch *event"] | None = None,
) -> list[Estimate]:
    """The gradient MSE [27] over a batch (G = I, factor 4 included) at each beta: the curve that [13] scales.

    All betas use the same rows, so differences along the curve have smaller errors than its values.
    """
    p = _gap_product(u, z, r, t, xi, label)
    mb = jnp.zeros_like(p) if bias is None else _gap_product(u, z, r, t, bias, label)
    residuals = ((beta, (1 - beta) * p - xi) for beta in betas)
    return [mean_of(4 * (_dot(noise, noise) + beta**2 * _dot(mb, mb))) for beta, noise in residuals]


def _operators(jacobian, covariance, bias, gap, gram):
    """M, Sigma, b and G."""
    m = jnp.asarray(gap * jnp.asarray(jacobian))
    return m, jnp.asarray(covariance), jnp.asarray(bias), _identity(m) if gram is None else jnp.asarray(gram)


def _identity(m: Float[Array, "d d"]) -> Float[Array, "d d"]:
    return jnp.eye(m.shape[0], dtype=m.dtype)


def _quotient(numerator, denominator):
    """0 where the denominator is 0."""
    return jnp.where(denominator != 0, numerator / jnp.where(denominator != 0, denominator, 1), 0)


def _gap_product(u, z, r, t, direction, label):
    """M direction."""
    return expand(t - r, z) * jacobian_product(u, z, r, t, direction, label)


def _dot(left: Float[Array, "batch *event"], right: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    return jnp.sum(left * right, axis=tuple(range(1, left.ndim)))
