"""Samples of several origins in one figure, whatever they are: images, points or tables."""

from collections.abc import Mapping

import numpy as np

from vamf import figures
from vamf.data import Dataset
from vamf.data.viewing import Viewer

COLUMNS = 12
"""Columns of a table shown as histograms."""
IMAGES = 12
"""Images of each origin."""


def gallery(dataset: Dataset, samples: Mapping[str, np.ndarray], view: Viewer | None) -> tuple[bytes, str]:
    """A figure and its caption.

    Args:
        samples: (n, *sample_shape) in original units by what they are called, the data first; of tables the first and
            the last are drawn.
        view: what turns samples into images, where they are some.
    """
    if view is not None:
        strips = {name: view(points[:IMAGES]) for name, points in samples.items()}
        return figures.strips(strips), "Images of the data and samples, from the same noise in every row."
    if dataset.sample_shape == (2,):
        return figures.clouds({dataset.name.replace("_", " "): dict(samples)}), "Data and samples from the same noise."
    width, kind = dataset.sample_shape[-1], "columns" if len(dataset.sample_shape) == 1 else "channels"
    names = dataset.columns or tuple(f"{kind[:-1]} {index + 1}" for index in range(width))
    ends = {name: samples[name].reshape(-1, width) for name in (next(iter(samples)), list(samples)[-1])}
    varying = [index for index in range(width) if index not in dict(dataset.constants)][:COLUMNS]
    drawn = {names[i]: {name: rows[:, i] for name, rows in ends.items()} for i in varying}
    return figures.histograms(drawn), f"Distributions of the first {len(drawn)} {kind}, in original units."
