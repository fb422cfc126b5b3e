"""The density of the ODE dz/dt = v(z, t) = u(z, t, t), by the instantaneous change of variables.

Chen et al. (arXiv:1806.07366, theorem 1); Grathwohl et al. (arXiv:1810.01367, FFJORD) for the trace estimate; t = 0 is
data and t = 1 noise, so that from a data point z_0 = x onwards

    d log p(z_t) / dt = -div v(z_t, t),        log p(x) = log N(z_1; 0, I) + integral over [0, 1] of div v(z_t, t) dt

    exact        div v = sum_i e_i^T J e_i, one derivative for each dimension
    hutchinson   div v ~ mean_k w_k^T J w_k over K random probes with E[w w^T] = I, fixed along the trajectory

The trajectory does not depend on the probes, so that the estimate of log p(x) is unbiased but for the steps' error.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vamf.average_velocity import AverageVelocity, instantaneous_velocity, precise
from vamf.conditioning import Cond
from vamf.errors import require
from vamf.likelihood.result import LogDensity, along, inner, log_normal, unit_vector

MAX_EXACT = 64
"""Largest dimension in which the divergence is exact by default."""
MAX_STEPS = 4096
"""Most steps to which a tolerance leads."""


@dataclasses.dataclass(frozen=True)
class ODE:
    """The density of the ODE, and how it is integrated."""

    steps: int = 64
    """Steps of equal length from data to noise."""
    solver: Literal["rk4", "heun"] = "rk4"
    """The classical Runge-Kutta method (four velocities a step) or Heun's (two)."""
    divergence: Literal["auto", "exact", "hutchinson"] = "auto"
    """exact: one derivative for each dimension; hutchinson: one for each probe; auto: exact up to 64 dimensions."""
    probes: int = 8
    """Random probes of each row."""
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    """Signs, whose estimate has less variance, or normal numbers."""
    tolerance: float | None = None
    """Double the steps until the mean of |change of log p| is at most this many nats (`log_density` does it)."""

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.solver in ("rk4", "heun"), "solver", self.solver, "rk4, heun")
        kinds = ("auto", "exact", "hutchinson")
        require(self.divergence in kinds, "divergence", self.divergence, ", ".join(kinds))
        require(self.probes >= 1, "probes", self.probes, "1 or more")
        require(self.probe in ("rademacher", "gaussian"), "probe", self.probe, "rademacher, gaussian")
        require(self.tolerance is None or self.tolerance > 0, "tolerance", self.tolerance, "above 0 nats, or None")

    def is_exact(self, dim: int) -> bool:
        """Whether the divergence of points of a dimension is exact."""
        return self.divergence == "exact" or (self.divergence == "auto" and dim <= MAX_EXACT)

    def density(
        self,
        u: AverageVelocity,
        x: Float[Array, "n *event"],
        label: Cond,
        key: Key[Array, ""],
        rows: Int[Array, " n"],
    ) -> LogDensity:
        """Log densities of a block. Traceable.

        Args:
            rows: number of each row, which with the key decides its probes.
        """
        u = precise(u)
        dim = int(np.prod(x.shape[1:]))
        exact = self.is_exact(dim)
        probes = None if exact else self._probes(key, x, rows)

        def direction(index):
            return unit_vector(index, x) if probes is None else probes[index]

        def slope(t, z):
            times = jnp.full(z.shape[:1], t)

            def velocity(z):
                return instantaneous_velocity(u, z, times, label)

            v, products = along(velocity, z, direction, dim if exact else self.probes, inner)
            return v, jnp.sum(products, axis=0, keepdims=True) if exact else products

        def step(state, t):
            return (_rk4 if self.solver == "rk4" else _heun)(slope, t, state, h), None

        h = jnp.asarray(1 / self.steps, x.dtype)
        start = x, jnp.zeros((1 if exact else self.probes, len(x)), x.dtype)
        z, integral = jax.lax.scan(step, start, jnp.arange(self.steps, dtype=x.dtype) * h)[0]
        spread = jnp.std(integral, axis=0, ddof=1) / np.sqrt(self.probes) if self.probes > 1 else jnp.nan * integral[0]
        std_error = jnp.zeros_like(integral[0]) if exact else spread
        log_p = log_normal(z) + jnp.mean(integral, axis=0)
        return LogDensity(log_p, std_error, z, jnp.nan * log_p, jnp.full(len(x), self.steps))

    def _probes(self, key, x, rows):
        """Probes (k, n, *event)."""
        shape = (self.probes, *x.shape[1:])

        def of_row(row):
            row_key = jax.random.fold_in(key, row)
            if self.probe == "rademacher":
                return jax.random.rademacher(row_key, shape, x.dtype)
            return jax.random.normal(row_key, shape, x.dtype)

        return jnp.swapaxes(jax.vmap(of_row)(rows), 0, 1)


def _move(state, slope, h):
    return jax.tree.map(lambda value, change: value + h * change, state, slope)


def _heun(slope, t, state, h):
    first = slope(t, state[0])
    second = slope(t + h, _move(state, first, h)[0])
    return _move(state, jax.tree.map(lambda a, b: (a + b) / 2, first, second), h)


def _rk4(slope, t, state, h):
    first = slope(t, state[0])
    second = slope(t + h / 2, _move(state, first, h / 2)[0])
    third = slope(t + h / 2, _move(state, second, h / 2)[0])
    fourth = slope(t + h, _move(state, third, h)[0])
    mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
    return _move(state, mean, h)
