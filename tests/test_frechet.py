import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from vamf.errors import UserError
from vamf.metrics import bootstrap, frechet, frechet_distance
from vamf.metrics.identity import Identity
from vamf.metrics.moments import Moments, Statistics, holds_statistics


def sample(n, d, seed=0, scale=1.0):
    """Correlated features of very different sizes."""
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(1, 1e-2, d) + rng.normal(size=d)


def gaussian(x):
    return x.mean(axis=0), np.cov(x, rowvar=False)


def by_square_root(mean1, cov1, mean2, cov2):
    """The textbook form, through the square root of a matrix that is not symmetric."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real


# ------------------------------------------------------------------------------------------------------- the distance


@pytest.mark.parametrize("d", [1, 2, 16, 100])
def test_equals_the_matrix_square_root(d):
    x, y = sample(3 * d + 9, d), sample(4 * d + 9, d, seed=1)
    one, two = (mean_cov if d > 1 else (mean_cov[0], mean_cov[1].reshape(1, 1)) for mean_cov in map(gaussian, (x, y)))
    expected = by_square_root(*one, *two)
    np.testing.assert_allclose(frechet_distance(*one, *two), expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(20, 30), (20, 200), (200, 30), (2, 2)])
def test_covariances_without_full_rank(n, m):
    """Of deviations X, Y the cross term is the sum of the singular values of X Y^T: no square root at all."""
    x, y = sample(n, 64), sample(m, 64, seed=1)
    deviations = [(points - points.mean(axis=0)) / np.sqrt(len(points) - 1) for points in (x, y)]
    cross = np.linalg.svd(deviations[0] @ deviations[1].T, compute_uv=False).sum()
    std = sum(np.sum(part**2) for part in deviations)
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + std - 2 * cross
    result = frechet_distance(*gaussian(x), *gaussian(y))
    np.testing.assert_allclose(result, expected, rtol=1e-9)
    np.testing.assert_allclose(result, by_square_root(*gaussian(x), *gaussian(y)), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 12), seed=st.integers(0, 10**6), move=st.floats(-5, 5), factor=st.floats(0, 4))
def test_commuting_covariances(d, seed, move, factor):
    """N(m, C) and N(m + s, f^2 C): |s|^2 + (1 - f)^2 tr C, whatever C."""
    mean, cov = gaussian(np.atleast_2d(sample(d + 3, d, seed)))
    cov = cov.reshape(d, d)
    result = frechet_distance(mean, cov, mean + move, factor**2 * cov)
    np.testing.assert_allclose(result, d * move**2 + (1 - factor) ** 2 * np.trace(cov), rtol=1e-9, atol=1e-9)


def test_is_a_distance():
    x, y = gaussian(sample(60, 20)), gaussian(sample(60, 20, seed=1))
    np.testing.assert_allclose(frechet_distance(*x, *y), frechet_distance(*y, *x), rtol=1e-10)
    assert frechet_distance(*x, *x) < 1e-9
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    turned = [(turn @ mean, turn @ cov @ turn.T) for mean, cov in (x, y)]
    np.testing.assert_allclose(frechet_distance(*turned[0], *turned[1]), frechet_distance(*x, *y), rtol=1e-9)
    assert isinstance(frechet_distance(*x, *y), float)


@pytest.mark.parametrize(
    ("mean", "cov", "words"),
    [
        (np.zeros(3), np.eye(3), "3 and 2"),
        (np.zeros(2), np.eye(3), "shape"),
        (np.zeros((2, 1)), np.eye(2), "shape"),
        (np.zeros(0), np.eye(0), "shape"),
        (np.zeros(2), np.array([[1, np.nan], [0, 1]]), "finite"),
        (np.array([np.inf, 0]), np.eye(2), "finite"),
        (np.zeros(2), np.array([[1.0, 1.0], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.diag([1.0, -1.0]), "eigenvalue"),
    ],
)
def test_refusals(mean, cov, words):
    with pytest.raises(UserError, match=words) as refusal:
        frechet_distance(mean, cov, np.zeros(2), np.eye(2))
    assert "\n" not in str(refusal.value)


# --------------------------------------------------------------------------------------------------------- the moments


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), max_size=5, unique=True), offset=st.sampled_from([0.0, 1e3, 1e6]))
def test_parts_add_up(cuts, offset):
    """However the samples are cut, and far from 0 too."""
    x = sample(100, 5) + offset
    parts = [Moments.of(part) for part in np.split(x, sorted(cuts))]
    expected = np.cov(x - offset, rowvar=False)
    for order in (parts, parts[::-1]):
        total = order[0]
        for part in order[1:]:
            total = total + part
        assert total.count == 100
        result = total.statistics()
        np.testing.assert_allclose(result.mean, x.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(result.covariance, expected, atol=1e-9 * (1 + offset) * np.abs(expected).max())


def test_any_tree_of_processes():
    parts = [Moments.of(sample(k + 1, 4, seed=k)) for k in range(4)]
    trees = [((a + b) + (c + d)) for a, b, c, d in itertools.permutations(parts)]
    trees += [(a + (b + (c + d))) for a, b, c, d in itertools.permutations(parts)]
    for tree in trees[1:]:
        np.testing.assert_allclose(tree.mean, trees[0].mean, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(tree.scatter, trees[0].scatter, rtol=1e-12, atol=1e-13)


def test_float32_features_lose_nothing():
    x = (sample(1000, 3) + 500).astype(np.float32)
    result = Moments.of(x).statistics()
    assert result.covariance.dtype == np.float64
    np.testing.assert_allclose(result.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12)


def test_one_sample_has_no_covariance():
    with pytest.raises(UserError, match="two or more"):
        Moments.of(np.zeros((1, 3))).statistics()


def test_statistics_files(tmp_path):
    identity = Identity("network", 3, "clean", "abc")
    result = Moments.of(sample(50, 3)).statistics(identity)
    result.save(tmp_path / "s.npz")
    again = Statistics.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(again.mean, result.mean)
    np.testing.assert_array_equal(again.covariance, result.covariance)
    assert (again.count, again.extractor) == (50, identity)
    joined = again.moments() + Moments.of(sample(20, 3, seed=1))
    both = np.concatenate([sample(50, 3), sample(20, 3, seed=1)])
    np.testing.assert_allclose(joined.statistics().covariance, np.cov(both, rowvar=False), rtol=1e-10)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["mu"], result.mean)
        np.testing.assert_array_equal(archive["sigma"], result.covariance)


@pytest.mark.parametrize("prefix", ["", "ref_"])
def test_statistics_of_other_tools(tmp_path, prefix):
    mean, cov = gaussian(sample(50, 3))
    path = tmp_path / "s.npz"
    np.savez(path, **{f"{prefix}mu": mean.astype(np.float32), f"{prefix}sigma": cov}, arr_0=np.zeros((2, 4, 4, 3)))
    assert holds_statistics(path)
    result = Statistics.load(path)
    assert result.mean.dtype == np.float64
    assert result.count is None
    assert result.extractor is None
    np.testing.assert_array_equal(result.covariance, cov)
    with pytest.raises(UserError, match="count"):
        result.moments()


def test_bad_statistics(tmp_path):
    path, mean, cov = tmp_path / "s.npz", np.zeros(2), np.eye(2)
    for arrays, words in [
        ({"mu": mean}, "sigma"),
        ({"mu": mean, "sigma": np.eye(3)}, "shapes"),
        ({"mu": mean, "sigma": np.full((2, 2), np.nan)}, "finite"),
        ({"mu": mean, "sigma": np.array([["a", "b"], ["c", "d"]])}, "finite"),
        ({"mu": mean, "sigma": cov, "extractor": "?"}, "extractor"),
        ({"mu": mean, "sigma": cov, "extractor": '{"foreign": 1}'}, "extractor"),
        ({"mu": np.array([{}], object), "sigma": cov}, "no file of statistics"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=words) as refusal:
            Statistics.load(path)
        assert str(path) in str(refusal.value)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not holds_statistics(path)
    with pytest.raises(UserError, match="truncated"):
        Statistics.load(path)


# -------------------------------------------------------------------------------------------------------- the bootstrap


@pytest.mark.parametrize(("n", "rank"), [(200, 8), (6, 8), (200, 3)])
def test_replicates_are_distances_of_resamples(n, rank, monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK", 64)
    x, reference = sample(n, 8), gaussian(sample(rank + 1, 8, seed=1))
    result = frechet.replicates(x, *reference, count=3, seed=7)
    expected = [frechet_distance(*gaussian(x[rows]), *reference) for rows in bootstrap.resamples(n, 3, 7)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(size=400)
    result = bootstrap.mean(x, 2000, seed=0)
    np.testing.assert_allclose(result.error, x.std() / 20, rtol=0.06)
    assert result.value == x.mean()
    assert abs(result.bias) < 4 * result.error / np.sqrt(2000)
    low, high = result.interval
    np.testing.assert_allclose([low, high], [result.value - 1.96 * result.error, result.value + 1.96 * result.error])


def test_intervals_cover_the_truth():
    """Means of 200 samples of a skewed law: a 95 % interval holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap.mean(rng.exponential(size=200), 100, seed).interval for seed in range(200)]
    covered = np.mean([low < 1 < high for low, high in intervals])
    assert 0.88 < covered < 0.99


def test_resampling_adds_the_bias_of_small_samples():
    """The Fréchet distance is biased upward by about c / n, and resampled by about that once more."""
    draw = np.random.default_rng(0).normal
    values, estimates = [], []
    for _ in range(30):
        x = draw(size=(100, 10))
        values.append(frechet_distance(*gaussian(x), np.zeros(10), np.eye(10)))
        replicates = frechet.replicates(x, np.zeros(10), np.eye(10), 10)
        estimates.append(bootstrap.Estimate.of(values[-1], replicates).bias)
    assert 0.6 < np.mean(estimates) / np.mean(values) < 1.4  # the true distance is 0: all of the value is bias


def test_without_replicates_there_is_no_interval():
    result = bootstrap.Estimate.of(3.0, [])
    assert (result.value, result.error, result.bias, result.interval) == (3.0, None, None, None)
