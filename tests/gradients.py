"""Comparing random gradients by their inner products, whatever the number of parameters."""

import numpy as np


def squared_mean(samples):
    """||E[g]||^2 without bias from independent samples (n, p), and its standard error if E[g] = 0.

    The mean of g_i . g_j over i != j is unbiased; under E[g] = 0 these products are uncorrelated.
    """
    samples = np.asarray(samples, np.float64)
    count = len(samples)
    products = (samples @ samples.T)[~np.eye(count, dtype=bool)]
    return products.mean(), np.sqrt(2 * np.mean(products**2) / (count * (count - 1)))


def total_variance(samples):
    """tr Cov and its standard error."""
    samples = np.asarray(samples, np.float64)
    squares = np.sum((samples - samples.mean(axis=0)) ** 2, axis=1) * len(samples) / (len(samples) - 1)
    return squares.mean(), squares.std(ddof=1) / np.sqrt(len(samples))
