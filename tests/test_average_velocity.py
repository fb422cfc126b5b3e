import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.average_velocity import flow_map, total_derivative

MIXTURE = oracles.Mixture(np.array([0.2, 0.5, 0.3]), np.array([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]]), 0.4)
EXACT = {
    "narrow Gaussian": oracles.Gaussian(0.5),
    "wide Gaussian": oracles.Gaussian(2.0),
    "point": oracles.Point(np.array([0.7, -1.2])),
    "mixture": MIXTURE,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def points(n=6, d=2, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, n)
    return rng.normal(size=(n, d)), t * rng.uniform(0.05, 0.9, n), t


@pytest.mark.parametrize("label", [None, np.arange(6, dtype=np.int32)])
def test_total_derivative_matches_differences(label):
    u = oracles.Smooth.random(1, 2)
    z, r, t = points()
    w = np.random.default_rng(2).normal(size=z.shape)
    expected = oracles.directional(lambda s: u(z + s * w, r, t + s, label))
    arrays = [jnp.asarray(a) for a in (z, r, t, w)]
    value, derivative = total_derivative(u, *arrays, None if label is None else jnp.asarray(label))
    np.testing.assert_allclose(value, u(z, r, t, label), rtol=1e-12)
    np.testing.assert_allclose(derivative, expected, rtol=1e-8, atol=1e-9)


def test_total_derivative_of_images():
    z, r, t = np.random.default_rng(3).normal(size=(4, 2, 3)), np.full(4, 0.2), np.full(4, 0.7)
    w = np.ones_like(z)

    def u(z, r, t, label):
        return z**2 * (t**3 * r)[:, None, None]

    value, derivative = total_derivative(u, *(jnp.asarray(a) for a in (z, r, t, w)))
    np.testing.assert_allclose(value, z**2 * 0.7**3 * 0.2)
    np.testing.assert_allclose(derivative, 2 * z * 0.7**3 * 0.2 + z**2 * 3 * 0.7**2 * 0.2)


@pytest.mark.parametrize("name", EXACT)
def test_meanflow_identity_holds_at_the_exact_average_velocity(name):
    exact = EXACT[name]
    z, r, t = (jnp.asarray(a) for a in points())
    v = exact.velocity(z, t)
    value, derivative = total_derivative(exact.average_velocity, z, r, t, v)
    np.testing.assert_allclose(value, v - (t - r)[:, None] * derivative, atol=1e-6)
    # Along any other tangent it fails, so the test can fail.
    _, wrong = total_derivative(exact.average_velocity, z, r, t, v + 1.0)
    if name != "point":
        assert jnp.max(jnp.abs(value - (v - (t - r)[:, None] * wrong))) > 1e-2


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_flow_map_of_a_gaussian_rescales(sd):
    exact = oracles.Gaussian(sd)
    z, r, t = (jnp.asarray(a) for a in points())
    expected = np.asarray(z) * np.asarray(exact.expansion(r, t))[:, None]
    np.testing.assert_allclose(flow_map(exact.average_velocity, z, t, r), expected, rtol=1e-12)


def test_flow_map_of_a_point_mass_lands_on_it():
    exact = EXACT["point"]
    z, _, t = (jnp.asarray(a) for a in points())
    np.testing.assert_allclose(flow_map(exact.average_velocity, z, t, jnp.zeros_like(t)), z * 0 + exact.x, atol=1e-12)


def test_flow_map_of_a_mixture_solves_the_ode():
    z, r, t = points()
    fine = oracles.Mixture(MIXTURE.weights, MIXTURE.means, MIXTURE.std, steps=400).flow(z, r, t)
    arrays = [jnp.asarray(a) for a in (z, t, r)]
    np.testing.assert_allclose(flow_map(MIXTURE.average_velocity, *arrays), fine, atol=1e-5)


def test_flow_maps_compose():
    z, r, t = (jnp.asarray(a) for a in points())
    middle = (r + t) / 2
    halves = flow_map(MIXTURE.average_velocity, flow_map(MIXTURE.average_velocity, z, t, middle), middle, r)
    np.testing.assert_allclose(flow_map(MIXTURE.average_velocity, z, t, r), halves, atol=1e-5)


def test_flow_map_passes_the_label_on():
    u = oracles.Smooth.random(4, 2)
    z, r, t = (jnp.asarray(a) for a in points())
    label = jnp.arange(6)
    expected = z - (t - r)[:, None] * u(z, r, t, label)
    np.testing.assert_allclose(flow_map(u, z, t, r, label), expected, rtol=1e-12)
    assert not np.allclose(flow_map(u, z, t, r, label), flow_map(u, z, t, r))


class TestOracles:
    """The references agree with one another where they overlap."""

    def test_one_component_is_a_gaussian(self):
        z, r, t = points()
        mixture, gaussian = oracles.Mixture(np.ones(1), np.zeros((1, 2)), 0.8), oracles.Gaussian(0.8)
        np.testing.assert_allclose(mixture.velocity(z, t), gaussian.velocity(z, t), rtol=1e-12)
        np.testing.assert_allclose(mixture.average_velocity(z, r, t), gaussian.average_velocity(z, r, t), atol=1e-7)
        variance = gaussian.variance(t)[:, None, None] * np.eye(2)
        np.testing.assert_allclose(mixture.covariance(z, t), variance, rtol=1e-12)

    def test_gaussian_form_is_the_published_one(self):
        z, r, t = points()
        gaussian = oracles.Gaussian(1.7)
        published = z * ((1 - gaussian.scale(r) / gaussian.scale(t)) / (t - r))[:, None]
        np.testing.assert_allclose(gaussian.average_velocity(z, r, t), published, rtol=1e-10)
        np.testing.assert_allclose(gaussian.average_velocity(z, t, t), gaussian.velocity(z, t), rtol=1e-12)

    def test_velocity_is_the_posterior_mean(self):
        z, t = np.tile([[0.4, 0.3]], (200_000, 1)), np.full(200_000, 0.6)
        for exact in (MIXTURE, oracles.Gaussian(2.0)):
            v_c = (z - exact.posterior(np.random.default_rng(0), z, t)) / t[:, None]
            error = 5 * v_c.std(axis=0) / np.sqrt(len(z))
            assert np.all(np.abs(v_c.mean(axis=0) - exact.velocity(z[:1], t[:1])[0]) < error)
        covariance = np.cov((z - MIXTURE.posterior(np.random.default_rng(1), z, t)).T / 0.6)
        np.testing.assert_allclose(covariance, MIXTURE.covariance(z[:1], t[:1])[0], atol=0.05)
