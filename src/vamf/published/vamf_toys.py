"""The MLP of VaMF's 2-D studies (arXiv:2605.09235), from its authors' toy code in JAX.

That code publishes no weights: a file of one's own has the layers `Dense_0/kernel`, `Dense_0/bias`, `Dense_1/kernel`
and so on, as flax names them. The network sees [z, emb(r), emb(r) - emb(t)], each embedding all sines, then all
cosines, where here it is [z, emb(t), emb(t) - emb(r)]. With the rows [Z | A | B] of the first kernel,

    A emb(r) + B (emb(r) - emb(t)) = A emb(t) - (A + B) (emb(t) - emb(r)).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.published import data, meanflow
from vamf.published.source import (
    SAME,
    Architecture,
    Options,
    Parameter,
    Path,
    Shape,
    Source,
    count_layers,
    dims,
    interleaved,
)
from vamf.training import presets
from vamf.training.config import TrainConfig

FEATURES = MLPConfig().time_features
"""Features of each time."""


def architecture(shapes: Mapping[str, Shape], options: Options) -> Architecture:
    rows, width = dims(shapes, "Dense_0/kernel", 2)
    if rows <= 2 * FEATURES:
        raise UserError(f"Dense_0/kernel has {rows} rows; needed are {2 * FEATURES} for two times, and more for z")
    depth = count_layers(shapes, "Dense_{}/kernel") - 1
    return Architecture(MLPConfig(width=width, depth=depth), (rows - 2 * FEATURES,))


def parameters(found: Architecture) -> Mapping[Path, Parameter]:
    network = found.network
    assert isinstance(network, MLPConfig)
    layers: list[Path] = [("first",), *(("hidden", number) for number in range(network.depth - 1)), ("last",)]
    every = {
        (*layer, part): Parameter((f"Dense_{number}/{part}",), SAME)
        for number, layer in enumerate(layers)
        for part in ("kernel", "bias")
    }
    every["first", "kernel"] = Parameter(("Dense_0/kernel",), SAME.then(_first))
    return every


def _first(kernel: np.ndarray) -> np.ndarray:
    change = interleaved(0, FEATURES // 2, FEATURES // 2)
    of_z, of_r, of_gap = np.split(kernel, [-2 * FEATURES, -FEATURES])
    return np.concatenate([of_z, change(of_r), -change(of_r + of_gap)])


def recipe(found: Architecture) -> TrainConfig:
    """The paper's settings of its 2-D studies."""
    return dataclasses.replace(presets.as_in_paper("swiss_roll"), network=found.network)


SOURCE = Source(
    summary="the MLP of VaMF's toy code: layers Dense_0, Dense_1 and so on, in a file of flax, safetensors or npz",
    weights=meanflow.FLAX_WEIGHTS,
    marks=("Dense_0/kernel", "Dense_1/kernel"),
    architecture=architecture,
    parameters=parameters,
    recipe=recipe,
    inputs=data.points,
    steps=("step",),
)
