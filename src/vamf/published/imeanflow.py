"""Improved MeanFlow: the transformer of the official code in JAX (arXiv:2512.02012, Lyy-iiis/imeanflow on GitHub).

Latents are standardised with published constants (`latents.scale = fixed`). Queries and keys are rotated in pairs
(2 i, 2 i + 1) there and (i, i + width / 2) here: their channels are reordered within each head.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vamf.errors import UserError
from vamf.networks import InContextConfig
from vamf.networks.in_context import TOKENS
from vamf.published import data, dit, meanflow
from vamf.published.source import (
    SAME,
    Architecture,
    Options,
    Parameter,
    Path,
    Shape,
    Source,
    Transform,
    count_layers,
    dims,
)
from vamf.training import presets
from vamf.training.config import TrainConfig

NUMBERS = {"omega": "omega", "t_min": "cfg_t_start", "t_max": "cfg_t_end", "h": "h"}
"""Official names of the embedded numbers."""
TOKEN_NAMES = {"label": "class", "omega": "omega", "t_min": "t_min", "t_max": "t_max", "h": "time"}
"""Official names of the learned tokens."""
BLOCK = "{}_{{}}/attn/q_norm/kernel"


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    size = dit.size(dit.FLAX, shapes)
    shared, own, head = (count_layers(shapes, BLOCK.format(name)) for name in ("shared_blocks", "u_heads", "v_heads"))
    q_norm = BLOCK.format("shared_blocks" if shared else "u_heads").format(0)
    channels = dims(shapes, q_norm, 1)[0]
    if channels % 2 or size.width % channels:
        raise UserError(f"{q_norm} has shape ({channels},), no even divisor of the width {size.width}")
    heads = size.width // channels
    if options.heads and options.heads != heads:
        raise UserError(f"heads = {options.heads}: {q_norm} has shape ({channels},), that of {heads} heads")
    has_head = head > 0 or "v_final_layer/norm/kernel" in shapes
    side = dit.choose_side(size.patch, options)
    network = InContextConfig(shared + own, size.width, heads, size.patch, own)
    event_shape = (side, side, size.channels)
    return Architecture(network, event_shape, size.num_classes, ("velocity",) if has_head else ())


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network = found.network
    assert isinstance(network, InContextConfig)
    every = dit.patch_layer(dit.FLAX, network.patch) | dit.classes(dit.FLAX)
    every[("token_embedding",)] = Parameter(tuple(f"{name}_tokens" for name in TOKEN_NAMES.values()), _TOKENS)
    for ours, theirs in NUMBERS.items():
        every |= dit.FLAX.time(("numbers", ours), f"{theirs}_embedder")
    branches = {"shared": ("shared_blocks", network.depth - network.head_depth), "own": ("u_heads", network.head_depth)}
    lasts = {"last": "u_final_layer"}
    if found.heads:
        branches["head"], lasts["head_last"] = ("v_heads", network.head_depth), "v_final_layer"
    for ours, (theirs, count) in branches.items():
        for number in range(count):
            every |= _block((ours, number), f"{theirs}_{number}", network.width // network.heads)
    for ours, theirs in lasts.items():
        every[ours, "norm", "gain"] = Parameter((f"{theirs}/norm/kernel",), SAME)
        every |= dit.FLAX.layer((ours, "linear"), f"{theirs}.linear")
    return every


def _block(ours: Path, theirs: str, channels: int) -> dict[Path, Parameter]:
    order = np.concatenate([np.arange(0, channels, 2), np.arange(1, channels, 2)])

    def kernels(*layers: str) -> tuple[str, ...]:
        return tuple(f"{theirs}/{layer}/_flax_linear/kernel" for layer in layers)

    def join(query, key, value):
        pairs = (kernel.reshape(len(kernel), -1, channels)[..., order].reshape(kernel.shape) for kernel in (query, key))
        return np.concatenate([*pairs, value], axis=1)

    def columns(parts: int, convert) -> Transform:
        return Transform(lambda shape: ((shape[0], shape[1] // parts),) * parts, convert)

    return {
        (*ours, "norms", 0, "gain"): Parameter((f"{theirs}/norm1/kernel",), SAME),
        (*ours, "norms", 1, "gain"): Parameter((f"{theirs}/norm2/kernel",), SAME),
        (*ours, "attention", "inputs", "kernel"): Parameter(
            kernels("attn/q_proj", "attn/k_proj", "attn/v_proj"), columns(3, join)
        ),
        (*ours, "attention", "norms", 0, "gain"): Parameter(
            (f"{theirs}/attn/q_norm/kernel",), SAME.then(lambda gain: gain[order])
        ),
        (*ours, "attention", "norms", 1, "gain"): Parameter(
            (f"{theirs}/attn/k_norm/kernel",), SAME.then(lambda gain: gain[order])
        ),
        (*ours, "attention", "output", "kernel"): Parameter(kernels("attn/out_proj"), SAME),
        (*ours, "up", "kernel"): Parameter(
            kernels("mlp/w1", "mlp/w3"), columns(2, lambda gate, value: np.concatenate([gate, value], axis=1))
        ),
        (*ours, "down", "kernel"): Parameter(kernels("mlp/w2"), SAME),
        (*ours, "gates", 0): Parameter((f"{theirs}/attn_scale",), SAME),
        (*ours, "gates", 1): Parameter((f"{theirs}/mlp_scale",), SAME),
    }


_TOKENS = Transform(
    lambda shape: tuple((TOKENS[name], shape[1]) for name in TOKEN_NAMES),
    lambda *tokens: np.concatenate(tokens),
)


def recipe(found: Architecture) -> TrainConfig:
    """The preset of B/2; without the velocity head, which sampling does not need, v_hat is the network itself."""
    preset = presets.PRESETS["imagenet_in_context_b2"]
    objective = preset.objective if found.heads else {**preset.objective, "proxy": "online"}
    return dataclasses.replace(preset, network=found.network, objective=objective)


SOURCE = Source(
    summary="improved MeanFlow's transformer on ImageNet latents: a checkpoint of flax",
    weights=meanflow.FLAX_WEIGHTS,
    marks=("x_embedder/proj/kernel", "omega_tokens", "u_final_layer/norm/kernel", "time_tokens"),
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.latents,
    steps=("step",),
    decays={"params": 0.0},
)
