"""Self-attention over a sequence of tokens, and the stack of blocks of both transformers.

It uses plain products and a softmax, since the fused attention of cuDNN has no forward-mode derivative. The softmax and
the norms are computed in float32 or more, whatever the precision of the products.

Queries and keys are optionally normalised (Henry et al., arXiv:2010.04245), which bounds the logits, and rotated by
their position (rotary embedding, Su et al., arXiv:2104.09864).
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """x / rms(x) times a learned gain, over the last axis; the gain and the result have the parameters' precision."""

    def __init__(self, features: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.gain = nnx.Param(jnp.ones(features))

    def __call__(self, x: Float[Array, "*rows features"]) -> Float[Array, "*rows features"]:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * self.gain[...]


class Linear(nnx.Linear):
    """A linear layer that flattens all leading axes into one.

    The gradient of the kernel is then a product of two matrices: with a batch axis XLA's CPU backend takes three times
    as long for it.
    """

    def __call__(self, x: Float[Array, "*rows fan_in"]) -> Float[Array, "*rows fan_out"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class Attention(nnx.Module):
    """Multi-head self-attention: one product for queries, keys and values, one for the output."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool,
        normalised: bool,
        kernel_init: nnx.Initializer,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        linear = functools.partial(Linear, use_bias=bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.inputs = linear(width, 3 * width)
        self.output = linear(width, width)
        self.norms = nnx.List([RMSNorm(width // heads) for _ in range(2 * normalised)])

    def __call__(
        self, x: Float[Array, "batch length width"], rotation: Float[Array, "2 length half"] | None = None
    ) -> Float[Array, "batch length width"]:
        products = self.inputs(x)
        q, k, v = products.reshape(*x.shape[:2], 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        if self.norms:
            q, k = (norm(part) for norm, part in zip(self.norms, (q, k), strict=True))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        attended = attend(q.astype(v.dtype), k.astype(v.dtype), v)
        return self.output(attended.swapaxes(1, 2).reshape(x.shape))


def attend(
    q: Float[Array, "batch heads length width"],
    k: Float[Array, "batch heads length width"],
    v: Float[Array, "batch heads length width"],
) -> Float[Array, "batch heads length width"]:
    """softmax(q k' / sqrt(width)) v, head by head."""
    precision = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhnw,bhmw->bhnm", q / q.shape[-1] ** 0.5, k, preferred_element_type=precision)
    return jnp.einsum("bhnm,bhmw->bhnw", jax.nn.softmax(logits).astype(v.dtype), v)


@functools.cache
def rotation_table(length: int, width: int, period: float = 1e4) -> Float[np.ndarray, "2 length half"]:
    """Cosines and sines of the angles position * period^(-2 i / width), i < width / 2."""
    angle = np.outer(np.arange(length), period ** (-np.arange(width // 2) / (width // 2)))
    return np.stack([np.cos(angle), np.sin(angle)])


def rotate(
    x: Float[Array, "batch heads length width"], rotation: Float[Array, "2 length half"]
) -> Float[Array, "batch heads length width"]:
    """Rotary embedding: the pairs (x_i, x_{i + width/2}) turn by position times their frequency.

    Any pairing of channels is the same network with its channels renamed; halves are contiguous, so this one is fast.
    """
    cosine, sine = rotation.astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def apply_blocks(blocks: Iterable[nnx.Module], x: Array, *args: Array, remat: bool = False) -> Array:
    """Apply blocks in sequence, each called as block(x, *args).

    For blocks of one shape jit traces only the first and lowers it to a function that the others call, which keeps the
    compilation of a deep network short.

    Args:
        remat: recompute the activations inside a block in the backward pass instead of storing them.
    """
    apply = _apply_remat if remat else _apply_jit
    for block in blocks:
        x = apply(block, x, *args)
    return x


def _apply(block, *inputs):
    return block(*inputs)


_apply_jit = jax.jit(_apply)
_apply_remat = jax.jit(jax.checkpoint(_apply))
