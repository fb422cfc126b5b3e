"""Embeddings: of time, of classes, of an image as a sequence of patches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vamf.errors import UserError
from vamf.networks.sizes import patch_for

Params = dict[str, Any]


def sinusoidal(t: Float[Array, " batch"], features: int, period: float = 1e4) -> Float[Array, "batch {features}"]:
    """sin and cos of t at `features / 2` frequencies from 1 down to 1 / period.

    Time is not rescaled by 1000 as diffusion code does: the Jacobian-vector product passes through here, and the
    factor would multiply du/dt. The cosine is a sine with a phase, so that one vectorised sine computes both.
    """
    half = features // 2
    frequency = np.repeat(period ** (-np.arange(half) / half), 2)
    phase = np.tile([0.0, np.pi / 2], half)
    return jnp.sin(t[:, None] * jnp.asarray(frequency, t.dtype) + jnp.asarray(phase, t.dtype))


class ScalarEmbedding(nnx.Module):
    """A number as a vector: sinusoidal features through an MLP of one hidden SiLU layer."""

    def __init__(self, width: int, features: int = 256, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        self.features = features
        self.first = nnx.Linear(features, width, kernel_init=kernel_init, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, t: Float[Array, " batch"]) -> Float[Array, "batch width"]:
        return self.second(jax.nn.silu(self.first(sinusoidal(t, self.features))))


def constant_embedding(params: Params) -> Params:
    """Parameters of a `ScalarEmbedding` that embeds every number as these embed 0; its derivative is 0 too."""
    first = params["first"]
    at_zero = sinusoidal(jnp.zeros(1), first["kernel"].shape[0])[0]
    folded = {"kernel": jnp.zeros_like(first["kernel"]), "bias": first["bias"] + at_zero @ first["kernel"]}
    return {**params, "first": folded}


def no_embedding(width: int) -> Params:
    """Parameters of a `ScalarEmbedding`'s last layer with which it embeds every number as 0."""
    return {"second": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}}


class LogVariance(nnx.Module):
    """phi(r, t), the learned logarithm of the loss's scale: linear in features of both times, 0 at the start."""

    def __init__(self, features: int = 128, *, rngs: nnx.Rngs):
        self.features = features
        self.linear = nnx.Linear(2 * features, 1, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return self.linear(jnp.concatenate([sinusoidal(at, self.features) for at in (r, t)], axis=1))[:, 0]


def embed_label(classes: nnx.Embed, label: Int[Array, " batch"] | None) -> Float[Array, "rows width"]:
    """Rows of an embedding table whose last row is "no label"; so are negative labels. One row for None."""
    null = classes.num_embeddings - 1
    return classes(jnp.array([null]) if label is None else jnp.where(label < 0, null, label))


def grid_of(event_shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
    """Rows and columns of patches in an image, and the side of a patch.

    Args:
        size: the side of a patch; 0 chooses it by the image (`sizes.patch_for`).

    Raises:
        UserError: no image, or sides that are no multiples of the patch's.
    """
    if len(event_shape) != 3:
        raise UserError(f"network: data of shape {event_shape}; this one takes images (height, width, channels)")
    height, width, _ = event_shape
    size = size or patch_for(height, width)
    if height % size or width % size:
        raise UserError(
            f"network.patch = {size}: allowed are divisors of both sides of {height} x {width} images, or 0, which "
            "chooses one"
        )
    return height // size, width // size, size


def to_patches(z: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch length features"]:
    """An image cut into squares of `size` pixels, row by row; each one flattened."""
    n, height, width, channels = z.shape
    grid = z.reshape(n, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(n, -1, size * size * channels)


def from_patches(
    patches: Float[Array, "batch length features"], size: int, shape: tuple[Any, ...]
) -> Float[Array, "batch height width channels"]:
    """The image of a shape (batch, height, width, channels) that `to_patches` cuts into these; the number of rows may
    be a symbol."""
    n, height, width, channels = shape
    grid = patches.reshape(n, height // size, width // size, size, size, channels)
    return grid.swapaxes(2, 3).reshape(shape)


@functools.cache
def grid_positions(height: int, width: int, features: int) -> Float[np.ndarray, "length features"]:
    """Fixed embedding of the positions in a grid, row by row: half the features encode the column, half the row.

    Each half is sin, then cos, of the index at `features / 4` frequencies from 1 down to nearly 1 / 10,000.
    """
    quarter = features // 4
    frequency = 1e4 ** (-np.arange(quarter) / quarter)

    def waves(index):
        angle = np.outer(index, frequency)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, column = np.divmod(np.arange(height * width), width)
    return np.concatenate([waves(column), waves(row)], axis=1)
