"""Sources of v_hat, the deterministic estimate of the marginal velocity v(z, t). None carries a gradient.

| source     | v_hat(z, t)                                                            |
|------------|------------------------------------------------------------------------|
| `none`     | there is none: beta and gamma must be 0                                |
| `online`   | u(z, t, t) of the network in training (Improved MeanFlow's boundary)   |
| `ema`      | u(z, t, t) of its moving average, which the training loop passes in    |
| `head`     | a second output of the network, trained beside u                       |
| `bank`     | the posterior mean over the batch or more data points (`bank.py`)      |
| `oracle`   | the exact v of the data, where its law is known (the caller passes it) |
| `teacher`  | a trained model (the caller passes it)                                 |
| a callable | any average velocity, evaluated at r = t: a closed form ...            |
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.condition import Told
from vamf.errors import UserError

SOURCES = ("none", "online", "ema", "head", "bank", "oracle", "teacher")
OWN = ("online", "head")
"""The network in training itself."""
UNGUIDED = ("bank", "oracle", "teacher")
"""Sources without guidance. The network's own outputs learn the guided field; callables are taken as is."""
Source = str | Callable


def check(source: Source) -> None:
    """Refuse what is neither a named source nor a callable."""
    if not callable(source) and source not in SOURCES:
        raise UserError(f"proxy = {source!r}: allowed are {', '.join(SOURCES)} or a callable u(z, r, t, label)")


def resolve(source: Source, u: AverageVelocity, given: AverageVelocity | None) -> AverageVelocity:
    """The average velocity whose diagonal is v_hat: the network itself, the one passed in, or the source."""
    if source == "online":
        return u
    if source == "head":
        return head(u)
    chosen = given if given is not None else source
    if not callable(chosen):
        raise UserError(f"proxy = {source!r}: pass an average velocity as the objective's `proxy` argument")
    return chosen


def head(u: AverageVelocity) -> AverageVelocity:
    """The velocity head of a network, called like its u."""
    velocity = getattr(u, "velocity", None)
    if velocity is None:
        raise UserError("proxy = 'head': the average velocity has no `velocity(z, t, label)` beside u")
    return lambda z, r, t, label: velocity(z, t, label)


def with_head(u: AverageVelocity, z, r, t, label: Told) -> tuple[Array, Array]:
    """u(z, r, t) and the velocity head in one pass, whose gap and scale of guidance the head is told too.

    An average velocity whose head stands alone is asked twice.
    """
    both = getattr(u, "with_velocity", None)
    return (u(z, r, t, label), head(u)(z, t, t, label)) if both is None else both(z, r, t, label)


def fake(u: AverageVelocity) -> Callable[..., Array]:
    """The second network that learns the velocity of u's own samples, called (z, t, label)."""
    found = getattr(u, "fake", None)
    if found is None:
        raise UserError("rectify_weight: the average velocity has no `fake(z, t, label)` beside u")
    return found


def log_variance(u: AverageVelocity) -> Callable[[Float[Array, " batch"], Float[Array, " batch"]], Array]:
    """The learned logarithm of the loss's scale, phi(r, t), of a network."""
    found = getattr(u, "log_variance", None)
    if found is None:
        raise UserError("weight = cauchy or learned: the average velocity has no `log_variance(r, t)` beside u")
    return found


def marginal_velocity(
    proxy: AverageVelocity,
    z: Float[Array, "batch *event"],
    t: Float[Array, " batch"],
    label: Told,
) -> Float[Array, "batch *event"]:
    """v_hat(z, t) = sg[proxy(z, t, t, label)]."""
    return jax.lax.stop_gradient(instantaneous_velocity(proxy, z, t, label))
