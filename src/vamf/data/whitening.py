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


def whiten(dataset: Dataset, floor: float) -> Dataset:
    """The data set in whitened coordinates; the law of a mixture is no longer one of round components.

    Args:
        floor: smallest eigenvalue that is scaled to 1, relative to the largest; smaller ones keep their proportion.
    """
    shape = dataset.event_shape
    drawn = dataset.draw(dataset.arrays, jax.random.key(0), POINTS)[0]
    points = np.asarray(drawn, np.float64).reshape(POINTS, -1)
    mean = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False).reshape(len(mean), len(mean)))
    spread = np.sqrt(np.maximum(values, floor * values[-1]))
    to_white = jnp.asarray(vectors / spread, jnp.float32)
    centre = jnp.asarray(mean, jnp.float32)

    def whitened(draw):
        def drawn(*arguments):
            x, label = draw(*arguments)
            flat = jnp.matmul(x.reshape(len(x), -1) - centre, to_white, precision=jax.lax.Precision.HIGHEST)
            return flat.reshape(x.shape), label

        return drawn

    def restore(samples: np.ndarray) -> np.ndarray:
        flat = np.asarray(samples, np.float64).reshape(*samples.shape[: samples.ndim - len(shape)], -1)
        return (flat @ (vectors * spread).T + mean).reshape(samples.shape)

    stream = None if dataset.stream is None else dataset.stream._replace(take=whitened(dataset.stream.take))
    return dataclasses.replace(
        dataset, draw=whitened(dataset.draw), stream=stream, restore=restore, mixture=None, bound=None
    )
