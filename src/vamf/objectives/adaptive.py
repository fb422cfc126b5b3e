"""Tangent coefficients that find themselves.

The mixed tangent w = v_c + beta (v_hat - v_c) leaves the noise N xi, N = A - beta M, in the residual (arXiv:2605.09235,
eq. 9), with M = (t - r) du/dz, A = M - I = -S, and S the Jacobian of the flow map. Its energy

    E||N xi||^2 = E||A xi||^2 - 2 beta E<M xi, A xi> + beta^2 E||M xi||^2       is least at
    beta* = E<M xi, A xi> / E||M xi||^2   within [0, 1]                                          [14]

which depends on (r, t), on the sample and on direction: mixing helps where the flow map expands and harms where it
contracts.

| coefficient    | what it is                                  | xi is represented by           | extra work        |
|----------------|---------------------------------------------|--------------------------------|-------------------|
| `Binned`       | one beta for each bin of (t, r/t)           | v_c - v_hat of earlier batches | a JVP now and then |
| `PerSample`    | one beta for each sample                    | a probe, E[probe probe^T] = I  | 1 or d JVPs       |
| `PerDirection` | a symmetric matrix B, eigenvalues in [0, 1] | every direction alike          | d JVPs            |

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

from vamf.average_velocity import AverageVelocity
from vamf.condition import Told
from vamf.errors import UserError, require
from vamf.path import expand
from vamf.theory.control_variate import row_terms

EXACT = 4
"""Largest number of dimensions in which `PerSample` takes every basis vector as a probe."""
SMALL = 16
"""Largest number of dimensions for `PerDirection`."""


class Memory(NamedTuple):
    """Decayed sums over the rows of each bin."""

    numerator: Float[Array, "bins bins"]
    """Of <M xi, A xi>."""
    denominator: Float[Array, "bins bins"]
    """Of ||M xi||^2."""


class Adaptive:
    """A coefficient that finds itself."""

    def needs_probe(self, size: int) -> bool:
        """Whether a random probe of the Jacobian is used, for events of `size` numbers."""
        return False


class Local(Adaptive, abc.ABC):
    """A coefficient found anew at every sample, from the network's Jacobian there."""

    @abc.abstractmethod
    def derivative(
        self,
        u: AverageVelocity,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        v_c: Float[Array, "batch *event"],
        v_hat: Float[Array, "batch *event"],
        label: Told,
        probe: Float[Array, "batch *event"] | None = None,
    ) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"], Float[Array, " batch"]]:
        """u, its total derivative along the mixed tangent, and the coefficient (its mean over directions)."""


@dataclasses.dataclass(frozen=True)
class Binned(Adaptive):
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

    def start(self) -> Memory:
        """No rows seen: beta = 0, which is MeanFlow."""
        nothing = jnp.zeros((self.bins, self.bins))
        return Memory(nothing, nothing)

    def values(self, memory: Memory, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """beta(r, t) of each row."""
        table = jnp.clip(memory.numerator / jnp.maximum(memory.denominator, 1e-12), 0.0, 1.0)
        return table[self._bin(r, t)].astype(t.dtype)

    def update(
        self,
        memory: Memory,
        u: AverageVelocity,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        xi: Float[Array, "batch *event"],
        label: Told = None,
    ) -> Memory:
        """The sums with a batch's rows added; they serve later batches, never this one."""
        numerator, denominator = row_terms(u, z, r, t, xi, label)
        where = self._bin(r, t)
        return Memory(
            (self.decay * memory.numerator).at[where].add(numerator.astype(memory.numerator.dtype)),
            (self.decay * memory.denominator).at[where].add(denominator.astype(memory.denominator.dtype)),
        )

    def _bin(self, r, t):
        share = r / jnp.maximum(t, 1e-12)
        return tuple(jnp.clip((self.bins * value).astype(jnp.int32), 0, self.bins - 1) for value in (t, share))


@dataclasses.dataclass(frozen=True)
class PerSample(Local):
    """beta(z, r, t): every sample's own."""

    def needs_probe(self, size: int) -> bool:
        """Whether `Draw.probe` is used, for events of `size` numbers."""
        return size > EXACT

    def derivative(self, u, z, r, t, v_c, v_hat, label, probe=None):
        size = z[0].size
        if size > EXACT and probe is None:
            raise UserError(f"beta = per_sample: more than {EXACT} dimensions need a probe")
        probes = _basis(z) if probe is None or size <= EXACT else probe[None]
        value, along_time, along = _linear(u, z, r, t, label)
        gap = expand(t - r, z)
        moved = jax.vmap(lambda p: gap * along(p))(probes)
        axes = (0, *range(2, moved.ndim))
        above, below = jnp.sum(moved * (moved - probes), axis=axes), jnp.sum(moved**2, axis=axes)
        beta = jnp.clip(above / jnp.maximum(below, 1e-12), 0.0, 1.0)
        tangent = v_c + expand(beta, z) * (v_hat - v_c)
        return value, along_time + along(tangent), beta


@dataclasses.dataclass(frozen=True)
class PerDirection(Local):
    """B(z, r, t): a symmetric matrix in the right singular directions of M, an own coefficient along each."""

    def derivative(self, u, z, r, t, v_c, v_hat, label, probe=None):
        d = z[0].size
        require(d <= SMALL, "beta = per_direction: dimensions", d, f"up to {SMALL}, since it needs the whole Jacobian")
        value, along_time, along = _linear(u, z, r, t, label)
        jacobian = jax.vmap(along)(_basis(z)).reshape(d, len(z), d).transpose(1, 2, 0)  # [row, output, input]
        m = jax.lax.stop_gradient((t - r)[:, None, None] * jacobian)
        directions, energy = _right_singular(m)  # columns v_i, ||M v_i||^2
        along_itself = jnp.sum(directions * (m @ directions), axis=1)  # <v_i, M v_i>
        share = jnp.clip(1 - along_itself / jnp.maximum(energy, 1e-12), 0.0, 1.0)  # <M v, (M - I) v> / ||M v||^2
        change = (v_hat - v_c).reshape(len(z), d, 1)
        mixed = directions @ (share[:, :, None] * (directions.mT @ change))
        tangent = v_c.reshape(len(z), d, 1) + mixed
        dudt = along_time + (jacobian @ tangent).reshape(z.shape)
        return value, dudt, share.mean(axis=1)


KINDS: dict[str, type[Adaptive]] = {"binned": Binned, "per_sample": PerSample, "per_direction": PerDirection}
"""Names on the command line."""


def _linear(u, z, r, t, label):
    """u, its derivative in t alone, and the map direction -> J direction; the forward pass is done once."""
    value, derivative = jax.linearize(lambda z, t: u(z, r, t, label), z, t)
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
