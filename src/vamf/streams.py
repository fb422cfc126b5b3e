"""Random streams: from one key and a number an independent key for each purpose."""

import jax
from jaxtyping import Array, Key

FIRST = 3
"""Numbers below are parts of one split; others are folded in."""


def stream(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """The key of a stream. Numbers are stated as constants where they are drawn from; from outside the package take
    some from 1000 on."""
    return jax.random.split(key, FIRST)[number] if number < FIRST else jax.random.fold_in(key, number)
