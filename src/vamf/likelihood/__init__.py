"""Log densities under an average velocity: of its ODE, and of the samples that it makes in few jumps."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Cond
from vamf.errors import UserError
from vamf.likelihood.few_step import FewStep
from vamf.likelihood.ode import MAX_STEPS, ODE
from vamf.likelihood.result import LogDensity

__all__ = ["ODE", "FewStep", "LogDensity", "log_density"]

BLOCK, NUMBERS = 4096, 2**17
"""Most rows of a block, and most numbers in its points."""


def log_density(
    u: AverageVelocity,
    x: Array | np.ndarray,
    label: Cond = None,
    method: ODE | FewStep = ODE(),
    key: Key[Array, ""] | None = None,
    block: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> LogDensity:
    """log p(x) in nats of each row, in x's own coordinates and type, in blocks of bounded memory.

    The prior at t = 1 is N(0, I) and the path the straight line. Compiled at each call; not traceable itself.

    Args:
        u: any average velocity.
        x: data (n, *event), floats.
        label: the condition of each row.
        method: `ODE` for the flow of u(z, t, t), `FewStep` for the jumps themselves.
        key: of Hutchinson's probes.
        block: rows at a time; by default as many as memory is bounded for.
        on_rows: called with the number of rows done after each block.

    Raises:
        UserError: no rows, a type that is not floating, values that are not finite, or too many dimensions for jumps.
    """
    if x.ndim < 2 or x.dtype.kind != "f" or 0 in x.shape:
        raise UserError(f"x: shape {x.shape}, type {x.dtype}; allowed are floats of shape (n, *event), a row or more")
    if not np.isfinite(np.asarray(x)).all():
        raise UserError("x: holds values that are not finite")
    if block is not None and block < 1:
        raise UserError(f"block = {block}: allowed is 1 or more")
    key = jax.random.key(0) if key is None else key
    x = jnp.asarray(x)
    block = min(len(x), block or max(1, min(BLOCK, NUMBERS // math.prod(x.shape[1:]))))
    result = _in_blocks(u, x, label, method, key, block, on_rows)
    if not isinstance(method, ODE) or method.tolerance is None:
        return result
    steps = method.steps
    while True:
        steps *= 2
        finer = _in_blocks(u, x, label, ODE(**{**vars(method), "steps": steps}), key, block, on_rows)
        error = np.abs(finer.log_p - result.log_p)
        result = finer._replace(error=error)
        if error.mean() <= method.tolerance or 2 * steps > MAX_STEPS:
            return result


def _in_blocks(u, x, label, method, key, block, on_rows) -> LogDensity:
    """The rows block by block; the last one is filled up, so that all are one program."""
    compiled = jax.jit(lambda x, label, rows: method.density(u, x, label, key, rows))
    parts = []
    for first in range(0, len(x), block):
        rows = jnp.arange(first, first + block)
        block_x, block_label = jax.tree.map(partial(jnp.take, indices=rows, axis=0, mode="clip"), (x, label))
        left = min(block, len(x) - first)
        parts.append([np.asarray(leaf)[:left] for leaf in compiled(block_x, block_label, rows)])
        if on_rows is not None:
            on_rows(first + left)
    return LogDensity(*map(np.concatenate, zip(*parts, strict=True)))
