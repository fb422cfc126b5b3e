"""The tiny autoencoders of Ollin Boer Bohan (MIT): TAESD for Stable Diffusion's latents, TAEF2 for those of FLUX.2.

An eighth of the picture's size; 64 channels throughout, no normalisation. A block is relu(conv3(x) + x), where conv3
is three convolutions with ReLU between them. In TAEF2 the blocks next to the latents first add a 1x1 bottleneck the
wrong way round, wide in the middle, with group normalisation (`pool`). TAESD's latents are in the units that the
diffusion model sees: no factor is to be applied. The decoder starts with 3 tanh(z / 3). Its pictures, and the
encoder's, are in [0, 1].

Numbers in the names are places in the published sequences; the same layers under the names of `diffusers` are
`encoder.layers.N` and, as the decoder's tanh has no place there, `decoder.layers.(N - 1)`.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vamf.autoencoders.layers import Params, Pictures, Shapes, conv, conv_shapes, group_norm, upsample

Layers = tuple[str, ...]
"""Kinds of layers in their order; the place of one is its name in a file."""
DOWNSAMPLING = 8
WIDTH = 64
GROUPS = 4
GROUP_EPS = 1e-5


def encoder(pooled: bool) -> Layers:
    """The encoder's layers; `pooled` is TAEF2's variant."""
    stage = ("down", "block", "block", "block")
    return ("first", "block", *stage, *stage, "down", *_deepest(pooled), "last")


def decoder(pooled: bool) -> Layers:
    """The decoder's layers."""
    stage = ("up", "plain", "block", "block", "block")
    return ("clamp", "first", "relu", *_deepest(pooled), *stage, *stage, "up", "plain", "block", "last")


def _deepest(pooled: bool) -> Layers:
    return ("pooled" if pooled else "block",) * 3


def shapes(layers: Layers, channels: int, out: int) -> Shapes:
    """PyTorch's names and shapes of a sequence's parameters."""
    found: Shapes = {}
    for place, layer in enumerate(layers):
        if layer in ("first", "last"):
            ends = (channels, WIDTH) if layer == "first" else (WIDTH, out)
            found |= conv_shapes(f"{place}", *ends)
        elif layer in ("down", "plain"):
            found |= conv_shapes(f"{place}", WIDTH, WIDTH, bias=False)
        elif layer in ("block", "pooled"):
            for at in (0, 2, 4):
                found |= conv_shapes(f"{place}.conv.{at}", WIDTH, WIDTH)
            if layer == "pooled":
                wide = GROUPS * WIDTH
                found |= conv_shapes(f"{place}.pool.0", WIDTH, wide, width=1, bias=False)
                found |= {f"{place}.pool.1.weight": (wide,), f"{place}.pool.1.bias": (wide,)}
                found |= conv_shapes(f"{place}.pool.3", wide, WIDTH, width=1, bias=False)
    return found


def apply(layers: Layers, params: Params, x: Pictures) -> Pictures:
    """The sequence."""
    for place, layer in enumerate(layers):
        match layer:
            case "first" | "last" | "plain":
                x = conv(params, f"{place}", x)
            case "down":
                x = conv(params, f"{place}", x, stride=2)
            case "up":
                x = upsample(x)
            case "relu":
                x = jax.nn.relu(x)
            case "clamp":
                x = 3 * jnp.tanh(x / 3)
            case "block":
                x = _block(params, f"{place}", x)
            case "pooled":
                x = _block(params, f"{place}", x + _pool(params, f"{place}.pool", x))
    return x


def encode(layers: Layers, params: Params, pictures: Pictures) -> Pictures:
    """Pictures (n, h, w, 3) in [-1, 1] -> latents (n, h / 8, w / 8, channels)."""
    return apply(layers, params, (pictures + 1) / 2)


def decode(layers: Layers, params: Params, latents: Pictures) -> Pictures:
    """Latents -> pictures in [-1, 1]."""
    return jnp.clip(apply(layers, params, latents), 0, 1) * 2 - 1


def plain_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of `diffusers` as places in the published sequences, `encoder.` or `decoder.` before them."""

    def plain(match: re.Match) -> str:
        return f"{match[1]}.{int(match[2]) + (match[1] == 'decoder')}."

    return {re.sub(r"^(encoder|decoder)\.layers\.(\d+)\.", plain, name): array for name, array in tensors.items()}


def _block(params: Params, name: str, x: Pictures) -> Pictures:
    h = jax.nn.relu(conv(params, f"{name}.conv.0", x))
    h = jax.nn.relu(conv(params, f"{name}.conv.2", h))
    return jax.nn.relu(conv(params, f"{name}.conv.4", h) + x)


def _pool(params: Params, name: str, x: Pictures) -> Pictures:
    h = group_norm(params, f"{name}.1", conv(params, f"{name}.0", x), GROUPS, GROUP_EPS)
    return conv(params, f"{name}.3", jax.nn.relu(h))
