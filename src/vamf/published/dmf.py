"""Decoupled MeanFlow: the DMFT of the official code in PyTorch (arXiv:2510.24474, kyungmnlee/dmf on GitHub).

The first `decoupled_depth` blocks take t, the others r, through one embedding. The learned scale of the loss is linear
in features of t, then r, where here r comes first.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vamf.errors import UserError
from vamf.networks import DiTConfig
from vamf.objectives.guidance import Guidance
from vamf.published import data, dit
from vamf.published.source import (
    SAME,
    TRANSPOSED,
    Architecture,
    Options,
    Parameter,
    Path,
    Shape,
    Source,
    dims,
    interleaved,
)
from vamf.training import presets
from vamf.training.config import TrainConfig

SCALE = "logvar_linear.weight"
SCALE_FEATURES = 128
"""Features of each time in the learned scale of the loss."""
DECOUPLED = {28: 20, 24: 18}
"""Published number of blocks that take t, by the depth."""
TORCH_WEIGHTS = {"ema": ("ema.",), "model": ("model.",), "weights": ("",)}
"""Weights in a training state of PyTorch, or alone in a file."""
MARKS = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "blocks.0.attn.qkv.weight",
    "final_layer.linear.weight",
    "y_embedder.embedding_table.weight",
)


def transformer(shapes: Mapping[str, Shape], options: Options) -> tuple[DiTConfig, Shape, int]:
    """Network, event shape and number of classes of a transformer with one time; all its blocks take t.

    Raises:
        UserError: shapes that no such transformer has, or options that disagree with them.
    """
    size = dit.size(dit.TORCH, shapes)
    q_norm = "blocks.0.attn.q_norm.scale"
    if qk_norm := q_norm in shapes:
        channels = dims(shapes, q_norm, 1)[0]
        if options.heads and options.heads * channels != size.width:
            raise UserError(f"heads = {options.heads}: {q_norm} has shape ({channels},), of {size.width // channels}")
        options = dataclasses.replace(options, heads=size.width // channels)
    heads = dit.choose_heads(size.width, options)
    network = DiTConfig(size.depth, size.width, heads, size.patch, decoupled_depth=size.depth, qk_norm=qk_norm)
    side = dit.choose_side(size.patch, options)
    if "pos_embed" in shapes:
        tokens = dims(shapes, "pos_embed", 3)[1]
        if options.size and (side // size.patch) ** 2 != tokens:
            raise UserError(f"size = {side}: pos_embed has {tokens} places; the sides are {math.isqrt(tokens)} patches")
        side = math.isqrt(tokens) * size.patch
    return network, (side, side, size.channels), size.num_classes


def time_parameters() -> dict[Path, Parameter]:
    return dit.TORCH.time(("times", "t"), "t_embedder")


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    network, event_shape, num_classes = transformer(shapes, options)
    depth = options.decoupled_depth or DECOUPLED.get(network.depth, max(1, round(network.depth * 2 / 3)))
    if depth > network.depth:
        raise UserError(f"decoupled-depth = {depth}: allowed are 1 to the depth {network.depth}")
    network = dataclasses.replace(network, decoupled_depth=depth)
    return Architecture(network, event_shape, num_classes, ("log_variance",) if SCALE in shapes else ())


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network = found.network
    assert isinstance(network, DiTConfig)
    every = time_parameters() | dit.parameters(dit.TORCH, network.depth, network.patch, network.qk_norm)
    if "log_variance" not in found.heads:
        return every
    kernel = Parameter((SCALE,), TRANSPOSED.then(_scale_rows))
    return every | {
        ("scale", "linear", "kernel"): kernel,
        ("scale", "linear", "bias"): Parameter(("logvar_linear.bias",), SAME),
    }


def optional(found: Architecture) -> Mapping[Path, Shape]:
    """The learned scale of the loss, which the official code may be without."""
    rows = 2 * SCALE_FEATURES
    return {} if found.heads else {("scale", "linear", "kernel"): (rows, 1), ("scale", "linear", "bias"): (1,)}


def _scale_rows(kernel: np.ndarray) -> np.ndarray:
    """Rows of [t | r], each all cosines, then all sines, as [r | t]."""
    half = SCALE_FEATURES // 2
    change = interleaved(half, 0, half)
    return np.concatenate([change(kernel[SCALE_FEATURES:]), change(kernel[:SCALE_FEATURES])])


def recipe(found: Architecture) -> TrainConfig:
    """The paper's fine-tuning on ImageNet: model guidance w = 0.6 up to t = 0.7, that is the scale 1 / (1 - w)."""
    return dataclasses.replace(
        presets.imagenet_dit("XL/2"),
        method="decoupled_meanflow",
        objective={"guidance": Guidance(2.5, "unit", (0.0, 0.7), dropout=0.1)},
        steps=400_000,
        network=found.network,
        optimizer=dataclasses.replace(presets.imagenet_dit("XL/2").optimizer, clip_norm=1.0),
    )


SOURCE = Source(
    summary="decoupled MeanFlow's DMFT on ImageNet latents: a PyTorch file",
    weights=TORCH_WEIGHTS,
    marks=MARKS,
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.latents,
    unused="pos_embed",
    optional=optional,
    decays={"model": 0.0},
)
