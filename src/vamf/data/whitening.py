"""Whitening: data whose covariance is the identity, up to a floor on the eigenvalues.

Flow matching learns directions of high variance first and stagnates in those of low variance where the covariance is
ill-conditioned (preconditioned flow matching, arXiv:2603.02337). With the covariance U diag(l) U^T of the data

    y = D^{-1/2} U^T (x - mean),        D = diag(max(l, floor l_max))

is the training data, and samples are mapped back. This changes the Jacobian S of the flow map, and with it the optimal
beta.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vamf.data.dataset import Dataset

NUM_SAMPLES = 2**15
"""Samples for the mean and covariance."""


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The whitening transform; calling it maps whitened samples (..., *shape) back."""

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

    @property
    def log_det(self) -> float:
        """log |det d forward(x) / dx|: U is a rotation."""
        return -float(np.sum(np.log(self.spread)))

    def forward(self, samples: np.ndarray) -> np.ndarray:
        """Samples (..., *shape) -> whitened coordinates, float32."""
        flat = np.asarray(samples, np.float64).reshape(*samples.shape[: samples.ndim - len(self.shape)], -1)
        return ((flat - self.mean) @ (self.vectors / self.spread)).reshape(samples.shape).astype(np.float32)


def whiten(dataset: Dataset, floor: float) -> Dataset:
    """The data set in whitened coordinates.

    Args:
        floor: smallest eigenvalue that is scaled to 1, relative to the largest; smaller ones keep their proportion.
    """
    return apply(dataset, fit(dataset, floor))


def fit(dataset: Dataset, floor: float) -> Whitening:
    """The transform that whitens a data set; `floor` as in `whiten`."""
    shape = dataset.event_shape
    samples = dataset.draw(dataset.arrays, jax.random.key(0), NUM_SAMPLES)[0]
    flat = np.asarray(samples, np.float64).reshape(NUM_SAMPLES, -1)
    mean = flat.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False).reshape(len(mean), len(mean)))
    return Whitening(mean, vectors, np.sqrt(np.maximum(values, floor * values[-1])), shape)


def apply(dataset: Dataset, whitener: Whitening) -> Dataset:
    """The data set in whitened coordinates; without its mixture, whose components are no longer isotropic."""
    matrix = jnp.asarray(whitener.vectors / whitener.spread, jnp.float32)
    centre = jnp.asarray(whitener.mean, jnp.float32)

    def whiten_samples(x):
        flat = jnp.matmul(x.reshape(len(x), -1) - centre, matrix, precision=jax.lax.Precision.HIGHEST)
        return flat.reshape(x.shape)

    def whiten_draw(draw):
        def whitened_draw(*args):
            x, cond = draw(*args)
            return whiten_samples(x), cond

        return whitened_draw

    stream = None if dataset.stream is None else dataset.stream._replace(take=whiten_draw(dataset.stream.take))
    start = (
        None if dataset.start is None else (lambda *args, draw_start=dataset.start: whiten_samples(draw_start(*args)))
    )
    return dataclasses.replace(
        dataset,
        draw=whiten_draw(dataset.draw),
        stream=stream,
        start=start,
        inverse_transform=whitener,
        mixture=None,
        clip_range=None,
    )
