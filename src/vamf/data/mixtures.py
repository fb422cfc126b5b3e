"""Data with a known distribution: dense Gaussian mixtures in any dimension, and the 2-D toys as mixtures.

The dense mixtures `dgmm<d>` are those of the paper (arXiv:2605.09235): 64 components of equal weight and std 0.5, their
centres on the sphere of radius 1.5. Every batch is drawn anew, as for the toys.

The toys are points of a curve or an area plus Gaussian noise of std s, so a sum over points at spacing delta makes them
mixtures too. The sum differs from the integral by a relative error of 2 exp(-2 pi^2 (s/delta)^2), below 1e-8 at
delta = s; at the end of a curve the relative error of the density is at most (delta/s)^2 / 24.

| toy             | components                      | delta / s    | how it differs from the toy                    |
|-----------------|---------------------------------|--------------|------------------------------------------------|
| eight_gaussians | its own 8                       |              | exact                                          |
| two_moons       | 2 x 128 along the arcs          | 0.31         | exact in practice: 0.4 % at the four ends      |
| swiss_roll      | 512 along the roll              | 0.14 to 0.41 | exact in practice: 0.7 % at the outer end      |
| two_spirals     | 2 x 256 along the arms          | 0.44 to 0.87 | exact in practice: 1 % at the outer ends       |
| pinwheel        | 5 x 85 along, full covariances  | 1            | straight within 0.03 of an arm: about 0.003    |
| checkerboard    | 8 squares x 8 x 8, s = 0.125    | 2            | edges blurred by s; ripples of 1.4 %           |
"""

import functools
import re
from collections.abc import Callable

import jax
import numpy as np

from vamf.data.dataset import Dataset
from vamf.errors import UserError, require
from vamf.theory.mixture import GaussianMixture

NAMES = ("dgmm2", "dgmm4", "dgmm8", "dgmm16", "dgmm32", "dgmm64")
"""The dense mixtures of the paper; `load` takes any dimension."""
_PATTERN = re.compile(r"dgmm([1-9]\d*)")


@functools.cache
def dense_gaussian_mixture(dim: int, seed: int = 0) -> GaussianMixture:
    """64 components of weight 1/64 and std 0.5, centres uniform on the sphere of radius 1.5 in R^dim.

    Args:
        seed: of the centres, which are the same in every run.
    """
    require(dim >= 1, "dim", dim, "1 or more")
    centres = np.random.default_rng(seed).normal(size=(64, dim))
    centres *= 1.5 / np.linalg.norm(centres, axis=1, keepdims=True)
    return GaussianMixture(np.full(64, 1 / 64), centres, np.full(64, 0.5))


def is_name(name: str) -> bool:
    """Whether a name is dgmm<d>, for any dimension d."""
    return _PATTERN.fullmatch(name) is not None


def load(name: str) -> Dataset:
    """dgmm<d> as a data set; its reference points are drawn with keys that training never uses."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UserError(f"data = {name!r}: allowed are {', '.join(NAMES)}, or dgmm and any other dimension")
    dim = int(match[1])
    mixture = dense_gaussian_mixture(dim)
    return Dataset(
        name=name,
        event_shape=(dim,),
        arrays=(),
        draw=lambda _, key, n: (mixture.sample(key, n), None),
        reference=lambda n, seed: np.asarray(mixture.sample(jax.random.key(2**31 + seed), n)),
        summary=f"{name}: {dim}-D points from 64 Gaussians, drawn afresh for every batch",
        mixture=mixture,
    )


@functools.cache
def toy_mixture(name: str) -> GaussianMixture:
    """A 2-D toy as a mixture; the table above states the error."""
    if name not in _TOYS:
        raise UserError(f"data = {name!r}: allowed are {', '.join(_TOYS)}")
    return _TOYS[name]()


def checkerboard() -> GaussianMixture:
    corners = [(across, down) for across in range(-4, 4, 2) for down in range(-4, 4, 2) if (across + down) % 4 == 0]
    cells = 0.25 * (np.arange(8) + 0.5)
    offsets = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)
    return _uniform_mixture((np.array(corners)[:, None] + offsets).reshape(-1, 2), 0.125)


def eight_gaussians() -> GaussianMixture:
    return _uniform_mixture(3.0 * _on_circle(2 * np.pi * np.arange(8) / 8), 0.25)


def two_moons() -> GaussianMixture:
    upper = _on_circle(np.pi * _midpoints(128))
    return _uniform_mixture(2 * np.concatenate([upper, [1.0, 0.5] - upper]), 0.16)


def swiss_roll() -> GaussianMixture:
    angle = 1.5 * np.pi * (1 + 2 * _midpoints(512))
    return _uniform_mixture(angle[:, None] * _on_circle(angle) / 8, 0.08)


def two_spirals() -> GaussianMixture:
    angle = 3 * np.pi * np.sqrt(_midpoints(256))
    arm = angle[:, None] * _on_circle(np.pi - angle) / 5
    return _uniform_mixture(np.concatenate([arm, -arm]), 0.08)


def pinwheel() -> GaussianMixture:
    # The standard normal along an arm is a sum of normals of std s at spacing s: convolution of N(0, 1 - s^2) with
    # N(0, s^2), the former by the trapezoidal rule. Within a component the arm is straight.
    s = 0.1
    nodes = s * np.arange(-42, 43)
    weights = np.exp(-(nodes**2) / (2 * (1 - s**2)))
    along, arm = (grid.ravel() for grid in np.meshgrid(1 + 0.3 * nodes, np.arange(5)))
    bend = 0.25 * np.exp(along)  # also its own derivative
    angle = 2 * np.pi * arm / 5 + bend
    outward = np.stack([np.cos(angle), -np.sin(angle)], axis=1)
    sideward = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    forward = outward - (along * bend)[:, None] * sideward  # derivative of along * outward
    factors = np.stack([0.3 * s * forward, 0.1 * sideward], axis=2)
    return GaussianMixture(
        np.tile(weights / weights.sum() / 5, 5),
        1.5 * along[:, None] * outward,
        covariances=1.5**2 * factors @ np.swapaxes(factors, 1, 2),
    )


def _uniform_mixture(means: np.ndarray, std: float) -> GaussianMixture:
    return GaussianMixture(np.full(len(means), 1 / len(means)), means, np.full(len(means), std))


def _midpoints(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def _on_circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


_TOYS: dict[str, Callable[[], GaussianMixture]] = {
    toy.__name__: toy for toy in (checkerboard, eight_gaussians, two_moons, swiss_roll, two_spirals, pinwheel)
}
