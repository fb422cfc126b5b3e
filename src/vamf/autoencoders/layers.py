"""Layers of image autoencoders as functions of a flat dictionary of parameters, images (n, h, w, c)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import conv_general_dilated
from jaxtyping import Array, Float

Params = Mapping[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]
Images = Float[Array, "_ _ _ _"]
"""(n, h, w, c)."""


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """PyTorch's tensors as float32 parameters: kernels (height, width, in, out), matrices (in, out)."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return {name: jnp.asarray(array.transpose(axes[array.ndim]), jnp.float32) for name, array in tensors.items()}


def conv_shapes(name: str, channels: int, out: int, width: int = 3, bias: bool = True) -> Shapes:
    """PyTorch's names and shapes of a convolution."""
    return {f"{name}.weight": (out, channels, width, width)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(params: Params, name: str, x: Images, stride: int = 1, padding: tuple[int, int] | None = None) -> Images:
    """A convolution; `padding` is (before, after) each axis; by default it keeps the size."""
    kernel = params[f"{name}.weight"]
    half = kernel.shape[0] // 2
    pad = (half, half) if padding is None else padding
    x = conv_general_dilated(x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x + params[f"{name}.bias"] if f"{name}.bias" in params else x


def group_norm(params: Params, name: str, x: Images, groups: int, eps: float) -> Images:
    """Normalisation over the image and the channels of each group, then a scale and a shift for each channel."""
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    centred = grouped - mean
    normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=(1, 3), keepdims=True) + eps)
    return normal.reshape(x.shape) * params[f"{name}.weight"] + params[f"{name}.bias"]


def upsample(x: Images) -> Images:
    """Twice the height and width; every pixel becomes four."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
