"""Sample-quality metrics."""

from vamf.metrics.frechet import frechet_distance
from vamf.metrics.wasserstein import sliced_wasserstein

__all__ = ["frechet_distance", "sliced_wasserstein"]
