"""U-Nets: that of DDPM and the DDPM++ of score-based models, which MeanFlow trains on CIFAR-10.

Ho et al. (arXiv:2006.11239, appendix B) and Song et al. (arXiv:2011.13456, appendix H), the latter with the settings
of Karras et al. (arXiv:2206.00364). Levels of residual blocks, each at half the resolution of the one above; in the
decoder every block takes a skip connection from the encoder at the same resolution. All take the time, as a vector
added between their two convolutions. The differences:

|                              | ddpm                               | ddpm++                                      |
|------------------------------|------------------------------------|---------------------------------------------|
| resolution changes by        | a convolution of stride 2; nearest | a residual block that filters               |
|                              | neighbour and a convolution        |                                             |
| a sum of two paths is scaled | by 1                               | by 1 / sqrt(2)                              |
| attention in the decoder     | after every block                  | after a level's last block                  |
| initialization of q, k, v    | Xavier each                        | sqrt(0.2) times Xavier for all three        |

`CIFAR10` is the network of MeanFlow's CIFAR-10 recipe, `DDPM_CIFAR10` that of DDPM. Times in [0, 1] are embedded
without a factor, which would multiply du/dt. Where the network predicts noise, its inputs are those of DDPM, the point
on the diffusion and the number of the step, 0 ... 999, and u is the velocity that follows from its output
(`vamf.diffusion`).
"""

import dataclasses
import functools
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vamf.conditioning import Cond, CondShape
from vamf.diffusion import DDPM
from vamf.errors import UserError, require
from vamf.field_types import check_field_types
from vamf.networks import unet_blocks as blocks
from vamf.networks.conditions import input_shape, with_image
from vamf.networks.config import NetworkConfig
from vamf.networks.embeddings import LogVariance
from vamf.networks.unet_blocks import NEAR_ZERO


@dataclasses.dataclass(frozen=True)
@check_field_types("network.")
class UNetConfig(NetworkConfig):
    """Size and kind of the U-Net, for images (height, width, channels)."""

    kind: Literal["ddpm", "ddpm++"] = "ddpm++"
    """Which of the two architectures."""
    channels: int = 128
    """Channels of the first layer, a multiple of 4."""
    multipliers: tuple[int, ...] = (2, 2, 2)
    """Channels of each level, from the full resolution down, in units of `channels`."""
    blocks: int = 4
    """Residual blocks of each level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = (16,)
    """Sides, in pixels, of the levels with attention; the middle always has it."""
    time_features: int = 256
    """Length of the embedding of each time (even)."""
    predicts: Literal["average_velocity", "velocity", "noise"] = "average_velocity"
    """Output of the last layer. The average velocity takes t and t - r; the others take only t, so that u(z, r, t) is
    the same for every r: for flow_matching and ddpm."""
    augment_features: int = 0
    """Length of the augmentation vector; 0 for none."""
    filter: tuple[int, ...] = (1, 3, 3, 1)
    """Weights of the filter with which ddpm++ changes the resolution; 1 1 averages and repeats."""
    groups: Literal["most", "power_of_two"] = "most"
    """Groups of the norms: the most up to 32 that have 4 or more channels each, as published, or the most of these that
    are a power of two. The same for 64, 128, 256 and 384 channels."""
    dropout: float = 0.0
    """Dropout rate of each block's inner activations in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations; parameters are float32."""

    def __post_init__(self):
        require(self.kind in ("ddpm", "ddpm++"), "network.kind", self.kind, "ddpm, ddpm++")
        choices = ("average_velocity", "velocity", "noise")
        require(self.predicts in choices, "network.predicts", self.predicts, ", ".join(choices))
        require(self.channels >= 4 and self.channels % 4 == 0, "network.channels", self.channels, "a multiple of 4")
        levels = len(self.multipliers) >= 1 and all(multiplier >= 1 for multiplier in self.multipliers)
        require(levels, "network.multipliers", self.multipliers, "one number from 1 on for each level")
        require(self.blocks >= 1, "network.blocks", self.blocks, "1 or more")
        even = self.time_features >= 4 and self.time_features % 2 == 0
        require(even, "network.time-features", self.time_features, "an even number from 4 on")
        require(self.augment_features >= 0, "network.augment-features", self.augment_features, "0 (none) or more")
        even = len(self.filter) >= 2 and len(self.filter) % 2 == 0 and sum(self.filter) > 0
        require(even, "network.filter", self.filter, "2, 4, 6 ... weights with a sum above 0")
        require(self.groups in blocks.GROUPS, "network.groups", self.groups, ", ".join(blocks.GROUPS))
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "[0, 1)")
        require(self.dtype in ("float32", "bfloat16"), "network.dtype", self.dtype, "float32, bfloat16")

    def module(self, event_shape, cond, heads, rngs):
        return UNet(self, event_shape, cond, heads, rngs=rngs)

    @property
    def takes_both_times(self):
        return self.predicts == "average_velocity"

    def with_both_times(self):
        return dataclasses.replace(self, predicts="average_velocity") if self.predicts == "velocity" else self

    def from_velocity(self, params):
        """The first layer ignores the gap: a network without it has no such rows, another has its features of 0."""
        mapping = blocks.without_gap(params["mapping"], self.time_features)
        return None if mapping is None else {**params, "mapping": mapping}


CIFAR10 = UNetConfig(augment_features=6, dropout=0.2)
"""MeanFlow's network on CIFAR-10 (arXiv:2505.13447, appendix A): 55,932,419 parameters."""
DDPM_CIFAR10 = UNetConfig(
    kind="ddpm", multipliers=(1, 2, 2, 2), blocks=2, time_features=128, predicts="noise", dropout=0.1
)
"""DDPM's network on CIFAR-10: 35,746,307 parameters."""


class UNet(nnx.Module):
    """u(z, r, t, label) for images."""

    def __init__(
        self,
        config: UNetConfig,
        event_shape: tuple[int, ...],
        cond: CondShape | int = 0,
        heads: tuple[str, ...] = (),
        *,
        rngs: nnx.Rngs,
    ):
        _check(event_shape, len(config.multipliers))
        self.cond = CondShape.of(cond)
        colours, inputs = event_shape[-1], input_shape(event_shape, self.cond)[-1]
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        plain = config.kind == "ddpm"
        width = 4 * config.channels
        block = functools.partial(
            blocks.Block,
            width=width,
            dropout=config.dropout,
            scale=1.0 if plain else 0.5**0.5,
            attention_scale=2.0 if plain else 0.2,
            groups=config.groups,
            dtype=dtype,
            rngs=rngs,
        )

        def resized(module, resample, channels):
            if plain:
                return module(channels, dtype, rngs=rngs)
            return block(channels, channels, resample=functools.partial(resample, taps=config.filter))

        self.predicts = config.predicts
        two_times = config.predicts == "average_velocity"
        self.mapping = blocks.Mapping(
            config.time_features, two_times, self.cond, config.augment_features, width, rngs=rngs
        )
        self.first = blocks.convolution(inputs, config.channels, dtype, rngs)
        levels = [
            (multiplier * config.channels, max(event_shape[:2]) >> level in config.attention)
            for level, multiplier in enumerate(config.multipliers)
        ]  # channels, and whether there is attention

        encoder, skips = [], [config.channels]  # blocks, and the channels of all skip connections
        for level, (channels, attends) in enumerate(levels):
            if level:
                encoder.append(resized(blocks.Halve, blocks.halve, skips[-1]))
                skips.append(skips[-1])
            for _ in range(config.blocks):
                encoder.append(block(skips[-1], channels, attends=attends))
                skips.append(channels)
        self.encoder = nnx.List(encoder)

        at = skips[-1]
        self.middle = nnx.List([block(at, at, attends=True), block(at, at)])
        decoder, enlarge = [], []
        for level, (channels, attends) in reversed(list(enumerate(levels))):
            row = []
            for number in range(config.blocks + 1):
                row.append(block(at + skips.pop(), channels, attends=attends and (plain or number == config.blocks)))
                at = channels
            decoder.append(nnx.List(row))
            enlarge.append(resized(blocks.Double, blocks.double, channels) if level else None)
        self.decoder, self.enlarge = nnx.List(decoder), nnx.List(enlarge)

        self.norm = blocks.normalisation(at, config.groups, dtype, rngs)
        self.last = blocks.convolution(at, colours, dtype, rngs, init=NEAR_ZERO)
        if "velocity" in heads:
            self.own = block(at, at)
            self.own_norm = blocks.normalisation(at, config.groups, dtype, rngs)
            self.head = blocks.convolution(at, colours, dtype, rngs, init=NEAR_ZERO)
        if "log_variance" in heads:
            self.scale = LogVariance(rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch height width colours"],
        r: Float[Array, " batch"],
        t: Float[Array, " batch"],
        label: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch height width colours"]:
        """The average velocity.

        Args:
            label: the conditioning; without augmentation the images count as not augmented.
            key: of the dropout; without one there is no dropout.
        """
        return self._average(self._trunk(z, r, t, label, key)[0], z, t)

    def velocity(
        self,
        z: Float[Array, "batch height width colours"],
        t: Float[Array, " batch"],
        label: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch height width colours"]:
        """The velocity head: one more residual block on the trunk at r = t."""
        return self._instantaneous(*self._trunk(z, t, t, label, key), z)

    def with_velocity(
        self,
        z: Float[Array, "batch height width colours"],
        r: Float[Array, " batch"] | None,
        t: Float[Array, " batch"],
        label: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch height width colours"], Float[Array, "batch height width colours"]]:
        """The average velocity and the velocity head, on the same trunk; r None for r = t."""
        h, at, keys = self._trunk(z, t if r is None else r, t, label, key)
        return self._average(h, z, t), self._instantaneous(h, at, keys, z)

    def log_variance(self, r: Float[Array, " batch"], t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """phi(r, t), the learned logarithm of the loss's scale; 0 at the start."""
        return self.scale(r, t)

    def _average(self, h, z, t):
        out = self.last(jax.nn.silu(self.norm(h))).astype(z.dtype)
        return DDPM.velocity(out, z, t) if self.predicts == "noise" else out

    def _instantaneous(self, h, at, keys, z):
        h = self.own(h, at, next(keys))
        return self.head(jax.nn.silu(self.own_norm(h))).astype(z.dtype)

    def _trunk(self, z, r, t, cond, key):
        """The last block's activations, the vector of times, and a key for each further block."""
        if self.predicts == "noise":
            z, t = DDPM.locate(z, t)
        keys = itertools.repeat(None) if key is None else (jax.random.fold_in(key, i) for i in itertools.count())
        at = self.mapping(r, t, cond)
        skips = [h := self.first(with_image(z, cond, self.cond))]
        for stage in self.encoder:
            skips.append(h := stage(h, at, next(keys)))
        for stage in self.middle:
            h = stage(h, at, next(keys))
        for row, enlarge in zip(self.decoder, self.enlarge, strict=True):
            for stage in row:
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), at, next(keys))
            h = h if enlarge is None else enlarge(h, at, next(keys))
        return h, at, keys


def _check(event_shape: tuple[int, ...], levels: int) -> None:
    """Refuse events that are no images, or whose sides cannot be halved often enough."""
    if len(event_shape) != 3:
        raise UserError(f"network: a U-Net needs images (height, width, channels); samples have shape {event_shape}")
    unit = 2 ** (levels - 1)
    if any(side % unit for side in event_shape[:2]):
        raise UserError(
            f"network.multipliers: {levels} levels halve the image {levels - 1} times, so its sides must be multiples "
            f"of {unit}; they are {event_shape[0]} and {event_shape[1]}: name fewer levels, or another --images.size"
        )
