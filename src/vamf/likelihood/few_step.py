"""The density of few-step samples, by the change of variables through the jumps themselves.

A jump X(z) = z - (t - r) u(z, r, t) from time t to r < t has the Jacobian S = I - (t - r) du/dz. Samples are made by
K of them from noise; with the points z_K = x, ..., z_0 of x's own chain, found jump by jump from data to noise,

    log p(x) = log N(z_0; 0, I) - sum_k log|det S_k(z_{k-1})|

Where a point z_r comes from is found in one of three ways:

    newton        damped Newton steps z <- z - a S^{-1} (X(z) - z_r), a halved where the error does not fall; from the
                  ODE's point, and where that leads nowhere from random points around it
    fixed_point   z <- z_r + (t - r) u(z, r, t), which converges where (t - r) ||du/dz|| < 1, as ||I - S|| < 1
    reverse       z_t = z_r + (t - r) u(z_r, t, r): the network's own jump from data to noise, that is u with its times
                  exchanged, which only the cycle term trains (`objectives.terms.cycle`). Then log p(x) is that map's
                  own density, log N(z_0) + sum log|det(I + (t - r) du/dz(z_r, t, r))|: the samples' only where
                  it is their inverse, and a density at all only where it is invertible.

A trained map need not be one-to-one. Where several points of noise land on x, this is the share of one of them, a lower
bound; where none does, there is no density, and the result is NaN, as where none was found.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vamf.average_velocity import AverageVelocity, flow_map, instantaneous_velocity, precise
from vamf.conditioning import Cond
from vamf.errors import UserError, require
from vamf.likelihood.result import LogDensity, along, log_normal, unit_vector
from vamf.sampling.time_grid import times_of

MAX_DIM = 1024
"""Largest dimension: determinants are exact."""
GUESS_STEPS = 8
"""Steps of Heun's method along u(z, t, t) that give the first guess of an inverse."""
SMALLEST_STEP, SPREAD = 2.0**-6, 0.5
"""Below this factor a the search begins anew, this far (standard deviation) from the first guess."""
TOLERANCE = {"float32": 1e-5, "float64": 1e-8}
"""Largest error of a jump's landing point, root mean square over coordinates, relative to 1 + that of the point."""


@dataclasses.dataclass(frozen=True)
class FewStep:
    """The density of samples in few jumps, and how jumps are inverted."""

    steps: int | tuple[float, ...] = 1
    """Number of jumps on equal times, or their times from 1 to 0."""
    inverse: Literal["newton", "fixed_point", "reverse"] = "newton"
    """How the point is found where a jump began."""
    iterations: int = 200
    """Most iterations of newton and fixed_point."""
    tolerance: float | None = None
    """A jump is inverted once it lands this close; by default 1e-5 in float32 and 1e-8 in float64."""

    def __post_init__(self):
        times_of("steps", self.steps, np.float32)
        ways = ("newton", "fixed_point", "reverse")
        require(self.inverse in ways, "inverse", self.inverse, ", ".join(ways))
        require(self.iterations >= 1, "iterations", self.iterations, "1 or more")
        require(self.tolerance is None or self.tolerance > 0, "tolerance", self.tolerance, "above 0, or None")

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
            rows: number of each row, which with the key decides where a search begins anew.
        """
        u, dim = precise(u), int(np.prod(x.shape[1:]))
        if dim > MAX_DIM:
            raise UserError(
                f"likelihood of jumps: {dim:,} dimensions; determinants are exact, for up to {MAX_DIM:,}: take the ODE"
            )
        grid = times_of("steps", self.steps, x.dtype)[::-1]
        tolerance = self.tolerance or TOLERANCE[x.dtype.name]

        def undo(state, ends):
            z, log_det, worst, solved, most = state
            r, t = (jnp.full(z.shape[:1], end) for end in ends)

            def jump(start):
                return flow_map(u, start, t, r, label)

            if self.inverse == "reverse":
                before, jacobian = _with_jacobian(lambda z: flow_map(u, z, r, t, label), z)
                change, count = jnp.linalg.slogdet(jacobian)[1], jnp.zeros(len(z), int)
            else:
                guess = _ode(u, z, ends[0], ends[1], label)
                keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
                before, count = self._invert(jump, z, guess, tolerance, keys)
                change = -jnp.linalg.slogdet(_with_jacobian(jump, before)[1])[1]
            error = _size(jump(before) - z)
            solved = solved & (error <= tolerance * (1 + _size(z)))
            return (before, log_det + change, jnp.maximum(worst, error), solved, jnp.maximum(most, count)), None

        zeros = jnp.zeros(len(x), x.dtype)
        start = x, zeros, zeros, jnp.ones(len(x), bool), jnp.zeros(len(x), int)
        (z, log_det, worst, solved, most), _ = jax.lax.scan(undo, start, (grid[:-1], grid[1:]))
        log_p = log_normal(z) + log_det
        if self.inverse != "reverse":
            log_p = jnp.where(solved, log_p, jnp.nan)
        return LogDensity(log_p, zeros, z, worst, most)

    def _invert(
        self, jump: Callable, target: Array, guess: Array, tolerance: float, keys: Key[Array, " n"]
    ) -> tuple[Array, Array]:
        """Points that a jump carries to the target, and iterations of each row."""
        enough = tolerance * (1 + _size(target))

        def newton(z, error):
            jacobian = _with_jacobian(jump, z)[1]
            return jnp.linalg.solve(jacobian, error.reshape(len(z), -1, 1)).reshape(z.shape)

        def anew(index):
            def offset(key):
                return jax.random.normal(jax.random.fold_in(key, index), guess.shape[1:], guess.dtype)

            return guess + SPREAD * jax.vmap(offset)(keys)

        def iterate(state):
            z, error, factor, count, index = state
            active = _size(error) > enough
            if self.inverse == "newton":
                stuck = factor < SMALLEST_STEP
                proposal = jnp.where(_rows(stuck, z), anew(index), z - _rows(factor, z) * newton(z, error))
            else:  # z_r + (t - r) u(z) is z minus the error
                stuck, proposal = jnp.ones_like(active), z - error
            moved = jump(proposal) - target
            better = stuck | (_size(moved) < _size(error))  # a comparison with NaN is false
            take = _rows(active & better & jnp.isfinite(_size(moved)), z)
            factor = jnp.where(stuck, 1, jnp.where(better, jnp.minimum(1, 2 * factor), factor / 2))
            z, error = jnp.where(take, proposal, z), jnp.where(take, moved, error)
            return z, error, factor, count + active, index + 1

        def go_on(state):
            return jnp.any(_size(state[1]) > enough) & (state[-1] < self.iterations)

        ones = jnp.ones(len(target), target.dtype)
        start = guess, jump(guess) - target, ones, jnp.zeros(len(target), int), 0
        z, _, _, count, _ = jax.lax.while_loop(go_on, iterate, start)
        return z, count


def _with_jacobian(f: Callable[[Array], Array], z: Float[Array, "n *event"]) -> tuple[Array, Float[Array, "n d d"]]:
    """f(z), and the Jacobian of each row, direction of z last."""
    dim = int(np.prod(z.shape[1:]))
    value, columns = along(f, z, lambda index: unit_vector(index, z), dim, lambda jw, _: jw.reshape(len(z), -1))
    return value, jnp.moveaxis(columns, 0, 2)


def _ode(u: AverageVelocity, z: Float[Array, "n *event"], r: Array, t: Array, label: Cond) -> Float[Array, "n *event"]:
    """z carried from time r to time t along u(z, t, t)."""
    h = (t - r) / GUESS_STEPS

    def step(z, index):
        here, there = (jnp.full(z.shape[:1], r + h * (index + end)) for end in (0, 1))
        first = instantaneous_velocity(u, z, here, label)
        return z + h / 2 * (first + instantaneous_velocity(u, z + h * first, there, label)), None

    return jax.lax.scan(step, z, jnp.arange(GUESS_STEPS, dtype=z.dtype))[0]


def _size(error: Float[Array, "n *event"]) -> Float[Array, " n"]:
    """Root mean square over coordinates."""
    return jnp.sqrt(jnp.mean(error.reshape(len(error), -1) ** 2, axis=1))


def _rows(values: Array, like: Array) -> Array:
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
