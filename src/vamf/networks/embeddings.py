"""Embeddings: of time, of classes, of an image as a sequence of patches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vamf.errors import UserError


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


def grid_of(event_shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Rows and columns of patches of `size` pixels in an image."""
    if len(event_shape) != 3:
        raise UserError(f"network: data of shape {event_shape}; this one takes images (height, width, channels)")
    height, width, _ = event_shape
    if height % size or width % size:
        raise UserError(f"network.patch = {size}: allowed are divisors of both sides of {height} x {width} images")
    return height // size, width // size


def to_patches(z: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch length features"]:
    """An image cut into squares of `size` pixels, row by row; each one flattened."""
    n, height, width, channels = z.shape
    grid = z.reshape(n, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(n, -1, size * size * channels)


def from_patches(
    patches: Float[Array, "batch length features"], size: int, shape: tuple[int, ...]
) -> Float[Array, "batch height width channels"]:
    """The image of a shape (batch, height, width, channels) that `to_patches` cuts into these."""
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
