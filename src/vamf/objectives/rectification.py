"""Rectification: the law of the one-step samples is pulled towards that of the data.

FlowConsist (arXiv:2602.06346) corrects its generator by distribution matching; the paper's equations are not public, so
these are distribution matching distillation's (arXiv:2311.18828) on the straight path.

    x_hat = e - u(e, 0, 1)              x_tau = (1 - tau) x_hat + tau e',   tau ~ U(0.02, 0.98)
    fake velocity     || v_fake(x_tau, tau) - (e' - sg x_hat) ||^2          a second network, flow matching on samples
    generator         -< x_hat, sg[ tau (v_fake - v_real) / mean|x_hat - x_real| ] >

The score of a law of points z_t is -(z + (1 - t) v)/t, so that KL(samples || data) falls along s_real - s_fake, which
is (1 - tau)(v_fake - v_real)/tau; written as the difference tau (v_fake - v_real) of the two predictions of x and
divided, as published for it, by the distance of the sample from the real one. v_real is the diagonal of the proxy.
Both networks take one step for each batch; the published 5 steps of the fake one for each of the generator are not
taken.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vamf.average_velocity import AverageVelocity
from vamf.condition import Told, now
from vamf.objectives import proxies
from vamf.path import expand, interpolate

EARLIEST, LATEST = 0.02, 0.98
"""Range of tau."""
TINY = 1e-6


class Renoised(NamedTuple):
    """The randomness with which samples are looked at."""

    e: Float[Array, "batch *event"]
    tau: Float[Array, " batch"]


def renoise(key: Key[Array, ""], x: Float[Array, "batch *event"]) -> Renoised:
    """Noise and times for a batch shaped like x."""
    noise_key, time_key = jax.random.split(key)
    tau = jax.random.uniform(time_key, x.shape[:1], x.dtype, EARLIEST, LATEST)
    return Renoised(jax.random.normal(noise_key, x.shape, x.dtype), tau)


def loss(
    u: AverageVelocity,
    real: AverageVelocity,
    e: Float[Array, "batch *event"],
    label: Told,
    renoised: Renoised,
) -> Float[Array, " batch"]:
    """The generator's and the fake velocity's losses (batch,), whose gradients do not meet.

    Args:
        u: the network; its head `fake` (z, t, label) is the velocity of its samples.
        real: average velocity whose diagonal is that of the data.
        e: the noise that the samples start from.
    """
    tau = renoised.tau
    sample = e - u(e, jnp.zeros_like(tau), jnp.ones_like(tau), label)
    still = jax.lax.stop_gradient(sample)
    z = interpolate(still, renoised.e, tau)
    fake = proxies.fake(u)(z, tau, now(label, tau))
    v_real = proxies.marginal_velocity(real, z, tau, label)
    event = tuple(range(1, z.ndim))
    of_real = z - expand(tau, z) * v_real
    apart = jnp.mean(jnp.abs(still - of_real), axis=event, keepdims=True)
    direction = expand(tau, z) * (fake - v_real) / (apart + TINY)
    generator = -jnp.sum(sample * jax.lax.stop_gradient(direction), axis=event)
    return generator + jnp.sum((fake - (renoised.e - still)) ** 2, axis=event)
