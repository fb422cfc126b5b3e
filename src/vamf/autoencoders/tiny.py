"""The tiny autoencoders of Ollin Boer Bohan (MIT): TAESD for Stable Diffusion's latents, TAEF2 for those of FLUX.2.

An eighth of the image's size; 64 channels throughout, no normalisation. A block is relu(conv3(x) + x), where conv3
is three convolutions with ReLU between them. In TAEF2 the blocks next to the latents first add an inverted 1x1
bottleneck with group normalisation (`pool`). TAESD's latents are in the diffusion model's units, without a factor. The
decoder starts with 3 tanh(z / 3). Its images, and the encoder's, are in [0, 1].

Numbers in the names are places in the published sequences; the same layers under the names of `diffusers` are
`encoder.layers.N` and, as the decoder's tanh has no place there, `decoder.layers.(N - 1)`.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vamf.autoencoders.layers import Images, Params, Shapes, conv, conv_shapes, group_norm, upsample

Layers = tuple[str, ...]
"""Kinds of layers in order; the index of a layer is its name in a file."""
DOWNSAMPLING = 8
WIDTH = 64
GROUPS = 4
GROUP_EPS = 1e-5


def encoder(pooled: bool) -> Layers:
    """The encoder's layers; `pooled` is TAEF2's variant."""
    stage = ("down", "block", "block", "block")
    return ("first", "block", *stage, *stage, "down", *_deepest_blocks(pooled), "last")


def decoder(pooled: bool) -> Layers:
    """The decoder's layers."""
    stage = ("up", "plain", "block", "block", "block")
    return ("clamp", "first", "relu", *_deepest_blocks(pooled), *stage, *stage, "up", "plain", "block", "last")


def _deepest_blocks(pooled: bool) -> Layers:
    return ("pooled" if pooled else "block",) * 3


def shapes(layers: Layers, channels: int, out: int) -> Shapes:
    """PyTorch's names and shapes of a sequence's parameters."""
    shapes_by_name: Shapes = {}
    for place, layer in enumerate(layers):
        if layer in ("first", "last"):
            ends = (channels, WIDTH) if layer == "first" else (WIDTH, out)
            shapes_by_name |= conv_shapes(f"{place}", *ends)
        elif layer in ("down", "plain"):
            shapes_by_name |= conv_shapes(f"{place}", WIDTH, WIDTH, bias=False)
        elif layer in ("block", "pooled"):
            for index in (0, 2, 4):
                shapes_by_name |= conv_shapes(f"{place}.conv.{index}", WIDTH, WIDTH)
            if layer == "pooled":
                hidden = GROUPS * WIDTH
                shapes_by_name |= conv_shapes(f"{place}.pool.0", WIDTH, hidden, width=1, bias=False)
                shapes_by_name |= {f"{place}.pool.1.weight": (hidden,), f"{place}.pool.1.bias": (hidden,)}
                shapes_by_name |= conv_shapes(f"{place}.pool.3", hidden, WIDTH, width=1, bias=False)
    return shapes_by_name


def apply(layers: Layers, params: Params, x: Images) -> Images:
    """Apply a sequence of layers."""
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


def encode(layers: Layers, params: Params, images: Images) -> Images:
    """Images (n, h, w, 3) in [-1, 1] -> latents (n, h / 8, w / 8, channels)."""
    return apply(layers, params, (images + 1) / 2)


def decode(layers: Layers, params: Params, latents: Images) -> Images:
    """Latents -> images in [-1, 1]."""
    return jnp.clip(apply(layers, params, latents), 0, 1) * 2 - 1


def plain_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors named as in `diffusers`, renamed to `encoder.` or `decoder.` and the index in the published sequence."""

    def diffusers_to_index(match: re.Match) -> str:
        return f"{match[1]}.{int(match[2]) + (match[1] == 'decoder')}."

    return {
        re.sub(r"^(encoder|decoder)\.layers\.(\d+)\.", diffusers_to_index, name): array
        for name, array in tensors.items()
    }


def _block(params: Params, name: str, x: Images) -> Images:
    h = jax.nn.relu(conv(params, f"{name}.conv.0", x))
    h = jax.nn.relu(conv(params, f"{name}.conv.2", h))
    return jax.nn.relu(conv(params, f"{name}.conv.4", h) + x)


def _pool(params: Params, name: str, x: Images) -> Images:
    h = group_norm(params, f"{name}.1", conv(params, f"{name}.0", x), GROUPS, GROUP_EPS)
    return conv(params, f"{name}.3", jax.nn.relu(h))
