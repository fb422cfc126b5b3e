"""Units and classes of the data that published networks were trained on, as a run's `inputs.npz` records them."""

from pathlib import Path
from typing import Any

import numpy as np

from vamf.data import NO_DATA
from vamf.published.source import Architecture
from vamf.training.config import TrainConfig
from vamf.training.inputs import Inputs

NAME = "the imported network"
"""Stands for a data set's name in messages."""


def latents(architecture: Architecture, config: TrainConfig) -> Inputs:
    """Latents of Stable Diffusion's autoencoder, in the units of `config.latents`.

    Raises:
        UserError: units for another number of channels.
    """
    index = {"shape": architecture.event_shape, "settings": {"autoencoder": "kl"}, "mean": 0.0, "std": 1.0}
    shift, scale = config.latents.shift_and_scale(Path(NO_DATA), index)
    fields = {"shift": shift, "scale": scale, "latents": Path(NO_DATA)}
    fields["autoencoder"] = ("kl", "")  # the codes do not say which weights of this kind
    return _inputs("latents of Stable Diffusion's autoencoder", architecture, fields)


def images(architecture: Architecture, config: TrainConfig) -> Inputs:
    """Images of bytes, which the network sees in [-1, 1]."""
    fields = {"shift": 127.5, "scale": 127.5, "image_shape": architecture.event_shape, "clip_range": 1.0}
    return _inputs("images", architecture, fields)


def points(architecture: Architecture, config: TrainConfig) -> Inputs:
    """Points as they are."""
    return _inputs("points", architecture, {})


def _inputs(kind: str, architecture: Architecture, fields: dict[str, Any]) -> Inputs:
    shape, classes = architecture.event_shape, architecture.num_classes
    if classes:  # labels of samples are drawn uniformly
        fields |= {"num_classes": classes, "class_counts": np.ones(classes, np.int64)}
    text = "x".join(map(str, shape)) + (f", {classes:,} classes" if classes else "")
    return Inputs({"name": NAME, "event_shape": shape, "summary": f"{kind} of shape {text}", **fields}, {})
