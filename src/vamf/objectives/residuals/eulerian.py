"""The Eulerian derivative: u and its total derivative at the start point. MeanFlow and every mix of its two roles.

Lu and Wang, *On Variance Reduction in Learning Mean Flows* (arXiv:2605.09235), eqs. 4, 8, 38 to 40.

    tangent  w = (1 - beta) v_c + beta v_hat            target  y = (1 - gamma) v_c + gamma v_hat
    residual R = u(z, r, t) - sg[ y - c (t - r) D_w u ] D_w u: total derivative along w, r fixed

| name                    | what it changes                                            | used by                       |
|-------------------------|------------------------------------------------------------|-------------------------------|
| `jvp_gradient_fraction` | fraction of the gradient that runs through D_w u (lambda)  | Modular MeanFlow              |
| `jvp_scale`             | c; anything but 1 is biased                                | MeanFlowSE (0.5), consistency |
| `difference_step`       | D_w u as a central difference over 2 h instead of a JVP    | MeanFlow-RAE (h = 5e-3)       |
| `time_tangent`          | tangent of (r, t) in the JVP; anything but (0, 1) is wrong | MeanFlow's ablation, Table 1b |

At r = t the derivative has no say: R = u(z, t, t) - y is flow matching, and no Jacobian-vector product is taken.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vamf.errors import UserError, require
from vamf.objectives.adaptive import AdaptiveMix, PerPointMix
from vamf.objectives.batch import expand_rows
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.velocity import Conditional, Mix, Velocity
from vamf.path import expand
from vamf.schedules import Coefficient, check_fraction, is_zero, value_at


@dataclasses.dataclass(frozen=True)
class Eulerian(Residual):
    """MeanFlow's residual."""

    tangent: Velocity = dataclasses.field(default=Conditional(), metadata={"composed": True})
    """The direction in which z moves inside the derivative."""
    jvp_gradient_fraction: Coefficient = 0.0
    """lambda: fraction of the gradient that runs through the derivative, in [0, 1]."""
    jvp_scale: Coefficient = 1.0
    """c: factor of the derivative's term, in [0, 1]; anything but 1 is biased."""
    difference_step: float = 0.0
    """h: half width of the central difference that replaces the Jacobian-vector product; 0 takes the product."""
    time_tangent: tuple[float, float] = (0.0, 1.0)
    """Tangent of (r, t) in the Jacobian-vector product; anything but 0 1 is wrong (MeanFlow's ablation)."""

    def __post_init__(self):
        check_fraction("jvp_gradient_fraction", self.jvp_gradient_fraction)
        check_fraction("jvp_scale", self.jvp_scale)
        require(0 <= self.difference_step < 0.5, "difference_step", self.difference_step, "0 (a JVP) up to 0.5")
        if isinstance(self.tangent, PerPointMix) and (self.difference_step or self.time_tangent != (0.0, 1.0)):
            raise UserError(" and time-tangent: not with a beta of each point", "difference_step")
        if self.difference_step and not is_zero(self.jvp_gradient_fraction):
            raise UserError(": not with jvp-gradient-fraction, whose gradient runs through the JVP", "difference_step")

    def __call__(self, rows, target, ctx):
        """R = u - sg[y - c (t - r) D_w u]."""
        y = ctx.velocity(target, rows)
        prediction, dudt, beta = self._derivative(rows, ctx)
        fixed = jax.lax.stop_gradient(dudt)
        if not is_zero(self.jvp_gradient_fraction):
            fixed = fixed + value_at(self.jvp_gradient_fraction, ctx.step) * (dudt - fixed)
        change = expand(rows.t - rows.r, rows.z) * fixed
        if not (isinstance(self.jvp_scale, float | int) and self.jvp_scale == 1):
            change = value_at(self.jvp_scale, ctx.step) * change
        return ResidualOutput(prediction - (y - change), dudt, beta)

    def beta(self, step):
        return constant_fraction(self.tangent, step)

    def noise(self, target, step):
        """N = (1 - beta) S + (beta - gamma) I where D_w u counts in full."""
        w, y = self.tangent.noise(step), target.noise(step)
        if w is None or y is None or self.time_tangent != (0.0, 1.0):
            return None
        c = float(value_at(self.jvp_scale, step))
        return c * w, y - c * w

    def _derivative(self, rows, ctx):
        """u, its total derivative along the tangent, and the tangent's fraction of v_hat."""
        if isinstance(self.tangent, PerPointMix):
            return self.tangent.derivative(rows, ctx)
        w = ctx.velocity(self.tangent, rows)
        beta = tangent_fraction(self.tangent, rows, ctx)
        if self.difference_step:
            return ctx.predict(rows), self._difference(rows, w, ctx.u), beta
        return *ctx.total_derivative(rows, w, self.time_tangent), beta

    def _difference(self, rows, w, u):
        """[u(z + h w, r, t + h) - u(z - h w, r, t - h)] / (2 h)."""
        h = self.difference_step
        late = u(rows.z + h * w, rows.r, rows.t + h, rows.cond)
        return (late - u(rows.z - h * w, rows.r, rows.t - h, rows.cond)) / (2 * h)


def tangent_fraction(tangent: Velocity, rows, ctx):
    """The fraction of v_hat in each row's tangent."""
    if isinstance(tangent, Mix | AdaptiveMix):
        return expand_rows(tangent.fraction(rows, ctx), rows)
    return jnp.full_like(rows.t, _unmixed_fraction(tangent))


def constant_fraction(tangent: Velocity, step: int) -> float | None:
    """The fraction of v_hat in a tangent, where it is the same in all rows."""
    if isinstance(tangent, AdaptiveMix | PerPointMix):
        return None
    return float(value_at(tangent.beta, step)) if isinstance(tangent, Mix) else _unmixed_fraction(tangent)


def _unmixed_fraction(tangent: Velocity) -> float:
    """0 for v_c, guided or not; 1 for an estimate in its place, the posterior mean over a bank among them."""
    return 0.0 if tangent.noise(0) == 1 else 1.0
