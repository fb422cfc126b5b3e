"""The transformer of improved MeanFlow, conditioned in context (Geng et al., arXiv:2512.02012, section 4.3).

There are no adaptive norms. The conditioning is a sequence of tokens before the patches,

    8 of the class, 8 of a vector, 4 of omega, 2 of t_min, 2 of t_max, 4 of h = t - r,      then the patches,

each a learned vector plus the embedding of its number or label; omega enters as 1 - 1 / omega. Of the two times the
network takes only h. omega and [t_min, t_max] are the guidance scale and its interval of times; by default 1, 0 and 1:
no guidance.

Blocks: a norm before each branch, queries and keys normalised and rotated by their position in the whole sequence, a
gated MLP (SwiGLU), no biases, and a gate for each channel, initialized at zero. The last layer is initialized at
zero as well: u = 0 at the start. The velocity head shares the first blocks with u and has as many later ones of its
own; it is used in training only.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vamf.conditioning import Cond, CondShape, GuidanceScale, label_of, scale_of
from vamf.errors import require
from vamf.field_types import check_field_types
from vamf.networks.attention import Attention, Linear, RMSNorm, apply_blocks, rotation_table
from vamf.networks.conditions import VectorEmbedding, input_shape, with_image
from vamf.networks.config import NetworkConfig
from vamf.networks.embeddings import (
    LogVariance,
    ScalarEmbedding,
    constant_embedding,
    embed_label,
    from_patches,
    grid_of,
    to_patches,
)
from vamf.networks.sizes import size_of

UNGUIDED = GuidanceScale(1.0, 0.0, 1.0)
"""The default guidance scale and interval."""
SIZES = {"B": (12, 768, 12), "M": (24, 768, 12), "L": (32, 1024, 16), "XL": (48, 1024, 16)}
"""Depth, width and heads by name."""
TOKENS = {"label": 8, "vector": 8, "omega": 4, "t_min": 2, "t_max": 2, "h": 4}
"""Number of tokens of each kind of conditioning, in their order."""


@dataclasses.dataclass(frozen=True)
@check_field_types("network.")
class InContextConfig(NetworkConfig):
    """Size of the transformer: B/2 by default; `InContextConfig.named("XL/2")` gives the published sizes."""

    takes_scale = True
    depth: int = 12
    """Number of blocks between the image and u."""
    width: int = 768
    """Length of a token (heads times an even number)."""
    heads: int = 12
    """Attention heads of a block."""
    patch: int = 2
    """Side of a patch, in pixels; divides the image's sides. 0 chooses it by the image."""
    head_depth: int = 8
    """Number of final blocks that u does not share with the velocity head, which has as many of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the blocks' matrix products. Parameters, norms, softmax and residuals are in float32 regardless."""
    remat: bool = False
    """Recompute the activations of each block in the backward pass: less memory, a third slower."""

    def __post_init__(self):
        for name in ("depth", "width", "heads"):
            require(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "1 or more")
        require(self.patch >= 0, "network.patch", self.patch, "1 or more, or 0 (by the image)")
        even = f"a divisor of half the width {self.width}"
        require(self.width % (2 * self.heads) == 0, "network.heads", self.heads, even)
        within = f"0 to the depth {self.depth}"
        require(0 <= self.head_depth <= self.depth, "network.head-depth", self.head_depth, within)

    def module(self, event_shape, cond, heads, rngs):
        return InContextTransformer(self, event_shape, cond, heads, rngs=rngs)

    def from_velocity(self, params):
        """The embedding of h is that of 0 for every h."""
        numbers = params["numbers"]
        return {**params, "numbers": {**numbers, "h": constant_embedding(numbers["h"])}}

    @classmethod
    def named(cls, name: str, **options: Any) -> "InContextConfig":
        """A published size: B, M, L or XL, a slash and the side of a patch, as in `B/2`."""
        return cls(**size_of(name, SIZES), **options)


class InContextTransformer(nnx.Module):
    """u(z, r, t, label) for images (height, width, channels), with guidance as an input."""

    def __init__(
        self,
        config: InContextConfig,
        event_shape: tuple[int, ...],
        cond: CondShape | int = 0,
        heads: tuple[str, ...] = (),
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.cond = CondShape.of(cond)
        rows, columns, self.patch = grid_of(event_shape, config.patch)
        width, features = config.width, self.patch**2 * event_shape[-1]
        inputs = self.patch**2 * input_shape(event_shape, self.cond)[-1]
        unit = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        token_init = nnx.initializers.normal(width**-0.5)
        self.patches = Linear(inputs, width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        numbers = tuple(name for name in TOKENS if name not in ("label", "vector"))
        kinds = ("label",) * (self.cond.num_classes > 0) + ("vector",) * (self.cond.vector > 0)
        self.token_kinds = (*kinds, *numbers)
        self.num_context = sum(TOKENS[name] for name in self.token_kinds)
        self.length = self.num_context + rows * columns
        self.token_embedding = nnx.Param(token_init(rngs.params(), (self.num_context, width)))
        if self.cond.num_classes:
            self.classes = nnx.Embed(self.cond.num_classes + 1, width, embedding_init=token_init, rngs=rngs)
        self.numbers = nnx.Dict({name: ScalarEmbedding(width, kernel_init=unit, rngs=rngs) for name in numbers})

        def blocks(count):
            return nnx.List([Block(config, rngs=rngs) for _ in range(count)])

        self.shared = blocks(config.depth - config.head_depth)
        self.own = blocks(config.head_depth)
        self.last = LastLayer(width, features, rngs=rngs)
        if "velocity" in heads:
            self.head = blocks(config.head_depth)
            self.head_last = LastLayer(width, features, rngs=rngs)
        if "log_variance" in heads:
            self.scale = LogVariance(rngs=rngs)
        if self.cond.vector:
            self.vector = VectorEmbedding(self.cond.vector, width, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch height width channels"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> Float[Array, "batch height width channels"]:
        return self._outputs(((self.own, self.last),), z, t - r, label)[0]

    def diagonal(
        self, z: Float[Array, "batch height width channels"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch height width channels"]:
        """u(z, t, t), with one embedding of h = 0 for all rows."""
        return self._outputs(((self.own, self.last),), z, _gap(None, t), label)[0]

    def velocity(
        self, z: Float[Array, "batch height width channels"], t: Float[Array, " batch"], label: Cond = None
    ) -> Float[Array, "batch height width channels"]:
        """The velocity head: later blocks and a last layer of its own on the first blocks at h = 0."""
        return self._outputs(((self.head, self.head_last),), z, _gap(None, t), label)[0]

    def with_velocity(
        self,
        z: Float[Array, "batch height width channels"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
    ) -> tuple[Float[Array, "batch height width channels"], ...]:
        """u and the velocity head on the same first blocks, both at h = t - r, r None for h = 0: the outputs
        of the published loss."""
        branches = ((self.own, self.last), (self.head, self.head_last))
        return self._outputs(branches, z, _gap(r, t), label)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """phi(r, t), the learned logarithm of the loss's scale; linear in features of the times, 0 at the start."""
        return self.scale(r, t)

    def _outputs(self, branches, z, h, cond):
        """The output of each branch, later blocks and a last layer, on the first blocks."""
        x, remat = self._sequence(z, h, cond), self.config.remat
        rotation = jnp.asarray(rotation_table(self.length, self.config.width // self.config.heads), x.dtype)
        x = apply_blocks(list(self.shared), x, rotation, remat=remat)
        outputs = ((last, apply_blocks(list(blocks), x, rotation, remat=remat)) for blocks, last in branches)
        return tuple(from_patches(last(x[:, self.num_context :]), self.patch, z.shape) for last, x in outputs)

    def _sequence(self, z, h, cond):
        scale = scale_of(cond) or UNGUIDED
        numbers = (scale.omega, scale.t_min, scale.t_max)
        omega, t_min, t_max = (jnp.atleast_1d(jnp.asarray(number, z.dtype)) for number in numbers)
        inputs = {"omega": 1 - 1 / omega, "t_min": t_min, "t_max": t_max, "h": h}
        learned = jnp.split(self.token_embedding[...], np.cumsum([TOKENS[name] for name in self.token_kinds])[:-1])
        tokens = []
        for name, token in zip(self.token_kinds, learned, strict=True):
            if name == "label":
                embedded = embed_label(self.classes, label_of(cond))
            else:
                embedded = self.vector(cond) if name == "vector" else self.numbers[name](inputs[name])
            tokens.append(jnp.broadcast_to(token + embedded[:, None], (z.shape[0], *token.shape)))
        patches = to_patches(with_image(z, cond, self.cond), self.patch)
        return jnp.concatenate([*tokens, self.patches(patches)], axis=1)


def _gap(r, t):
    """h = t - r; one row of 0 for r None."""
    return jnp.zeros(1, t.dtype) if r is None else t - r


class Block(nnx.Module):
    """Attention and a gated MLP, each on a norm and behind a gate for each channel."""

    def __init__(self, config: InContextConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.width * 8 // 3
        small = nnx.initializers.variance_scaling(0.32**2, "fan_in", "normal")
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        self.norms = nnx.List([RMSNorm(width) for _ in range(2)])
        self.attention = Attention(
            width, config.heads, bias=False, normalised=True, kernel_init=small, dtype=dtype, rngs=rngs
        )
        self.up = Linear(width, 2 * hidden, use_bias=False, kernel_init=small, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, width, use_bias=False, kernel_init=small, dtype=dtype, rngs=rngs)
        self.gates = nnx.List([nnx.Param(jnp.zeros(width)) for _ in range(2)])

    def __call__(
        self, x: Float[Array, "batch length width"], rotation: Float[Array, "2 length half"]
    ) -> Float[Array, "batch length width"]:
        x = x + self.attention(self.norms[0](x), rotation) * self.gates[0][...]
        gate, value = jnp.split(self.up(self.norms[1](x)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * value) * self.gates[1][...]


class LastLayer(nnx.Module):
    """From tokens to patches, after a norm."""

    def __init__(self, width: int, features: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width)
        self.linear = Linear(width, features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length features"]:
        return self.linear(self.norm(x))
