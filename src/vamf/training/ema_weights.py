"""EMAs (exponential moving averages) of the parameters: the weights that samples and v_hat come from.

    ema_k = d_k ema_{k-1} + (1 - d_k) params_k,         ema_0 = params_0, the initial weights,

k = 1, 2, ... steps. d_k is the decay; with warm-up it is min(decay, (1 + k) / (10 + k)), as in TensorFlow's
`ExponentialMovingAverage` with `num_updates` = k. After K steps the initial weights have the fraction d_1 ... d_K of
the EMA: decay^K without warm-up, and at most 10! / K^9 with it as long as the decay has not reached its constant.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vamf.errors import UserError
from vamf.training.config import TrainConfig

Ema = float | Literal["none"] | None
"""Weights to sample from: an EMA by its decay, `none` for the parameters themselves; None is the run's first EMA."""
WARN_FRACTION = 1e-3
"""Fraction of the initial weights in the final EMA from which a warning is printed before the run."""


def update(ema_params: Any, params: Any, decay: float, warmup: bool, step: Int[Array, ""]) -> Any:
    """The EMA after one more step.

    Args:
        params: the parameters after that step.
        step: number of steps before it.
    """
    # 1 - (1 + k) / (10 + k) with k = step + 1, without losing digits.
    weight = jnp.maximum(1 - decay, 9 / (11 + step.astype(jnp.float32))) if warmup else 1 - decay
    return optax.incremental_update(params, ema_params, weight)


def initial_fraction(decay: float, warmup: bool, steps: int) -> float:
    """The fraction of the initial weights in the EMA after a number of steps."""
    if decay == 0:
        return 0.0
    warmup_steps = min(steps, max(0, math.ceil((10 * decay - 1) / (1 - decay)) - 1)) if warmup else 0
    log_warmup = math.lgamma(warmup_steps + 2) + math.lgamma(11) - math.lgamma(warmup_steps + 11)
    return math.exp(log_warmup + (steps - warmup_steps) * math.log(decay))


def caution(config: TrainConfig) -> str | None:
    """A warning where a run is too short for its EMA to forget the initial weights; else None."""
    optimizer, steps = config.optimizer, config.steps
    largest = max((optimizer.ema_decay, *optimizer.ema_decays))
    fraction = initial_fraction(largest, optimizer.ema_warmup, steps)
    if optimizer.ema_warmup:
        max_decay = (1 + steps) / (10 + steps)
        equal_decays = [decay for decay in config.all_ema_decays if decay >= max_decay]
        if len(equal_decays) < 2:
            return None
        return (
            f"EMAs {', '.join(f'{decay:g}' for decay in equal_decays)}: the same in {steps:,} steps, in which "
            f"warm-up lets a decay reach {max_decay:.3g}; better --optimizer.no-ema-warmup, or lower decays"
        )
    if fraction <= WARN_FRACTION:
        return None
    better = max(0.0, 1 - 30 / steps)  # a thirtieth of the run, as 0.9999 is of the papers' 300,000 steps
    option = "ema-decay" if largest == optimizer.ema_decay else "ema-decays"
    return (
        f"EMA: after {steps:,} steps {100 * fraction:.2g} % of it will still be the initial weights, since its "
        f"decay is a constant {largest:g}; better --optimizer.ema-warmup, or --optimizer.{option} {better:.3g}"
    )


def describe(ema: Ema, decays: tuple[float, ...]) -> str:
    """The selected weights in two words; arguments and errors as of `resolve`."""
    decay = resolve(ema, decays)
    return "no EMA" if decay is None else f"EMA {decay:g}"


def resolve(ema: Ema, decays: tuple[float, ...]) -> float | None:
    """The decay of the selected EMA, None for the parameters themselves.

    Args:
        decays: those of the run's EMAs, the default first.

    Raises:
        UserError: the run has no such EMA.
    """
    if ema == "none":
        return None
    decay = decays[0] if ema is None else ema
    if decay not in decays:
        words = ", ".join(f"{one:g}" for one in decays)
        raise UserError(f"ema = {ema}: this run has the EMAs {words}; none is the parameters themselves")
    return decay
