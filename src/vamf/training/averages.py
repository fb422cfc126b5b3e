"""Moving averages of the parameters (EMA): the weights that samples and v_hat come from.

    average_k = d_k average_{k-1} + (1 - d_k) params_k,         average_0 = params_0, the initial weights,

k = 1, 2, ... steps taken. d_k is the decay; with warm-up it is min(decay, (1 + k) / (10 + k)), as in TensorFlow's
`ExponentialMovingAverage` with `num_updates` = k. After K steps the initial weights have the share d_1 ... d_K of the
average: decay^K without warm-up, and at most 10! / K^9 with it as long as the decay has not reached its constant.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vamf.errors import UserError
from vamf.training.config import TrainConfig

Ema = float | Literal["none"] | None
"""Weights to sample from: a moving average by its decay, `none` for the parameters themselves; None is the run's own
choice, its first average."""
NOTICED = 1e-3
"""Share of the initial weights in a finished average that is worth a line before the training."""


def update(average: Any, params: Any, decay: float, warmup: bool, step: Int[Array, ""]) -> Any:
    """The average after one more step.

    Args:
        params: the parameters after that step.
        step: steps taken before it.
    """
    # 1 - (1 + k) / (10 + k) with k = step + 1, without losing digits.
    weight = jnp.maximum(1 - decay, 9 / (11 + step.astype(jnp.float32))) if warmup else 1 - decay
    return optax.incremental_update(params, average, weight)


def initial_share(decay: float, warmup: bool, steps: int) -> float:
    """The share of the initial weights in the average after some steps."""
    if decay == 0:
        return 0.0
    rising = min(steps, max(0, math.ceil((10 * decay - 1) / (1 - decay)) - 1)) if warmup else 0
    warm = math.lgamma(rising + 2) + math.lgamma(11) - math.lgamma(rising + 11)
    return math.exp(warm + (steps - rising) * math.log(decay))


def caution(config: TrainConfig) -> str | None:
    """One line where a training is too short for its moving average to forget the initial weights; None elsewhere."""
    optimiser, steps = config.optimiser, config.steps
    kept = max((optimiser.ema_decay, *optimiser.ema_decays))
    share = initial_share(kept, optimiser.ema_warmup, steps)
    if optimiser.ema_warmup:
        reached = (1 + steps) / (10 + steps)
        alike = [decay for decay in config.averages if decay >= reached]
        if len(alike) < 2:
            return None
        return (
            f"moving averages {', '.join(f'{decay:g}' for decay in alike)}: the same in {steps:,} steps, in which "
            f"warm-up lets a decay reach {reached:.3g}; better --optimiser.no-ema-warmup, or lower decays"
        )
    if share <= NOTICED:
        return None
    better = max(0.0, 1 - 30 / steps)  # a thirtieth of the training, as 0.9999 is of the papers' 300,000 steps
    option = "ema-decay" if kept == optimiser.ema_decay else "ema-decays"
    return (
        f"moving average: after {steps:,} steps {100 * share:.2g} % of it will still be the initial weights, since its "
        f"decay is a constant {kept:g}; better --optimiser.ema-warmup, or --optimiser.{option} {better:.3g}"
    )


def describe(ema: Ema, kept: tuple[float, ...]) -> str:
    """The weights that are meant, in two words; arguments and errors as `resolve` has them."""
    decay = resolve(ema, kept)
    return "no EMA" if decay is None else f"EMA {decay:g}"


def resolve(ema: Ema, kept: tuple[float, ...]) -> float | None:
    """The decay that is meant, None for the parameters themselves.

    Args:
        kept: decays of the averages that the run keeps, its own choice first.

    Raises:
        UserError: the run keeps no such average.
    """
    if ema == "none":
        return None
    decay = kept[0] if ema is None else ema
    if decay not in kept:
        words = ", ".join(f"{one:g}" for one in kept)
        raise UserError(f"ema = {ema}: this run keeps {words}; none is the weights without an average")
    return decay
