"""A flow-matching term of its own for every row, at a time of its own: terminal velocity, decoupled MeanFlow.

G = u(z', t', t') - y'          loss  weight weighting(||G||^2)
"""

import dataclasses
from typing import Literal

import jax

from vamf.errors import require
from vamf.objectives.batch import Context, PathBatch
from vamf.objectives.residuals.lagrangian import ByGuidance
from vamf.objectives.terms.base import Term
from vamf.schedules import check_weight
from vamf.streams import stream
from vamf.times import TimeDistribution

TIMES, NOISE = 5, 6
"""Random streams."""


@dataclasses.dataclass(frozen=True)
class FlowMatching(Term):
    """The velocity of every row at another time."""

    name = "flow_matching"
    times: TimeDistribution | None = None
    """Distribution of that time (its t); that of the objective where none is given."""
    noise: Literal["same", "fresh"] = "same"
    """Whether the term shares the row's noise."""
    guided_weight: ByGuidance | None = dataclasses.field(default=None, metadata={"composed": True})
    """Weight of guided rows."""

    def __post_init__(self):
        check_weight("weight", self.weight)
        require(self.noise in ("same", "fresh"), "noise", self.noise, "same, fresh")

    def draw(self, key, x, r, t, step):
        assert self.times is not None
        t = self.times.draw(stream(key, TIMES), len(t), step)[1]
        e = jax.random.normal(stream(key, NOISE), x.shape, x.dtype) if self.noise == "fresh" else None
        return {"t": t} if e is None else {"t": t, "e": e}

    def default_draw(self, x, e, t):
        """The row's own time, and its noise mirrored where it is fresh."""
        return {"t": t, "e": -e} if self.noise == "fresh" else {"t": t}

    def __call__(self, ctx):
        batch, draws = ctx.batch, ctx.batch.draws[self.name]
        rows = batch.at(ctx.objective.path, draws["t"], draws.get("e"))
        loss = flow_matching(rows, ctx)[0]
        if self.guided_weight is not None:
            loss = loss * self.guided_weight(rows, rows.t, ctx.step)
        return self.scaled(loss, ctx)


def flow_matching(rows: PathBatch, ctx: Context):
    """The loss of flow matching at rows with r = t, and the velocity there."""
    inner, objective = ctx.at(rows), ctx.objective
    velocity = inner.predict_diagonal(rows).u
    error = objective.reduce(velocity - inner.velocity(objective.diagonal, rows))
    return objective.weighting(error, rows, inner), velocity
