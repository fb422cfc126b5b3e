import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment

from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
def test_a_shift_on_the_line_is_its_own_distance(order, shift):
    x = normal(500, 1)
    np.testing.assert_allclose(sliced_wasserstein(x, x + shift, order), abs(shift), atol=1e-6)


def test_a_scaled_sample_on_the_line():
    """W2 between x and s x, sorted alike, is |1 - s| times the root mean square of x."""
    x = normal(500, 1)
    np.testing.assert_allclose(sliced_wasserstein(x, 3 * x, 2), 2 * np.sqrt(np.mean(x**2)), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    x=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    y=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
)
def test_line_samples_of_any_sizes_are_transported_exactly(x, y):
    expected = stats.wasserstein_distance(x, y)
    result = sliced_wasserstein(np.array(x)[:, None], np.array(y)[:, None], projections=3)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (10, 7), (3, 12)])
def test_second_order_of_unequal_sizes_by_repetition(n, m):
    """Every point m (or n) times over makes the sizes equal and changes no distribution."""
    x, y = normal(n, 2), normal(m, 2, seed=1) + 1
    loop_flops = sliced_wasserstein(np.repeat(x, m, axis=0), np.repeat(y, n, axis=0), 2)
    np.testing.assert_allclose(sliced_wasserstein(x, y, 2), loop_flops, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_each_direction_is_an_optimal_assignment(order):
    """With one direction found from point masses, the distance is the best pairing of the projected points."""
    x, y = normal(40, 3), 2 * normal(40, 3, seed=1)
    zero = np.zeros((1, 3))
    # Against the origin a single unit vector is at the distance |<w, e_i>|; the sign comes from pairs.
    size = [sliced_wasserstein(axis[None], zero, projections=1) for axis in np.eye(3)]
    sums = [sliced_wasserstein((np.eye(3)[0] + np.eye(3)[i])[None], zero, projections=1) for i in (1, 2)]
    signs = [1.0] + [
        1.0 if np.isclose(total, size[0] + size[i], atol=1e-6) else -1.0 for i, total in zip((1, 2), sums, strict=True)
    ]
    direction = np.array(size) * signs
    np.testing.assert_allclose(np.linalg.norm(direction), 1, atol=1e-5)
    cost = np.abs((x @ direction)[:, None] - (y @ direction)[None]) ** order
    best = cost[linear_sum_assignment(cost)].mean() ** (1 / order)
    np.testing.assert_allclose(sliced_wasserstein(x, y, order, projections=1), best, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [300, 173])
def test_symmetric_and_zero_on_the_same_sample(order, m):
    x, y = normal(300, 5), normal(m, 5, seed=1)
    np.testing.assert_allclose(sliced_wasserstein(x, y, order), sliced_wasserstein(y, x, order), rtol=1e-6)
    assert sliced_wasserstein(x, x, order) == 0
    assert sliced_wasserstein(x, x[::-1], order) == 0
    assert sliced_wasserstein(x, np.repeat(x, 3, axis=0), order) < 1e-6


@pytest.mark.parametrize("d", [2, 8, 64])
def test_translation_in_the_plane_and_in_space(d):
    """SW2^2 of x and x + m is the mean of <w, m>^2 over directions: |m|^2 / d, std |m|^2/d sqrt(2 (d-1)/(d+2))."""
    move, projections = np.random.default_rng(5).normal(size=d), 2000
    result = sliced_wasserstein(normal(50, d), normal(50, d) + move, 2, projections) ** 2
    expected = move @ move / d
    assert abs(result - expected) < 5 * expected * np.sqrt(2 * (d - 1) / (d + 2) / projections)


@pytest.mark.parametrize("order", [1, 2])
def test_translation_of_gaussians(order):
    """Independent samples of N(0, I) and N(m, I) in the plane: E|cos| = 2/pi and E cos^2 = 1/2 of |m|."""
    n, move = 20_000, np.array([3.0, 4.0])
    result = sliced_wasserstein(normal(n, 2), normal(n, 2, seed=1) + move, order)
    expected = 5 * (2 / np.pi if order == 1 else np.sqrt(0.5))
    np.testing.assert_allclose(result, expected, rtol=0.06)


@pytest.mark.parametrize("offset", [1e3, 1e8])
def test_far_from_the_origin(offset):
    """Years and time stamps are data too: a common offset changes no distance."""
    x, y = normal(500, 2), 1.5 * normal(500, 2, seed=1)
    np.testing.assert_allclose(sliced_wasserstein(x + offset, y + offset), sliced_wasserstein(x, y), rtol=1e-2)


def test_order_two_is_never_smaller():
    x, y = normal(200, 3), normal(200, 3, seed=1) ** 2
    assert sliced_wasserstein(x, y, 2) >= sliced_wasserstein(x, y, 1)


def test_seed_and_number_of_directions_decide():
    x, y = normal(100, 3), normal(100, 3, seed=1) + 1
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert sliced_wasserstein(x, y, projections=20) != sliced_wasserstein(x, y, projections=20, seed=1)
    assert isinstance(sliced_wasserstein(x, y), float)


def test_images_are_flattened():
    x, y = normal(30, 12), normal(30, 12, seed=1)
    assert sliced_wasserstein(x.reshape(30, 3, 4), y.reshape(30, 3, 4)) == sliced_wasserstein(x, y)


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (normal(5, 2), normal(5, 3), {}, "shape"),
        (normal(5, 2), np.full((5, 2), np.nan), {}, "finite"),
        (np.full((5, 2), np.inf), normal(5, 2), {}, "finite"),
        (normal(5, 2), normal(5, 2), {"order": 0}, "order"),
        (normal(5, 2), normal(5, 2), {"projections": 0}, "projections"),
        (np.empty((0, 2)), normal(5, 2), {}, "empty"),
        (normal(5, 2), np.empty((0, 2)), {}, "empty"),
    ],
)
def test_refusals(x, y, options, words):
    with pytest.raises(UserError, match=words) as refusal:
        sliced_wasserstein(x, y, **options)
    assert "\n" not in str(refusal.value)
