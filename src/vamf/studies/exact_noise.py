"""The noise of the mixed tangent for a known data distribution, before anything is trained.

Lu and Wang (arXiv:2605.09235), eqs. 9, 27 and 30, at the exact average velocity u of a Gaussian mixture, in output
space (G = I) and with a proxy of no bias. There the deterministic residual is zero, and with the flow map's Jacobian S
from t to r, M = (t - r) du/dz = I - S and Sigma = Cov[v_c | z],

    noise(beta) = E||R_beta||^2 = tr(N Sigma N^T),  N = (1 - beta) S + beta I
                = tr(S Sigma S^T) - 2 beta tr(M^T A Sigma) + beta^2 tr(M^T M Sigma),  A = -S,

so beta = 0 has the amplified noise tr(S Sigma S^T) and beta = 1 the noise floor tr Sigma: mixing pays where the flow
map expands noise. S is exact: one tangent for each direction through the ODE.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vamf.objectives import Objective
from vamf.path import interpolate
from vamf.theory import GaussianMixture
from vamf.theory.estimate import ratio_of
from vamf.times import TimeDistribution, Uniform

ROWS = 64
"""Points whose Jacobians are computed together."""
POINTS = 384
"""Points at which an objective's noise is predicted."""
TIMES = tuple(round(0.1 * index, 1) for index in range(1, 11))
GAP = 0.25


class Noise(NamedTuple):
    """The parabola noise(beta) of each point."""

    stochastic: Float[np.ndarray, " n"]
    """tr(S Sigma S^T), the noise at beta = 0."""
    cross: Float[np.ndarray, " n"]
    """tr(M^T A Sigma)."""
    mixed: Float[np.ndarray, " n"]
    """tr(M^T M Sigma), 0 at r = t."""

    def at(self, beta: Float[np.ndarray, " n"] | float) -> Float[np.ndarray, " n"]:
        """The noise at beta: one for all points or one for each."""
        return self.stochastic - 2 * beta * self.cross + beta**2 * self.mixed

    def best(self) -> Float[np.ndarray, " n"]:
        """beta* of each point, in [0, 1]; 0 where every beta is as good."""
        return np.array([_vertex(*pair) for pair in zip(self.cross, self.mixed, strict=True)])

    def best_constant(self) -> float:
        """The beta in [0, 1] of least mean noise."""
        return _vertex(float(self.cross.mean()), float(self.mixed.mean()))


def noise(mixture: GaussianMixture, z: Float[Array, "n d"], r: Float[Array, " n"], t: Float[Array, " n"]) -> Noise:
    """The exact parabola at each point."""
    parts = [_noise(mixture, *(part[first : first + ROWS] for part in (z, r, t))) for first in range(0, len(z), ROWS)]
    return Noise(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def sample_noise(
    mixture: GaussianMixture, times: TimeDistribution, n: int, seed: int = 0
) -> tuple[Noise, Bool[np.ndarray, " n"]]:
    """The exact parabola at n points, (r, t) as a run draws them and z_t from the data; and which have r < t."""
    data_key, noise_key, time_key = jax.random.split(jax.random.key(seed), 3)
    r, t = times.draw(time_key, n)
    z = interpolate(mixture.sample(data_key, n), jax.random.normal(noise_key, (n, mixture.dim)), t)
    return noise(mixture, z, r, t), np.asarray(r < t)


def training_noise(mixture: GaussianMixture, n: int, seed: int = 0) -> dict[str, Any]:
    """Noise over n points of the training distribution: (r, t) as in training, with rows r = t, z_t from the data.

    Returns:
        `curve`: noise(beta) over noise(0), its standard error beside it, at the betas 0, 0.1, ..., 1;
        `best_beta`: the constant of least noise; `best_ratio`: its noise over that at 0; `pointwise_ratio`: the same
        for the best beta at each point; `fraction`: of the points with r < t, that with beta* > 1/2.
    """
    parabola, off_diagonal = sample_noise(mixture, Uniform(), n, seed)
    betas = [round(0.1 * index, 1) for index in range(11)]
    ratios = [ratio_of(parabola.at(beta), parabola.stochastic) for beta in betas]
    best, each = parabola.best_constant(), parabola.best()
    return {
        "points": n,
        "curve": {
            "beta": betas,
            "ratio": [ratio.value for ratio in ratios],
            "error": [ratio.error for ratio in ratios],
        },
        "best_beta": best,
        "best_ratio": ratio_of(parabola.at(best), parabola.stochastic).value,
        "pointwise_ratio": ratio_of(parabola.at(each), parabola.stochastic).value,
        "fraction": float(np.mean(each[off_diagonal] > 0.5)),
    }


def predict_noise(mixture: GaussianMixture, objective: Objective, steps: int, n: int | None = None) -> float | None:
    """E tr(N Sigma N^T) at the exact u of a mixture over an objective's distribution of (r, t), late in training.

    None where N is no combination of S and I.
    """
    operators = objective.noise(steps)
    if operators is None:
        return None
    a, b = operators
    exact, off_diagonal = sample_noise(mixture, objective.times, n or POINTS)
    scale = a + b  # N = scale [(1 - beta) S + beta I], or a (S - I) where scale is 0
    off_diagonal_noise = scale**2 * exact.at(b / scale) if abs(scale) > 1e-9 else a**2 * exact.mixed
    scale_on_diagonal = objective.diagonal.noise(steps)
    assert scale_on_diagonal is not None
    return float(np.mean(np.where(off_diagonal, off_diagonal_noise, scale_on_diagonal**2 * exact.at(1.0))))


def noise_over_time(mixture: GaussianMixture, n: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Amplification tr(S Sigma S^T) / tr Sigma and beta*, means over n points z_t at each t: to r = 0 and over `GAP`.

    Returns:
        for `r = 0` and `gap` the lists `t`, `amplification`, its standard `error`, and `beta`.
    """
    data_key, noise_key = jax.random.split(jax.random.key(seed))
    x, e = mixture.sample(data_key, n), jax.random.normal(noise_key, (n, mixture.dim))
    lines = {}
    starts_of = {"r = 0": dict.fromkeys(TIMES, 0.0), "gap": {t: t - GAP for t in TIMES if t >= GAP}}
    for name, starts in starts_of.items():
        line: dict[str, list[float]] = {"t": [], "amplification": [], "error": [], "beta": []}
        for t, r in starts.items():
            times = jnp.full(n, t)
            parabola = noise(mixture, interpolate(x, e, times), jnp.full(n, r), times)
            amplification = ratio_of(parabola.stochastic, parabola.at(1.0))
            line["t"].append(t)
            line["amplification"].append(amplification.value)
            line["error"].append(amplification.error)
            line["beta"].append(parabola.best_constant())
        lines[name] = line
    return lines


@functools.cache
def three_modes() -> GaussianMixture:
    """Three modes in two dimensions, of std 0.5 on a circle of radius 1.5."""
    angle = np.pi / 2 + 2 * np.pi * np.arange(3) / 3
    means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return GaussianMixture(np.full(3, 1 / 3), means, np.full(3, 0.5))


class Plane(NamedTuple):
    """Values over a square of points, (rows along y, columns along x)."""

    variance: Float[np.ndarray, "side side"]
    """tr Sigma."""
    amplified: Float[np.ndarray, "side side"]
    """tr(S Sigma S^T) for the jump to r = 0."""
    log_density: Float[np.ndarray, "side side"]
    """log p_t."""


def plane(mixture: GaussianMixture, t: float, reach: float, side: int = 80) -> Plane:
    """Noise over the square [-reach, reach]^2 at time t, of a mixture in two dimensions."""
    line = jnp.linspace(-reach, reach, side)
    z = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
    times = jnp.full(len(z), t)
    expansion = mixture.flow_map_jacobian(z, times, jnp.zeros(len(z)))
    covariance = mixture.velocity_covariance(z, times)
    amplified = jnp.einsum("nij,njk,nik->n", expansion, covariance, expansion)
    values = mixture.total_variance(z, times), amplified, mixture.log_density(z, times)
    return Plane(*(np.asarray(value, np.float64).reshape(side, side) for value in values))


def _noise(mixture: GaussianMixture, z, r, t) -> Noise:
    s = np.asarray(mixture.flow_map_jacobian(z, t, r), np.float64)
    sigma = np.asarray(mixture.velocity_covariance(z, t), np.float64)
    m = np.eye(mixture.dim) - s

    def trace(left, right):
        return np.einsum("nji,njk,nki->n", left, right, sigma, optimize=True)  # tr(left^T right Sigma)

    return Noise(trace(s, s), trace(m, -s), trace(m, m))


def _vertex(cross: float, mixed: float) -> float:
    return float(np.clip(cross / mixed, 0, 1)) if mixed > 1e-9 else 0.0
