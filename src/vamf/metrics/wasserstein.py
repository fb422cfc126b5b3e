"""Sliced Wasserstein distances between samples.

    SW_p(x, y)^p = mean over directions w on the unit sphere of W_p(<x, w>, <y, w>)^p

In one dimension W_p is the distance between sorted values. Computed with numpy: on a CPU its sort is far faster than
XLA's, and these arrays live on the host anyway.
"""

import numpy as np

from vamf.errors import UserError


def sliced_wasserstein(x, y, order: int = 1, projections: int = 500, seed: int = 0) -> float:
    """Sliced Wasserstein distance of any order from 1 between samples x (n, d) and y (m, d).

    The directions depend on `seed`, d and `projections` only, so that distances are comparable with one another.
    Samples of different sizes are compared exactly, through their quantile functions.

    Raises:
        UserError: order below 1, different numbers of columns, or an empty or non-finite sample.
    """
    x, y = (np.asarray(points, np.float64) for points in (x, y))
    if not x.size or not y.size:
        raise UserError(f"samples of shape {x.shape} and {y.shape}: two non-empty samples are needed")
    x, y = (points.reshape(len(points), -1) for points in (x, y))
    if order < 1 or projections < 1:
        raise UserError(f"order = {order}, projections = {projections}: allowed is 1 or more for both")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"samples of shape {x.shape} and {y.shape}: tables of equal width are needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("a sample holds values that are not finite; a distance needs finite numbers")
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    centre = y.mean(axis=0)  # a common shift changes no distance, and far from 0 float32 has few digits left
    # One direction per row: contiguous sorts.
    sorted_x, sorted_y = (np.sort(((points - centre) @ directions).T.astype(np.float32), axis=1) for points in (x, y))
    weights = None
    if len(x) != len(y):
        # The quantile functions are steps with jumps at i/n and j/m: between two jumps both are constant.
        jumps = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
        weights = np.diff(jumps, prepend=0.0)
        middle = jumps - weights / 2
        sorted_x = sorted_x[:, np.minimum((middle * len(x)).astype(int), len(x) - 1)]
        sorted_y = sorted_y[:, np.minimum((middle * len(y)).astype(int), len(y) - 1)]
    distances = np.average(np.abs(sorted_x - sorted_y).astype(np.float64) ** order, axis=1, weights=weights)
    return float(distances.mean() ** (1 / order))
