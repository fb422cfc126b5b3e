"""Kernel distance, Inception score, precision and recall, density and coverage."""

import itertools
import math

import numpy as np
import pytest

from vamf.errors import UserError
from vamf.metrics.inception_score import inception_score
from vamf.metrics.kid import kid, mmd2
from vamf.metrics.precision_recall import precision_recall


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


# ------------------------------------------------------------------------------------------------------ kernel distance


def by_loops(x, y):
    """The definition, pair by pair."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [
        sum(k(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)) / (len(s) * (len(s) - 1))
        for s in (x.tolist(), y.tolist())
    ]
    across = sum(k(a, b) for a in x.tolist() for b in y.tolist()) / (len(x) * len(y))
    return sum(within) - 2 * across


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (7, 5, 3), (12, 20, 4)])
def test_discrepancy_pair_by_pair(n, m, d):
    x, y = normal(n, d), normal(m, d, seed=1) + 0.3
    np.testing.assert_allclose(mmd2(x, y), by_loops(x, y), rtol=1e-10)


def test_one_subset_of_everything_is_the_discrepancy():
    x, y = normal(30, 4), normal(30, 4, seed=1) * 1.5
    estimate, std = kid(x, y, subsets=3)
    np.testing.assert_allclose(estimate.value, mmd2(x, y), rtol=1e-10)
    assert std < 1e-12


def test_unbiased():
    """Equal laws: the mean over independent samples is 0, unlike that of a sum with the pairs (i, i)."""
    values = [mmd2(normal(20, 3, seed), normal(20, 3, seed + 10**6)) for seed in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert np.min(values) < 0


def test_known_value_on_the_line():
    """N(m, 1) against N(0, 1) in one dimension: only moments enter, E (xy + 1)^3 = a3 b3 + 3 a2 b2 + 3 a1 b1 + 1."""
    m = 0.8
    moved, fixed = (m, m**2 + 1, m**3 + 3 * m), (0.0, 1.0, 0.0)
    expected = sum(c * (a - b) ** 2 for c, a, b in zip((3, 3, 1), moved, fixed, strict=True))
    estimate, _ = kid(normal(20_000, 1) + m, normal(20_000, 1, seed=1), subsets=15)
    np.testing.assert_allclose(estimate.value, expected, rtol=0.08)


def test_error_of_the_kernel_distance_is_that_of_new_samples():
    y = normal(400, 4, seed=10**6)
    draws = [kid(normal(200, 4, seed) + 0.5, y, subsets=20, size=200)[0].value for seed in range(60)]
    errors = [kid(normal(200, 4, seed) + 0.5, y, subsets=20, size=200, bootstrap=200)[0].error for seed in range(5)]
    np.testing.assert_allclose(np.mean(errors), np.std(draws), rtol=0.35)


def test_refusals_of_the_kernel_distance():
    with pytest.raises(UserError, match="rows"):
        kid(normal(1, 3), normal(5, 3))
    with pytest.raises(UserError, match="subsets"):
        kid(normal(5, 3), normal(5, 3), subsets=0)


# ------------------------------------------------------------------------------------------------------ Inception score


def test_sure_and_even_classes_score_their_number():
    """Images of c classes, evenly and beyond doubt: exp of the entropy of the marginal, which is c."""
    for c in (1, 2, 7):
        logits = 1e3 * np.eye(10)[np.arange(700 * c) % c]
        np.testing.assert_allclose(inception_score(logits, splits=1)[0].value, c, rtol=1e-6)


def test_alike_images_score_one():
    logits = np.tile(normal(1, 10), (50, 1))
    estimate, std = inception_score(logits)
    np.testing.assert_allclose([estimate.value, std], [1, 0], atol=1e-9)


def test_score_of_one_split_by_the_definition():
    logits = normal(40, 5) * 2
    p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]
    marginal = [sum(column) / len(p) for column in zip(*p, strict=True)]
    divergence = [sum(v * math.log(v / q) for v, q in zip(row, marginal, strict=True)) for row in p]
    expected = math.exp(sum(divergence) / len(p))
    np.testing.assert_allclose(inception_score(logits, splits=1)[0].value, expected, rtol=1e-10)


def test_a_shift_of_all_logits_is_nothing():
    logits = normal(60, 8)
    shifted = logits + 500 * normal(60, 1, seed=1)
    np.testing.assert_allclose(inception_score(shifted)[0].value, inception_score(logits)[0].value, rtol=1e-9)


def test_splits_are_drawn_at_random():
    """Sorted by class, splits in order would each see one class and score 1."""
    logits = 1e3 * np.eye(10)[np.repeat(np.arange(10), 100)]
    estimate, std = inception_score(logits, splits=10)
    assert estimate.value > 9
    assert std < 0.3


def test_error_of_the_score_is_that_of_new_samples():
    draws = [inception_score(normal(300, 6, seed) * 2)[0].value for seed in range(60)]
    errors = [inception_score(normal(300, 6, seed) * 2, bootstrap=60)[0].error for seed in range(5)]
    np.testing.assert_allclose(np.mean(errors), np.std(draws), rtol=0.4)


def test_fewer_images_than_splits():
    with pytest.raises(UserError, match="splits"):
        inception_score(normal(9, 3))


# ------------------------------------------------------------------------------------------------- precision and recall


def by_pairs(generated, real, k, k_density):
    """The definitions, point by point."""

    def distance(a, b):
        return math.dist(a.tolist(), b.tolist())

    def radius(points, i, k):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def inside(point, points, k):
        return [distance(point, points[i]) <= radius(points, i, k) for i in range(len(points))]

    precision = np.mean([any(inside(g, real, k)) for g in generated])
    recall = np.mean([any(inside(r, generated, k)) for r in real])
    density = np.mean([sum(inside(g, real, k_density)) / k_density for g in generated])
    coverage = np.mean(
        [min(distance(r, g) for g in generated) <= radius(real, i, k_density) for i, r in enumerate(real)]
    )
    return precision, recall, density, coverage


@pytest.mark.parametrize(("n", "m", "move"), [(25, 40, 0.0), (40, 25, 1.0), (30, 30, 2.5)])
@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (1, 2)])
def test_point_by_point(n, m, move, k, k_density):
    generated, real = normal(n, 3) * 0.8 + move, normal(m, 3, seed=1)
    result = precision_recall(generated, real, k, k_density)
    np.testing.assert_allclose(
        [values.mean() for values in result], by_pairs(generated, real, k, k_density), atol=1e-12
    )


def test_blocks_change_nothing(monkeypatch):
    generated, real = normal(70, 4), normal(90, 4, seed=1)
    whole = precision_recall(generated, real)
    monkeypatch.setattr("vamf.metrics.precision_recall.BLOCK", 16)
    for one, other in zip(whole, precision_recall(generated, real), strict=True):
        np.testing.assert_array_equal(one, other)


def test_far_from_the_origin():
    generated, real = normal(60, 4), normal(60, 4, seed=1)
    for one, other in zip(
        precision_recall(generated, real), precision_recall(generated + 1e4, real + 1e4), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_what_the_scores_tell_apart():
    real = np.concatenate([normal(200, 2), normal(200, 2, seed=1) + 20])
    dropped = precision_recall(normal(200, 2, seed=2), real)
    assert dropped.precision.mean() > 0.9
    assert 0.4 < dropped.recall.mean() < 0.6
    assert 0.4 < dropped.coverage.mean() < 0.6
    elsewhere = precision_recall(normal(200, 2, seed=2) - 40, real)
    assert all(values.mean() == 0 for values in elsewhere)
    same = precision_recall(real, real)
    assert all(values.mean() >= 0.99 for values in same)


def test_too_few_points():
    with pytest.raises(UserError, match="more than k = 5"):
        precision_recall(normal(5, 2), normal(20, 2))
