"""The posterior mean of the conditional velocity over a bank of data points: variance removed without bias.

Draw an index i uniformly from K data points {x_k}, e ~ N(0, I), z = (1 - t) x_i + t e. Given z and the bank, the index
has posterior weights, and the conditional velocity the mean

    w_k(z, t) = softmax_k( -||z - (1 - t) x_k||^2 / (2 t^2) ),       v_bank(z, t) = sum_k w_k (z - x_k) / t.

A Jacobian-vector product is affine in its tangent and a squared error's gradient is affine in its target, so the
unweighted gradient with v_bank in both roles is the conditional expectation of the one with v_c, given (z, bank): the
same mean for every network, trained or not, and by Rao and Blackwell never a larger covariance. What is removed is
4 tr(G A Sigma_bank A^T), with Sigma_bank the part of Cov[v_c | z] that the bank resolves.

The effective number of points, 1 / sum_k w_k^2, says where this helps: it goes to K as t -> 1, where the stochastic
tangent is noisiest, and to 1 as t -> 0, where v_bank = v_c and nothing is lost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vamf.path import conditional_velocity, expand, interpolate

THIN = 4
"""Largest dimension in which distances are summed coordinate by coordinate."""
SMALLEST = 1e-4
"""Below this time the bank is taken to know the row's own point only."""


class Posterior(NamedTuple):
    """What a bank says about the conditional velocity at each point."""

    velocity: Float[Array, "batch *event"]
    """v_bank(z, t)."""
    effective_size: Float[Array, " batch"]
    """1 / sum_k w_k^2, from 1 to the number of points (of the row's class, where there are labels)."""


def posterior(
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    points: Float[Array, "bank *event"],
    label: Int[Array, " batch"] | None = None,
    point_label: Int[Array, " bank"] | None = None,
) -> Posterior:
    """v_bank and the bank's effective size at z = (1 - t) x + t e.

    Args:
        points: the bank; it must hold every row of x. Nothing else of x and e than z enters: they are passed for
            accuracy at small t, where v_bank is their v_c plus a small difference.
        label: classes of the rows; with `point_label`, a row sees the points of its own class only.
    """
    own, bank = x.reshape(len(x), -1), points.reshape(len(points), -1)
    flat = interpolate(x, e, t).reshape(len(x), -1)
    keep, spread = (1 - t)[:, None], jnp.maximum(t, SMALLEST)[:, None]
    logits = -_squared_distances(flat, keep, bank) / (2 * spread**2)
    if label is not None and point_label is not None:
        logits = jnp.where(label[:, None] == point_label[None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    total = weights.sum(axis=1)
    mean = jnp.matmul(weights, bank, precision=jax.lax.Precision.HIGHEST) / total[:, None]
    velocity = conditional_velocity(x, e) + ((own - mean) / spread).reshape(x.shape)
    return Posterior(velocity, total**2 / jnp.sum(weights**2, axis=1))


class Classes(NamedTuple):
    """A memory of data points, class by class: the newest of earlier batches.

    They are draws of the class's law independent of the batch, so that a row and the points of its class make a bank.
    Rows without a label look at a part of its own, which all rows enter.
    """

    x: Float[Array, "parts size *event"]
    """One part for each class and the last for all of them; one part where there are no classes."""
    seen: Int[Array, " parts"]
    """Points that each part has taken, the overwritten ones too."""

    @classmethod
    def empty(cls, classes: int, size: int, event_shape: tuple[int, ...]) -> "Classes":
        """The memory before the first batch."""
        parts = classes + 1 if classes else 1
        return cls(jnp.zeros((parts, size, *event_shape)), jnp.zeros(parts, jnp.int32))

    def remember(self, x: Float[Array, "batch *event"], label: Int[Array, " batch"] | None) -> "Classes":
        """The memory after a batch; the oldest points give way."""
        memory = self._take(x, jnp.full(len(x), len(self.seen) - 1))
        return memory if label is None or len(self.seen) == 1 else memory._take(x, label)

    def _take(self, x, part: Int[Array, " batch"]) -> "Classes":
        parts, size = self.x.shape[:2]
        own = part[:, None] == jnp.arange(parts)
        count = own.sum(axis=0)
        rank = jnp.take_along_axis(jnp.cumsum(own, axis=0) - 1, jnp.maximum(part, 0)[:, None], axis=1)[:, 0]
        place = (self.seen[part] + rank) % size
        kept = (part >= 0) & (rank >= count[part] - size)  # of more points than there is room for, the last
        points = self.x.at[jnp.where(kept, part, parts), place].set(x, mode="drop")
        return Classes(points, self.seen + count)

    def posterior(
        self,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
    ) -> Posterior:
        """v_bank and its effective size with each row's point and the remembered points of its class as the bank."""
        last = len(self.seen) - 1
        part = jnp.full(len(x), last) if label is None else jnp.where(label < 0, last, label)
        size = self.x.shape[1]
        bank = jnp.concatenate([x.reshape(len(x), 1, -1), self.x.reshape(last + 1, size, -1)[part]], axis=1)
        spread = jnp.maximum(t, SMALLEST)[:, None]
        # z - (1 - t) x_k = t e + (1 - t) (x - x_k)
        moved = t[:, None, None] * e.reshape(len(x), 1, -1) + (1 - t)[:, None, None] * (bank[:, :1] - bank)
        logits = -jnp.sum(moved**2, axis=-1) / (2 * spread**2)
        known = jnp.arange(1 + size) <= self.seen[part][:, None]
        logits = jnp.where(known, logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        total = weights.sum(axis=1)
        mean = jnp.einsum("bk,bkd->bd", weights, bank, precision=jax.lax.Precision.HIGHEST) / total[:, None]
        velocity = conditional_velocity(x, e) + ((bank[:, 0] - mean) / spread).reshape(x.shape)
        return Posterior(velocity, total**2 / jnp.sum(weights**2, axis=1))


def blend(known: Posterior, share: float, v_hat: Float[Array, "batch *event"]) -> Float[Array, "batch *event"]:
    """v_bank where the bank knows, v_hat where it does not: `v_bank + (share / effective size) (v_hat - v_bank)`.

    What is left of the fluctuation after averaging over n effective points has about 1/n of its variance, and so has
    the coefficient that balances it against the bias of v_hat (the shrinkage factor of arXiv:2605.09235, eq. 12).
    """
    weight = expand(share / known.effective_size, v_hat)
    return known.velocity + weight * (v_hat - known.velocity)


def _squared_distances(z: Float[Array, "batch d"], keep: Float[Array, "batch 1"], points: Float[Array, "bank d"]):
    """||z - keep x_k||^2 (batch, bank), in float32 at least."""
    if z.shape[1] <= THIN:  # no cancellation, and no slower than a product this thin
        return sum((z[:, j : j + 1] - keep * points[None, :, j]) ** 2 for j in range(z.shape[1]))
    products = jnp.matmul(z, points.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(z**2, axis=1, keepdims=True) - 2 * keep * products + keep**2 * jnp.sum(points**2, axis=1)
