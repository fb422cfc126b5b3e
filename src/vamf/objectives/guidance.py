"""Classifier-free guidance inside the objective, so that sampling stays one call.

The guided field of scale W is V = v_null + W (v - v_null), with v_null the velocity without label. Its unbiased target
is W v_c + (1 - W) v_null: guidance multiplies the noise of v_c by W. Every published rule is this target, mixed by
kappa with the network's own guided velocity, which takes that noise back by 1 - kappa:

    v_g = (1 - kappa) [ W v_c + (1 - W) v_null ] + kappa u(z, t, t)

| rule                                  | W                 | kappa             | noise of v_c in v_g |
|---------------------------------------|-------------------|-------------------|---------------------|
| MeanFlow, omega, kappa (2505.13447)   | omega/(1 - kappa) | kappa             | omega               |
| AlphaFlow (2510.20771)                | as MeanFlow       | kappa             | omega               |
| Decoupled MeanFlow, w (2510.24474)    | 1/(1 - w)         | w                 | 1                   |
| Improved MeanFlow, omega (2512.02012) | omega             | 1 - 1/omega       | 1                   |
| Re-MeanFlow, W (2511.23342)           | W                 | 1 - max(1, W-1)/W | max(1, W - 1)       |
| Terminal velocity, W (2511.19797)     | W                 | 0                 | W                   |

Where the label is hidden (-1), or t is outside the guidance interval, v_g is v_c itself: W = 1 and kappa = 0. v_g
stands for v_c in every role; beta and gamma (`roles.py`) mix on top of it, in every row.

W is one number, or drawn:

* for each row, with density omega^-b on [1, W] (Improved MeanFlow), acting between t_min ~ U(0, 1/2) and
  t_max ~ U(1/2, 1), over all times where r = t. The network is told: one training, and the scale is chosen at sampling.
  A velocity is told omega where it acts and 1 elsewhere, over all times;
* for each batch, uniformly on [1, W] (Re-MeanFlow). The network is not told.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf import condition
from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.condition import HIDDEN, Scale, Told
from vamf.errors import UserError
from vamf.path import expand


class Strength(NamedTuple):
    """W and kappa of each row at its time, 1 and 0 where guidance does not act."""

    scale: Float[Array, " batch"]
    mix: Float[Array, " batch"] | None
    """None where kappa is 0 throughout."""

    def __getitem__(self, rows) -> "Strength":
        return Strength(self.scale[rows], None if self.mix is None else self.mix[rows])


def draw(
    key: Key[Array, ""], r: Float[Array, " batch"], t: Float[Array, " batch"], largest: float, power: float
) -> Scale:
    """A scale with density omega^-power on [1, largest] for each row, and the times at which it acts."""
    omega_key, low_key, high_key = jax.random.split(key, 3)
    share, log_largest = jax.random.uniform(omega_key, t.shape, t.dtype), jnp.log(largest).astype(t.dtype)
    if power == 1:
        omega = jnp.exp(share * log_largest)
    else:
        omega = jnp.exp(jnp.log1p(share * jnp.expm1((1 - power) * log_largest)) / (1 - power))
    low = jax.random.uniform(low_key, t.shape, t.dtype, 0.0, 0.5)
    high = jax.random.uniform(high_key, t.shape, t.dtype, 0.5, 1.0)
    return Scale(omega, jnp.where(r < t, low, 0.0), jnp.where(r < t, high, 1.0))


def strength(
    told: Told,
    t: Float[Array, " batch"],
    scale: Float[Array, " batch"],
    mix: Float[Array, " batch"] | None,
    interval: tuple[float, float],
    without_label: bool = False,
) -> Strength:
    """W and kappa of each row at its time.

    Args:
        scale, mix: W and kappa where guidance acts.
        interval: times at which it acts, for rows that are not told their own.
        without_label: guide the rows without a label too.

    Raises:
        UserError: the data has no labels.
    """
    label, own = condition.label_of(told), condition.scale_of(told)
    if label is None:
        raise UserError("guidance: the data has no labels")
    low, high = interval
    acts = (t >= low) & (t <= high) if own is None else own.acts(t)
    if not without_label:
        acts &= label != HIDDEN
    return Strength(jnp.where(acts, scale, 1.0), None if mix is None else jnp.where(acts, mix, 0.0))


def guide(
    own: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    told: Told,
    v: Float[Array, "batch *event"],
    strength: Strength,
    known: Float[Array, "batch *event"] | None = None,
) -> Float[Array, "batch *event"]:
    """`(1 - kappa) [ W v + (1 - W) v_null ] + kappa v_own`: v itself where W = 1 and kappa = 0.

    Args:
        own: the network whose diagonal is v_own with the label, and v_null without.
        known: v_own, where it is known already.
    """
    v_null = jax.lax.stop_gradient(instantaneous_velocity(own, z, t, condition.hide(condition.now(told, t))))
    v_g = v + expand((strength.scale - 1).astype(v.dtype), v) * (v - v_null)
    if strength.mix is None:
        return v_g
    known = instantaneous_velocity(own, z, t, told) if known is None else known
    kappa = expand(strength.mix.astype(v.dtype), v)
    return (1 - kappa) * v_g + kappa * jax.lax.stop_gradient(known)
