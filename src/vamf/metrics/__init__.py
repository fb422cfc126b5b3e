"""Sample-quality metrics."""

from vamf.metrics.frechet import frechet_distance
from vamf.metrics.wasserstein import distances_to, sliced_wasserstein

__all__ = ["distances_to", "frechet_distance", "sliced_wasserstein"]
