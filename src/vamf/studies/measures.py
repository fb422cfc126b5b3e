"""What a study measures of its training runs: numbers of their one-step samples, and of the networks themselves."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vamf import metrics
from vamf.data import Dataset
from vamf.path import interpolate
from vamf.sampling import registry
from vamf.studies.runner import Measurement, RunSpec
from vamf.theory import GaussianMixture
from vamf.training.ensemble import Ensemble
from vamf.training.step import State

SAMPLES = 4096
PROJECTIONS = 500

SampleMeasure = Callable[[np.ndarray], dict[str, float]]
"""Samples (n, *event) of a run, in original units, to numbers by name."""
NetworkMeasure = Callable[[Ensemble, State], list[dict[str, Any]]]
"""A trained ensemble to numbers by name, for each member."""


def distances(reference: np.ndarray) -> SampleMeasure:
    """SW1 and SW2 to the reference points."""
    return metrics.distances_to(reference, (1, 2), PROJECTIONS)


def no_measure(dataset: Dataset) -> NetworkMeasure | None:
    """No measure of the network."""


def second_reference(dataset: Dataset, n: int) -> np.ndarray:
    """Fresh points, disjoint from the reference."""
    return dataset.reference(n, 1)


def training_points(dataset: Dataset, n: int) -> np.ndarray:
    """Points drawn as training draws them, in original units."""
    return dataset.to_original(np.asarray(dataset.draw(dataset.arrays, jax.random.key(2**30), n)[0]))


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured at the end of every run."""

    of_samples: tuple[Callable[[np.ndarray], SampleMeasure], ...] = (distances,)
    """Each makes a measure of samples from reference points (n, *event) of the data."""
    of_network: Callable[[Dataset], NetworkMeasure | None] = no_measure
    """Makes a measure of trained networks for a data set, or none."""
    real: Callable[[Dataset, int], np.ndarray] = second_reference
    """Real points that are measured like samples, as a baseline."""
    samples: int = SAMPLES
    """Samples of each run, and reference points."""
    sampler: registry.Sampler | None = "flow_map"
    """The sampler, with its default number of steps; None for the method's own sampler."""

    def count(self, dataset: Dataset) -> int:
        """Samples of each run on a data set."""
        return self.samples

    def baseline(self, dataset: Dataset) -> dict[str, float]:
        """What real data score."""
        return self.measure(dataset)(self.real(dataset, self.count(dataset)))

    def measurement(self, execution: Any, spec: RunSpec) -> Measurement:
        """The measurement of a run, of an `engine.Execution`."""

        def finish(ensemble: Ensemble, state: State) -> tuple[np.ndarray, list[dict]]:
            measure, inspect = self.measure(ensemble.dataset), self.of_network(ensemble.dataset)
            sampler = self.sampler or ensemble.train_step.objective.sampler
            samples = ensemble.draw(
                state, self.count(ensemble.dataset), registry.DEFAULT_STEPS[sampler], sampler=sampler
            )[0]
            inspected = [{}] * ensemble.size if inspect is None else inspect(ensemble, state)
            finite = [bool(np.isfinite(points).all()) for points in samples]
            rows = [
                {"finite": valid, **(measure(points) if valid else {}), **more}
                for valid, points, more in zip(finite, samples, inspected, strict=True)
            ]
            return samples.astype(np.float32), rows

        count = self.count(execution.dataset(spec.labels[0]["data"]))
        names = [make.__qualname__ for make in self.of_samples]
        return Measurement(count if self.of_samples == (distances,) else [count, *names], finish)

    def measure(self, dataset: Dataset) -> SampleMeasure:
        """All measures of samples, with reference points of a data set."""
        measures = [make(dataset.reference(self.samples, 0)) for make in self.of_samples]
        return lambda points: {name: value for measure in measures for name, value in measure(points).items()}


def member_networks(ensemble: Ensemble, state: State, index: int) -> tuple[Any, Any]:
    """Parameters and EMA of a member."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), ensemble.collect((state.params, state.ema_params)))


def exact_error(mixture: GaussianMixture, n: int = 2048, seed: int = 0) -> NetworkMeasure:
    """Distance of every member's average velocity to the exact one of a mixture: a root mean square per dimension.

    `u_error` is over uniform (r, t) with z_t from the data; `jump_error` at r = 0, t = 1, z from the noise:
    the one jump that one-step sampling takes.
    """
    points, exact = _exact_velocities(mixture, n, seed)

    def inspect(ensemble: Ensemble, state: State) -> list[dict[str, float]]:
        errors = {
            name: np.sqrt(np.mean((ensemble.velocity(state, *point) - exact[name]) ** 2, axis=(1, 2)))
            for name, point in points.items()
        }
        return [{name: float(values[index]) for name, values in errors.items()} for index in range(ensemble.size)]

    return inspect


def proxy_bias(mixture: GaussianMixture, n: int = 2048) -> NetworkMeasure:
    """`proxy_bias`: E||b||^2 / E tr Sigma, b = u_ema(z, t, t) - v(z, t) with the exact v of a mixture, t uniform."""

    def inspect(ensemble: Ensemble, state: State) -> list[dict[str, float]]:
        data_key, noise_key, time_key = jax.random.split(jax.random.key(2**30), 3)
        t = jax.random.uniform(time_key, (n,))
        z = interpolate(mixture.sample(data_key, n), jax.random.normal(noise_key, (n, mixture.dim)), t)
        bias = np.sum((ensemble.velocity(state, z, t, t) - np.asarray(mixture.velocity(z, t))) ** 2, axis=2)
        return [{"proxy_bias": float(value)} for value in bias.mean(axis=1) / np.mean(mixture.total_variance(z, t))]

    return inspect


def combine(*measures: NetworkMeasure) -> NetworkMeasure:
    """The results of several measures, merged."""

    def inspect(ensemble: Ensemble, state: State) -> list[dict[str, Any]]:
        results = zip(*(measure(ensemble, state) for measure in measures), strict=True)
        return [{name: value for row in rows for name, value in row.items()} for rows in results]

    return inspect


@functools.lru_cache(maxsize=16)
def _exact_velocities(mixture: GaussianMixture, n: int, seed: int) -> tuple[dict[str, tuple], dict[str, np.ndarray]]:
    """Points (z, r, t) and the exact average velocity there: takes seconds, the same for all runs of a data set."""
    data_key, noise_key, time_key, jump_key = jax.random.split(jax.random.key(2**31 + seed), 4)
    e, pair = jax.random.normal(noise_key, (n, mixture.dim)), jax.random.uniform(time_key, (2, n))
    r, t = pair.min(axis=0), pair.max(axis=0)
    zero, one = jnp.zeros(n), jnp.ones(n)
    points = {
        "u_error": (interpolate(mixture.sample(data_key, n), e, t), r, t),
        "jump_error": (jax.random.normal(jump_key, (n, mixture.dim)), zero, one),
    }
    return points, {name: np.asarray(mixture.average_velocity(*point)) for name, point in points.items()}


def exact_error_if_known(dataset: Dataset) -> NetworkMeasure | None:
    """`exact_error` of data whose distribution is a known mixture."""
    return None if dataset.mixture is None else exact_error(dataset.mixture)
