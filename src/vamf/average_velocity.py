"""Operations on an average velocity u(z, r, t, label).

Geng et al., arXiv:2505.13447. The average velocity over [r, t] along the flow dz/ds = v(z, s) is

    (t - r) u(z_t, r, t) = integral over s in [r, t] of v(z_s, s),

so u(z, t, t) = v(z, t), and differentiating in t along the flow gives the MeanFlow identity [their eq. 6]

    u = v - (t - r) du/dt,      du/dt = (du/dz) v + du/dt|_z = one Jacobian-vector product, tangent (v, 0, 1).
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vamf.conditioning import Cond, at_time
from vamf.path import STRAIGHT_LINE, Path, expand


@runtime_checkable
class AverageVelocity(Protocol):
    """Any callable u(z, r, t, label): z of shape (batch, *event), r and t of shape (batch,), label (batch,), None
    or a `vamf.conditioning.Conditioning`.

    It returns z's shape. A network with its parameters closed over is one; the closed form of a mixture is another.
    """

    def __call__(
        self,
        z: Float[Array, "batch *event"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond,
        /,
    ) -> Float[Array, "batch *event"]: ...


def precise(u: AverageVelocity) -> AverageVelocity:
    """u in float32, for derivatives, where it computes in lower precision and has such a form."""
    return getattr(u, "precise", u)


def diagonal(
    u: AverageVelocity, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
) -> Float[Array, "batch *event"]:
    """u(z, t, t), by its cheaper method `diagonal` (z, t, label) if it has one."""
    cheaper = getattr(u, "diagonal", None)
    return u(z, t, t, label) if cheaper is None else cheaper(z, t, label)


def instantaneous_velocity(
    u: AverageVelocity, z: Float[Array, "batch *event"], t: Float[Array, " batch"], label: Cond = None
) -> Float[Array, "batch *event"]:
    """v(z, t) = u(z, t, t). A network conditioned on guidance takes the scale at t, over all times."""
    return diagonal(u, z, t, at_time(label, t))


def total_derivative(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    tangent: Float[Array, "batch *event"],
    label: Cond = None,
) -> tuple[Float[Array, "batch *event"], Float[Array, "batch *event"]]:
    """u and its total derivative D_w u = (du/dz) w + du/dt at fixed r, in one forward-mode pass.

    Args:
        tangent: the direction w in which z moves per unit of t; the marginal velocity makes D_w u the true du/dt.
    """
    u = precise(u)
    return jax.jvp(lambda z, t: u(z, r, t, label), (z, t), (tangent, jnp.ones_like(t)))


def flow_map(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    r: Float[Array, " batch"],
    label: Cond = None,
    path: Path = STRAIGHT_LINE,
) -> Float[Array, "batch *event"]:
    """The jump z_r = z - (t - r) u(z, r, t) from time t to time r; exact for the exact u.

    Args:
        path: whose `move` makes the jump, where space is not flat.
    """
    return path.move(z, -expand(t - r, z) * u(z, r, t, label))


def jacobian_product(
    u: AverageVelocity,
    z: Float[Array, "batch *event"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
    direction: Float[Array, "batch *event"],
    label: Cond = None,
) -> Float[Array, "batch *event"]:
    """J direction, with J = du/dz at fixed times: one forward-mode pass, the Jacobian itself is never formed.

    The flow map's Jacobian is S = I - (t - r) J, the gap-scaled Jacobian M = (t - r) J, and the paper's Jacobi factor
    A = M - I = -S (arXiv:2605.09235, eq. 5).
    """
    u = precise(u)
    return jax.jvp(lambda z: u(z, r, t, label), (z,), (direction,))[1]


def map_in_batches(u: AverageVelocity, size: int) -> AverageVelocity:
    """u in batches of at most `size` rows: limits the memory of large networks."""

    def batched(z, r, t, label=None):
        rows = z.shape[0]
        if rows <= size:
            return u(z, r, t, label)
        padding = -rows % size

        def fold(part):
            return jnp.pad(part, [(0, padding)] + [(0, 0)] * (part.ndim - 1)).reshape(-1, size, *part.shape[1:])

        batches = jax.tree.map(fold, (z, r, t, label))
        outputs = jax.lax.map(lambda block: u(*block), batches)
        return outputs.reshape(-1, *z.shape[1:])[:rows]

    return batched
