"""The six 2-D data sets of the paper (arXiv:2605.09235, appendix; parameters of its toy code).

Every call draws new points. Nothing is standardised: the optimal tangent mix depends on the scale of the data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vamf.data.dataset import Dataset
from vamf.errors import UserError


def checkerboard(key, n):
    across, down, row_key = jax.random.split(key, 3)
    x1 = jax.random.uniform(across, (n,), minval=-2.0, maxval=2.0)
    x2 = jax.random.uniform(down, (n,)) - 2.0 * jax.random.bernoulli(row_key, 0.5, (n,)) + jnp.floor(x1) % 2
    return 2.0 * jnp.stack([x1, x2], axis=1)


def eight_gaussians(key, n, radius=3.0, std=0.25):
    mode_key, noise_key = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.randint(mode_key, (n,), 0, 8) / 8
    return radius * _on_circle(angle) + std * jax.random.normal(noise_key, (n, 2))


def two_moons(key, n, noise=0.08):
    mode_key, along, noise_key = jax.random.split(key, 3)
    lower = jax.random.bernoulli(mode_key, 0.5, (n,))
    angle = jnp.pi * jax.random.uniform(along, (n,))
    upper_moon = _on_circle(angle)
    lower_moon = jnp.stack([1 - jnp.cos(angle), 0.5 - jnp.sin(angle)], axis=1)
    moons = jnp.where(lower[:, None], lower_moon, upper_moon) + noise * jax.random.normal(noise_key, (n, 2))
    return 2.0 * moons


def swiss_roll(key, n, noise=0.08):
    along, noise_key = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(along, (n,)))
    return angle[:, None] * _on_circle(angle) / 8 + noise * jax.random.normal(noise_key, (n, 2))


def two_spirals(key, n, noise=0.08):
    mode_key, along, noise_key = jax.random.split(key, 3)
    angle = jnp.sqrt(jax.random.uniform(along, (n,))) * jnp.deg2rad(540.0)
    sign = jnp.where(jax.random.bernoulli(mode_key, 0.5, (n,)), 1.0, -1.0)
    arm = jnp.stack([-jnp.cos(angle), jnp.sin(angle)], axis=1) * (sign * angle)[:, None]
    return arm / 5 + noise * jax.random.normal(noise_key, (n, 2))


def pinwheel(key, n, arms=5, radial=0.3, tangential=0.1, rate=0.25):
    mode_key, noise_key = jax.random.split(key)
    arm = jax.random.randint(mode_key, (n,), 0, arms)
    along, across = (jax.random.normal(noise_key, (n, 2)) * jnp.array([radial, tangential]) + jnp.array([1.0, 0.0])).T
    angle = 2 * jnp.pi * arm / arms + rate * jnp.exp(along)
    return 1.5 * jnp.stack(
        [jnp.cos(angle) * along + jnp.sin(angle) * across, jnp.cos(angle) * across - jnp.sin(angle) * along], axis=1
    )


def _on_circle(angle):
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


_SAMPLERS: dict[str, Callable] = {
    sampler.__name__: sampler
    for sampler in (checkerboard, eight_gaussians, two_moons, swiss_roll, two_spirals, pinwheel)
}
NAMES = tuple(_SAMPLERS)
"""Names of the data sets."""


def sample(name: str, key: Key[Array, ""], n: int) -> Float[Array, "n 2"]:
    """n points of a toy data set."""
    if name not in _SAMPLERS:
        raise UserError(f"data = {name!r}: allowed are {', '.join(NAMES)}")
    return _SAMPLERS[name](key, n)


_compiled = jax.jit(sample, static_argnums=(0, 2))


def load(name: str) -> Dataset:
    """A toy as a data set; its reference points are drawn with keys that training never uses."""

    def reference(n, seed):
        return np.asarray(_compiled(name, jax.random.key(2**31 + seed), n))

    return Dataset(
        name=name,
        event_shape=(2,),
        arrays=(),
        draw=lambda _, key, n: (sample(name, key, n), None),
        reference=reference,
        summary=f"{name}: 2-D points, drawn afresh for every batch",
    )
