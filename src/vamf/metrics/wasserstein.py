"""Sliced Wasserstein distances between samples.

    SW_p(x, y)^p = mean over directions w on the unit sphere of W_p(<x, w>, <y, w>)^p

In one dimension W_p is the distance between sorted values. Computed with numpy: on a CPU its sort is far faster than
XLA's, and these arrays are on the host.
"""

from collections.abc import Callable

import numpy as np

from vamf.errors import UserError


def sliced_wasserstein(x, y, order: int = 1, projections: int = 500, seed: int = 0) -> float:
    """Sliced Wasserstein distance of any order from 1 between samples x (n, d) and y (m, d).

    The directions depend on `seed`, d and `projections` only, so that distances are comparable.
    Samples of different sizes are compared exactly, through their quantile functions.

    Raises:
        UserError: order below 1, different numbers of columns, or an empty or non-finite sample.
    """
    return distances_to(y, (order,), projections, seed)(x)[f"sw{order}"]


def distances_to(
    y, orders: tuple[int, ...] = (1, 2), projections: int = 500, seed: int = 0
) -> Callable[..., dict[str, float]]:
    """A function x -> distances `sw1`, `sw2`, ... to a fixed sample y, which is projected and sorted once.

    Raises:
        UserError: as in `sliced_wasserstein`, here and in the returned function.
    """
    y = np.asarray(y, np.float64)
    if not y.size:
        raise UserError(f"a sample of shape {y.shape}: two non-empty samples are needed")
    y = y.reshape(len(y), -1)
    if min(orders) < 1 or projections < 1:
        raise UserError(f"order = {min(orders)}, projections = {projections}: allowed is 1 or more for both")
    directions = np.random.default_rng(seed).normal(size=(y.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    centre = y.mean(axis=0)  # a common shift keeps distances, and far from 0 float32 loses digits

    def quantiles(points):
        if not np.isfinite(points).all():
            raise UserError("a sample holds values that are not finite; a distance needs finite numbers")
        # One direction per row: contiguous sorts.
        return np.sort(((points - centre) @ directions).T.astype(np.float32), axis=1)

    quantiles_y = quantiles(y)

    def measure(x) -> dict[str, float]:
        x = np.asarray(x, np.float64)
        if not x.size:
            raise UserError(f"samples of shape {x.shape} and {y.shape}: two non-empty samples are needed")
        x = x.reshape(len(x), -1)
        if x.shape[1] != y.shape[1]:
            raise UserError(f"samples of shape {x.shape} and {y.shape}: tables of equal width are needed")
        sorted_x, sorted_y = quantiles(x), quantiles_y
        weights = None
        if len(x) != len(y):
            # The quantile functions are steps with jumps at i/n and j/m: between two jumps both are constant.
            jumps = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
            weights = np.diff(jumps, prepend=0.0)
            midpoints = jumps - weights / 2
            sorted_x = sorted_x[:, np.minimum((midpoints * len(x)).astype(int), len(x) - 1)]
            sorted_y = sorted_y[:, np.minimum((midpoints * len(y)).astype(int), len(y) - 1)]
        gap = np.abs(sorted_x - sorted_y).astype(np.float64)
        means = {order: np.average(gap**order, axis=1, weights=weights).mean() for order in orders}
        return {f"sw{order}": float(mean ** (1 / order)) for order, mean in means.items()}

    return measure
