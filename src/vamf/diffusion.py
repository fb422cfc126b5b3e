"""The diffusion of DDPM, and its equivalence to the straight path between data and noise.

Ho et al., *Denoising Diffusion Probabilistic Models* (arXiv:2006.11239): T steps, numbered k = 0 ... T - 1,

    z_k = sqrt(abar_k) x + sqrt(1 - abar_k) e,      abar_k = prod_{i <= k} (1 - beta_i)             [their eq. 4]
    x_hat = (z_k - sqrt(1 - abar_k) e_hat) / sqrt(abar_k)                                           [eq. 15]
    q(z_j | z_k, x) = N(of_x x + of_z z_k, variance I),  j < k                                      [eqs. 6, 7]

and a network e_hat(z_k, k) for e, trained with E ||e - e_hat||^2 [eq. 14]. Song et al. (arXiv:2010.02502, eq. 7) keep
every q(z_k | x) with any smaller variance, 0 included. With j = -1, abar_{-1} = 1, for the data.

The straight path z_t = (1 - t) x + t e has the same points at another scale: with alpha = sqrt(abar_k) and
sigma = sqrt(1 - abar_k),

    t = sigma / (alpha + sigma),    z_k = z_t / sqrt((1 - t)^2 + t^2),    v_hat = (e_hat - z_t) / (1 - t),

so that e_hat - e = (1 - t) (v_hat - (e - x)). Hence a noise prediction is equivalent to a velocity v(z, t), and
DDPM's training is flow matching with another distribution of t and the weight (1 - t)^2.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vamf.average_velocity import AverageVelocity, instantaneous_velocity
from vamf.errors import require
from vamf.path import expand

NoisePrediction = Callable[[Any, Any, Any], Any]
"""e_hat(z, k, label): z of shape (batch, *event), step numbers k (batch,) as floats, label (batch,) or None."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A diffusion whose variances beta rise linearly; the defaults are DDPM's."""

    steps: int = 1000
    """T."""
    first: float = 1e-4
    """beta_0."""
    last: float = 0.02
    """beta_{T-1}."""

    def __post_init__(self):
        require(self.steps >= 1, "diffusion.steps", self.steps, "1 or more")
        rising = 0 < self.first <= self.last < 1
        require(rising, "diffusion.first, diffusion.last", f"{self.first}, {self.last}", "0 < first <= last < 1")

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """abar_k at index k, in float64; the entry after the last one, index -1 too, is that of the data, 1."""
        return np.append(np.cumprod(1 - np.linspace(self.first, self.last, self.steps)), 1.0)

    @cached_property
    def times(self) -> np.ndarray:
        """t of each step on the straight path, in float64, rising."""
        sigma = np.sqrt(1 - self.alpha_bar[:-1])
        return sigma / (np.sqrt(self.alpha_bar[:-1]) + sigma)

    # --------------------------------------------------------------------------------------------- on the diffusion

    def diffuse(
        self, x: Float[Array, "batch *event"], e: Float[Array, "batch *event"], k: Int[Array, " batch"]
    ) -> Float[Array, "batch *event"]:
        """z_k."""
        alpha_bar = expand(jnp.asarray(self.alpha_bar, x.dtype)[k], x)
        return jnp.sqrt(alpha_bar) * x + jnp.sqrt(1 - alpha_bar) * e

    def posterior_variance(self, k: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Variance of z_j given z_k and x, for each pair of step numbers j < k."""
        a, b = self.alpha_bar[k], self.alpha_bar[j]
        return (1 - b) / (1 - a) * (1 - a / b)

    def mean_of(self, k: np.ndarray, j: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(of_x, of_z): z_j ~ N(of_x x + of_z z_k, variance) has the distribution q(z_j | x) if z_k has q(z_k | x).

        With the posterior variance it is the mean of z_j given z_k and x; with 0, a deterministic step.
        """
        a, b = self.alpha_bar[k], self.alpha_bar[j]
        of_z = np.sqrt((1 - b - variance) / (1 - a))
        return np.sqrt(b) - np.sqrt(a) * of_z, of_z

    # ------------------------------------------------------------------------------------ to and from the straight path

    def locate(
        self, z: Float[Array, "batch *event"], t: Float[Array, " batch"]
    ) -> tuple[Float[Array, "batch *event"], Float[Array, " batch"]]:
        """The diffusion's point and step number for a point of the straight path.

        Between steps the number is interpolated; outside of them it is the nearest one.
        """
        t = self._clip_time(t)
        k = jnp.interp(t, jnp.asarray(self.times, t.dtype), jnp.arange(self.steps, dtype=t.dtype))
        return z / expand(jnp.sqrt((1 - t) ** 2 + t**2), z), k

    def velocity(
        self, e_hat: Float[Array, "batch *event"], z: Float[Array, "batch *event"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *event"]:
        """The velocity at a point z of the straight path, from the noise predicted there.

        Times after the last step, where the noise does not determine the velocity, count as that of the last step.
        """
        return (e_hat - z) / expand(1 - self._clip_time(t), z)

    def noise_prediction(self, u: AverageVelocity) -> NoisePrediction:
        """The noise prediction that is equivalent to the diagonal of an average velocity."""

        def e_hat(z, k, label):
            t = jnp.asarray(self.times, z.dtype)[k.astype(jnp.int32)]
            z = z * expand(jnp.sqrt((1 - t) ** 2 + t**2), z)
            return z + expand(1 - t, z) * instantaneous_velocity(u, z, t, label)

        return e_hat

    def _clip_time(self, t):
        return jnp.minimum(t, jnp.asarray(self.times[-1], t.dtype))


DDPM = Diffusion()
"""The diffusion of the paper, which networks that predict noise, the objective `ddpm` and the samplers share."""
