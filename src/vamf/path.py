"""The linear interpolant between data and noise.

Geng et al., *Mean Flows for One-step Generative Modeling* (arXiv:2505.13447), section 3: t = 0 is data, t = 1 noise.

    z_t = (1 - t) x + t e          v_c = dz_t/dt at fixed (x, e) = e - x
"""

from jaxtyping import Array, Float, Shaped


def expand(t: Shaped[Array, " batch"], like: Float[Array, "batch *event"]) -> Shaped[Array, "batch *ones"]:
    """Values of shape (batch,) with trailing axes of length 1, so that they broadcast against `like`."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(
    x: Float[Array, "batch *event"], e: Float[Array, "batch *event"], t: Float[Array, " batch"]
) -> Float[Array, "batch *event"]:
    """The point z_t = (1 - t) x + t e on the straight path from data x (t = 0) to noise e (t = 1)."""
    t = expand(t, x)
    return (1 - t) * x + t * e


def conditional_velocity(
    x: Float[Array, "batch *event"], e: Float[Array, "batch *event"]
) -> Float[Array, "batch *event"]:
    """The velocity v_c = e - x of the straight path. Given z_t alone its mean is the marginal velocity v(z_t, t)."""
    return e - x
