"""A network that predicts data is the average velocity that leads there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.average_velocity import instantaneous_velocity, total_derivative
from vamf.errors import UserError
from vamf.networks import MLPConfig, UNetConfig, build
from vamf.networks.prediction import DataPrediction
from vamf.training.config import TrainConfig
from vamf.training.grid import Grid

GAUSSIAN = oracles.Gaussian(2.0)
SMALL = MLPConfig(width=8, depth=1, time_features=4)


def rows(n=6):
    rng = np.random.default_rng(0)
    t = np.linspace(0.1, 1.0, n)
    return [jnp.asarray(part) for part in (rng.normal(size=(n, 2)), 0.5 * t, t)]


class Exact:
    """The data that the exact average velocity and the exact velocity point at."""

    def __call__(self, z, r, t, label=None):
        return z - t[:, None] * GAUSSIAN.average_velocity(z, r, t)

    def velocity(self, z, t, label=None):
        mean = (1 - t) * GAUSSIAN.sd**2 / GAUSSIAN.scale(t) ** 2  # E[x | z_t]
        return mean[:, None] * z

    def with_velocity(self, z, r, t, label=None):
        return self(z, r, t), self.velocity(z, t)

    def log_variance(self, r, t):
        return t - r


def test_exact_data_are_the_exact_velocities():
    with jax.enable_x64(True):
        u, (z, r, t) = DataPrediction(Exact()), rows()
        exact, v = GAUSSIAN.average_velocity(z, r, t), GAUSSIAN.velocity(z, t)
        np.testing.assert_allclose(u(z, r, t), exact, rtol=1e-12)
        np.testing.assert_allclose(instantaneous_velocity(u, z, t), v, rtol=1e-12)
        np.testing.assert_allclose(u.velocity(z, t), v, rtol=1e-12)
        np.testing.assert_allclose(np.stack(u.with_velocity(z, r, t)), np.stack([exact, v]), rtol=1e-12)
        np.testing.assert_array_equal(u.log_variance(r, t), t - r)
        # the MeanFlow identity u = v - (t - r) du/dt holds for its derivative too
        value, dudt = total_derivative(u, z, r, t, v)
        np.testing.assert_allclose(value, v - (t - r)[:, None] * dudt, rtol=1e-9)


def test_close_to_the_data_the_divisor_stays():
    z, t = jnp.ones((3, 2)), jnp.array([0.0, 0.01, 0.05])
    u = DataPrediction(lambda z, r, t, label: 0.5 * z)
    np.testing.assert_allclose(u(z, 0 * t, t), 10.0, rtol=1e-6)


@pytest.mark.parametrize("heads", [(), ("velocity", "log_variance", "fake")])
def test_a_network_begins_at_the_middle_of_the_data(heads):
    """Its last layer begins at 0, the mean of standardised data."""
    network = build(SMALL, (2,), heads=heads, prediction="data")
    u, (z, r, t) = network.bind(network.init(jax.random.key(0))), rows()
    expected = z / jnp.maximum(t, 0.05)[:, None]
    asked = [u(z, r, t, None), instantaneous_velocity(u, z, t)]
    if heads:
        asked += [u.velocity(z, t), u.fake(z, t), *u.with_velocity(z, None, t)]
        assert u.log_variance(r, t).shape == t.shape
    for found in asked:
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "objective"),
    [("vamf", {"beta": 0.5, "proxy": "ema"}), ("improved_meanflow", {}), ("vamf", {"beta": 1.0, "proxy": "head"})],
)
def test_it_trains(method, objective):
    """The velocity at the diagonal comes closer to the exact one of the data."""
    config = TrainConfig(
        "dgmm2", method, objective, steps=150, batch_size=64, learning_rate=1e-2, network=SMALL, prediction="data"
    )
    grid = Grid(config, config.load_data(), [0])
    state = grid.init()
    z, _, t = (np.asarray(part, np.float32) for part in rows(64))
    exact = np.asarray(grid.dataset.mixture.velocity(z, t))

    def error(state):
        return np.mean((grid.velocity(state, z, t, t) - exact) ** 2)

    before = error(state)
    state, metrics = grid.advance(state, 150)
    assert np.all(np.isfinite(metrics.loss))
    assert error(state) < 0.5 * before


def test_noise_and_data_are_not_predicted_at_once():
    with pytest.raises(UserError, match=r"prediction = data: network\.predicts = noise"):
        build(UNetConfig(predicts="noise"), (8, 8, 3), prediction="data")
