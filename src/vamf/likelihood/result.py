"""What a log density of rows consists of, and derivatives that its methods share."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TANGENTS = 2**18
"""Most numbers in the directions that one pass of derivatives takes; more directions go in several passes."""


class LogDensity(NamedTuple):
    """Log densities of rows; arrays with one entry for each."""

    log_p: Any
    """log p(x) in nats (n,); NaN where a jump was not inverted."""
    std_error: Any
    """Standard error (n,) of the trace estimate over its probes; 0 where the divergence is exact, NaN of one probe."""
    noise: Any
    """The points at t = 1 (n, *event) that x belong to."""
    error: Any
    """Of the ODE: change of log p from half the steps (n,), where a tolerance asks for it, else NaN. Of jumps: distance
    of where one lands from the point it should hit, root mean square over coordinates, the largest of the jumps."""
    iterations: Any
    """Of the ODE its steps (n,); of jumps the most iterations that the inverse of one took, 0 without iteration."""


def log_normal(z: Float[Array, "n *event"]) -> Float[Array, " n"]:
    """log N(z; 0, I)."""
    size = math.prod(z.shape[1:])
    return -jnp.sum(z.reshape(len(z), -1) ** 2, axis=1) / 2 - size / 2 * math.log(2 * math.pi)


def along(
    f: Callable[[Array], Array],
    z: Float[Array, "n *event"],
    direction: Callable[[Array], Array],
    count: int,
    reduce: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """f(z), and `reduce(J w, w)` (count, ...) for w = direction(0), direction(1), ..., J the Jacobian of each row.

    Passes take as many directions at a time as memory is bounded for.
    """
    value, product = jax.linearize(f, z)

    def one(index):
        w = direction(index)
        return reduce(product(w), w)

    return value, jax.lax.map(one, jnp.arange(count), batch_size=max(1, TANGENTS // z.size))


def unit_vector(index: Array, like: Float[Array, "n *event"]) -> Float[Array, "n *event"]:
    """The unit vector of one coordinate, in every row."""
    unit = jax.nn.one_hot(index, math.prod(like.shape[1:]), dtype=like.dtype)
    return jnp.broadcast_to(unit.reshape(like.shape[1:]), like.shape)


def inner(a: Float[Array, "n *event"], b: Float[Array, "n *event"]) -> Float[Array, " n"]:
    """Inner products of rows."""
    return jnp.sum((a * b).reshape(len(a), -1), axis=1)
