"""Gaussian mixture data, with closed forms for all quantities of the theory: the oracle of this library.

Marginal velocity and its covariance as in Lu and Wang (arXiv:2605.09235, Lemma 1 and eq. 5); average velocity as in
Geng et al. (arXiv:2505.13447, eq. 3).

    x ~ sum_k weights_k N(mu_k, S_k),  z = (1 - t) x + t e,  C_k = (1 - t)^2 S_k + t^2 I

Given the component k and z, e - x has mean v_k = E[e|z,k] - E[x|z,k] and covariance S_k C_k^{-1}, where with
off_k = z - (1 - t) mu_k

    E[x | z, k] = mu_k + (1 - t) S_k C_k^{-1} off_k,     E[e | z, k] = t C_k^{-1} off_k.

Collecting terms, and because t^2 + (1 - t) t = t,

    v_k = G_k z - H_k mu_k,      H_k = t C_k^{-1},      G_k = (t I - (1 - t) S_k) C_k^{-1},

with no division by t. The responsibilities are rho_k ∝ weights_k N(z; (1 - t) mu_k, C_k), and by the laws of total
expectation and total covariance

    v(z, t) = sum_k rho_k v_k,       Sigma(z, t) = sum_k rho_k [ S_k C_k^{-1} + (v_k - v)(v_k - v)^T ].

C_k is diagonal in the eigenvectors of S_k at every t, so that no matrix is inverted per sample.

The average velocity solves an equation without division by the gap. The point at time s = t + (r - t) tau of the
trajectory through z is z + (r - t) U(tau), where

    dU/dtau = v(z + (r - t) U, t + (r - t) tau),     U(0) = 0,     u(z, r, t) = U(1),

which at r = t reads U(1) = v(z, t) and has no special case.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from vamf.conditioning import Cond
from vamf.errors import UserError, require
from vamf.path import expand
from vamf.theory.ode import integrate

_TOLERANCE = {"float32": 1e-6, "float64": 1e-9}
"""Error of an ODE step of the average velocity, by type."""
_CHUNK = 2**21
"""Entries of the largest intermediate array of a covariance."""


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """x ~ sum_k weights_k N(means_k, S_k), with S_k = stds_k^2 I or a full matrix.

    An instance is an average velocity: called as u(z, r, t, label) it returns the exact one (labels are ignored).
    Methods take z (n, d) and times (n,) in [0, 1], can be transformed by jit, vmap and grad (forward mode
    through the average velocity), and compute in z's type. Instances are compared by identity, so that one can
    be a static argument.

    A component of variance 0 in some direction is allowed; the velocity is infinite at t = 0 then, so keep t > 0, and
    r > 0 for an average velocity.

    Raises:
        UserError: shapes that do not match, weights that are not positive or do not sum to 1 (within 1e-6; they are
            normalised), a negative std, a covariance that is not symmetric positive semidefinite, both or neither of
            `stds` and `covariances`.
    """

    weights: Any
    """Shape (K,), positive, of sum 1. Any array-like; stored in float64, like the others."""
    means: Any
    """mu_k, shape (K, d)."""
    stds: Any = None
    """Shape (K,), 0 or more, where S_k = stds_k^2 I."""
    _: dataclasses.KW_ONLY
    covariances: Any = None
    """S_k, shape (K, d, d), symmetric positive semidefinite, where it is a matrix."""
    # Eigenvalues of S_k with eigenvectors in columns, and the means in these axes; (K, 1) and None where S_k = s^2 I.
    _variances: Float[np.ndarray, "K _"] = dataclasses.field(init=False, repr=False)
    _axes: Float[np.ndarray, "K d d"] | None = dataclasses.field(init=False, repr=False)
    _axis_means: Float[np.ndarray, "K d"] = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        for name in ("weights", "means", "stds", "covariances"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _real(name, getattr(self, name)))
        shape = self.means.shape
        require(len(shape) == 2 and min(shape) > 0, "shape of means", shape, "(K, d)")
        _require_shape("weights", self.weights, shape[:1])
        require(bool(np.all(self.weights > 0)), "weights", f"{self.weights.min():g} at least", "above 0")
        total = float(self.weights.sum())
        require(abs(total - 1) <= 1e-6, "sum of weights", f"{total:g}", "1 within 1e-6")
        object.__setattr__(self, "weights", self.weights / total)
        if self.stds is not None and self.covariances is None:
            _require_shape("stds", self.stds, shape[:1])
            require(bool(np.all(self.stds >= 0)), "stds", f"{self.stds.min():g} at least", "0 or more")
            variances, axes = self.stds[:, None] ** 2, None
        elif self.covariances is not None and self.stds is None:
            _require_shape("covariances", self.covariances, (*shape, shape[1]))
            variances, axes = _spectrum(self.covariances)
        else:
            raise UserError("a mixture needs exactly one of stds (K,) and covariances (K, d, d)")
        object.__setattr__(self, "_variances", variances)
        object.__setattr__(self, "_axes", axes)
        axis_means = self.means if axes is None else np.einsum("kdj,kd->kj", axes, self.means)
        object.__setattr__(self, "_axis_means", axis_means)

    @property
    def dim(self) -> int:
        """d, the dimension of a sample."""
        return self.means.shape[1]

    @partial(jax.jit, static_argnums=(0, 2))
    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        """n fresh draws of x, in jax's default float type."""
        component_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (n, self.dim))
        which = jax.random.choice(component_key, len(self.weights), (n,), p=jnp.asarray(self.weights, noise.dtype))
        offset = jnp.sqrt(jnp.asarray(self._variances, noise.dtype)[which]) * noise
        return jnp.asarray(self.means, noise.dtype)[which] + self._from_axes(offset, which)

    @partial(jax.jit, static_argnums=0)
    def velocity(self, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, "n d"]:
        """The marginal velocity v(z, t) = E[e - x | z_t = z]."""
        rho = jax.nn.softmax(self._log_joint(z, t), axis=1)
        _, g, h, _ = self._spectra(t)
        means = jnp.asarray(self._axis_means, z.dtype)
        if self._axes is None:
            g, h = g[..., 0], h[..., 0]
            return jnp.sum(rho * g, axis=1, keepdims=True) * z - _einsum("nk,kd->nd", rho * h, means)
        velocities = rho[..., None] * (g * self._in_axes(z) - h * means)
        return _einsum("nkj,kdj->nd", velocities, jnp.asarray(self._axes, z.dtype))

    @partial(jax.jit, static_argnums=0)
    def velocity_covariance(self, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, "n d d"]:
        """Sigma(z, t) = Cov[e - x | z_t = z]."""

        def one(point):
            rho, deviations, within = self._row_terms(*point)
            between = _einsum("k,ki,kj->ij", rho, deviations, deviations)
            if self._axes is None:
                return between + jnp.sum(rho * within[:, 0]) * jnp.eye(self.dim, dtype=z.dtype)
            axes = jnp.asarray(self._axes, z.dtype)
            return between + _einsum("kj,kaj,kbj->ab", rho[:, None] * within, axes, axes)

        return self._map_rows(one, z, t)

    @partial(jax.jit, static_argnums=0)
    def total_variance(self, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, " n"]:
        """sigma2 = tr Sigma(z, t), without forming Sigma."""

        def one(point):
            rho, deviations, within = self._row_terms(*point)
            return jnp.sum(rho * (jnp.sum(deviations**2, axis=1) + self._repeats * jnp.sum(within, axis=1)))

        return self._map_rows(one, z, t)

    @partial(jax.jit, static_argnums=0)
    def sample_posterior(
        self, key: Key[Array, ""], z: Float[Array, "n d"], t: Float[Array, " n"]
    ) -> Float[Array, "n d"]:
        """One x given z_t = z for each row; its noise is e = (z - (1 - t) x) / t."""
        component_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(component_key, self._log_joint(z, t), axis=1)
        means, variances = (jnp.asarray(array, z.dtype)[which] for array in (self.means, self._variances))
        alpha, t = expand(1 - t, z), expand(t, z)
        c = alpha**2 * variances + t**2
        mean = alpha * variances / c * self._to_axes(z - alpha * means, which)
        std = t * jnp.sqrt(variances / c)  # Cov[x | z, k] = S - (1 - t)^2 S C^{-1} S = t^2 S C^{-1}
        return means + self._from_axes(mean + std * jax.random.normal(noise_key, z.shape, z.dtype), which)

    @partial(jax.jit, static_argnums=0)
    def log_density(self, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, " n"]:
        """log p_t(z), the density of z_t, in nats; t = 0 gives the data density."""
        return jax.nn.logsumexp(self._log_joint(z, t), axis=1) - self.dim / 2 * float(np.log(2 * np.pi))

    def average_velocity(
        self,
        z: Float[Array, "n d"],
        r: Float[Array, " n"],
        t: Float[Array, " n"],
        label: Cond = None,
    ) -> Float[Array, "n d"]:
        """The exact u(z, r, t), by an adaptive Runge-Kutta method; r = t gives v(z, t).

        Outside of a jax transformation it is computed in float64 whatever z's type, with an error of about 1e-8;
        inside one, in z's type: in float32 the error is 1e-5, and 1e-4 where stds are a hundredth of the range.
        """
        return _in_float64(_average_velocity, self, z, r, t)

    def flow_map(self, z: Float[Array, "n d"], t: Float[Array, " n"], r: Float[Array, " n"]) -> Float[Array, "n d"]:
        """z_r, where the flow carries z from time t to time r; precision as of `average_velocity`."""
        return _in_float64(_flow_map, self, z, t, r)

    def flow_map_jacobian(
        self, z: Float[Array, "n d"], t: Float[Array, " n"], r: Float[Array, " n"]
    ) -> Float[Array, "n d d"]:
        """S = dz_r/dz_t = I - (t - r) du/dz, direction of z_t last; precision as of `average_velocity`."""
        return _in_float64(_flow_map_jacobian, self, z, t, r)

    def __call__(
        self,
        z: Float[Array, "n d"],
        r: Float[Array, " n"],
        t: Float[Array, " n"],
        label: Cond = None,
    ) -> Float[Array, "n d"]:
        """The exact average velocity; the label is ignored."""
        return self.average_velocity(z, r, t)

    def diagonal(self, z: Float[Array, "n d"], t: Float[Array, " n"], label: Cond = None) -> Float[Array, "n d"]:
        """u(z, t, t) = v(z, t), without the ODE."""
        return self.velocity(z, t)

    # ------------------------------------------------------------------- pieces, for rows z (n, d) and components K

    @property
    def _repeats(self) -> int:
        """How many directions share one entry of the variances."""
        return self.dim // self._variances.shape[1]

    def _spectra(self, t: Float[Array, " n"]) -> tuple[Float[Array, "n K _"], ...]:
        """Eigenvalues of S_k C_k^{-1}, of G_k, of H_k and of C_k."""
        variances, t = jnp.asarray(self._variances, t.dtype), t[:, None, None]
        c = (1 - t) ** 2 * variances + t**2
        return variances / c, (t - (1 - t) * variances) / c, t / c, c

    def _log_joint(self, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, "n K"]:
        """log [weights_k N(z; (1 - t) mu_k, C_k)] without the constant -d/2 log 2 pi."""
        means, alpha, c = jnp.asarray(self._axis_means, z.dtype), 1 - t[:, None], self._spectra(t)[-1]
        if self._axes is None:
            product = _einsum("nd,kd->nk", z, means)  # no array (n, K, d)
            squares = jnp.sum(z**2, axis=1, keepdims=True) + alpha**2 * jnp.sum(means**2, axis=1) - 2 * alpha * product
            distances = squares / c[..., 0]
        else:
            distances = jnp.sum((self._in_axes(z) - alpha[..., None] * means) ** 2 / c, axis=2)
        logs = self._repeats * jnp.sum(jnp.log(c), axis=2)
        return jnp.asarray(np.log(self.weights), z.dtype) - (logs + distances) / 2

    def _row_terms(self, z: Float[Array, " d"], t: Float[Array, ""]):
        """Of one row: rho (K,), v_k - v (K, d), and the eigenvalues of S_k C_k^{-1} (K, d) or (K, 1)."""
        rho = jax.nn.softmax(self._log_joint(z[None], t[None])[0])
        within, g, h, _ = (values[0] for values in self._spectra(t[None]))
        velocities = g * self._in_axes(z[None])[0] - h * jnp.asarray(self._axis_means, z.dtype)
        if self._axes is not None:
            velocities = _einsum("kj,kdj->kd", velocities, jnp.asarray(self._axes, z.dtype))
        return rho, velocities - _einsum("k,kd->d", rho, velocities), within

    def _in_axes(self, z: Float[Array, "n d"]) -> Float[Array, "n _ d"]:
        """z in the axes of every component; (n, 1, d) for isotropic components."""
        return z[:, None, :] if self._axes is None else _einsum("nd,kdj->nkj", z, jnp.asarray(self._axes, z.dtype))

    def _to_axes(self, rows: Float[Array, "n d"], which: Int[Array, " n"]) -> Float[Array, "n d"]:
        """Each row in the axes of its component."""
        return rows if self._axes is None else _einsum("nd,ndj->nj", rows, jnp.asarray(self._axes, rows.dtype)[which])

    def _from_axes(self, rows: Float[Array, "n d"], which: Int[Array, " n"]) -> Float[Array, "n d"]:
        """The inverse of `_to_axes`."""
        return rows if self._axes is None else _einsum("nj,ndj->nd", rows, jnp.asarray(self._axes, rows.dtype)[which])

    def _map_rows(self, one, z: Float[Array, "n d"], t: Float[Array, " n"]) -> Array:
        """one((z_i, t_i)) of every row, in batches that fit in memory."""
        largest = self.means.size if self._axes is None else self._axes.size
        return jax.lax.map(one, (z, t), batch_size=max(1, _CHUNK // largest))


@partial(jax.jit, static_argnums=0)
def _average_velocity(mixture, z, r, t):
    gap = r - t

    def slope(tau, u):
        return mixture.velocity(z + gap[:, None] * u, t + gap * tau)

    return integrate(slope, jnp.zeros_like(z), _TOLERANCE[z.dtype.name])


@partial(jax.jit, static_argnums=0)
def _flow_map(mixture, z, t, r):
    return z - expand(t - r, z) * _average_velocity(mixture, z, r, t)


@partial(jax.jit, static_argnums=0)
def _flow_map_jacobian(mixture, z, t, r):
    def column(direction):
        return jax.jvp(lambda z: _flow_map(mixture, z, t, r), (z,), (jnp.broadcast_to(direction, z.shape),))[1]

    return jax.vmap(column, out_axes=2)(jnp.eye(mixture.dim, dtype=z.dtype))


def _in_float64(compute, mixture, z, *times):
    """compute(mixture, z, *times), in float64 unless one of the arrays is traced."""
    if any(isinstance(array, Tracer) for array in (z, *times)):
        return compute(mixture, z, *times)
    with jax.enable_x64(True):
        return compute(mixture, *(jnp.asarray(array, jnp.float64) for array in (z, *times))).astype(z.dtype)


# On a GPU the default precision of a product may be far below float32's.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _spectrum(covariances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (K, d) along the principal axes (K, d, d) of covariances, tiny negative rounding removed."""
    size = np.abs(covariances).max(axis=(1, 2))
    skew = np.abs(covariances - np.swapaxes(covariances, 1, 2)).max(axis=(1, 2))
    require(bool(np.all(skew <= 1e-8 * size)), "covariances", f"asymmetric by {skew.max():g}", "symmetric matrices")
    variances, axes = np.linalg.eigh(covariances)
    least = variances[:, 0]
    require(bool(np.all(least >= -1e-8 * size)), "covariances", f"eigenvalue {least.min():g}", "eigenvalues 0 or more")
    return np.maximum(variances, 0.0), axes


def _require_shape(name: str, array: np.ndarray, shape: tuple) -> None:
    require(array.shape == shape, f"shape of {name}", array.shape, f"{shape}, as the means require")


def _real(name: str, value) -> np.ndarray:
    array = np.array(value, np.float64)
    require(bool(np.isfinite(array).all()), name, "not finite", "finite numbers")
    return array
