"""The samplers of diffusion models: ancestral (DDPM) and DDIM, over a network e_hat(z, k, label) for the noise.

Ho et al. (arXiv:2006.11239, algorithm 2) and Song et al. (arXiv:2010.02502, eqs. 12 and 16). Both follow step
numbers k_1 > k_2 > ... > k_S >= 0 and then the data, number j = -1, with an estimate of x,

    x_hat = clip((z - sqrt(1 - abar_k) e_hat) / sqrt(abar_k)),    z <- of_x x_hat + of_z z + deviation n,  n ~ N(0, I)

| sampler            | variance of mean_of           | deviation                              |
|--------------------|-------------------------------|----------------------------------------|
| `ancestral`, small | the posterior's               | its square root                        |
| `ancestral`, large | the posterior's               | sqrt(1 - abar_k / abar_j), 0 at j = -1 |
| `ddim`             | eta^2 times the posterior's   | its square root                        |

of_x and of_z are `vamf.diffusion.Diffusion.mean_of`. Between neighbouring steps 1 - abar_k / abar_j is beta_k. With
eta = 1 `ddim` is `ancestral` with the small variance; with eta = 0 it is deterministic given the initial noise.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vamf.conditioning import Cond
from vamf.diffusion import DDPM, Diffusion, NoisePrediction
from vamf.errors import require


def ancestral(
    e_hat: NoisePrediction,
    noise: Float[Array, "batch *event"],
    key: Key[Array, ""],
    steps: int | Sequence[int] | None = None,
    label: Cond = None,
    *,
    variance: Literal["large", "small"] = "large",
    clip_range: float | None = None,
    diffusion: Diffusion = DDPM,
) -> Float[Array, "batch *event"]:
    """Data from noise by DDPM's reverse chain, one call of e_hat a step.

    Args:
        steps: a number of evenly spaced steps, or the decreasing step numbers; by default all of the diffusion's.
        variance: of each step: large is beta of the diffusion, exact for data of variance 1; small that of the
            posterior, exact for a single data point.
        clip_range: largest absolute value of x_hat, if data are bounded; images in [-1, 1] are published with 1.
    """
    require(variance in ("large", "small"), "variance", variance, "large, small")
    k, j = _step_numbers(steps, diffusion)
    small = diffusion.posterior_variance(k, j)
    large = np.where(j < 0, 0.0, 1 - diffusion.alpha_bar[k] / diffusion.alpha_bar[j])
    return _reverse_chain(
        e_hat, noise, key, label, diffusion, k, j, small, large if variance == "large" else small, clip_range
    )


def ddim(
    e_hat: NoisePrediction,
    noise: Float[Array, "batch *event"],
    steps: int | Sequence[int],
    label: Cond = None,
    *,
    eta: float = 0.0,
    key: Key[Array, ""] | None = None,
    clip_range: float | None = None,
    diffusion: Diffusion = DDPM,
) -> Float[Array, "batch *event"]:
    """Data from noise by DDIM, one call of e_hat a step.

    Args:
        steps: a number of evenly spaced steps, or the decreasing step numbers.
        eta: fraction of the posterior's standard deviation, in [0, 1]; 0 is deterministic and needs no key.
        clip_range: largest absolute value of x_hat; published without one.
    """
    require(0 <= eta <= 1, "eta", eta, "[0, 1]")
    require(eta == 0 or key is not None, "key", key, "a random key, where eta is above 0")
    k, j = _step_numbers(steps, diffusion)
    noise_variance = eta**2 * diffusion.posterior_variance(k, j)
    return _reverse_chain(
        e_hat, noise, key if eta else None, label, diffusion, k, j, noise_variance, noise_variance, clip_range
    )


def _reverse_chain(e_hat, noise, key, label, diffusion, k, j, variance, noise_variance, clip_range):
    of_x, of_z = diffusion.mean_of(k, j, variance)
    alpha_bar = diffusion.alpha_bar[k]
    columns = (k, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), of_x, of_z, np.sqrt(noise_variance))
    keys = None if key is None else jax.random.split(key, len(k))

    def step(z, row):
        (number, alpha, sigma, of_x, of_z, deviation), key = row
        x = (z - sigma * e_hat(z, jnp.full(z.shape[:1], number), label)) / alpha
        if clip_range is not None:
            x = jnp.clip(x, -clip_range, clip_range)
        z = of_x * x + of_z * z
        if key is not None:
            z = z + deviation * jax.random.normal(key, z.shape, z.dtype)
        return z, None

    table = tuple(jnp.asarray(column, noise.dtype) for column in columns)
    return jax.lax.scan(step, noise, (table, keys))[0]


def _step_numbers(steps: int | Sequence[int] | None, diffusion: Diffusion) -> tuple[np.ndarray, np.ndarray]:
    """Step numbers k, and for each the number j that it leads to; a count S stands for floor(i T / S), i < S."""
    total = diffusion.steps
    if steps is None or isinstance(steps, int | np.integer):
        count = total if steps is None else int(steps)
        require(1 <= count <= total, "steps", steps, f"1 to {total}")
        k = np.arange(count)[::-1] * total // count
    else:
        k = np.asarray(steps)
        is_integer = k.ndim == 1 and k.size >= 1 and k.dtype.kind in "iu"
        valid = is_integer and k[0] < total and k[-1] >= 0 and np.all(k[1:] < k[:-1])
        require(
            bool(valid), "steps", tuple(steps), f"a number, or step numbers that decrease from {total - 1} or less to 0"
        )
    return k, np.append(k[1:], -1)
