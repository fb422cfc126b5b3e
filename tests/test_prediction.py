"""A network that predicts data is the average velocity that leads there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.average_velocity import instantaneous_velocity, total_derivative
from vamf.errors import UserError
from vamf.networks import MLPConfig, UNetConfig, build
from vamf.networks.prediction import DataPrediction
from vamf.progress import Progress
from vamf.training import stored
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG
from vamf.training.ensemble import Ensemble
from vamf.training.run import Run

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


def test_the_posterior_mean_of_the_data_is_the_exact_velocity():
    """Against the oracle that conditions v_c on z directly, and never asks for E[x | z]."""
    rng = np.random.default_rng(1)
    means, weights = rng.normal(size=(3, 2)), np.array([0.2, 0.3, 0.5])
    mixture, reference = (
        oracles.Mixture(weights, means, 0.4), oracles.Normals.isotropic(weights, means, np.full(3, 0.4))
    )  # fmt: skip

    def posterior_mean(z, r, t, label=None):
        given, mean_of = mixture._given_component(z, t)
        return jnp.sum(given[..., None] * mean_of, axis=1)

    with jax.enable_x64(True):
        z, _, t = rows()
        found = instantaneous_velocity(DataPrediction(posterior_mean), z, t)
    expected = [reference.velocity(*point) for point in zip(np.asarray(z), np.asarray(t), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_its_derivative_is_that_of_differences_at_all_times():
    """Below t = 0.05, where the divisor stays, just above and far away."""
    with jax.enable_x64(True):
        u, tangent = DataPrediction(oracles.Smooth.random(0, 2)), oracles.Smooth.random(1, 2)
        z, _, _ = rows()
        t = jnp.array([0.001, 0.02, 0.045, 0.055, 0.3, 0.9])
        r, w = 0.4 * t, tangent(z, t, t)
        value, dudt = total_derivative(u, z, r, t, w)
        h = 1e-5
        ahead, behind = (u(z + s * w, r, t + s) for s in (h, -h))
        np.testing.assert_allclose(value, (ahead + behind) / 2, rtol=1e-6)
        np.testing.assert_allclose(dudt, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


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
    ensemble = Ensemble(config, config.load_data(), [0])
    state = ensemble.init()
    z, _, t = (np.asarray(part, np.float32) for part in rows(64))
    exact = np.asarray(ensemble.dataset.mixture.velocity(z, t))

    def error(state):
        return np.mean((ensemble.velocity(state, z, t, t) - exact) ** 2)

    before = error(state)
    state, metrics = ensemble.advance(state, 150)
    assert np.all(np.isfinite(metrics.loss))
    assert error(state) < 0.5 * before


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run whose network predicts data."""
    config = TrainConfig(
        "two_moons", "flow_matching", steps=10, batch_size=16, network=SMALL, prediction="data", learning_rate=1e-2
    )
    run = Run.create(config, tmp_path_factory.mktemp("data") / "run")
    run.train(Progress(show=False))
    return run


def test_a_run_remembers_what_its_network_predicts(run, tmp_path):
    written = json.loads((run.folder / CONFIG).read_text())
    assert written["prediction"] == "data"
    assert Run.open(run.folder).config == run.config
    plain = Run.create(dataclasses.replace(run.config, prediction="average_velocity"), tmp_path / "plain")
    assert "prediction" not in json.loads((plain.folder / CONFIG).read_text())
    assert Run.open(plain.folder).config == plain.config


def test_other_runs_predict_what_they_predict(run, tmp_path):
    """A teacher's velocity is its own; a start from another run needs the same prediction."""
    state, _ = run.load(Progress(show=False))
    z, r, t = (np.asarray(part, np.float32) for part in rows(4))
    own = run.ensemble.velocity(state, z, r, t)[0]
    student = TrainConfig("two_moons", "mid_training", network=SMALL, teacher=str(run.folder))
    teacher = stored.load_teacher(student, student.load_data()).velocity
    np.testing.assert_allclose(teacher(*map(jnp.asarray, (z, r, t)), None), own, rtol=1e-5, atol=1e-6)
    classes = dataclasses.replace(student.load_data(), num_classes=3)
    with pytest.raises(UserError, match="its network takes no condition; two_moons has 3 classes"):
        stored.load_teacher(student, classes)
    begun = dataclasses.replace(run.config, method="meanflow", init_from=str(run.folder))
    ensemble = stored.open_ensemble(begun, begun.load_data(), [0])
    v = run.ensemble.velocity(state, z, t, t)[0]  # a model of the velocity: its weights of the gap are not taken
    np.testing.assert_allclose(ensemble.velocity(ensemble.init(), z, r, t)[0], v, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="its network predicts data, this one average_velocity"):
        Run.create(dataclasses.replace(begun, prediction="average_velocity"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_noise_and_data_are_not_predicted_at_once():
    with pytest.raises(UserError, match=r"prediction = data: network\.predicts = noise"):
        build(UNetConfig(predicts="noise"), (8, 8, 3), prediction="data")
    with pytest.raises(UserError, match=r"network\.predicts = noise"):
        TrainConfig("digits", "ddpm", network=UNetConfig(predicts="noise"), prediction="data")
