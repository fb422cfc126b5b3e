import jax.numpy as jnp
import numpy as np
import pytest

from vamf.path import conditional_velocity, expand, interpolate

SHAPES = [(5,), (5, 2), (5, 3, 4), (5, 2, 3, 4)]


def pair(shape, seed=0):
    x, e = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(e)


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_are_data_and_noise(shape):
    x, e = pair(shape)
    np.testing.assert_array_equal(interpolate(x, e, jnp.zeros(5)), x)
    np.testing.assert_array_equal(interpolate(x, e, jnp.ones(5)), e)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_has_its_own_time(shape):
    x, e = pair(shape)
    t = jnp.linspace(0.0, 1.0, 5)
    rows = [x[i] + float(t[i]) * (e[i] - x[i]) for i in range(5)]
    np.testing.assert_allclose(interpolate(x, e, t), np.stack(rows), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_slope_of_the_path(shape):
    x, e = pair(shape)
    early, late = jnp.full(5, 0.25), jnp.full(5, 0.75)
    slope = (interpolate(x, e, late) - interpolate(x, e, early)) / 0.5
    np.testing.assert_allclose(conditional_velocity(x, e), slope, atol=1e-5)


def test_expand_broadcasts_against_rows():
    assert expand(jnp.ones(5), jnp.ones((5, 2, 3))).shape == (5, 1, 1)
    assert expand(jnp.ones(5), jnp.ones(5)).shape == (5,)
