"""Samples of several sources in one figure: images, points or tables."""

from collections.abc import Mapping

import numpy as np

from vamf import figures
from vamf.data import Dataset
from vamf.data.columns import Column
from vamf.data.to_images import ToImages
from vamf.report.table_figures import histograms

COLUMNS = 12
"""Columns of a table shown as histograms."""
IMAGES = 12
"""Images of each source."""


def gallery(dataset: Dataset, samples: Mapping[str, np.ndarray], to_images: ToImages | None) -> tuple[bytes, str]:
    """A figure and its caption.

    Args:
        samples: (n, *sample_shape) in original units by name, the data first; of tables the first and the last are
            plotted.
        to_images: converts samples to images, if they are images.
    """
    if to_images is not None:
        image_rows = {name: to_images(points[:IMAGES]) for name, points in samples.items()}
        return figures.image_rows(image_rows), "Images of the data and samples, from the same noise in every row."
    if dataset.sample_shape == (2,):
        return figures.scatter_grid(
            {dataset.name.replace("_", " "): dict(samples)}
        ), "Data and samples from the same noise."
    width, kind = dataset.sample_shape[-1], "columns" if len(dataset.sample_shape) == 1 else "channels"
    names = dataset.columns or tuple(f"{kind[:-1]} {index + 1}" for index in range(width))
    ends = {name: samples[name].reshape(-1, width) for name in (next(iter(samples)), list(samples)[-1])}
    columns = (Column(),) * width if dataset.table is None else dataset.table.columns
    varying = [index for index in range(width) if columns[index].constant is None][:COLUMNS]
    figure = histograms(
        [columns[i] for i in varying], [names[i] for i in varying], {k: rows[:, varying] for k, rows in ends.items()}
    )
    return figure, f"Distributions of the first {len(varying)} {kind}, in original units."
