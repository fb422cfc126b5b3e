"""The posterior mean of the conditional velocity over a bank of data points: variance removed without bias.

Draw an index i uniformly from K data points {x_k} and a point e of the prior, z = z_t(x_i, e). Given z and the bank,
the index has posterior weights, and on the straight line with Gaussian noise the conditional velocity has the mean

    w_k(z, t) = softmax_k( -||z - (1 - t) x_k||^2 / (2 t^2) ),       v_bank(z, t) = sum_k w_k (z - x_k) / t.

A Jacobian-vector product is affine in its tangent and a squared error's gradient is affine in its target, so the
unweighted gradient with v_bank in both roles is the conditional expectation of the one with v_c, given (z, bank): the
same mean for every network, trained or not, and by Rao and Blackwell never a larger covariance. What is removed is
4 tr(G A Sigma_bank A^T), with Sigma_bank the part of Cov[v_c | z] that the bank resolves.

The effective number of points, 1 / sum_k w_k^2, says where this helps: it goes to K as t -> 1, where the stochastic
tangent is noisiest, and to 1 as t -> 0, where v_bank = v_c and nothing is lost.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from vamf.conditioning import Cond, Conditioning, label_of
from vamf.errors import UserError, check_range, require
from vamf.objectives.velocity import EMA, Velocity
from vamf.path import Path, expand
from vamf.path.straight_line import SMALLEST, StraightLine


class PosteriorMeanOutput(NamedTuple):
    """What a bank says about the conditional velocity at each point."""

    velocity: Float[Array, "batch *event"]
    """v_bank(z, t)."""
    effective_size: Float[Array, " batch"]
    """1 / sum_k w_k^2, from 1 to the number of points (of the row's class, where there are labels)."""


def posterior_mean(
    x: Float[Array, "batch *event"],
    e: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    points: Float[Array, "bank *event"],
    label: Int[Array, " batch"] | None = None,
    point_label: Int[Array, " bank"] | None = None,
    path: Path = StraightLine(),
) -> PosteriorMeanOutput:
    """v_bank and the bank's effective size at z_t(x, e).

    Args:
        points: the bank; it must hold every row of x. Nothing else of x and e than z enters: they are passed for
            accuracy at small t, where v_bank is their v_c plus a small difference.
        label: classes of the rows; with `point_label`, a row sees the points of its own class only.

    Raises:
        UserError: the path has no kernel in closed form.
    """
    bank = points.reshape(len(points), -1)
    logits = path.log_kernel(path.interpolate(x, e, t).reshape(len(x), -1), bank, t)
    if logits is None:
        raise UserError("proxy = bank, rao-blackwell: this path has no posterior over data points in closed form")
    if label is not None and point_label is not None:
        logits = jnp.where(label[:, None] == point_label[None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    total = weights.sum(axis=1)
    mean = jnp.matmul(weights, bank, precision=jax.lax.Precision.HIGHEST) / total[:, None]
    return PosteriorMeanOutput(
        path.velocity_through(x, e, t, mean.reshape(x.shape)), total**2 / jnp.sum(weights**2, axis=1)
    )


class ClassMemoryBank(NamedTuple):
    """Data points of earlier batches, class by class: the newest.

    They are draws of the class's distribution independent of the batch, so that a row and the points of its class make
    a bank. Rows without a label look at a part of its own, which all rows enter.
    """

    x: Float[Array, "parts size *event"]
    """One part for each class and the last for all of them; one part where there are no classes."""
    seen: Int[Array, " parts"]
    """Points that each part has taken, the overwritten ones too."""

    @classmethod
    def empty(cls, classes: int, size: int, event_shape: tuple[int, ...]) -> "ClassMemoryBank":
        """Before the first batch."""
        parts = classes + 1 if classes else 1
        return cls(jnp.zeros((parts, size, *event_shape)), jnp.zeros(parts, jnp.int32))

    def push(self, x: Float[Array, "batch *event"], label: Int[Array, " batch"] | None) -> "ClassMemoryBank":
        """After a batch; the oldest points give way."""
        self._check(label)
        bank = self._push(x, jnp.full(len(x), len(self.seen) - 1))
        return bank if label is None or len(self.seen) == 1 else bank._push(x, label)

    def _check(self, label: Int[Array, " batch"] | None) -> None:
        """Refuse classes that have no part, where they are known: a compiled program would take others' points."""
        last = len(self.seen) - 1
        if last and label is not None and not isinstance(label, Tracer):
            check_range("label", int(label.min()), -1, last - 1)
            check_range("label", int(label.max()), -1, last - 1)

    def _push(self, x, part: Int[Array, " batch"]) -> "ClassMemoryBank":
        parts, size = self.x.shape[:2]
        in_part = part[:, None] == jnp.arange(parts)
        count = in_part.sum(axis=0)
        rank = jnp.take_along_axis(jnp.cumsum(in_part, axis=0) - 1, jnp.maximum(part, 0)[:, None], axis=1)[:, 0]
        place = (self.seen[part] + rank) % size
        valid = (part >= 0) & (rank >= count[part] - size)  # of more points than there is room for, the last
        points = self.x.at[jnp.where(valid, part, parts), place].set(x, mode="drop")
        return ClassMemoryBank(points, self.seen + count)

    def posterior_mean(
        self,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        t: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
    ) -> PosteriorMeanOutput:
        """v_bank and its effective size with each row's point and the remembered points of its class as the bank."""
        self._check(label)
        last = len(self.seen) - 1
        part = jnp.full(len(x), last) if label is None else jnp.where(label < 0, last, label)
        size = self.x.shape[1]
        bank = jnp.concatenate([x.reshape(len(x), 1, -1), self.x.reshape(last + 1, size, -1)[part]], axis=1)
        scale = jnp.maximum(t, SMALLEST)[:, None]
        # z - (1 - t) x_k = t e + (1 - t) (x - x_k)
        offset = t[:, None, None] * e.reshape(len(x), 1, -1) + (1 - t)[:, None, None] * (bank[:, :1] - bank)
        logits = -jnp.sum(offset**2, axis=-1) / (2 * scale**2)
        filled = jnp.arange(1 + size) <= self.seen[part][:, None]
        logits = jnp.where(filled, logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        total = weights.sum(axis=1)
        mean = jnp.einsum("bk,bkd->bd", weights, bank, precision=jax.lax.Precision.HIGHEST) / total[:, None]
        velocity = StraightLine().velocity_through(x, e, t, mean.reshape(x.shape))
        return PosteriorMeanOutput(velocity, total**2 / jnp.sum(weights**2, axis=1))


@dataclasses.dataclass(frozen=True)
class PosteriorMean(Velocity):
    """v_bank: the batch and more data points as the bank, or what is remembered of earlier batches."""

    name = "bank"
    needs_full_batch = True
    size: int = 0
    """Points in the bank; the batch is always part of it, and 0 is the batch alone."""
    t_min: float = 0.0
    """Use the bank for t from here on (Stable Velocity, arXiv:2602.05435: 0.5), and v_c below."""
    memory: int = 0
    """Points of each class kept from earlier batches as the bank, and as many of all classes for rows without a label
    (Stable Velocity: 256); 0 draws the bank afresh. A row joins the points of its class."""

    def __post_init__(self):
        require(self.size >= 0, "size", self.size, "0 (the batch) or more")
        check_range("t_min", self.t_min, 0, 1)
        require(self.memory >= 0, "memory", self.memory, "0 (none) or more")
        if self.memory and self.size:
            raise UserError(": not with bank.size", "memory")

    @property
    def needs(self):
        return frozenset({"bank", "straight line"} if self.memory else {"bank"})

    def init_state(self, event_shape, num_classes):
        return ClassMemoryBank.empty(num_classes, self.memory, event_shape) if self.memory else None

    def update_state(self, state, ctx):
        return state if state is None else state.push(ctx.batch.x, label_of(ctx.batch.cond))

    def __call__(self, rows, ctx):
        result = self.posterior(rows, ctx)
        if rows is ctx.batch:
            ctx.log["effective_size"] = result.effective_size
        return result.velocity

    def posterior(self, rows, ctx) -> PosteriorMeanOutput:
        """v_bank and the bank's effective size at the rows."""
        label, state, path = _comparable(rows.cond), ctx.state.get(self.name), ctx.objective.path
        if state is not None:
            result = state.posterior_mean(rows.x, rows.e, rows.t, label)
        else:
            bank = ctx.bank
            x, bank_label = rows.x, label
            if bank is not None:
                more = label_of(bank.cond)
                bank_label = None if label is None or more is None else jnp.concatenate([label, more])
                x = jnp.concatenate([x, bank.x])
            result = posterior_mean(rows.x, rows.e, rows.t, x, label, bank_label, path)
        if self.t_min > 0:
            late = rows.t >= self.t_min
            velocity = jnp.where(expand(late, rows.z), result.velocity, rows.v_c)
            result = PosteriorMeanOutput(velocity, jnp.where(late, result.effective_size, 1.0))
        return result

    def noise(self, step):
        return None


def _comparable(cond: Cond) -> Int[Array, " batch"] | None:
    """The classes by which rows are compared.

    Raises:
        UserError: rows have more than a class as condition, of which no two are alike.
    """
    if isinstance(cond, Conditioning) and (cond.vector is not None or cond.image is not None):
        raise UserError(
            "a bank compares rows of the same class: not with a vector or an image as condition; use the proxy ema or "
            "online, without rao-blackwell"
        )
    return label_of(cond)


@dataclasses.dataclass(frozen=True)
class Shrunk(Velocity):
    """v_bank where the bank has many points, v_hat where it has few:
    `v_bank + (fraction / effective size) (v_hat - v_bank)`.

    What is left of the fluctuation after averaging over n effective points has about 1/n of its variance, and so has
    the coefficient that balances it against the bias of v_hat (the shrinkage factor of arXiv:2605.09235, eq. 12).
    """

    fraction: float
    velocity: Velocity
    """The bank's velocity, with guidance where there is guidance."""
    bank: PosteriorMean
    towards: Velocity = EMA()

    def __post_init__(self):
        check_range("bank_ema_fraction", self.fraction, 0, 1)

    def __call__(self, rows, ctx):
        v_bank = ctx.velocity(self.velocity, rows)
        size = ctx.log["effective_size"]
        weight = self.fraction / (size if rows is ctx.batch else size[ctx.rows_of(rows)])
        return v_bank + expand(weight, v_bank) * (ctx.velocity(self.towards, rows) - v_bank)

    def noise(self, step):
        return None
