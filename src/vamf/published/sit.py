"""Flow-matching transformers to start from: SiT's own (arXiv:2401.08740) and those with REPA, of decoupled MeanFlow.

The network embeds one time. As a decoupled network in which all blocks take t, its u at r = t is the velocity.

| code                     | t = 0 | outputs                    |                                                     |
|--------------------------|-------|----------------------------|-----------------------------------------------------|
| REPA, decoupled MeanFlow | data  | velocity                   | as here                                             |
| SiT (willisma/SiT)       | noise | velocity, and as many more | v(z, t) = -v_sit(z, 1 - t); the others are not used |

The second is folded into the weights: features of 1 - t are a rotation of those of t,

    cos f(1 - t) = cos f cos ft + sin f sin ft,      sin f(1 - t) = sin f cos ft - cos f sin ft.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vamf.networks import DiTConfig
from vamf.published import data, dit, dmf
from vamf.published.source import TRANSPOSED, Architecture, Options, Parameter, Path, Shape, Source, Transform
from vamf.training import presets
from vamf.training.config import TrainConfig


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    return Architecture(*dmf.transformer(shapes, options))


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network = found.network
    assert isinstance(network, DiTConfig)
    return dmf.time_parameters() | dit.parameters(dit.TORCH, network.depth, network.patch, network.qk_norm)


def reversed_parameters(found: Architecture) -> Mapping[Path, Parameter]:
    """The same, with time and sign reversed, and without the outputs that are not used."""
    every, channels = dict(parameters(found)), found.event_shape[-1]
    first, kernel, bias = ("times", "t", "first", "kernel"), ("last", "linear", "kernel"), ("last", "linear", "bias")
    names = every[first].names
    every[first] = Parameter(names, Transform(TRANSPOSED.shapes, lambda array: dit.TIME_FEATURES(_reversed(array.T))))

    def outputs(array: np.ndarray) -> np.ndarray:
        pixels = array.reshape(*array.shape[:-1], -1, 2, channels)
        return -pixels[..., 0, :].reshape(*array.shape[:-1], -1)

    every[kernel] = Parameter(
        every[kernel].names, Transform(lambda shape: ((2 * shape[1], shape[0]),), lambda array: outputs(array.T))
    )
    every[bias] = Parameter(every[bias].names, Transform(lambda shape: ((2 * shape[0],),), outputs))
    return every


def _reversed(kernel: np.ndarray) -> np.ndarray:
    """Rows for all cosines, then all sines, of 1 - t as rows for those of t."""
    half = len(kernel) // 2
    frequency = 1e4 ** (-np.arange(half) / half)
    cosine, sine = np.cos(frequency)[:, None], np.sin(frequency)[:, None]
    of_cosine, of_sine = np.split(kernel.astype(np.float64), 2)
    return np.concatenate([cosine * of_cosine + sine * of_sine, sine * of_cosine - cosine * of_sine])


def recipe(found: Architecture) -> TrainConfig:
    """Flow matching on ImageNet latents, without guidance in training."""
    return dataclasses.replace(
        presets.imagenet_dit("XL/2"),
        method="flow_matching",
        objective={"guidance": {"dropout": 0.1}},
        steps=4_000_000,
        network=found.network,
    )


REPA = Source(
    summary="SiT with REPA, as decoupled MeanFlow starts from it: a PyTorch file",
    weights=dmf.TORCH_WEIGHTS,
    marks=dmf.MARKS,
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.latents,
    unused=r"pos_embed|projectors\..*",
    decays={"model": 0.0},
)
SIT = dataclasses.replace(
    REPA,
    summary="SiT on ImageNet latents: a PyTorch file of its own code",
    parameters=reversed_parameters,
    unused="pos_embed",
)
