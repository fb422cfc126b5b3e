"""Adaptive tangent coefficients.

The mixed tangent w = v_c + beta (v_hat - v_c) leaves the noise N xi, N = A - beta M, in the residual (arXiv:2605.09235,
eq. 9), with M = (t - r) du/dz, A = M - I = -S, and S the Jacobian of the flow map. Its energy

    E||N xi||^2 = E||A xi||^2 - 2 beta E<M xi, A xi> + beta^2 E||M xi||^2       is least at
    beta* = E<M xi, A xi> / E||M xi||^2   within [0, 1]                                          [14]

which depends on (r, t), on the sample and on direction: mixing helps where the flow map expands and harms where it
contracts.

| coefficient        | what it is                                  | xi is represented by           | extra work      |
|--------------------|---------------------------------------------|--------------------------------|-----------------|
| `BinnedBeta`       | one beta for each bin of (t, r/t)           | v_c - v_hat of earlier batches | at times a JVP  |
| `PerSampleBeta`    | one beta for each sample                    | a probe, E[probe probe^T] = I  | 1 or d JVPs     |
| `PerDirectionBeta` | a symmetric matrix B, eigenvalues in [0, 1] | every direction alike          | d JVPs          |

None of them looks at the xi of the sample it is applied to: given (z, r, t) the coefficient and xi are independent, so
that with an exact v_hat the mean of the gradient is MeanFlow's for every network. A coefficient that saw xi would
correlate with it, and E[beta xi | z] = 0 would be lost.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.errors import require
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.velocity import Velocity, mix
from vamf.objectives.weighting import PROBE, draw_probe
from vamf.options import CHOICES
from vamf.path import expand
from vamf.theory.control_variate import row_terms

EXACT = 4
"""Largest number of dimensions in which `PerSampleBeta` takes every basis vector as a probe."""
SMALL = 16
"""Largest number of dimensions for `PerDirectionBeta`."""


class AdaptiveMix(Velocity, abc.ABC):
    """(1 - beta) a + beta b with a beta that is estimated."""

    a: Velocity
    b: Velocity

    def noise(self, step):
        return None

    @abc.abstractmethod
    def fraction(self, rows: PathBatch, ctx: Context) -> Float[Array, " rows"]:
        """beta of each row."""

    def __call__(self, rows, ctx):
        return mix(self.fraction(rows, ctx), ctx.velocity(self.a, rows), ctx.velocity(self.b, rows))


class BetaSums(NamedTuple):
    """Decayed sums over the rows of each bin."""

    numerator: Float[Array, "bins bins"]
    """Of <M xi, A xi>."""
    denominator: Float[Array, "bins bins"]
    """Of ||M xi||^2."""


@dataclasses.dataclass(frozen=True)
class BinnedBeta:
    """beta(r, t): piecewise constant on equal bins of t and of r/t, estimated while training."""

    bins: int = 8
    """Bins along each axis."""
    every: int = 16
    """Steps between updates; each costs one Jacobian-vector product."""
    decay: float = 0.97
    """Decay of the sums at each update."""

    def __post_init__(self):
        require(self.bins >= 1, "bins", self.bins, "1 or more")
        require(self.every >= 1, "every", self.every, "1 or more")
        require(0 <= self.decay < 1, "decay", self.decay, "[0, 1)")

    def mix(self, a: Velocity, b: Velocity) -> "BinnedMix":
        return BinnedMix(a, b, self)

    def init(self) -> BetaSums:
        """No rows seen: beta = 0, which is MeanFlow."""
        nothing = jnp.zeros((self.bins, self.bins))
        return BetaSums(nothing, nothing)

    def values(self, sums: BetaSums, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """beta(r, t) of each row."""
        table = jnp.clip(sums.numerator / jnp.maximum(sums.denominator, 1e-12), 0.0, 1.0)
        return table[self._bin(r, t)].astype(t.dtype)

    def update(self, sums: BetaSums, u, rows: PathBatch, xi: Float[Array, "rows *event"]) -> BetaSums:
        """The sums with a batch's rows added; they serve later batches, never this one."""
        numerator, denominator = row_terms(u, rows.z, rows.r, rows.t, xi, rows.cond)
        where = self._bin(rows.r, rows.t)
        return BetaSums(
            (self.decay * sums.numerator).at[where].add(numerator.astype(sums.numerator.dtype)),
            (self.decay * sums.denominator).at[where].add(denominator.astype(sums.denominator.dtype)),
        )

    def _bin(self, r, t):
        fraction = r / jnp.maximum(t, 1e-12)
        return tuple(jnp.clip((self.bins * value).astype(jnp.int32), 0, self.bins - 1) for value in (t, fraction))


@dataclasses.dataclass(frozen=True)
class BinnedMix(AdaptiveMix):
    """A mix with a `BinnedBeta`."""

    name = "beta"
    a: Velocity
    b: Velocity
    beta: BinnedBeta = BinnedBeta()

    def init_state(self, event_shape, num_classes):
        return self.beta.init()

    def update_state(self, state, ctx):
        def update(state):
            inner = ctx.copy()
            xi = inner.velocity(self.a, inner.off_diagonal) - inner.velocity(self.b, inner.off_diagonal)
            return self.beta.update(state, inner.u, inner.off_diagonal, xi)

        return jax.lax.cond(ctx.step % self.beta.every == 0, update, lambda state: state, state)

    def fraction(self, rows, ctx):
        sums = ctx.state.get(self.name)
        return self.beta.values(self.beta.init() if sums is None else sums, rows.r, rows.t)


class PerPointMix(AdaptiveMix):
    """A mix whose beta comes from the network's Jacobian at every point, with the derivative along it."""

    def fraction(self, rows, ctx):
        return self.derivative(rows, ctx)[2]

    @abc.abstractmethod
    def derivative(
        self, rows: PathBatch, ctx: Context
    ) -> tuple[Float[Array, "rows *event"], Float[Array, "rows *event"], Float[Array, " rows"]]:
        """u, its total derivative along the mixed tangent, and the coefficient (its mean over directions)."""


@dataclasses.dataclass(frozen=True)
class PerSampleBeta:
    """beta(z, r, t): every sample's own."""

    def mix(self, a: Velocity, b: Velocity) -> "PerSampleMix":
        return PerSampleMix(a, b)


@dataclasses.dataclass(frozen=True)
class PerSampleMix(PerPointMix):
    """A mix with one beta for each sample, from one random probe or, in few dimensions, from all directions."""

    name = PROBE
    a: Velocity
    b: Velocity

    def draw(self, key, x, r, t, step):
        return draw_probe(key, x) if x[0].size > EXACT else None

    def default_draw(self, x, e, t):
        return jnp.ones_like(x) if x[0].size > EXACT else None

    def derivative(self, rows, ctx):
        z = rows.z
        v_c, v_hat = ctx.velocity(self.a, rows), ctx.velocity(self.b, rows)
        probes = _basis(z) if z[0].size <= EXACT else rows.draws[PROBE][None]
        value, along_time, along = _linear(ctx.u, z, rows.r, rows.t, rows.cond)
        gap = expand(rows.t - rows.r, z)
        jvp = jax.vmap(lambda p: gap * along(p))(probes)
        axes = (0, *range(2, jvp.ndim))
        numerator, denominator = jnp.sum(jvp * (jvp - probes), axis=axes), jnp.sum(jvp**2, axis=axes)
        beta = jnp.clip(numerator / jnp.maximum(denominator, 1e-12), 0.0, 1.0)
        tangent = v_c + expand(beta, z) * (v_hat - v_c)
        return value, along_time + along(tangent), beta


@dataclasses.dataclass(frozen=True)
class PerDirectionBeta:
    """B(z, r, t): a symmetric matrix, a coefficient of its own along each right singular direction of M."""

    def mix(self, a: Velocity, b: Velocity) -> "PerDirectionMix":
        return PerDirectionMix(a, b)


@dataclasses.dataclass(frozen=True)
class PerDirectionMix(PerPointMix):
    """A mix with a matrix for each sample."""

    a: Velocity
    b: Velocity

    def derivative(self, rows, ctx):
        z, d = rows.z, rows.z[0].size
        require(d <= SMALL, "beta = per_direction: dimensions", d, f"up to {SMALL}, since it needs the whole Jacobian")
        v_c, v_hat = ctx.velocity(self.a, rows), ctx.velocity(self.b, rows)
        value, along_time, along = _linear(ctx.u, z, rows.r, rows.t, rows.cond)
        jacobian = jax.vmap(along)(_basis(z)).reshape(d, len(z), d).transpose(1, 2, 0)  # [row, output, input]
        m = jax.lax.stop_gradient((rows.t - rows.r)[:, None, None] * jacobian)
        directions, energy = _right_singular(m)  # columns v_i, ||M v_i||^2
        along_itself = jnp.sum(directions * (m @ directions), axis=1)  # <v_i, M v_i>
        fraction = jnp.clip(1 - along_itself / jnp.maximum(energy, 1e-12), 0.0, 1.0)  # <M v, (M - I) v> / ||M v||^2
        change = (v_hat - v_c).reshape(len(z), d, 1)
        mixed = directions @ (fraction[:, :, None] * (directions.mT @ change))
        tangent = v_c.reshape(len(z), d, 1) + mixed
        dudt = along_time + (jacobian @ tangent).reshape(z.shape)
        return value, dudt, fraction.mean(axis=1)


Adaptive = BinnedBeta | PerSampleBeta | PerDirectionBeta
KINDS: dict[str, type] = {"binned": BinnedBeta, "per_sample": PerSampleBeta, "per_direction": PerDirectionBeta}
"""Adaptive coefficients by name."""
CHOICES.update({kind: {name: kind} for name, kind in KINDS.items()})


def _linear(u, z, r, t, cond):
    """u, its derivative in t alone, and the map direction -> J direction; the forward pass is done once."""
    value, derivative = jax.linearize(lambda z, t: u(z, r, t, cond), z, t)
    return value, derivative(jnp.zeros_like(z), jnp.ones_like(t)), lambda w: derivative(w, jnp.zeros_like(t))


def _basis(z: Float[Array, "batch *event"]) -> Float[Array, "d batch *event"]:
    """Every unit vector, for every row."""
    event = z.shape[1:]
    d = z[0].size
    unit = jnp.eye(d, dtype=z.dtype).reshape(d, 1, *event)
    return jnp.broadcast_to(unit, (d, *z.shape))


def _right_singular(m: Float[Array, "batch d d"]) -> tuple[Float[Array, "batch d d"], Float[Array, "batch d"]]:
    """Right singular vectors as columns, and squared singular values."""
    square = m.mT @ m
    if m.shape[-1] == 2:  # closed form: one rotation, far cheaper than a call for each matrix
        angle = 0.5 * jnp.arctan2(2 * square[:, 0, 1], square[:, 0, 0] - square[:, 1, 1])
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        vectors = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], axis=-2)
        return vectors, jnp.sum((m @ vectors) ** 2, axis=1)
    energy, vectors = jnp.linalg.eigh(square)
    return vectors, jnp.maximum(energy, 0.0)
