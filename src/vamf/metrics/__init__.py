"""Sample-quality metrics."""

from vamf.metrics.wasserstein import sliced_wasserstein

__all__ = ["sliced_wasserstein"]
