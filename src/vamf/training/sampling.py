"""Samples of one member of a grid, as a pure function that the grid compiles."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from vamf.average_velocity import in_blocks
from vamf.conditioning import Cond, GuidanceScale, with_scale
from vamf.data import Dataset
from vamf.networks import Network
from vamf.path import Path
from vamf.sampling import named
from vamf.training.step import State, streams


@dataclasses.dataclass(frozen=True)
class Sampling:
    """n samples by a named sampler; called with the data's arrays, a seed, a condition, starts and a state."""

    network: Network
    dataset: Dataset
    path: Path
    block: int
    """Rows that the network takes together; 0 for all."""
    n: int
    steps: int = 1
    sampler: named.Sampler = "jumps"
    scale: tuple[float, ...] = ()
    """(omega, t_min, t_max) of the guidance, for networks that are told."""

    def __call__(
        self, arrays: Any, seed: UInt[Array, ""], label: Cond, start: Any, state: State
    ) -> tuple[Float[Array, "n *event"], Int[Array, ""]]:
        key = streams(seed).sample
        noise_key, label_key = _noise_and_label(key)
        noise = self.path.prior(noise_key, jnp.zeros((self.n, *self.dataset.event_shape)), start)
        if label is None and self.dataset.num_classes:
            label = self.dataset.draw_labels(arrays, label_key, self.n)
        if self.scale:
            label = with_scale(label, GuidanceScale(*(jnp.full(self.n, value) for value in self.scale)))
        u = self.network.bind(state.average)
        if self.block:
            u = in_blocks(u, self.block)
        fresh = jax.random.fold_in(key, 2)
        return named.draw(self.sampler, u, noise, self.steps, fresh, label, self.dataset.bound, self.path, start)

    def labels(self, arrays: Any, seed: UInt[Array, ""]) -> Int[Array, " n"] | None:
        """The classes that samples of a seed have where none are given."""
        return self.dataset.draw_labels(arrays, _noise_and_label(streams(seed).sample)[1], self.n)


def _noise_and_label(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of the noise and of the classes of samples."""
    noise_key, label_key = jax.random.split(key)
    return noise_key, label_key
