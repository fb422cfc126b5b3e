"""MeanFlow on ImageNet: the DiT of the official code in JAX (arXiv:2505.13447, Gsunshine/meanflow on GitHub).

Latents are not centred: mean and noise of the autoencoder times 0.18215 (`latents.scale = factor`).
"""

import dataclasses
from collections.abc import Mapping

from vamf.networks import DiTConfig
from vamf.published import data, dit
from vamf.published.source import Architecture, Options, Parameter, Path, Shape, Source
from vamf.training import presets
from vamf.training.config import TrainConfig

FLAX_WEIGHTS = {
    "ema_params": ("ema_params/net/", "ema_params/"),
    "params": ("params/net/", "params/"),
    "weights": ("net/", ""),
}
"""Weights in a training state of flax, or alone in a file."""


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    size = dit.size(dit.FLAX, shapes)
    side = dit.choose_side(size.patch, options)
    network = DiTConfig(size.depth, size.width, dit.choose_heads(size.width, options), size.patch)
    return Architecture(network, (side, side, size.channels), size.num_classes)


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network = found.network
    assert isinstance(network, DiTConfig)
    times = dit.FLAX.time(("times", "t"), "t_embedder") | dit.FLAX.time(("times", "t-r"), "h_embedder")
    return times | dit.parameters(dit.FLAX, network.depth, network.patch)


def recipe(found: Architecture) -> TrainConfig:
    """The preset of the same network, or that of B/4."""
    named = (config for name, config in presets.PRESETS.items() if name.startswith("imagenet_dit_"))
    same = (config for config in named if config.network == found.network)
    return dataclasses.replace(next(same, presets.PRESETS["imagenet_dit_b4"]), network=found.network)


SOURCE = Source(
    summary="MeanFlow's DiT on ImageNet latents: a checkpoint of flax",
    weights=FLAX_WEIGHTS,
    marks=(
        "x_embedder/proj/kernel",
        "h_embedder/mlp/layers_0/_flax_linear/kernel",
        "blocks/layers_0/attn/qkv/_flax_linear/kernel",
        "y_embedder/embedding_table/_flax_embedding/embedding",
    ),
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.latents,
    steps=("step",),
    decays={"params": 0.0},
)
