"""Samplers by name, as on the command line: each returns samples and its number of network calls."""

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
from vamf.sampling.few_step import restart, sample
from vamf.sampling.ode import integrate

Sampler = Literal["flow_map", "restart", "heun", "euler", "fast_flow", "ancestral", "ddim"]
DEFAULT_STEPS: dict[str, int] = {
    "flow_map": 1, "restart": 2, "heun": 50, "euler": 50, "fast_flow": 50, "ancestral": DDPM.steps, "ddim": 50,
}  # fmt: skip
"""Default number of steps of each sampler."""
STRAIGHT_LINE_ONLY = ("fast_flow", "ancestral", "ddim")
"""Samplers that require the straight path."""
MAX_BATCHES, MIN_BATCH_SIZE = 64, 64
"""`fast_flow` learns from batch to batch: most batches, and least samples in one."""


def check(sampler: str, steps: int) -> None:
    """Refuse an invalid sampler or number of steps, before anything is loaded or compiled.

    Raises:
        UserError: an unknown sampler, or a number of steps that it does not support.
    """
    require(sampler in get_args(Sampler), "sampler", sampler, " | ".join(get_args(Sampler)))
    require(steps >= 1, "steps", steps, "1 or more")
    if sampler == "fast_flow":
        require(steps >= 4, "steps", steps, "4 or more with fast_flow; in fewer there is nothing to skip")
    if sampler in ("ancestral", "ddim"):
        require(steps <= DDPM.steps, "steps", steps, f"1 to {DDPM.steps} with {sampler}")


def describe(sampler: Sampler, steps: int) -> str:
    """A sampler and its steps in words."""
    count = f"{steps} step{'s' * (steps > 1)}"
    if sampler == "flow_map":
        return count
    return f"{sampler}, {count}" + " of u(z, t, t)" * (sampler != "restart")


def batches(n: int) -> tuple[int, int]:
    """Number of batches of `fast_flow` for n samples, and their size; surplus samples are discarded."""
    size = min(n, max(MIN_BATCH_SIZE, -(-n // MAX_BATCHES)))
    return -(-n // size), size


def draw(
    sampler: Sampler,
    u: AverageVelocity,
    noise: Float[Array, "batch *event"],
    steps: int,
    key: Key[Array, ""],
    label: Cond = None,
    clip_range: float | None = None,
    path: Path = STRAIGHT_LINE,
    start: Float[Array, "batch *event"] | None = None,
) -> tuple[Float[Array, "batch *event"], Int[Array, ""]]:
    """Data from noise by a named sampler, and the number of network calls, over all batches together.

    Args:
        key: of the fresh noise of `restart` and `ancestral`; the others need none.
        clip_range: largest absolute value of the data, if bounded, for `ancestral`.
        path: the path of the run.
        start: the start of each row, where data come in pairs, for `restart`.

    Raises:
        UserError: the sampler requires the straight path.
    """
    check(sampler, steps)
    if sampler in STRAIGHT_LINE_ONLY and not isinstance(path, StraightLine):
        raise UserError(
            f"sampler = {sampler}: on the straight line only; allowed are flow_map, restart, euler and heun"
        )
    if sampler == "fast_flow":
        return _fast_flow(u, noise, steps, label)
    if sampler == "flow_map":
        x = sample(u, noise, steps, label, path)
    elif sampler == "restart":
        x = restart(u, noise, steps, key, label, path, start)
    elif sampler == "ancestral":
        x = ancestral(DDPM.noise_prediction(u), noise, key, steps, label, clip_range=clip_range)
    elif sampler == "ddim":
        x = ddim(DDPM.noise_prediction(u), noise, steps, label)
    else:
        x = integrate(u, noise, steps, label, sampler, path)
    return x, jnp.int32(2 * steps if sampler == "heun" else steps)


def _fast_flow(u, noise, steps, label):
    """Batches in sequence, each with the state after the earlier ones."""
    count, size = batches(len(noise))
    rows = jnp.arange(count * size).reshape(count, size) % len(noise)
    method = FastFlow(steps)

    def step(state, rows):
        x, state, calls = method.sample(u, noise[rows], state, None if label is None else label[rows])
        return state, (x, calls)

    _, (x, calls) = jax.lax.scan(step, method.init(), rows)
    return x.reshape(-1, *noise.shape[1:])[: len(noise)], jnp.sum(calls)
