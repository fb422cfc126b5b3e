"""The flow-matching anchor close to the diagonal: VaMF's corner recipe (arXiv:2605.09235, eqs. 38 to 40).

F = u(z, t - delta, t) - y_0,   delta ~ U[interval], t - delta cut at 0         loss  lambda weighting(||F||^2)

y_0 is the objective's unbiased velocity: v_c, guided, or averaged over the bank.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.errors import require
from vamf.objectives.terms.base import Term
from vamf.schedules import check_weight
from vamf.streams import stream

OFFSET = 2
"""Random stream."""


@dataclasses.dataclass(frozen=True)
class Anchor(Term):
    """u of a short jump is the unbiased velocity. `weight` is lambda."""

    name = "anchor"
    interval: tuple[float, float] = (1e-4, 1e-2)
    """Range of the offset delta."""
    every: int = 1
    """k: the anchor is evaluated at every k-th row, which counts k times. With 1 it costs as much as flow matching."""

    def __post_init__(self):
        check_weight("weight", self.weight)
        low, high = self.interval
        require(0 <= low <= high <= 1, "interval", f"{low}, {high}", "0 <= low <= high <= 1")
        require(self.every >= 1, "every", self.every, "1 or more")

    @property
    def needs(self):
        return frozenset({"whole batch"} if self.every > 1 else ())

    def draw(self, key, x, r, t, step):
        low, high = self.interval
        return jax.random.uniform(stream(key, OFFSET), t.shape, minval=low, maxval=high)

    def default_draw(self, x, e, t):
        return jnp.full_like(t, sum(self.interval) / 2)

    def __call__(self, ctx):
        batch, objective = ctx.batch, ctx.objective
        chosen = slice(None, None, self.every)
        y = ctx.velocity(objective.unbiased, batch)[chosen]
        rows = batch[chosen]
        rows = dataclasses.replace(rows, r=jnp.maximum(rows.t - rows.draws[self.name], 0))
        error = ctx.u(rows.z, rows.r, rows.t, rows.cond) - y
        loss = objective.weighting(objective.reduce(error), rows, ctx)
        return self.scaled(jnp.zeros_like(batch.t).at[chosen].set(loss * (batch.t.size / loss.size)), ctx)
