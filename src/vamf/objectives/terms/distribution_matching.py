"""Distribution matching: the distribution of the one-step samples is pulled towards that of the data.

FlowConsist (arXiv:2602.06346) corrects its generator by distribution matching; the paper's equations are not public, so
these are distribution matching distillation's (arXiv:2311.18828) on the straight path.

    x_hat = e - u(e, 0, 1)              x_tau = (1 - tau) x_hat + tau e',   tau ~ U(0.02, 0.98)
    fake velocity     || v_fake(x_tau, tau) - (e' - sg x_hat) ||^2          a second network, flow matching on samples
    generator         -< x_hat, sg[ tau (v_fake - v_real) / mean|x_hat - x_real| ] >

The score of a distribution of points z_t is -(z + (1 - t) v)/t, so that KL(samples || data) falls along
s_real - s_fake, which is (1 - tau)(v_fake - v_real)/tau; written as the difference tau (v_fake - v_real) of the two
predictions of x and divided, as published for it, by the distance of the sample from the real one. v_real is the
diagonal of a model.
Both networks take one step for each batch; the published 5 steps of the fake one for each of the generator are not
taken.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.conditioning import at_time
from vamf.errors import UserError
from vamf.objectives.terms.base import Term
from vamf.objectives.velocity import EMA, ModelVelocity
from vamf.path import expand
from vamf.schedules import check_weight
from vamf.streams import stream

EARLIEST, LATEST = 0.02, 0.98
"""Range of tau."""
TINY = 1e-6
PERTURBATION = 8
"""Random stream."""


@dataclasses.dataclass(frozen=True)
class DistributionMatching(Term):
    """The generator's and the fake velocity's losses, whose gradients do not meet. Trains a second network."""

    name = "distribution_matching"
    real: ModelVelocity = dataclasses.field(default=EMA(), metadata={"composed": True})
    """Whose velocity is that of the data."""

    def __post_init__(self):
        check_weight("weight", self.weight)

    @property
    def needs(self):
        return frozenset({"fake", "straight line"})

    def draw(self, key, x, r, t, step):
        noise_key, time_key = jax.random.split(stream(key, PERTURBATION))
        tau = jax.random.uniform(time_key, t.shape, x.dtype, EARLIEST, LATEST)
        return {"e": jax.random.normal(noise_key, x.shape, x.dtype), "tau": tau}

    def default_draw(self, x, e, t):
        """Noise mirrored, and tau in the middle."""
        return {"e": -e, "tau": jnp.full_like(t, 0.5)}

    def __call__(self, ctx):
        batch, path = ctx.batch, ctx.objective.path
        tau, noise = batch.draws[self.name]["tau"], batch.draws[self.name]["e"]
        sample = batch.e - ctx.u(batch.e, jnp.zeros_like(tau), jnp.ones_like(tau), batch.cond)
        fixed = jax.lax.stop_gradient(sample)
        z = path.interpolate(fixed, noise, tau)
        fake = fake_velocity(ctx.u)(z, tau, at_time(batch.cond, tau))
        v_real = jax.lax.stop_gradient(instantaneous_velocity(self.real.model(ctx), z, tau, batch.cond))
        event = tuple(range(1, z.ndim))
        of_real = z - expand(tau, z) * v_real
        apart = jnp.mean(jnp.abs(fixed - of_real), axis=event, keepdims=True)
        direction = expand(tau, z) * (fake - v_real) / (apart + TINY)
        generator = -jnp.sum(sample * jax.lax.stop_gradient(direction), axis=event)
        return self.scaled(generator + jnp.sum((fake - path.velocity(fixed, noise, tau)) ** 2, axis=event), ctx)


def fake_velocity(u: AverageVelocity) -> Callable[..., Array]:
    """The second network that learns the velocity of u's own samples, called (z, t, cond)."""
    result = getattr(u, "fake", None)
    if result is None:
        raise UserError("distribution-matching: the average velocity has no `fake(z, t, label)` beside u")
    return result
