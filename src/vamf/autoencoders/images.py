"""Conversion between bytes and images in [-1, 1], batched evaluation, and PSNR."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float64, UInt8

HALF_RANGE = np.float32(127.5)


def from_bytes(pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    """Bytes as numbers in [-1, 1]."""
    return pixels.astype(np.float32) / HALF_RANGE - 1


def to_bytes(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Numbers in [-1, 1] as the nearest bytes; values outside are clipped."""
    return np.clip(np.rint((images + 1) * HALF_RANGE), 0, 255).astype(np.uint8)


def map_in_batches(function: Callable, x: Float[np.ndarray, "n ..."], size: int) -> Any:
    """Outputs (n, ...) of `function`, called with batches of a fixed size so that it is compiled once."""
    padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    parts = [jax.tree.map(np.asarray, function(padded[start : start + size])) for start in range(0, len(x), size)]
    return jax.tree.map(lambda *batches: np.concatenate(batches)[: len(x)], *parts)


def psnr(a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each pair of images, 10 log10(255^2 / mean squared difference), in dB."""
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)
