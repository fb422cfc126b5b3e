"""The samplers by name, as the command line offers them: all from the same noise, each with its count of calls."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond
from vamf.diffusion import DDPM
from vamf.errors import UserError, require
from vamf.path import STRAIGHT_LINE, Path, StraightLine
from vamf.sampling.denoising import ancestral, ddim
from vamf.sampling.fast_flow import FastFlow
from vamf.sampling.jumps import restart, sample
from vamf.sampling.ode import integrate

Sampler = Literal["jumps", "restart", "heun", "euler", "fast_flow", "ancestral", "ddim"]
USUAL: dict[str, int] = {
    "jumps": 1, "restart": 2, "heun": 50, "euler": 50, "fast_flow": 50, "ancestral": DDPM.steps, "ddim": 50,
}  # fmt: skip
"""Steps of each sampler where nobody says how many."""
STRAIGHT = ("fast_flow", "ancestral", "ddim")
"""Samplers of the straight line alone."""
BATCHES, SMALLEST = 64, 64
"""`fast_flow` learns from batch to batch: at most so many batches, of so many samples at least."""


def check(sampler: str, steps: int) -> None:
    """Refuse what no sampler can do, before anything is loaded or compiled.

    Raises:
        UserError: an unknown sampler, or a number of steps that it does not have.
    """
    require(sampler in get_args(Sampler), "sampler", sampler, " | ".join(get_args(Sampler)))
    require(steps >= 1, "steps", steps, "1 or more")
    if sampler == "fast_flow":
        require(steps >= 4, "steps", steps, "4 or more with fast_flow; in fewer there is nothing to skip")
    if sampler in ("ancestral", "ddim"):
        require(steps <= DDPM.steps, "steps", steps, f"1 to {DDPM.steps} with {sampler}")


def describe(sampler: Sampler, steps: int) -> str:
    """A way from noise to data in words."""
    count = f"{steps} step{'s' * (steps > 1)}"
    if sampler == "jumps":
        return count
    return f"{sampler}, {count}" + " of u(z, t, t)" * (sampler != "restart")


def batches(n: int) -> tuple[int, int]:
    """How many batches `fast_flow` makes of n samples, and their size; the last may hold some that are not needed."""
    size = min(n, max(SMALLEST, -(-n // BATCHES)))
    return -(-n // size), size


def draw(
    sampler: Sampler,
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int,
    key: Key[Array, ""],
    label: Cond = None,
    bound: float | None = None,
    path: Path = STRAIGHT_LINE,
    start: Float[Array, "batch *event"] | None = None,
) -> tuple[Float[Array, "batch *event"], Int[Array, ""]]:
    """Data from noise by a named sampler, and how many network calls that took, over all batches together.

    Args:
        key: of the fresh noise of `restart` and `ancestral`; the others need none.
        bound: largest absolute value of the data, where it has one, for `ancestral`.
        path: the path of the training.
        start: the start of each row, where data come in pairs, for `restart`.

    Raises:
        UserError: the sampler is written for the straight line alone.
    """
    check(sampler, steps)
    if sampler in STRAIGHT and not isinstance(path, StraightLine):
        raise UserError(f"sampler = {sampler}: on the straight line only; allowed are jumps, restart, euler and heun")
    if sampler == "fast_flow":
        return _fast_flow(u, noise, steps, label)
    if sampler == "jumps":
        x = sample(u, noise, steps, label, path)
    elif sampler == "restart":
        x = restart(u, noise, steps, key, label, path, start)
    elif sampler == "ancestral":
        x = ancestral(DDPM.noise_prediction(u), noise, key, steps, label, bound=bound)
    elif sampler == "ddim":
        x = ddim(DDPM.noise_prediction(u), noise, steps, label)
    else:
        x = integrate(u, noise, steps, label, sampler, path)
    return x, jnp.int32(2 * steps if sampler == "heun" else steps)


def _fast_flow(u, noise, steps, label):
    """One batch after another, each with what the earlier ones have learned."""
    count, size = batches(len(noise))
    rows = jnp.arange(count * size).reshape(count, size) % len(noise)
    method = FastFlow(steps)

    def generation(state, rows):
        x, state, calls = method.sample(u, noise[rows], state, None if label is None else label[rows])
        return state, (x, calls)

    _, (x, calls) = jax.lax.scan(generation, method.start(), rows)
    return x.reshape(-1, *noise.shape[1:])[: len(noise)], jnp.sum(calls)
