"""Whitening: the network sees data whose covariance is the identity, up to a floor.

Flow matching learns directions of high variance first and stagnates in those of low variance where the covariance is
ill-conditioned (preconditioned flow matching, arXiv:2603.02337). With the covariance U diag(l) U^T of the data

    y = D^{-1/2} U^T (x - mean),        D = diag(max(l, floor l_max))

is what is trained on, and samples are mapped back. It changes the Jacobian S of the flow map, and with it the best
beta, too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vamf.data.dataset import Dataset

POINTS = 2**15
"""Draws from which mean and covariance are taken."""


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The change of coordinates; called, it undoes itself on samples (..., *shape)."""

    mean: np.ndarray
    vectors: np.ndarray
    """U, an eigenvector in each column."""
    spread: np.ndarray
    """The diagonal of D^{1/2}."""
    shape: tuple[int, ...]
    """Shape of one sample."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        flat = np.asarray(samples, np.float64).reshape(*samples.shape[: samples.ndim - len(self.shape)], -1)
        return (flat @ (self.vectors * self.spread).T + self.mean).reshape(samples.shape)

    def forward(self, samples: np.ndarray) -> np.ndarray:
        """Samples (..., *shape) in these coordinates, in single precision."""
        flat = np.asarray(samples, np.float64).reshape(*samples.shape[: samples.ndim - len(self.shape)], -1)
        return ((flat - self.mean) @ (self.vectors / self.spread)).reshape(samples.shape).astype(np.float32)


def whiten(dataset: Dataset, floor: float) -> Dataset:
    """The data set in whitened coordinates.

    Args:
        floor: smallest eigenvalue that is scaled to 1, relative to the largest; smaller ones keep their proportion.
    """
    return apply(dataset, fit(dataset, floor))


def fit(dataset: Dataset, floor: float) -> Whitening:
    """The change of coordinates that whitens a data set; `floor` as `whiten` takes it."""
    shape = dataset.event_shape
    drawn = dataset.draw(dataset.arrays, jax.random.key(0), POINTS)[0]
    points = np.asarray(drawn, np.float64).reshape(POINTS, -1)
    mean = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False).reshape(len(mean), len(mean)))
    return Whitening(mean, vectors, np.sqrt(np.maximum(values, floor * values[-1])), shape)


def apply(dataset: Dataset, change: Whitening) -> Dataset:
    """The data set in other coordinates; the law of a mixture is no longer one of round components."""
    to_white = jnp.asarray(change.vectors / change.spread, jnp.float32)
    centre = jnp.asarray(change.mean, jnp.float32)

    def white(x):
        flat = jnp.matmul(x.reshape(len(x), -1) - centre, to_white, precision=jax.lax.Precision.HIGHEST)
        return flat.reshape(x.shape)

    def whitened(draw):
        def drawn(*arguments):
            x, cond = draw(*arguments)
            return white(x), cond

        return drawn

    stream = None if dataset.stream is None else dataset.stream._replace(take=whitened(dataset.stream.take))
    start = None if dataset.start is None else (lambda *arguments, first=dataset.start: white(first(*arguments)))
    return dataclasses.replace(
        dataset,
        draw=whitened(dataset.draw),
        stream=stream,
        start=start,
        restore=change,
        mixture=None,
        bound=None,
    )
