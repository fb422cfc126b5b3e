"""Reflow: pairs (x, e) of noise and the data that a teacher's flow maps it to. A stage of rectified MeanFlow.

Zhang et al., arXiv:2511.23342, after *Flow Straight and Fast* (arXiv:2209.03003). With x = X_{1->0}(e) the conditional
velocity e - x of a pair is nearly a function of z_t, so that Cov[v_c | z_t], the source of all the noise, all but
vanishes. Pairs that lie far apart may be dropped (distance truncation): mean over dimensions of (e - x)^2 >= distance.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vamf import sampling
from vamf.average_velocity import AverageVelocity
from vamf.data.dataset import Dataset
from vamf.errors import UserError, require
from vamf.field_types import check_field_types

CHUNK = 4096
"""Pairs whose flow is integrated together."""
MIN_PAIRS = 32


class Teacher(NamedTuple):
    """A trained model."""

    velocity: AverageVelocity
    digest: str
    """Digest of its weights."""


@dataclasses.dataclass(frozen=True)
@check_field_types("reflow.")
class ReflowConfig:
    """Pairs computed by the teacher's flow before training starts."""

    pairs: int = 0
    """Number of pairs; 0 trains on independent noise and data."""
    steps: int = 32
    """Heun steps from noise to data (two network calls each)."""
    distance: float = 0.0
    """Drop pairs whose mean squared distance over dimensions is this or more; 0 keeps all."""

    def __post_init__(self):
        enough = self.pairs == 0 or self.pairs >= MIN_PAIRS
        require(enough, "reflow.pairs", self.pairs, f"0 (none), {MIN_PAIRS} or more")
        require(self.steps >= 1, "reflow.steps", self.steps, "1 or more")
        require(self.distance >= 0, "reflow.distance", self.distance, "0 (off) or more")


def reflow_pairs(dataset: Dataset, teacher: AverageVelocity, config: ReflowConfig, seed: int = 0) -> Dataset:
    """The data set with its samples replaced by the ends of a teacher's flow, each with the noise it came from.

    Raises:
        UserError: fewer than 32 pairs are left after truncation.
    """
    noise_key, label_key = jax.random.split(jax.random.key(seed))
    noise = jax.random.normal(noise_key, (config.pairs, *dataset.event_shape))
    label = None
    if dataset.conditions is not None:
        label = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), dataset.sampling_conditions(config.pairs, [seed])[0])
    elif dataset.num_classes:
        label = dataset.draw_labels(dataset.arrays, label_key, config.pairs)
    ends = jax.jit(lambda noise, label: sampling.integrate(teacher, noise, config.steps, label))
    chunks = range(0, config.pairs, CHUNK)
    x = jnp.concatenate([ends(*(_chunk(part, at) for part in (noise, label))) for at in chunks])
    if config.distance > 0:
        distance = np.mean(np.asarray(noise - x) ** 2, axis=tuple(range(1, x.ndim)))
        indices = np.flatnonzero(distance < config.distance)
        if len(indices) < MIN_PAIRS:
            raise UserError(
                f"reflow.distance = {config.distance}: keeps {len(indices)} of {config.pairs} pairs, "
                f"whose distances are {distance.min():.3g} to {distance.max():.3g}"
            )
        x, noise = x[indices], noise[indices]
        label = None if label is None else label[indices]
    arrays = {"x": x, "start": noise, "cond": label}

    def rows(arrays, key, n) -> Int[Array, " n"]:
        return jax.random.randint(key, (n,), 0, arrays["x"].shape[0])

    def draw(arrays, key, n):
        indices = rows(arrays, key, n)
        return arrays["x"][indices], None if arrays["cond"] is None else arrays["cond"][indices]

    return dataclasses.replace(
        dataset,
        arrays=arrays,
        draw=draw,
        stream=None,
        start=lambda arrays, key, n: arrays["start"][rows(arrays, key, n)],
        summary=f"{dataset.summary}; {len(x):,} pairs of a teacher's flow in place of the data",
    )


def _chunk(part, first: int):
    return None if part is None else part[first : first + CHUNK]
