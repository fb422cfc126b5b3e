import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein
from vamf.sampling import integrate, restart, sample
from vamf.theory import GaussianMixture

MIXTURE = oracles.Mixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.4)
EXACT = GaussianMixture(MIXTURE.weights, MIXTURE.means, np.full(2, MIXTURE.std))  # a loop, so that it compiles fast
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


@pytest.mark.parametrize("times", [(1, 0), (1.0, 0.7, 0.2, 0.0), [1.0, 0.99, 0.0]])
def test_exact_on_any_grid(times):
    noise = jnp.asarray(NOISE)
    np.testing.assert_allclose(sample(oracles.Gaussian(0.5).average_velocity, noise, times), 0.5 * NOISE, rtol=1e-10)
    x = sample(EXACT, noise[:, :2], times)
    ones = np.ones(len(NOISE))
    np.testing.assert_allclose(x, MIXTURE.flow(NOISE[:, :2], 0 * ones, ones), atol=1e-6)


def test_given_times_are_walked_in_turn():
    u = oracles.Smooth.random(0, 3)
    z = NOISE
    for t, r in [(1.0, 0.9), (0.9, 0.2), (0.2, 0.0)]:
        z = z - (t - r) * u(z, np.full(len(z), r), np.full(len(z), t))
    np.testing.assert_allclose(sample(u, jnp.asarray(NOISE), (1, 0.9, 0.2, 0)), z, rtol=1e-10)
    uniform = sample(u, jnp.asarray(NOISE), tuple(np.linspace(1, 0, 4)))
    np.testing.assert_allclose(uniform, sample(u, jnp.asarray(NOISE), 3), rtol=1e-10)


def test_restart_once_is_one_jump():
    u = oracles.Smooth.random(0, 3)
    x = restart(u, jnp.asarray(NOISE), 1, jax.random.key(0))
    np.testing.assert_allclose(x, sample(u, jnp.asarray(NOISE)), rtol=1e-12)


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_restart_forgets_the_noise_as_fast_as_the_closed_form(sd):
    """x keeps the factor sd (1 - t) sd / s_t of the first noise at each return to t; its law stays N(0, sd^2)."""
    exact = oracles.Gaussian(sd)
    noise = jax.random.normal(jax.random.key(1), (20_000, 3), jnp.float64)
    x = np.asarray(restart(exact.average_velocity, noise, (1.0, 0.6, 0.3, 0.0), jax.random.key(2)))
    kept = sd * np.prod([(1 - t) * sd / exact.scale(t) for t in (0.6, 0.3)])
    error = 1 / np.sqrt(noise.size)
    np.testing.assert_allclose(np.var(x), sd**2, atol=4 * sd**2 * np.sqrt(2) * error)
    np.testing.assert_allclose(np.mean(x * noise), kept, atol=4 * np.sqrt(sd**2 + kept**2) * error)
    again = restart(exact.average_velocity, noise, (1.0, 0.6, 0.3, 0.0), jax.random.key(2))
    np.testing.assert_array_equal(x, again)
    other = restart(exact.average_velocity, noise, (1.0, 0.6, 0.3, 0.0), jax.random.key(3))
    assert not np.allclose(x, other)


def test_restart_keeps_the_law_of_a_mixture():
    """SW1 to the data is at most 1.5 times the largest of five samples of the data; with a wrong u, above 3 times."""
    rng = np.random.default_rng(3)

    def data(n):
        which = rng.choice(2, size=n, p=MIXTURE.weights)
        return MIXTURE.means[which] + MIXTURE.std * rng.normal(size=(n, 2))

    reference, noise = data(20_000), jnp.asarray(rng.normal(size=(4_000, 2)))

    def distance(x):
        return sliced_wasserstein(x, reference, projections=50)

    floor = max(distance(data(4_000)) for _ in range(5))
    assert distance(restart(EXACT, noise, 3, jax.random.key(4))) < 1.5 * floor

    def diagonal(z, r, t, label):
        return MIXTURE.velocity(z, t)

    assert distance(restart(diagonal, noise, 3, jax.random.key(4))) > 3 * floor


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


def restarted(u, noise, steps, label=None):
    return restart(u, noise, steps, jax.random.key(0), label)


@pytest.mark.parametrize("run", [sample, integrate, restarted])
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
    x = restart(lambda z, r, t, label: z * t[:, None, None], noise, (1.0, 0.5, 0.0), jax.random.key(0))
    assert x.shape == (4, 2, 3)
    assert x.dtype == jnp.float32


def test_refusals():
    u = oracles.Gaussian(1.0).average_velocity
    with pytest.raises(UserError, match="steps"):
        sample(u, jnp.asarray(NOISE), 0)
    with pytest.raises(UserError, match="steps"):
        integrate(u, jnp.asarray(NOISE), 0)


@pytest.mark.parametrize(
    "times",
    [(1.0,), (), (0.9, 0.0), (1.0, 0.1), (1.0, 0.5, 0.5, 0.0), (0.0, 1.0), (1.0, float("nan"), 0.0), (1.0, 2.0, 0.0)],
)
def test_bad_times_are_refused_in_one_line(times):
    u, noise = oracles.Gaussian(1.0).average_velocity, jnp.asarray(NOISE)
    with pytest.raises(UserError, match=r"^steps = \(.*\): allowed is a number from 1, or times that decrease .*$"):
        sample(u, noise, times)
    with pytest.raises(UserError, match=r"^times = "):
        restart(u, noise, times, jax.random.key(0))


def test_times_that_are_one_in_float32_are_refused():
    with pytest.raises(UserError, match="decrease"):
        sample(oracles.Gaussian(1.0).average_velocity, jnp.ones((2, 3), jnp.float32), (1.0, 0.5, 0.5 - 1e-12, 0.0))
