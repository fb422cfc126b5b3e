"""An objective: a record of parts that turns an average velocity, a batch and a key into losses.

    path       z and v_c = dz/dt of every row                       velocity  an estimate of v, guided or averaged
    r = t      R = u(z, t, t) - y: flow matching, no derivative     target    y, velocity mixed with v_hat
    r < t      R = the residual of its kind (`residuals/`)
    loss       weighting(||R||^2) time weights + terms              (`weighting.py`, `terms/`)

Each part holds its own options, draws its own randomness and says what it needs (`part.py`). Methods compose them
(`methods/`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond
from vamf.errors import require
from vamf.objectives.batch import BankSamples, Context, LossSample, Models, PathBatch, squares
from vamf.objectives.guidance import Guidance
from vamf.objectives.part import Parts
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.terms.base import Term
from vamf.objectives.velocity import Conditional, Velocity
from vamf.objectives.weighting import Power, TimeWeight, Weighting
from vamf.path import Path, StraightLine, expand
from vamf.streams import stream
from vamf.times import TimeDistribution, Uniform

PRIOR = 0
"""Random stream of the points of the prior."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Parts):
    """One part for each step on the way from a batch to its losses."""

    residual: Residual
    """R of the rows with r < t."""
    target: Velocity = Conditional()
    """y of the rows with r < t."""
    diagonal: Velocity = None  # pyright: ignore[reportAssignmentType]
    """y of the rows with r = t; that of the others where none is given."""
    unbiased: Velocity = Conditional()
    """The unbiased velocity, v_c or its average over the bank, that terms regress on."""
    times: TimeDistribution = Uniform()
    """Distribution of (r, t)."""
    weighting: Weighting = Power()
    """The weight of each row's squared error."""
    time_weights: tuple[TimeWeight, ...] = ()
    """Factors of the main loss after the weighting."""
    reduction: Literal["sum", "mean"] = "sum"
    """Squared errors are summed or averaged over the event's axes; constants are absolute, so this matters."""
    terms: tuple[Term, ...] = ()
    """Further loss terms."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance of the target, and dropout of conditions."""
    path: Path = StraightLine()
    """The path from data to the prior."""
    sampler: Literal["flow_map", "heun", "ddim"] = "flow_map"
    """The default sampler (`vamf.sampling.registry`): `flow_map`, or an ODE or DDIM sampler where only v is trained."""

    def __post_init__(self):
        require(self.reduction in ("sum", "mean"), "reduction", self.reduction, "sum, mean")
        require(self.sampler in ("flow_map", "heun", "ddim"), "sampler", self.sampler, "flow_map, heun, ddim")
        if self.diagonal is None:
            object.__setattr__(self, "diagonal", self.target)
        if restricted := self.parts_needing("straight line"):
            straight = isinstance(self.path, StraightLine)
            require(straight, "path", type(self.path).__name__, f"straight_line with {restricted[0]}")

    def noise(self, step: int) -> tuple[float, float] | None:
        """(a, b) of the noise operator N = a S + b I on the fluctuation of v_c for r < t (`Residual.noise`)."""
        return self.residual.noise(self.target, step)

    def update(self, state, u, x, sample: LossSample, cond, step, models=None, num_diagonal=0, bank=None):
        """The objective's state after a batch."""
        ctx = Context(self, u, self.batch(x, sample, cond), step, models, state, bank, num_diagonal)
        return {part.name: part.update_state(state[part.name], ctx) for part in self.parts if part.name in state}

    def sample(self, key: Key[Array, ""], x: Float[Array, "batch *event"], start=None, step=0) -> LossSample:
        """Points of the prior, times and what else is random; the first `times.num_diagonal(batch)` rows have r = t.

        Args:
            start: the start (batch, *event) that belongs to each row, where data come in pairs.
            step: training step, for distributions that change over training.
        """
        e = self.path.prior(stream(key, PRIOR), x, start)
        r, t = self.times.draw(stream(key, self.times.stream), x.shape[0], step)
        return LossSample(e, r, t, self.draw(key, x, r, t, step))

    def batch(self, x: Float[Array, "batch *event"], sample: LossSample, cond: Cond) -> PathBatch:
        """The rows of a batch on their paths."""
        e, r, t, draws = sample
        cond = self.guidance.condition(cond, draws.get(self.guidance.name))
        z, v_c = self.path.interpolate(x, e, t), self.path.velocity(x, e, t)
        return PathBatch(x, e, r, t, z, v_c, cond, draws)

    def __call__(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        label: Cond,
        key: Key[Array, ""],
        step,
        proxy: Models = None,
        bank: BankSamples | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """Per-sample losses of a batch, and what is worth logging about each sample.

        Args:
            u: the average velocity, parameters closed over.
            label: the condition.
            step: training step, for the schedules.
            proxy: the models beside the network that the objective needs: by name, or one for whichever it is.
            bank: data that joins the batch as the bank; the batch alone where none are given.
            state: what the objective has learnt so far (`init`, `update`), where it learns.

        Returns:
            losses (batch,) and a dict of arrays (batch,): `r`, `t`, `residual` (||R||^2 without weight or terms),
            `jvp_norm` (norm of the derivative, 0 where r = t), `beta` (0 where r = t) and, with a bank,
            `effective_size`.
        """
        num_diagonal = self.times.num_diagonal(x.shape[0])
        return self.loss(u, x, self.sample(key, x, step=step), label, step, proxy, num_diagonal, bank, state)

    def loss_at(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        e: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
        proxy: Models = None,
        step=0,
        bank: BankSamples | None = None,
        state: Mapping[str, Any] | None = None,
        draws: Mapping[str, Any] | None = None,
    ) -> Float[Array, " batch"]:
        """The losses (batch,) that training averages, at given noise and times: no randomness, weight included.

        Every term is there: what training draws for it and `draws` does not give has the part's
        `default_draw`.

        Args:
            draws: what the parts draw, by their names.
        """
        sample = LossSample(e, r, t, self.default_draws(x, e, t, draws or {}))
        return self.loss(u, x, sample, label, step, proxy, None, bank, state)[0]

    def loss(
        self,
        u: AverageVelocity,
        x: Float[Array, "batch *event"],
        sample: LossSample,
        label: Cond,
        step,
        proxy: Models = None,
        num_diagonal: int | None = 0,
        bank: BankSamples | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """As a call, at a given sample whose first `num_diagonal` rows have r = t (these pay for no derivative).

        With `num_diagonal` None, rows with r = t may be anywhere, and every row pays for both cases.
        """
        batch = self.batch(x, sample, label)
        ctx = Context(self, u, batch, step, proxy, state, bank, num_diagonal)
        columns, on_error = [], None
        if num_diagonal is None or num_diagonal:
            on_error = ctx.predict_diagonal(ctx.on_diagonal).u - ctx.velocity(self.diagonal, ctx.on_diagonal)
            if not ctx.diagonal_anywhere:
                columns.append(ResidualOutput(on_error).columns(ctx.on_diagonal, self.reduce))
        if num_diagonal is None or num_diagonal < len(batch):
            out = self.residual(ctx.off_diagonal, self.target, ctx)
            if on_error is not None and ctx.diagonal_anywhere:
                is_off = batch.r < batch.t
                error = jnp.where(expand(is_off, batch.z), out.error, on_error)
                out = out._replace(error=error, scale=jnp.where(is_off, out.scale, 1.0))
            columns.append(out.columns(ctx.off_diagonal, self.reduce))

        residual, scale, beta, jvp_norm = (jnp.concatenate(parts) for parts in zip(*columns, strict=True))
        loss = self.weighting(residual, batch, ctx) * scale
        for weight in self.time_weights:
            loss = loss * weight(batch, ctx)
        for term in self.terms:
            loss = loss + term(ctx)
        aux = {"r": batch.r, "t": batch.t, "residual": residual, "jvp_norm": jvp_norm, "beta": beta}
        return loss, aux | ctx.log

    def reduce(self, error: Float[Array, "rows *event"]) -> Float[Array, " rows"]:
        """Squared errors of the rows, summed or averaged over the event."""
        total = squares(error)
        return total if self.reduction == "sum" else total / error[0].size
