"""The loss of the velocity head, a second output of the network that regresses the target at r = t (arXiv:2512.02012).

H = head(z, t) - y          loss  weight weighting(||H||^2)
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vamf.average_velocity import instantaneous_velocity
from vamf.errors import check_range, require
from vamf.objectives.batch import head
from vamf.objectives.terms.base import Term
from vamf.path import expand


@dataclasses.dataclass(frozen=True)
class VelocityHead(Term):
    """The flow-matching loss of the velocity head."""

    weight: float = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]
    """Weight of the term."""
    trained_in: Literal["row", "diagonal"] = "row"
    """row, as published: in the pass that gives u, so that the head takes the row's gap and guidance. diagonal: in a
    pass of its own at r = t; a row without condition then takes the scale 1."""

    def __post_init__(self):
        check_range("weight", self.weight)
        require(self.trained_in in ("row", "diagonal"), "trained_in", self.trained_in, "row, diagonal")

    @property
    def needs(self):
        return frozenset({"velocity"} | ({"head pass"} if self.trained_in == "row" else set()))

    def __call__(self, ctx):
        batch, objective = ctx.batch, ctx.objective
        if ctx.diagonal_anywhere:
            on, off = (self._of(ctx, rows) for rows in ("diagonal", "off"))
            value = jnp.where(expand(batch.r < batch.t, batch.z), off, on)
        else:
            value = jnp.concatenate([self._of(ctx, which) for which in ("diagonal", "off")])
        error = objective.reduce(value - ctx.velocity(objective.diagonal, batch))
        rows = dataclasses.replace(batch, r=batch.t)
        return self.weight * objective.weighting(error, rows, ctx)

    def _of(self, ctx, which: str):
        """The head of the rows on or off the diagonal, from their own pass where that gave it."""
        rows = ctx.on_diagonal if which == "diagonal" else ctx.off_diagonal
        prediction = (ctx.diagonal_predictions if which == "diagonal" else ctx.predictions).get(id(rows))
        if prediction is not None and prediction.head is not None:
            return prediction.head
        return instantaneous_velocity(head(ctx.u), rows.z, rows.t, rows.cond)
