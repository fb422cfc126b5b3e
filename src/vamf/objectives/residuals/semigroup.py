"""The semigroup property: a jump is two jumps. Split MeanFlow, shortcut models, progressive flow maps.

Guo et al., *SplitMeanFlow* (arXiv:2507.16884); Frans et al., *Shortcut models* (arXiv:2410.12557); Boffi et al.
(arXiv:2505.18825, PSD).

    (t - r) u(z_t, r, t) = (t - s) u(z_t, s, t) + (s - r) u(z_s, r, s),        s = t - lambda (t - r)
    R = u(z, r, t) - sg[ lambda u_2 + (1 - lambda) u_1 ],    u_2 = u(z, s, t),  u_1 = u(z - (t - s) u_2, r, s)

No derivative is taken; s -> t gives the MeanFlow identity. v_c enters at r = t only.

A teacher, a velocity model, knows no jumps: the shorter jumps are the network's own then, and with gamma = 1 the
teacher takes the place of v_c at r = t (distillation, arXiv:2507.16884).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from vamf.errors import check_range, require
from vamf.objectives.residuals.base import Residual, ResidualOutput
from vamf.objectives.velocity import ModelVelocity, Online
from vamf.path import expand
from vamf.streams import stream

SPLIT = 4
"""Random stream."""


@dataclasses.dataclass(frozen=True)
class Semigroup(Residual):
    """A jump agrees with two shorter ones."""

    name = "split_fraction"
    model: ModelVelocity = Online()
    """The model of the two shorter jumps."""
    split: Literal["uniform", "midpoint"] = "uniform"
    """Where [r, t] is split: anywhere, or in the middle."""
    min_jump: float = 0.0
    """Shorter jumps up to this length are evaluated as instantaneous velocities, which the rows with r = t train."""
    clip: float = 0.0
    """Largest absolute value of the numbers of the intermediate point and of the target; 0 leaves them."""

    def __post_init__(self):
        require(self.split in ("uniform", "midpoint"), "split", self.split, "uniform, midpoint")
        check_range("min_jump", self.min_jump, 0, 1)
        require(self.clip >= 0, "clip", self.clip, "0 (none) or more")

    def draw(self, key, x, r, t, step):
        return jax.random.uniform(stream(key, SPLIT), t.shape) if self.split == "uniform" else None

    def default_draw(self, x, e, t):
        return jnp.full_like(t, 0.5) if self.split == "uniform" else None

    def __call__(self, rows, target, ctx):
        """R = u - sg[lambda u_2 + (1 - lambda) u_1]."""
        z, r, t, cond = rows.z, rows.r, rows.t, rows.cond
        fraction = jnp.full_like(t, 0.5) if self.split == "midpoint" else rows.draws[self.name]
        s = t - fraction * (t - r)
        model = self.model.model(ctx)
        first = model(z, self._end(s, t), t, cond)
        between = self._clip(ctx.objective.path.move(z, -expand(t - s, z) * first))
        fraction = expand(fraction, z)
        target_ = self._clip(fraction * first + (1 - fraction) * model(between, self._end(r, s), s, cond))
        return ResidualOutput(ctx.u(z, r, t, cond) - jax.lax.stop_gradient(target_))

    def noise(self, target, step):
        return 0.0, 0.0

    def _end(self, r, t):
        return jnp.where(t - r <= self.min_jump, t, r) if self.min_jump > 0 else r

    def _clip(self, values):
        return jnp.clip(values, -self.clip, self.clip) if self.clip > 0 else values
