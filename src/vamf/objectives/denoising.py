"""DDPM's training: flow matching at the diffusion's steps, weighted so that the noise's error counts.

Ho et al. (arXiv:2006.11239, eq. 14): E ||e - e_hat(z_k, k)||^2 with k uniform among the steps. On the straight path
(`vamf.diffusion`) that is

    R = u(z, t, t) - (e - x),      loss = (1 - t)^2 weight(||R||^2),      t = t_k

since (1 - t) R = e_hat - e. A network that predicts noise (`UNetConfig.predicts`) is trained exactly as published; any
other learns the velocity, with DDPM's emphasis on the noise levels.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.diffusion import DDPM
from vamf.errors import UserError
from vamf.objectives.flow_matching import FlowMatching
from vamf.objectives.objective import Draw
from vamf.times import TimeLaw

STEPS = TimeLaw(equal_fraction=1.0)
"""Stands for the law of t: that of a uniform step of the diffusion, with r = t."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingDiffusion(FlowMatching):
    """Sample it with `vamf.sampling.ancestral`, `ddim` or `integrate`."""

    reduction: str = "mean"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Squared errors are averaged over the event's axes, so that the loss of a network that knows nothing is 1."""
    times: TimeLaw = STEPS
    """Not to be changed."""

    def __post_init__(self):
        super().__post_init__()
        if self.times != STEPS:
            raise UserError("times: the method ddpm draws the steps of its diffusion uniformly and has no other law")

    @property
    def sampler(self) -> Literal["ddim"]:
        return "ddim"

    def noise(self, step: int) -> None:
        return None

    def draw(self, key: Key[Array, ""], x: Float[Array, "batch *event"], e=None, step=0) -> Draw:
        """Noise and the times of uniform steps, r = t."""
        k = jax.random.randint(jax.random.fold_in(key, 8), x.shape[:1], 0, DDPM.steps)
        t = jnp.asarray(DDPM.times, x.dtype)[k]
        return super().draw(key, x, e, step)._replace(r=t, t=t)

    def _emphasis(self, r, t, step):
        return (1 - t) ** 2 * super()._emphasis(r, t, step)
