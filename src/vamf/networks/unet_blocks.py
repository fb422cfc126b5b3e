"""Building blocks of U-Nets for diffusion: channels last, (batch, height, width, channels).

Parameters are float32. A `dtype` of None computes in the input's type; bfloat16 halves the memory, with the statistics
of the norms and the attention's softmax in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Key

from vamf.conditioning import CondShape, augment_of, label_of
from vamf.networks.attention import Linear, attend
from vamf.networks.conditions import VectorEmbedding
from vamf.networks.embeddings import embed_label, sinusoidal

XAVIER = nnx.initializers.xavier_uniform()
NEAR_ZERO = nnx.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
"""Xavier initialization times 1e-5, for the last layer of every branch: each starts as the identity."""


GROUPS: dict[str, Callable[[int], int]] = {
    "most": lambda channels: max(n for n in range(1, min(32, channels // 4) + 1) if channels % n == 0),
    "power_of_two": lambda channels: math.gcd(32, channels // 4),
}
"""Number of groups of a norm, by its number of channels, a multiple of 4. `most` is min(32, channels // 4), the
official rule, wherever that divides the channels."""


def normalisation(channels: int, groups: str, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation, with a number of groups by a rule of GROUPS."""
    number = GROUPS[groups](channels)
    return nnx.GroupNorm(channels, number, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)


def convolution(
    fan_in: int, fan_out: int, dtype: DTypeLike | None, rngs: nnx.Rngs, stride: int = 1, init=XAVIER
) -> nnx.Conv:
    """A 3x3 convolution with a bias; zero padding, with a stride only below and on the right."""
    return nnx.Conv(fan_in, fan_out, (3, 3), stride, padding="SAME", dtype=dtype, kernel_init=init, rngs=rngs)


@functools.cache
def halving(n: int, taps: tuple[int, ...]) -> np.ndarray:
    """The matrix (n / 2, n) that filters a zero-padded row of n numbers and subsamples it by 2.

    Row i weighs the numbers 2i - p, ..., 2i - p + len(taps) - 1, p = len(taps) / 2 - 1, by `taps` scaled to sum 1.
    """
    matrix = np.zeros((n // 2, n + 2 * len(taps)))
    start = len(taps) - (len(taps) // 2 - 1)
    for row in range(n // 2):
        matrix[row, start + 2 * row : start + 2 * row + len(taps)] = np.asarray(taps) / sum(taps)
    return matrix[:, len(taps) : -len(taps)]


def halve(
    x: Float[Array, "batch height width channels"], taps: tuple[int, ...]
) -> Float[Array, "batch height/2 width/2 channels"]:
    """The image at half the resolution; (1, 1) averages, (1, 3, 3, 1) smooths more. One small product for each axis."""
    rows, columns = (jnp.asarray(halving(side, taps), x.dtype) for side in x.shape[1:3])
    return jnp.einsum("bhwc,Hh,Ww->bHWc", x, rows, columns)


def double(
    x: Float[Array, "batch height width channels"], taps: tuple[int, ...]
) -> Float[Array, "batch height*2 width*2 channels"]:
    """The image at twice the resolution: four times the adjoint of `halve`; (1, 1) repeats pixels."""
    rows, columns = (jnp.asarray(2 * halving(2 * side, taps), x.dtype) for side in x.shape[1:3])
    return jnp.einsum("bhwc,hH,wW->bHWc", x, rows, columns)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Dropout: x with a fraction of its entries 0 and the others scaled up; x itself without a key.

    The mask depends only on the key, so that a Jacobian-vector product has the same one in value and tangent.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


class Mapping(nnx.Module):
    """Maps times, condition and augmentation to the vector that every block takes."""

    def __init__(
        self,
        features: int,
        two_times: bool,
        cond: CondShape,
        augment_features: int,
        width: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.features, self.two_times, self.cond = features, two_times, cond
        fan_in = features * (1 + two_times)
        if cond.num_classes:
            class_init = nnx.initializers.variance_scaling(float(cond.num_classes), "fan_avg", "uniform")
            self.classes = nnx.Embed(cond.num_classes + 1, fan_in, embedding_init=class_init, rngs=rngs)
        if augment_features:
            self.augment = nnx.Linear(augment_features, fan_in, use_bias=False, kernel_init=XAVIER, rngs=rngs)
        self.first = nnx.Linear(fan_in, width, kernel_init=XAVIER, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=XAVIER, rngs=rngs)
        if cond.vector:
            self.vector = VectorEmbedding(cond.vector, fan_in, rngs=rngs)

    def __call__(self, r, t, cond) -> Float[Array, "batch width"]:
        h = self.times(t, t - r) if self.two_times else self.times(t)
        if self.cond.num_classes:
            h = h + embed_label(self.classes, label_of(cond))
        if self.cond.vector:
            h = h + self.vector(cond)
        if (augment := augment_of(cond)) is not None:
            h = h + self.augment(augment)
        return jax.nn.silu(self.second(jax.nn.silu(self.first(h))))

    def times(self, *times: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Sinusoidal features at frequencies from 1 down to 1 / 10,000, both ends included."""
        half = self.features // 2
        period = 1e4 ** (half / (half - 1))
        return jnp.concatenate([sinusoidal(t, self.features, period) for t in times], axis=1)


def without_gap(params: dict[str, Any], features: int) -> dict[str, Any] | None:
    """Parameters of a `Mapping` of two times that ignores t - r, from those of a velocity model's; None where a
    condition was added to the features of t - r too, which no other parameters can replace."""
    first = params["first"]
    if first["kernel"].shape[0] == features:  # there are no features of the gap: zeros in their place

        def widened(leaf, axis=-1):
            return jnp.concatenate([leaf, jnp.zeros_like(leaf)], axis=axis)

        conditions = {name: params[name] for name in ("classes", "augment", "vector") if name in params}
        wide = jax.tree.map(widened, conditions)
        if "vector" in wide:
            wide["vector"]["second"]["kernel"] = widened(wide["vector"]["second"]["kernel"], 0)
        return {**params, **wide, "first": {**first, "kernel": widened(first["kernel"], 0)}}
    if {"classes", "augment", "vector"} & set(params):
        return None
    of_t, of_gap = jnp.split(first["kernel"], 2)
    at_zero = jnp.tile(jnp.array([0.0, 1.0]), features // 2)
    kernel = jnp.concatenate([of_t, jnp.zeros_like(of_gap)])
    return {**params, "first": {"kernel": kernel, "bias": first["bias"] + at_zero @ of_gap}}


class Attention(nnx.Module):
    """One head of self-attention over all pixels, on a residual path."""

    def __init__(
        self, channels: int, init_scale: float, scale: float, groups: str, dtype: DTypeLike | None, *, rngs: nnx.Rngs
    ):
        init = nnx.initializers.variance_scaling(init_scale, "fan_avg", "uniform")
        self.scale = scale
        self.norm = normalisation(channels, groups, dtype, rngs)
        self.qkv = Linear(channels, 3 * channels, dtype=dtype, kernel_init=init, rngs=rngs)
        self.last = Linear(channels, channels, dtype=dtype, kernel_init=NEAR_ZERO, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        pixels = self.norm(x).reshape(x.shape[0], 1, -1, x.shape[-1])
        mixed = attend(*jnp.split(self.qkv(pixels), 3, axis=-1))
        return (x + self.last(mixed).reshape(x.shape)) * self.scale


class Block(nnx.Module):
    """Two convolutions on a residual path, the vector of times between them; then optional attention.

    `resample` is `halve`, `double` or neither: both paths then change the resolution before their first weights.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        attends: bool = False,
        resample=None,
        width: int,
        dropout: float,
        scale: float,
        attention_scale: float,
        groups: str,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.resample, self.dropout, self.scale = resample, dropout, scale
        self.norm1 = normalisation(fan_in, groups, dtype, rngs)
        self.conv1 = convolution(fan_in, fan_out, dtype, rngs)
        self.shift = nnx.Linear(width, fan_out, dtype=dtype, kernel_init=XAVIER, rngs=rngs)
        self.norm2 = normalisation(fan_out, groups, dtype, rngs)
        self.conv2 = convolution(fan_out, fan_out, dtype, rngs, init=NEAR_ZERO)
        straight = fan_in == fan_out and resample is None
        self.skip = None if straight else Linear(fan_in, fan_out, dtype=dtype, kernel_init=XAVIER, rngs=rngs)
        self.attention = Attention(fan_out, attention_scale, scale, groups, dtype, rngs=rngs) if attends else None

    def __call__(self, x: Float[Array, "batch height width fan_in"], at: Float[Array, "batch features"], key):
        h = jax.nn.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h) + self.shift(at)[:, None, None, :]
        h = dropout(jax.nn.silu(self.norm2(h)), self.dropout, key)
        h = ((x if self.skip is None else self.skip(x)) + self.conv2(h)) * self.scale
        return h if self.attention is None else self.attention(h)


class Halve(nnx.Module):
    """Half the resolution by a convolution of stride 2."""

    def __init__(self, channels: int, dtype: DTypeLike | None, *, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, dtype, rngs, stride=2)

    def __call__(self, x, at, key):
        return self.conv(x)


class Double(nnx.Module):
    """Twice the resolution by repeated pixels and a convolution."""

    def __init__(self, channels: int, dtype: DTypeLike | None, *, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, dtype, rngs)

    def __call__(self, x, at, key):
        return self.conv(double(x, (1, 1)))
