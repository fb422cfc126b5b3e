"""The cycle term (FALCON): a jump there and back ends where it began, so that the flow map has an inverse.

    C = x_s - X(X(x_s, s, t), t, s),   s, t ~ U(0, 1) independent          loss  weight ||C||^2

X(z, s, t) = z + (t - s) u(z, t, s) is the jump from time s to time t, in either direction: u is called with the end of
the jump first, also where that is later than its start, which no other loss trains. With s > t the way there is the
generator's, with s < t the way back is. x_s is the row's own point at time s.

At the exact average velocity C = 0 for every s and t, so the term has no bias; but C = 0 holds for every invertible
map, so it says nothing about the data. It makes changes of variables by few jumps accurate (`vamf.likelihood`).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from vamf.average_velocity import flow_map
from vamf.errors import require
from vamf.objectives.terms.base import Term
from vamf.schedules import Coefficient, check_weight
from vamf.streams import stream

ENDS = 11
"""Random stream."""


@dataclasses.dataclass(frozen=True)
class Cycle(Term):
    """A jump there and back ends where it began. Costs two network calls for each row, and their gradients."""

    name = "cycle"
    weight: Coefficient = 0.1
    """Weight of the term, a number or a schedule; 0 leaves it out."""
    begin: Literal["anywhere", "noise", "data"] = "anywhere"
    """Where a round trip begins: at the later of its two times (noise), the earlier (data), or either."""
    trained: Literal["both", "return"] = "both"
    """Which jumps carry a gradient: both, or the way back only, with sg on the point where it begins. With begin =
    noise, return trains no jump of the generator, only its inverse (of shared weights); with data the reverse."""

    def __post_init__(self):
        check_weight("weight", self.weight)
        require(self.begin in ("anywhere", "noise", "data"), "begin", self.begin, "anywhere, noise, data")
        require(self.trained in ("both", "return"), "trained", self.trained, "both, return")

    def draw(self, key, x, r, t, step):
        s, end = jax.random.uniform(stream(key, ENDS), (2, *t.shape), t.dtype)
        early, late = jnp.minimum(s, end), jnp.maximum(s, end)
        pair = {"anywhere": (s, end), "noise": (late, early), "data": (early, late)}[self.begin]
        return dict(zip(("s", "t"), pair, strict=True))

    def default_draw(self, x, e, t):
        """From the row's own time to the data, or from the data to it."""
        return {"s": 0 * t, "t": t} if self.begin == "data" else {"s": t, "t": 0 * t}

    def __call__(self, ctx):
        batch, path = ctx.batch, ctx.objective.path
        s, t = batch.draws[self.name]["s"], batch.draws[self.name]["t"]
        start = path.interpolate(batch.x, batch.e, s)
        there = flow_map(ctx.u, start, s, t, batch.cond, path)
        there = jax.lax.stop_gradient(there) if self.trained == "return" else there
        back = flow_map(ctx.u, there, t, s, batch.cond, path)
        return self.scaled(ctx.objective.reduce(start - back), ctx)
