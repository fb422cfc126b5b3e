"""The semigroup property: a jump is two jumps. Split MeanFlow, shortcut models, progressive flow maps.

Guo et al., *SplitMeanFlow* (arXiv:2507.16884); Frans et al., *Shortcut models* (arXiv:2410.12557); Boffi et al.
(arXiv:2505.18825, PSD).

    (t - r) u(z_t, r, t) = (t - s) u(z_t, s, t) + (s - r) u(z_s, r, s),        s = t - lambda (t - r)
    R = u(z, r, t) - sg[ lambda u_2 + (1 - lambda) u_1 ],    u_2 = u(z, s, t),  u_1 = u(z - (t - s) u_2, r, s)

No derivative is taken; s -> t gives the MeanFlow identity. v_c enters at r = t only.

The shorter jumps are the proxy's; the proxy `teacher`, a velocity model, knows no jumps: they are the network's own
then, and with gamma = 1 the teacher takes the place of v_c at r = t (distillation, arXiv:2507.16884).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from vamf.average_velocity import AverageVelocity
from vamf.errors import UserError, require
from vamf.objectives import proxies
from vamf.objectives.objective import Found, Objective, Rows
from vamf.path import expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Semigroup(Objective):
    """A jump agrees with two shorter ones of the proxy."""

    split: Literal["uniform", "midpoint"] = "uniform"
    """Where [r, t] is split: anywhere, or in the middle."""
    instant: float = 0.0
    """Jumps of the teacher up to this length are asked as instantaneous velocities, which the rows with r = t train."""
    clip: float = 0.0
    """Largest absolute value of the numbers of the intermediate point and of the target; 0 leaves them."""

    def __post_init__(self):
        super().__post_init__()
        require(self.split in ("uniform", "midpoint"), "split", self.split, "uniform, midpoint")
        require(0 <= self.instant <= 1, "instant", self.instant, "[0, 1]")
        require(self.clip >= 0, "clip", self.clip, "0 (none) or more")
        if self.proxy in ("none", "bank", "head"):
            raise UserError(f"proxy = {self.proxy!r}: the two shorter jumps are asked of a model")

    @property
    def splits(self) -> bool:
        return self.split == "uniform"

    @property
    def needs_average(self) -> bool:
        return self.proxy == "ema"

    def noise(self, step: int) -> tuple[float, float]:
        return 0.0, 0.0

    def off_diagonal(self, u: AverageVelocity, rows: Rows, step, proxy, memory) -> Found:
        """R = u - sg[lambda u_2 + (1 - lambda) u_1]."""
        z, r, t, label = rows.z, rows.r, rows.t, rows.label
        share = jnp.full_like(t, 0.5) if self.split == "midpoint" or rows.share is None else rows.share
        s = t - share * (t - r)
        teacher = u if self.proxy == "teacher" else proxies.resolve(self.proxy, u, proxy)
        first = teacher(z, self._end(s, t), t, label)
        between = self._clip(z - expand(t - s, z) * first)
        share = expand(share, z)
        target = self._clip(share * first + (1 - share) * teacher(between, self._end(r, s), s, label))
        prediction = u(z, r, t, label)
        return Found(prediction - jax.lax.stop_gradient(target), jnp.zeros_like(z))

    def _end(self, r, t):
        return jnp.where(t - r <= self.instant, t, r) if self.instant > 0 else r

    def _clip(self, values):
        return jnp.clip(values, -self.clip, self.clip) if self.clip > 0 else values
