"""Each toy against the moments and the support of its definition; nothing is compared with a drawing of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons

from vamf import data
from vamf.data import toys
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein

N = 50_000


def draw(name, n=N, seed=0):
    return np.asarray(toys.sample(name, jax.random.key(seed), n), np.float64)


def assert_mean(values, expected):
    """The mean of values (n, ...) within 5 of its own standard errors; a false alarm has odds of one in a million."""
    error = 5 * np.std(values, axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - expected) <= error)


def squares(x):
    return np.sum(x**2, axis=1)


def wrap(angle, period):
    return (angle + period / 2) % period - period / 2


def test_names():
    names = ("checkerboard", "eight_gaussians", "two_moons", "swiss_roll", "two_spirals", "pinwheel")
    assert tuple(toys.NAMES) == names


@pytest.mark.parametrize("name", toys.NAMES)
def test_shape_type_and_keys(name):
    key = jax.random.key(3)
    x = toys.sample(name, key, 2000)
    assert x.shape == (2000, 2)
    assert x.dtype == jnp.float32
    assert np.all(np.isfinite(x))
    np.testing.assert_array_equal(x, toys.sample(name, key, 2000))
    assert not np.array_equal(x, toys.sample(name, jax.random.key(4), 2000))
    assert len(np.unique(np.asarray(x), axis=0)) == 2000


@pytest.mark.parametrize("name", toys.NAMES)
def test_as_a_data_set(name):
    dataset = data.load(name)
    assert dataset.event_shape == (2,)
    assert dataset.num_classes == 0
    x, label = dataset.draw(dataset.arrays, jax.random.key(0), 2000)
    assert x.shape == (2000, 2)
    assert label is None
    reference = dataset.reference(2000, 0)
    assert reference.shape == (2000, 2)
    assert not np.array_equal(reference, x)
    np.testing.assert_array_equal(dataset.to_original(np.asarray(x)), x)  # toys are not standardised
    assert sliced_wasserstein(x, reference) < 0.3


def test_reference_points_follow_their_seed():
    dataset = data.load("eight_gaussians")
    first, again, other = (dataset.reference(100, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_checkerboard():
    x = draw("checkerboard")
    assert np.all(np.abs(x) <= 4)
    cells = np.floor(x / 2).astype(int)
    assert np.all(cells.sum(axis=1) % 2 == 0)
    _, counts = np.unique(cells, axis=0, return_counts=True)
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-3
    # Within a cell both coordinates are uniform.
    inside = x / 2 - cells
    for axis in range(2):
        assert stats.kstest(inside[:, axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(inside.T)[0, 1]) < 5 / np.sqrt(N)


def test_eight_gaussians():
    x = draw("eight_gaussians")
    assert_mean(x, 0)
    assert_mean(squares(x), 3**2 + 2 * 0.25**2)
    angles = np.arange(8) * np.pi / 4
    centres = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    nearest = np.argmin(np.linalg.norm(x[:, None] - centres, axis=2), axis=1)
    assert stats.chisquare(np.bincount(nearest, minlength=8)).pvalue > 1e-3
    std = (x - centres[nearest]) / 0.25
    for axis in range(2):
        assert stats.kstest(std[:, axis], "norm").pvalue > 1e-3


def test_two_moons():
    x = draw("two_moons")
    # The arcs (cos a, sin a) and (1 - cos a, 1/2 - sin a), a in [0, pi], noise .08, all times 2.
    assert_mean(x, [1.0, 0.5])
    assert_mean((x - [1.0, 0.5]) ** 2, 4 * np.array([0.5 + 0.25 + 0.08**2, 0.5 - 1 / np.pi + 0.0625 + 0.08**2]))
    moons = 2 * make_moons(N, noise=0.08, random_state=0)[0]
    assert sliced_wasserstein(x, moons, projections=50) < 0.03


def test_swiss_roll():
    x = draw("swiss_roll")
    low, high = 1.5 * np.pi, 4.5 * np.pi
    radius = np.sqrt(squares(x))
    assert radius.min() > low / 8 - 6 * 0.08
    assert radius.max() < high / 8 + 6 * 0.08
    assert radius.min() < low / 8
    assert radius.max() > high / 8
    assert_mean(squares(x), (high**3 - low**3) / (3 * (high - low)) / 64 + 2 * 0.08**2)

    def of_cos(a):  # antiderivatives of a cos a and a sin a
        return np.cos(a) + a * np.sin(a)

    def of_sin(a):
        return np.sin(a) - a * np.cos(a)

    assert_mean(x, np.array([of_cos(high) - of_cos(low), of_sin(high) - of_sin(low)]) / (high - low) / 8)
    # Along the roll the radius times 8 is the angle. Noise moves that by at most 8 * .08 * sqrt(1 + 1 / low^2) = .66.
    off = wrap(8 * radius - np.arctan2(x[:, 1], x[:, 0]), 2 * np.pi)
    assert abs(off.mean()) < 0.05  # the noise across lengthens the radius: 8 * .08^2 / (2 |x|), about .02
    assert 0.62 < off.std() < 0.68


def test_two_spirals():
    x = draw("two_spirals")
    assert_mean(x, 0)
    assert_mean(squares(x), (3 * np.pi) ** 2 / 2 / 25 + 2 * 0.08**2)  # a = 540 degrees sqrt(U): E a^2 is half the most
    radius = np.sqrt(squares(x))
    assert 3 * np.pi / 5 < radius.max() < 3 * np.pi / 5 + 6 * 0.08
    # Arms (-cos a, sin a) and its opposite: the angle is pi - a, up to a half turn. Noise moves 5 |x| + angle by .4.
    outer = radius > 0.6
    off = wrap(5 * radius + np.arctan2(x[:, 1], x[:, 0]), np.pi)[outer]
    assert abs(off.mean()) < 0.05
    assert 0.35 < off.std() < 0.5
    # Either arm has half of the points: a half turn changes nothing.
    assert sliced_wasserstein(x, -x, projections=50) < 0.03


def test_pinwheel():
    x = draw("pinwheel")
    w = (x[:, 0] + 1j * x[:, 1]) / 1.5
    assert_mean(np.abs(w) ** 2, 1 + 0.3**2 + 0.1**2)
    # Five equal arms: all harmonics vanish but the fifth, which keeps the twist .25 exp(along) of every arm.
    for k in range(1, 5):
        assert_mean(np.stack([(w**k).real, (w**k).imag], axis=1), 0)
    nodes, shares = np.polynomial.hermite_e.hermegauss(40)
    along, across = np.meshgrid(1 + 0.3 * nodes, 0.1 * nodes, indexing="ij")
    fifth = (along + 1j * across) ** 5 * np.exp(-5j * 0.25 * np.exp(along))
    expected = np.sum(np.outer(shares, shares) * fifth) / np.sum(shares) ** 2
    assert_mean(np.stack([(w**5).real, (w**5).imag], axis=1), [expected.real, expected.imag])


def test_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"spiral.*two_spirals"):
        toys.sample("spiral", jax.random.key(0), 10)
