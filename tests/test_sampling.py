import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.errors import UserError
from vamf.sampling import integrate, sample

NOISE = np.random.default_rng(0).normal(size=(50, 3))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_exact_for_the_exact_average_velocity(steps, sd):
    x = sample(oracles.Gaussian(sd).average_velocity, jnp.asarray(NOISE), steps)
    np.testing.assert_allclose(x, sd * NOISE, rtol=1e-10)  # the flow map is s_0 / s_1 = sd


def test_one_step_is_noise_less_velocity():
    u = oracles.Smooth.random(0, 3)
    zero, one = np.zeros(len(NOISE)), np.ones(len(NOISE))
    np.testing.assert_allclose(sample(u, jnp.asarray(NOISE)), NOISE - u(NOISE, zero, one), rtol=1e-12)


def test_steps_walk_a_uniform_grid_from_noise_to_data():
    u = oracles.Smooth.random(0, 3)
    z = NOISE
    for t, r in [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]:
        z = z - 0.25 * u(z, np.full(len(z), r), np.full(len(z), t))
    np.testing.assert_allclose(sample(u, jnp.asarray(NOISE), 4), z, rtol=1e-10)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_order_of_convergence(method, order, sd):
    exact = oracles.Gaussian(sd)

    def error(steps):
        x = integrate(exact.average_velocity, jnp.asarray(NOISE), steps, method=method)
        return np.max(np.abs(np.asarray(x) - sd * NOISE))

    errors = [error(steps) for steps in (64, 128, 256)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, order, atol=0.1)


@pytest.mark.parametrize(("method", "calls"), [("euler", 1), ("heun", 2)])
def test_integrate_uses_the_diagonal_only(method, calls):
    seen = []

    def u(z, r, t, label):
        seen.append(r is t)
        return oracles.Gaussian(2.0).average_velocity(z, t, t)

    integrate(u, jnp.asarray(NOISE), 8, method=method)
    assert all(seen)
    assert len(seen) == calls  # the loop is compiled, not unrolled


@pytest.mark.parametrize("run", [sample, integrate])
def test_labels_reach_the_network(run):
    u = oracles.Smooth.random(1, 3)
    noise, label = jnp.asarray(NOISE), jnp.arange(len(NOISE)) % 3
    mixed = run(u, noise, 3, label)
    for k in range(3):
        alone = run(u, noise, 3, jnp.full(len(NOISE), k))
        np.testing.assert_allclose(mixed[label == k], alone[label == k], rtol=1e-12)
    assert not np.allclose(mixed, run(u, noise, 3))


def test_float32_stays_float32_and_any_shape_passes():
    noise = jnp.ones((4, 2, 3), jnp.float32)
    x = sample(lambda z, r, t, label: z * t[:, None, None], noise, 2)
    assert x.shape == (4, 2, 3)
    assert x.dtype == jnp.float32


def test_refusals():
    u = oracles.Gaussian(1.0).average_velocity
    with pytest.raises(UserError, match="steps"):
        sample(u, jnp.asarray(NOISE), 0)
    with pytest.raises(UserError, match="steps"):
        integrate(u, jnp.asarray(NOISE), 0)
