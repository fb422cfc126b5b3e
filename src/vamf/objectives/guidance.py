"""Classifier-free guidance inside the objective, so that sampling stays one call.

The guided field of scale W is V = v_null + W (v - v_null), with v_null the velocity without label. Its unbiased target
is W v_c + (1 - W) v_null: guidance multiplies the noise of v_c by W. Every published rule is this target and a mix
(`roles.py`) with the network's own guided prediction, which takes that noise back by 1 - gamma:

| rule                                  | beta  | gamma       | W             | noise of v_c in the target |
|---------------------------------------|-------|-------------|---------------|----------------------------|
| MeanFlow, w and kappa (2505.13447)    | kappa | kappa       | w/(1 - kappa) | w                          |
| Decoupled MeanFlow, w (2510.24474)    | w     | w           | 1/(1 - w)     | 1                          |
| Improved MeanFlow, omega (2512.02012) | 1     | 1 - 1/omega | omega         | 1                          |
| Terminal velocity, W (2511.19797)     | -     | 0           | W             | W                          |

with the network itself as proxy. A hidden label is -1.

Improved MeanFlow draws omega for each row, with density omega^-b on [1, W], and the times at which it acts,

    t_min ~ U(0, 1/2),  t_max ~ U(1/2, 1);  0 and 1 where r = t,

and tells the network: one training, and the scale is chosen at sampling. A velocity is told omega where it acts and 1
elsewhere, over all times; a row without label has omega = 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vamf import condition
from vamf.average_velocity import AverageVelocity
from vamf.condition import HIDDEN, Scale, Told
from vamf.errors import UserError
from vamf.path import expand


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


def hide(told: Told, dropped: Bool[Array, " batch"] | None) -> Told:
    """What the rows are told, with the labels of the dropped ones hidden."""
    if dropped is None:
        return told
    if condition.label_of(told) is None:
        raise UserError("label_dropout: the data has no labels")
    return condition.hide(told, dropped)


def guide(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    told: Told,
    raw: Float[Array, "batch *event"],
    scale: float,
    times: tuple[float, float],
) -> Float[Array, "batch *event"]:
    """`W raw + (1 - W) v_null` where the label is shown and guidance acts; `raw` elsewhere.

    Args:
        scale, times: W and the times at which it acts, for rows that are not told one of their own.
    """
    label, own = condition.label_of(told), condition.scale_of(told)
    if label is None:
        raise UserError("guidance: the data has no labels")
    v_null = jax.lax.stop_gradient(u(z, t, t, condition.hide(condition.now(told, t))))
    if own is None:
        own = Scale(*(jnp.full_like(t, value) for value in (scale, *times)))
    weight = jnp.where(label == HIDDEN, 0.0, own.at(t) - 1.0)
    return raw + expand(weight.astype(raw.dtype), raw) * (raw - v_null)
