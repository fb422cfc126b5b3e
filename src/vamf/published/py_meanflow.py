"""MeanFlow on CIFAR-10: the U-Net of the official code in PyTorch (Gsunshine/py-meanflow on GitHub).

Layers are named by the side of their level in pixels, `enc.32x32_block0`. Features of a time are all sines, then all
cosines. Attention has one head, whose queries, keys and values are channels of one 1x1 convolution.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vamf.data import ImageConfig
from vamf.errors import UserError
from vamf.networks import UNetConfig
from vamf.networks.unet import CIFAR10
from vamf.published import data
from vamf.published.source import (
    SAME,
    TRANSPOSED,
    Architecture,
    Options,
    Parameter,
    Path,
    Shape,
    Source,
    Transform,
    count_layers,
    dims,
    interleaved,
)
from vamf.training import presets
from vamf.training.config import TrainConfig

CONVOLUTION = Transform(lambda s: ((s[3], s[2], s[0], s[1]),), lambda kernel: kernel.transpose(2, 3, 1, 0))
POINTWISE = Transform(lambda s: ((s[1], s[0], 1, 1),), lambda kernel: kernel[:, :, 0, 0].T)
"""A 1x1 convolution as a matrix."""
DECAYS = {"net_ema": 0.9999, "net_ema1": 0.99995, "net_ema2": 0.9996, "net": 0.0}
"""Three EMAs with the decays of the official options, and the parameters themselves."""
FILTERS = {2: (1, 1), 4: (1, 3, 3, 1)}
"""Weights of the official filters, by their length."""


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    side = _side(shapes)
    if options.size and options.size != side:
        raise UserError(f"size = {options.size}: enc.{side}x{side}_conv.weight is of images of {side}x{side}")
    channels, colours = dims(shapes, f"enc.{side}x{side}_conv.weight", 4)[:2]
    sides = [side]
    while f"enc.{sides[-1] // 2}x{sides[-1] // 2}_down.norm0.weight" in shapes:
        sides.append(sides[-1] // 2)
    widths = [dims(shapes, f"enc.{at}x{at}_block0.conv0.weight", 4)[0] for at in sides]
    if any(width % channels for width in widths):
        raise UserError(f"enc: levels of {widths} channels; needed are multiples of the first layer's {channels}")
    taps = dims(shapes, f"enc.{sides[1]}x{sides[1]}_down.skip.resample_filter", 4)[-1] if len(sides) > 1 else 4
    if taps not in FILTERS:
        raise UserError(f"resample_filter has {taps} weights a side; allowed are {', '.join(map(str, FILTERS))}")
    network = UNetConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=count_layers(shapes, f"enc.{side}x{side}_block{{}}.norm0.weight"),
        attention=tuple(at for at in sides if f"enc.{at}x{at}_block0.qkv.weight" in shapes),
        time_features=dims(shapes, "map_layer0.weight", 2)[1] // 2,
        augment_features=dims(shapes, "map_augment.weight", 2)[1] if "map_augment.weight" in shapes else 0,
        filter=FILTERS[taps],
        dropout=CIFAR10.dropout,
    )
    return Architecture(network, (side, side, colours))


def _side(shapes: Mapping[str, Shape]) -> int:
    """Height and width of the images, by the name of the first layer."""
    for name in shapes:
        if match := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", name):
            return int(match[1])
    raise UserError("missing enc.32x32_conv.weight, or one of another size")


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network, side = found.network, found.event_shape[0]
    assert isinstance(network, UNetConfig)
    half = network.time_features // 2
    one_time = interleaved(0, half, half)

    def both_times(kernel):
        rows = network.time_features
        return np.concatenate([one_time(kernel[:rows]), one_time(kernel[rows:])])

    every = {
        **_linear(("mapping", "first"), "map_layer0", TRANSPOSED.then(both_times)),
        **_linear(("mapping", "second"), "map_layer1", TRANSPOSED),
        **_linear(("first",), f"enc.{side}x{side}_conv", CONVOLUTION),
        **_norm(("norm",), f"dec.{side}x{side}_aux_norm"),
        **_linear(("last",), f"dec.{side}x{side}_aux_conv", CONVOLUTION),
    }
    if network.augment_features:
        augment = TRANSPOSED.then(lambda kernel: both_times(kernel.T).T)
        every["mapping", "augment", "kernel"] = Parameter(("map_augment.weight",), augment)
    sides = [side >> level for level in range(len(network.multipliers))]
    levels = list(zip(sides, network.multipliers, strict=True))
    skips, index = [1], 0  # channels of the skip connections, in units of the first layer's
    for level, (at, multiplier) in enumerate(levels):
        if level:
            every |= _block(("encoder", index), f"enc.{at}x{at}_down", True, False)
            skips.append(skips[-1])
            index += 1
        for number in range(network.blocks):
            name = f"enc.{at}x{at}_block{number}"
            every |= _block(("encoder", index), name, skips[-1] != multiplier, at in network.attention)
            skips.append(multiplier)
            index += 1
    smallest, wide = f"dec.{sides[-1]}x{sides[-1]}", skips[-1]
    every |= _block(("middle", 0), f"{smallest}_in0", False, True)
    every |= _block(("middle", 1), f"{smallest}_in1", False, False)
    for row, (at, multiplier) in enumerate(reversed(levels)):
        if row:
            every |= _block(("enlarge", row - 1), f"dec.{at}x{at}_up", True, False)
        for number in range(network.blocks + 1):
            attends = at in network.attention and number == network.blocks
            changes = wide + skips.pop() != multiplier
            every |= _block(("decoder", row, number), f"dec.{at}x{at}_block{number}", changes, attends)
            wide = multiplier
    return every


def _linear(ours: Path, theirs: str, kernel: Transform) -> dict[Path, Parameter]:
    return {
        (*ours, "kernel"): Parameter((f"{theirs}.weight",), kernel),
        (*ours, "bias"): Parameter((f"{theirs}.bias",), SAME),
    }


def _norm(ours: Path, theirs: str) -> dict[Path, Parameter]:
    return {
        (*ours, "scale"): Parameter((f"{theirs}.weight",), SAME),
        (*ours, "bias"): Parameter((f"{theirs}.bias",), SAME),
    }


def _block(ours: Path, theirs: str, changes: bool, attends: bool) -> dict[Path, Parameter]:
    """A residual block; one that changes the resolution or the channels has weights on its skip connection."""
    every = {
        **_norm((*ours, "norm1"), f"{theirs}.norm0"),
        **_linear((*ours, "conv1"), f"{theirs}.conv0", CONVOLUTION),
        **_linear((*ours, "shift"), f"{theirs}.affine", TRANSPOSED),
        **_norm((*ours, "norm2"), f"{theirs}.norm1"),
        **_linear((*ours, "conv2"), f"{theirs}.conv1", CONVOLUTION),
    }
    if changes:
        every |= _linear((*ours, "skip"), f"{theirs}.skip", POINTWISE)
    if attends:
        every |= _norm((*ours, "attention", "norm"), f"{theirs}.norm2")
        every |= _linear((*ours, "attention", "qkv"), f"{theirs}.qkv", POINTWISE)
        every |= _linear((*ours, "attention", "last"), f"{theirs}.proj", POINTWISE)
    return every


def recipe(found: Architecture) -> TrainConfig:
    """The recipe of the published checkpoint, `cifar10_unet_v1`."""
    config = presets.PRESETS["cifar10_unet_v1"]
    network = found.network
    assert isinstance(network, UNetConfig)
    probability = config.augment.probability if network.augment_features else 0.0
    augment = dataclasses.replace(config.augment, probability=probability)
    images = config.images if found.event_shape == (32, 32, 3) else ImageConfig(flip=True)
    return dataclasses.replace(config, network=network, augment=augment, images=images)


SOURCE = Source(
    summary="MeanFlow's U-Net on CIFAR-10: a PyTorch file",
    weights={**{name: (f"model.{name}.", f"{name}.") for name in DECAYS}, "weights": ("",)},
    marks=("map_layer0.weight", "map_layer1.weight"),
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.images,
    unused=r".*\.resample_filter",
    steps=("model.num_updates", "num_updates"),
    decays=DECAYS,
)
