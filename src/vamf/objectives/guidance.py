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
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vamf.average_velocity import AverageVelocity
from vamf.errors import UserError
from vamf.path import expand

HIDDEN = -1
"""The label of a row whose label is hidden."""


def hide(label: Int[Array, " batch"] | None, dropped: Bool[Array, " batch"] | None) -> Int[Array, " batch"] | None:
    """Labels with the dropped ones hidden."""
    if dropped is None:
        return label
    if label is None:
        raise UserError("label_dropout: the data has no labels")
    return jnp.where(dropped, HIDDEN, label)


def guide(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None,
    raw: Float[Array, "batch *event"],
    scale: float,
    times: tuple[float, float],
) -> Float[Array, "batch *event"]:
    """`W raw + (1 - W) v_null` where t is in range and the label is shown; `raw` elsewhere."""
    if label is None:
        raise UserError("guidance: the data has no labels")
    v_null = jax.lax.stop_gradient(u(z, t, t, jnp.full_like(label, HIDDEN)))
    low, high = times
    acts = (label != HIDDEN) & (t >= low) & (t <= high)
    return raw + expand(jnp.where(acts, scale - 1.0, 0.0).astype(raw.dtype), raw) * (raw - v_null)
