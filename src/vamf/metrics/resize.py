"""Resizing before a feature extractor, the main difference between tools (arXiv:2104.11222).

    tensorflow   bilinear as in TensorFlow 1: output i reads position i * in / out, no half-pixel centres, no
                 antialiasing. As in the original FID.
    clean        bicubic (a = -1/2) with half-pixel centres, antialiased, in float, then clipped to [0, 255]. As in
                 clean-fid, which uses Pillow for each channel in float.

Both are separable: an image is multiplied by one matrix from each side.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Method = Literal["tensorflow", "clean"]


def resize(images: UInt8[np.ndarray, "n h w 3"], size: int, method: Method) -> Float[Array, "n {size} {size} 3"]:
    """Images of one size to size x size, float32 between 0 and 255."""
    rows, columns = (matrix(length, size, method) for length in images.shape[1:3])
    return _resize(images, rows, columns)


@jax.jit
def _resize(images, rows, columns):
    resized = jnp.einsum(
        "ih,nhwc,jw->nijc", rows, images.astype(jnp.float32), columns, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(resized, 0, 255)  # bicubic weights overshoot


@functools.lru_cache
def matrix(length: int, size: int, method: Method) -> Float[np.ndarray, "{size} {length}"]:
    """Weights of `length` input pixels in `size` output pixels."""
    return {"tensorflow": _bilinear, "clean": _bicubic}[method](length, size).astype(np.float32)


def _bilinear(length: int, size: int) -> np.ndarray:
    # float32 as in TensorFlow: the last digits of a position decide which pixels are read.
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = np.floor(position)
    high, weight = np.minimum(low + 1, length - 1), (position - low)[:, None]
    pixels = np.arange(length)
    return (pixels == low[:, None]) * (1 - weight) + (pixels == high[:, None]) * weight


def _bicubic(length: int, size: int) -> np.ndarray:
    scale = length / size
    centre = (np.arange(size) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centre[:, None]) / max(scale, 1.0)
    inside, outside = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys' cubic, a = -1/2
    weights = np.where(x < 1, inside, np.where(x < 2, outside, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
