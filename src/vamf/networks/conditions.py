"""Conditioning of a network on a vector or an image-shaped array, in addition to a class.

A vector is embedded and added to the embedding of the class; a learned vector replaces a missing one. An image-shaped
array is concatenated to the channels of z, with a mask channel that is 1 in the rows that have it; in the others both
are 0.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vamf.conditioning import Cond, Conditioning, CondShape, is_present
from vamf.path import expand


class VectorEmbedding(nnx.Module):
    """A vector (batch, size) through an MLP of one hidden SiLU layer."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(size, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.none = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))

    def __call__(self, cond: Cond) -> Float[Array, "batch width"]:
        assert isinstance(cond, Conditioning)
        embedded = self.second(jax.nn.silu(self.first(cond.vector)))
        return jnp.where(is_present(cond)[:, None], embedded, self.none[...])


def input_shape(event_shape: tuple[int, ...], shape: CondShape) -> tuple[int, ...]:
    """Shape of one row of the result of `with_image`."""
    return (*event_shape[:-1], event_shape[-1] + shape.image + 1) if shape.image else event_shape


def with_image(z: Float[Array, "batch *event"], cond: Cond, shape: CondShape) -> Float[Array, "batch *input"]:
    """z concatenated with the image-shaped condition, if any, along the last axis."""
    if not shape.image:
        return z
    assert isinstance(cond, Conditioning)
    present = expand(is_present(cond).astype(z.dtype), z)
    mask = jnp.broadcast_to(present, (*z.shape[:-1], 1))
    return jnp.concatenate([z, present * cond.image.astype(z.dtype), mask], axis=-1)
