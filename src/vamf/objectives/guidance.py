"""Classifier-free guidance inside the objective, so that sampling stays one call.

The guided field of scale W is V = v_null + W (v - v_null), with v_null the velocity without condition. Its unbiased
target is W v_c + (1 - W) v_null: guidance multiplies the noise of v_c by W. Every published rule is this target, mixed
by kappa with the network's own guided velocity, which takes that noise back by 1 - kappa:

    v_g = (1 - kappa) [ W v_c + (1 - W) v_null ] + kappa u(z, t, t)

| rule                                  | W                 | kappa             | noise of v_c in v_g |
|---------------------------------------|-------------------|-------------------|---------------------|
| MeanFlow, omega, kappa (2505.13447)   | omega/(1 - kappa) | kappa             | omega               |
| AlphaFlow (2510.20771)                | as MeanFlow       | kappa             | omega               |
| Decoupled MeanFlow, w (2510.24474)    | 1/(1 - w)         | w                 | 1                   |
| Improved MeanFlow, omega (2512.02012) | omega             | 1 - 1/omega       | 1                   |
| Re-MeanFlow, W (2511.23342)           | W                 | 1 - max(1, W-1)/W | max(1, W - 1)       |
| Terminal velocity, W (2511.19797)     | W                 | 0                 | W                   |

Where the condition is dropped, or t is outside the guidance interval, v_g is v_c itself: W = 1 and kappa = 0. v_g
stands for v_c in every role; beta and gamma (`velocity.Mix`) mix on top of it, in every row.

W is one number, or drawn:

* for each row, with density omega^-b on [1, W] (Improved MeanFlow), acting between t_min ~ U(0, 1/2) and
  t_max ~ U(1/2, 1), over all times where r = t. The network is conditioned on it, so that the scale is
  chosen at sampling.
  u(z, t, t) takes omega where t is in the interval and 1 elsewhere, with the interval [0, 1];
* for each batch, uniformly on [1, W] (Re-MeanFlow). The network is not conditioned on it.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf import conditioning
from vamf.average_velocity import instantaneous_velocity
from vamf.conditioning import Cond, GuidanceScale
from vamf.errors import UserError, check_range, require
from vamf.objectives.part import Part
from vamf.objectives.velocity import ModelVelocity, Online, Velocity
from vamf.path import expand
from vamf.schedules import Coefficient, Schedule, value_at
from vamf.streams import stream

CONDITION_DROPOUT, SCALE_OF_ROW, SCALE_OF_BATCH = 7, 9, 10
"""Random streams."""


class GuidanceCoefficients(NamedTuple):
    """W and kappa of each row at its time, 1 and 0 where guidance does not act."""

    scale: Float[Array, " batch"]
    mix: Float[Array, " batch"] | None
    """None where kappa is 0 throughout."""


@dataclasses.dataclass(frozen=True)
class Guidance(Part):
    """Classifier-free guidance in the target field, and the dropout of conditions that it needs."""

    name = "guidance"
    scale: Coefficient = 1.0
    """W, 1 or more; 1 is none. A number or a schedule."""
    mix: float | Literal["unit", "capped"] | None = None
    """kappa: fraction of the network's own velocity in the guided field, in [0, 1), where guidance acts. unit: 1 - 1/W
    (improved and decoupled MeanFlow), which leaves v_c its noise; capped: 1 - max(1, W - 1)/W (Re-MeanFlow). None: 0,
    or unit where each row has a scale of its own. MeanFlow's omega is (1 - kappa) W."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times at which guidance acts."""
    scale_power: float | None = None
    """b: draw the scale for each row, with density omega^-b on [1, scale], and the times at which it acts; the network,
    which has to be in_context, is conditioned on. None: one scale for all."""
    per_batch: bool = False
    """Draw the scale of each batch uniformly from [1, scale]."""
    unlabelled: bool = False
    """Guide the rows without a label too."""
    dropout: float = 0.0
    """Probability that a row's condition is dropped, so that the network learns the unconditional velocity too."""
    dropout_interval: tuple[float, float] = (0.0, 1.0)
    """Times t at which conditions are dropped."""
    dropped_scale: Literal["row", "one"] = "row"
    """The scale that a row without condition is conditioned on: its own, as published, or 1."""

    def __post_init__(self):
        for value in (self.scale.start, self.scale.end) if isinstance(self.scale, Schedule) else (self.scale,):
            check_range("scale", value, 1, allowed="1 (none) or more")
        if isinstance(self.mix, str):
            require(self.mix in ("unit", "capped"), "mix", self.mix, "[0, 1), unit, capped")
        elif self.mix is not None:
            require(0 <= self.mix < 1, "mix", self.mix, "[0, 1), unit, capped")
        for field in ("interval", "dropout_interval"):
            low, high = getattr(self, field)
            require(0 <= low <= high <= 1, field, f"{low}, {high}", "0 <= low <= high <= 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "[0, 1)")
        if self.scale_power is not None and (self.per_batch or isinstance(self.scale, Schedule)):
            raise UserError(": draws a scale for each row; not with guidance.per-batch or a schedule", "scale_power")
        if not self.acts:
            for field in ("scale_power", "mix", "per_batch", "unlabelled"):
                if getattr(self, field):
                    raise UserError(": needs guidance.scale above 1, the largest scale", field)
        elif self.dropout == 0:
            raise UserError(": needs guidance.dropout above 0, for rows without condition", "scale")

    @property
    def acts(self) -> bool:
        """Whether conditions guide the target."""
        return isinstance(self.scale, Schedule) or not isinstance(self.scale, float | int) or self.scale > 1

    @property
    def needs(self):
        needs = {"labels"} if self.acts or self.dropout else set()
        return frozenset(needs | ({"guidance scale"} if self.scale_power is not None else set()))

    @property
    def max_scale(self) -> float:
        """The largest scale of a run."""
        return max(self.scale.start, self.scale.end) if isinstance(self.scale, Schedule) else self.scale  # pyright: ignore

    # ------------------------------------------------------------------------------------------------------ randomness

    def draw(self, key, x, r, t, step):
        values = {}
        if self.dropout > 0:
            low, high = self.dropout_interval
            dropped = jax.random.bernoulli(stream(key, CONDITION_DROPOUT), self.dropout, t.shape)
            values["dropped"] = dropped & (t >= low) & (t <= high)
        if self.scale_power is not None:
            values["scale"] = draw_scale(stream(key, SCALE_OF_ROW), r, t, self.max_scale, self.scale_power)
        if self.per_batch:
            fraction = jax.random.uniform(stream(key, SCALE_OF_BATCH), (), t.dtype)
            values["scale_fraction"] = jnp.full_like(t, fraction)
        return values or None

    def default_draw(self, x, e, t):
        """No row is dropped; the largest scale at all times, or the middle where it is drawn for each batch."""
        values = {}
        if self.scale_power is not None:
            values["scale"] = GuidanceScale(*(jnp.full_like(t, value) for value in (self.max_scale, 0.0, 1.0)))
        if self.per_batch:
            values["scale_fraction"] = jnp.full_like(t, 0.5)
        return values or None

    def condition(self, cond: Cond, draws: dict | None) -> Cond:
        """The condition of rows, after these draws."""
        draws = draws or {}
        if "scale" in draws:
            cond = conditioning.with_scale(cond, draws["scale"])
        if "dropped" not in draws:
            return cond
        if not conditioning.has_condition(cond):
            raise UserError("guidance.dropout: the data have no classes and no other condition")
        drop = conditioning.drop if self.dropped_scale == "row" else conditioning.unconditional
        return drop(cond, draws["dropped"])

    # -------------------------------------------------------------------------------------------------------- strength

    def strength(
        self, cond: Cond, t: Float[Array, " batch"], step=0, draws: dict | None = None
    ) -> GuidanceCoefficients | None:
        """W and kappa of each row at its time; None where nothing is guided.

        Raises:
            UserError: the data have no condition.
        """
        if not self.acts:
            return None
        of_row = conditioning.scale_of(cond)
        scale = jnp.broadcast_to(jnp.asarray(value_at(self.scale, step), t.dtype), t.shape)
        if of_row is not None:
            scale = of_row.omega
        elif self.per_batch and draws and "scale_fraction" in draws:
            scale = 1 + (scale - 1) * draws["scale_fraction"]
        if not conditioning.has_condition(cond):
            raise UserError("guidance: the data have no classes and no other condition")
        low, high = self.interval
        acts = (t >= low) & (t <= high) if of_row is None else of_row.acts(t)
        if not self.unlabelled:
            acts &= conditioning.is_conditional(cond)
        kappa = self._kappa(scale)
        return GuidanceCoefficients(jnp.where(acts, scale, 1.0), None if kappa is None else jnp.where(acts, kappa, 0.0))

    def _kappa(self, scale: Float[Array, " batch"]) -> Float[Array, " batch"] | None:
        rule = self.mix
        if rule is None:
            rule = 0.0 if self.scale_power is None else "unit"
        if rule == "unit":
            return 1 - 1 / scale
        if rule == "capped":
            return 1 - jnp.maximum(1.0, scale - 1) / scale
        return None if rule == 0 else jnp.full_like(scale, rule)


@dataclasses.dataclass(frozen=True)
class Unconditional(Velocity):
    """v_null: the velocity of a model without condition."""

    needs_full_batch = True
    of: ModelVelocity

    def __call__(self, rows, ctx):
        cond = conditioning.unconditional(conditioning.at_time(rows.cond, rows.t))
        return jax.lax.stop_gradient(instantaneous_velocity(self.of.model(ctx), rows.z, rows.t, cond))


@dataclasses.dataclass(frozen=True)
class Guided(Velocity):
    """`(1 - kappa) [ W v + (1 - W) v_null ] + kappa v_own`: v itself where W = 1 and kappa = 0."""

    guided = True
    guidance: Guidance
    v: Velocity
    model: ModelVelocity = Online()
    """The network whose diagonal is v_own with the condition, and v_null without."""

    @property
    def needs_full_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.v.noise(0) != 0

    def __call__(self, rows, ctx):
        v = ctx.velocity(self.v, rows)
        strength = self.guidance.strength(rows.cond, rows.t, ctx.step, rows.draws.get(self.guidance.name))
        if strength is None:
            return v
        v_null = ctx.velocity(Unconditional(self.model), rows)
        v_g = v + expand((strength.scale - 1).astype(v.dtype), v) * (v - v_null)
        if strength.mix is None:
            return v_g
        kappa = expand(strength.mix.astype(v.dtype), v)
        return (1 - kappa) * v_g + kappa * ctx.velocity(self.model, rows)

    def noise(self, step):
        return self.v.noise(step)


def draw_scale(
    key: Key[Array, ""], r: Float[Array, " batch"], t: Float[Array, " batch"], largest: float, power: float
) -> GuidanceScale:
    """A scale with density omega^-power on [1, largest] for each row, and the times at which it acts."""
    omega_key, low_key, high_key = jax.random.split(key, 3)
    quantile, log_largest = jax.random.uniform(omega_key, t.shape, t.dtype), jnp.log(largest).astype(t.dtype)
    if power == 1:
        omega = jnp.exp(quantile * log_largest)
    else:
        omega = jnp.exp(jnp.log1p(quantile * jnp.expm1((1 - power) * log_largest)) / (1 - power))
    low = jax.random.uniform(low_key, t.shape, t.dtype, 0.0, 0.5)
    high = jax.random.uniform(high_key, t.shape, t.dtype, 0.5, 1.0)
    return GuidanceScale(omega, jnp.where(r < t, low, 0.0), jnp.where(r < t, high, 1.0))
