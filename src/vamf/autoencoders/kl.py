"""The autoencoder of Stable Diffusion (AutoencoderKL; arXiv:2112.10752, section 3.1; the layout of sd-vae-ft-mse).

An eighth of the image's size, 4 channels, 83,653,863 parameters. Four stages of residual blocks with 128, 256, 512
and 512 channels, group normalisation, SiLU, one attention of a single head in the middle. The encoder gives the mean
and the log-variance of a Gaussian over latents; generative models use the latents times 0.18215. Downsampling pads on
the right and below only. Parameter names are those of `diffusers`, or its older ones for the attention.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vamf.autoencoders.layers import Images, Params, Shapes, conv, conv_shapes, group_norm, upsample

CHANNELS = 4
DOWNSAMPLING = 8
SCALE = 0.18215
"""Scaling factor of the latents for generative models."""
CHANNEL_MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
CHANNEL_STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)
"""Mean and standard deviation of the latents of ImageNet at 256x256, without that factor: what improved MeanFlow
(arXiv:2512.02012) and terminal velocity matching (arXiv:2511.19797) use instead of that factor."""
STAGES = (128, 256, 512, 512)
BLOCKS = 2
"""Residual blocks in a stage of the encoder; the decoder has one more."""
GROUPS = 32
GROUP_EPS = 1e-6
LOG_VARIANCE = (-30.0, 20.0)
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def shapes() -> Shapes:
    """PyTorch's names and shapes of all parameters."""
    deep = STAGES[-1]
    shapes_by_name = conv_shapes("encoder.conv_in", 3, STAGES[0]) | conv_shapes("decoder.conv_in", CHANNELS, deep)
    width = STAGES[0]
    for stage, out in enumerate(STAGES):
        for block in range(BLOCKS):
            shapes_by_name |= _resnet_shapes(
                f"encoder.down_blocks.{stage}.resnets.{block}", width if block == 0 else out, out
            )
        if stage < len(STAGES) - 1:
            shapes_by_name |= conv_shapes(f"encoder.down_blocks.{stage}.downsamplers.0.conv", out, out)
        width = out
    for stage, out in enumerate(reversed(STAGES)):
        for block in range(BLOCKS + 1):
            shapes_by_name |= _resnet_shapes(
                f"decoder.up_blocks.{stage}.resnets.{block}", width if block == 0 else out, out
            )
        if stage < len(STAGES) - 1:
            shapes_by_name |= conv_shapes(f"decoder.up_blocks.{stage}.upsamplers.0.conv", out, out)
        width = out
    for side in ("encoder", "decoder"):
        for block in (0, 1):
            shapes_by_name |= _resnet_shapes(f"{side}.mid_block.resnets.{block}", deep, deep)
        shapes_by_name |= _norm_shapes(f"{side}.mid_block.attentions.0.group_norm", deep)
        for name in OLD_NAMES.values():
            linear = f"{side}.mid_block.attentions.0.{name}"
            shapes_by_name |= {f"{linear}.weight": (deep, deep), f"{linear}.bias": (deep,)}
    shapes_by_name |= _norm_shapes("encoder.conv_norm_out", deep) | _norm_shapes("decoder.conv_norm_out", STAGES[0])
    shapes_by_name |= conv_shapes("encoder.conv_out", deep, 2 * CHANNELS) | conv_shapes(
        "decoder.conv_out", STAGES[0], 3
    )
    shapes_by_name |= conv_shapes("quant_conv", 2 * CHANNELS, 2 * CHANNELS, width=1)
    return shapes_by_name | conv_shapes("post_quant_conv", CHANNELS, CHANNELS, width=1)


def new_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors whose attentions may have the older names (and 1x1 convolutions for matrices)."""
    renamed = {}
    for name, array in tensors.items():
        *prefix, layer, kind = name.split(".") if name.count(".") > 1 else ("", name, "")
        if "attentions" in prefix and array.ndim == 4:
            array = array[:, :, 0, 0]
        renamed[".".join([*prefix, OLD_NAMES[layer], kind]) if layer in OLD_NAMES else name] = array
    return renamed


def encode(
    params: Params, images: Float[Array, "n h w 3"]
) -> tuple[Float[Array, "n h8 w8 c"], Float[Array, "n h8 w8 c"]]:
    """Images in [-1, 1] -> mean and log-variance of the latents, without the factor 0.18215."""
    h = conv(params, "encoder.conv_in", images)
    for stage in range(len(STAGES)):
        for block in range(BLOCKS):
            h = _resnet(params, f"encoder.down_blocks.{stage}.resnets.{block}", h)
        if stage < len(STAGES) - 1:
            h = conv(params, f"encoder.down_blocks.{stage}.downsamplers.0.conv", h, stride=2, padding=(0, 1))
    h = _mid_block(params, "encoder.mid_block", h)
    h = conv(params, "encoder.conv_out", jax.nn.silu(_norm(params, "encoder.conv_norm_out", h)))
    mean, log_variance = jnp.split(conv(params, "quant_conv", h), 2, axis=3)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)


def decode(params: Params, latents: Float[Array, "n h8 w8 c"]) -> Float[Array, "n h w 3"]:
    """Latents, without the factor 0.18215 -> images, near [-1, 1]."""
    h = conv(params, "decoder.conv_in", conv(params, "post_quant_conv", latents))
    h = _mid_block(params, "decoder.mid_block", h)
    for stage in range(len(STAGES)):
        for block in range(BLOCKS + 1):
            h = _resnet(params, f"decoder.up_blocks.{stage}.resnets.{block}", h)
        if stage < len(STAGES) - 1:
            h = conv(params, f"decoder.up_blocks.{stage}.upsamplers.0.conv", upsample(h))
    return conv(params, "decoder.conv_out", jax.nn.silu(_norm(params, "decoder.conv_norm_out", h)))


def _norm(params: Params, name: str, x: Images) -> Images:
    return group_norm(params, name, x, GROUPS, GROUP_EPS)


def _resnet(params: Params, name: str, x: Images) -> Images:
    h = conv(params, f"{name}.conv1", jax.nn.silu(_norm(params, f"{name}.norm1", x)))
    h = conv(params, f"{name}.conv2", jax.nn.silu(_norm(params, f"{name}.norm2", h)))
    return h + (conv(params, f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in params else x)


def _mid_block(params: Params, name: str, x: Images) -> Images:
    x = _attention(params, f"{name}.attentions.0", _resnet(params, f"{name}.resnets.0", x))
    return _resnet(params, f"{name}.resnets.1", x)


def _attention(params: Params, name: str, x: Images) -> Images:
    n, h, w, c = x.shape
    tokens = _norm(params, f"{name}.group_norm", x).reshape(n, h * w, c)
    q, k, v = (_linear(params, f"{name}.{part}", tokens) for part in ("to_q", "to_k", "to_v"))
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / math.sqrt(c), axis=2)
    return x + _linear(params, f"{name}.to_out.0", weights @ v).reshape(x.shape)


def _linear(params: Params, name: str, x: Float[Array, "n tokens c"]) -> Float[Array, "n tokens c"]:
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def _norm_shapes(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _resnet_shapes(name: str, channels: int, out: int) -> Shapes:
    shapes_by_name = _norm_shapes(f"{name}.norm1", channels) | conv_shapes(f"{name}.conv1", channels, out)
    shapes_by_name |= _norm_shapes(f"{name}.norm2", out) | conv_shapes(f"{name}.conv2", out, out)
    return shapes_by_name | (conv_shapes(f"{name}.conv_shortcut", channels, out, width=1) if channels != out else {})
