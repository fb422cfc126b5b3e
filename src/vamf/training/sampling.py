"""Samples of one member of an ensemble, as a pure function that the ensemble compiles."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from vamf.average_velocity import map_in_batches
from vamf.conditioning import Cond, GuidanceScale, with_scale
from vamf.data import Dataset
from vamf.networks import Network
from vamf.path import Pairs, Path
from vamf.sampling import registry
from vamf.training.step import State, rng_streams

MIN_ROWS, MAX_ROWS = 8, 4096
"""Least rows of a program, and the most up to which they are a power of two where the network takes all at once."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """n samples by a named sampler; called with the data's arrays, a seed, a condition, starts and a state."""

    network: Network
    dataset: Dataset
    path: Path
    block: int
    """Rows in one batch of the network; 0 for all."""
    n: int
    steps: int = 1
    sampler: registry.Sampler = "flow_map"
    scale: tuple[float, ...] = ()
    """(omega, t_min, t_max) of the guidance, for networks conditioned on it."""

    def __call__(
        self, arrays: Any, seed: UInt[Array, ""], label: Cond, start: Any, state: State
    ) -> tuple[Float[Array, "n *event"], Int[Array, ""]]:
        key = rng_streams(seed).sample
        noise_key, label_key = _noise_and_label(key)
        noise = self.path.prior(noise_key, jnp.zeros((self.n, *self.dataset.event_shape)), start)
        if label is None and self.dataset.num_classes:
            label = self.dataset.draw_labels(arrays, label_key, self.n)
        if self.scale:
            label = with_scale(label, GuidanceScale(*(jnp.full(self.n, value) for value in self.scale)))
        u = self.network.bind(state.ema_params)
        if self.block:
            u = map_in_batches(u, self.block)
        sampler_key = jax.random.fold_in(key, 2)
        return registry.draw(
            self.sampler, u, noise, self.steps, sampler_key, label, self.dataset.clip_range, self.path, start
        )

    def rows(self, draws_labels: bool) -> int:
        """How many rows to compute for n samples, so that other n need no other program: the next power of two, or
        above the block a multiple of it.

        Random numbers of a row do not depend on the rows after it, so that these samples are the n of a program of n
        rows, but for rounding in the network's matrix products. Just n where that is not known.

        Args:
            draws_labels: whether classes are drawn too.
        """
        prior = type(self.path).prior
        by_counts = not (draws_labels and self.dataset.num_classes) or self.dataset.class_counts is not None
        impl = getattr(jax.config, "jax_default_prng_impl", "threefry2x32")
        independent = impl == "threefry2x32" and getattr(jax.config, "jax_threefry_partitionable", True)
        if self.sampler == "fast_flow" or prior not in (Path.prior, Pairs.prior) or not (by_counts and independent):
            return self.n
        block = self.block or MAX_ROWS
        return (
            -(-self.n // block) * block if self.n > block else min(max(MIN_ROWS, 1 << (self.n - 1).bit_length()), block)
        )

    def labels(self, arrays: Any, seed: UInt[Array, ""]) -> Int[Array, " n"] | None:
        """The default classes of the samples of a seed."""
        return self.dataset.draw_labels(arrays, _noise_and_label(rng_streams(seed).sample)[1], self.n)


def padded(tree: Any, rows: int) -> Any:
    """Arrays (members, n, ...) of the host with the last row repeated."""
    return jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:, -1:], rows, axis=1)], axis=1), tree)


def _noise_and_label(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of the noise and of the classes of samples."""
    noise_key, label_key = jax.random.split(key)
    return noise_key, label_key
