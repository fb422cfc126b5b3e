"""The diffusion transformer with adaptive layer norms (DiT, Peebles & Xie, arXiv:2212.09748), as MeanFlow uses it.

An image (height, width, channels) is cut into patches, one token each, with a fixed embedding of their places. Every
block takes one vector of conditions (Geng et al., arXiv:2505.13447, appendix A and table 1c),

    c = Emb(t) + Emb'(t - r) + Emb(label),      or with (t, r), with (t, r, t - r), or with t - r alone,

and computes from it the shift, scale and gate of both of its residual branches. These maps are initialized at zero, as
is the last layer: u = 0 at the start and the flow map is the identity.

Decoupled MeanFlow (arXiv:2510.24474): the first blocks take t, the later ones and the last layer take r, through one
embedding: u(z, r, t) = g(f(z, t), r). At r = t it is the velocity network, parameter by parameter.

Two more outputs on request: a velocity head (arXiv:2512.02012), here a second last layer on the blocks at r = t, and
the learned scale of the loss (arXiv:2510.24474, arXiv:2505.18825).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vamf.conditioning import Cond, CondShape, label_of
from vamf.errors import require
from vamf.field_types import check_field_types
from vamf.networks.attention import Attention, Linear, apply_blocks
from vamf.networks.conditions import VectorEmbedding, input_shape, with_image
from vamf.networks.config import NetworkConfig
from vamf.networks.embeddings import (
    LogVariance,
    ScalarEmbedding,
    constant_embedding,
    embed_label,
    from_patches,
    grid_of,
    grid_positions,
    no_embedding,
    to_patches,
)
from vamf.networks.sizes import size_of

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "M": (16, 1024, 16), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width and heads by name."""


@dataclasses.dataclass(frozen=True)
@check_field_types("network.")
class DiTConfig(NetworkConfig):
    """Size and form of the transformer: B/4 by default; `DiTConfig.named("XL/2")` gives the published sizes."""

    depth: int = 12
    """Number of blocks."""
    width: int = 768
    """Length of a token (a multiple of 4 and of the heads)."""
    heads: int = 12
    """Attention heads of a block."""
    patch: int = 4
    """Side of a patch, in pixels; divides the image's sides. 0 chooses it by the image."""
    times: Literal["t,t-r", "t,r", "t,r,t-r", "t-r", "t"] = "t,t-r"
    """Embedded quantities of the two times, each with its own MLP; t alone is for flow_matching and ddpm."""
    decoupled_depth: int = 0
    """How many blocks take t; the others take r (Decoupled MeanFlow); 0: all blocks take `times`."""
    qk_norm: bool = False
    """Normalise queries and keys: bounded logits, for long or half-precision training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the blocks' matrix products. Parameters, norms, softmax and residuals are in float32 regardless."""
    remat: bool = False
    """Recompute the activations of each block in the backward pass: less memory, a third slower."""

    def __post_init__(self):
        for name in ("depth", "width", "heads"):
            require(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "1 or more")
        require(self.patch >= 0, "network.patch", self.patch, "1 or more, or 0 (by the image)")
        require(self.width % 4 == 0, "network.width", self.width, "a multiple of 4")
        require(self.width % self.heads == 0, "network.heads", self.heads, f"a divisor of the width {self.width}")
        within = f"0 to the depth {self.depth}"
        require(0 <= self.decoupled_depth <= self.depth, "network.decoupled-depth", self.decoupled_depth, within)
        if self.decoupled_depth:
            require(self.times == "t,t-r", "network.times", self.times, "t,t-r where decoupled-depth is set")

    def module(self, event_shape, cond, heads, rngs):
        return DiT(self, event_shape, cond, heads, rngs=rngs)

    @property
    def takes_both_times(self):
        return self.times != "t"

    def with_both_times(self):
        return self if self.takes_both_times else dataclasses.replace(self, times="t,t-r")

    def from_velocity(self, params):
        """The embedding of t - r is that of 0 for every r; one that was not there is 0."""
        theirs, names = params["times"], self.times.split(",")
        if (
            self.decoupled_depth or "r" in theirs
        ):  # blocks that take r, or an embedding of r that was trained as one of t
            return None
        times = {name: no_embedding(self.width) for name in names if name not in theirs}
        times |= {name: constant_embedding(part) if name == "t-r" else part for name, part in theirs.items()}
        return {**params, "times": times}

    @classmethod
    def named(cls, name: str, **options: Any) -> "DiTConfig":
        """A published size: S, B, M, L or XL, a slash and the side of a patch, as in `B/4`."""
        return cls(**size_of(name, SIZES), **options)


class DiT(nnx.Module):
    """u(z, r, t, label) for images (height, width, channels)."""

    def __init__(
        self,
        config: DiTConfig,
        event_shape: tuple[int, ...],
        cond: CondShape | int = 0,
        heads: tuple[str, ...] = (),
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        rows, columns, self.patch = grid_of(event_shape, config.patch)
        self.grid = (rows, columns)
        self.cond = CondShape.of(cond)
        features = self.patch**2 * event_shape[-1]
        inputs = self.patch**2 * input_shape(event_shape, self.cond)[-1]
        small = nnx.initializers.normal(0.02)
        embedded = ("t",) if config.decoupled_depth else tuple(config.times.split(","))
        self.patches = Linear(inputs, config.width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.times = nnx.Dict({name: ScalarEmbedding(config.width, kernel_init=small, rngs=rngs) for name in embedded})
        if self.cond.num_classes:
            self.classes = nnx.Embed(self.cond.num_classes + 1, config.width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.last = LastLayer(config.width, features, rngs=rngs)
        if "velocity" in heads:
            self.head = LastLayer(config.width, features, rngs=rngs)
        if "log_variance" in heads:
            self.scale = LogVariance(rngs=rngs)
        if self.cond.vector:
            self.vector = VectorEmbedding(self.cond.vector, config.width, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch height width channels"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch height width channels"]:
        return self._outputs((self.last,), z, r, t, label)[0]

    def diagonal(
        self, z: Float[Array, "batch height width channels"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch height width channels"]:
        """u(z, t, t), with one embedding of the gap 0 for all rows."""
        return self._outputs((self.last,), z, None, t, label)[0]

    def velocity(
        self, z: Float[Array, "batch height width channels"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch height width channels"]:
        """The velocity head: a last layer of its own on the blocks at r = t."""
        return self._outputs((self.head,), z, None, t, label)[0]

    def with_velocity(
        self,
        z: Float[Array, "batch height width channels"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch height width channels"], ...]:
        """u and the velocity head, on the same blocks; r None for r = t."""
        return self._outputs((self.last, self.head), z, r, t, label)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """phi(r, t), the learned logarithm of the loss's scale; linear in features of the times, 0 at the start."""
        return self.scale(r, t)

    def _outputs(self, lasts, z, r, t, label):
        """The outputs of several last layers on the same blocks."""
        early, late = self._conditions(r, t, label)
        x = self.patches(to_patches(with_image(z, label, self.cond), self.patch))
        x = x + jnp.asarray(grid_positions(*self.grid, self.config.width), x.dtype)
        blocks, split, remat = list(self.blocks), self.config.decoupled_depth, self.config.remat
        x = apply_blocks(blocks[:split], x, early, remat=remat)
        x = apply_blocks(blocks[split:], x, late, remat=remat)
        return tuple(from_patches(last(x, late), self.patch, z.shape) for last in lasts)

    def _conditions(self, r, t, label):
        """SiLU of the conditions of the early and of the late layers; a single row where all rows are equal."""
        label_embedding = embed_label(self.classes, label_of(label)) if self.cond.num_classes else 0.0
        if self.cond.vector:
            label_embedding = label_embedding + self.vector(label)
        if self.config.decoupled_depth:
            early = jax.nn.silu(self.times["t"](t) + label_embedding)
            return early, early if r is None else jax.nn.silu(self.times["t"](r) + label_embedding)
        at = {"t": t, "r": t if r is None else r, "t-r": jnp.zeros(1, t.dtype) if r is None else t - r}
        c = jax.nn.silu(sum((embed(at[name]) for name, embed in self.times.items()), label_embedding))
        return c, c


class Block(nnx.Module):
    """Attention and an MLP, each on a layer norm that the conditions shift and scale, and behind a gate."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width, xavier = config.width, nnx.initializers.xavier_uniform()
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self.attention = Attention(
            width, config.heads, bias=True, normalised=config.qk_norm, kernel_init=xavier, dtype=dtype, rngs=rngs
        )
        self.up = Linear(width, 4 * width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.down = Linear(4 * width, width, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], c: Float[Array, "rows width"]
    ) -> Float[Array, "batch length width"]:
        shift, scale, gate, shift2, scale2, gate2 = jnp.split(self.modulation(c)[:, None], 6, axis=-1)
        x = x + gate * self.attention(modulate(x, shift, scale))
        return x + gate2 * self.down(jax.nn.gelu(self.up(modulate(x, shift2, scale2))))


class LastLayer(nnx.Module):
    """From tokens to patches, after a layer norm that the conditions shift and scale."""

    def __init__(self, width: int, features: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.linear = Linear(width, features, kernel_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], c: Float[Array, "rows width"]
    ) -> Float[Array, "batch length features"]:
        shift, scale = jnp.split(self.modulation(c)[:, None], 2, axis=-1)
        return self.linear(modulate(x, shift, scale))


def modulate(
    x: Float[Array, "batch length width"], shift: Float[Array, "rows 1 width"], scale: Float[Array, "rows 1 width"]
) -> Float[Array, "batch length width"]:
    """A layer norm with given scale and shift."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * (1 + scale) + shift
