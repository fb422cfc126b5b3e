import jax
import numpy as np
import pytest
from scipy import stats

from vamf.errors import UserError
from vamf.schedules import Schedule
from vamf.times import DISTRIBUTIONS, LogitNormal, LogitNormalMin, TeacherGrid, ToData, Uniform

N = 4000


def draw(n=N, seed=0, kind="uniform", **options):
    r, t = DISTRIBUTIONS[kind](**options).draw(jax.random.key(seed), n)
    return np.asarray(r, np.float64), np.asarray(t, np.float64)


def single_cdf(kind, eps=1e-4, mean=-0.4, std=1.0):
    """Distribution function of one of the two draws."""
    if kind == "uniform":
        return stats.uniform(eps, 1 - 2 * eps).cdf
    return lambda q: stats.norm(mean, std).cdf(np.log(q / (1 - q)))


KINDS = ["uniform", "logit_normal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_gap", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_order_gap_and_range(kind, max_gap, fraction):
    r, t = draw(kind=kind, max_gap=max_gap, flow_matching_ratio=fraction)
    assert np.all(r <= t)
    assert np.all((r >= 0) & (t <= 1))
    assert np.max(t - r) <= max_gap + 1e-6


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("n", [1, 7, 256])
def test_exactly_the_first_rows_are_on_the_diagonal(fraction, n):
    times = Uniform(flow_matching_ratio=fraction)
    r, t = draw(n, flow_matching_ratio=fraction)
    count = times.num_diagonal(n)
    assert abs(count - fraction * n) <= 0.5
    assert np.all(r[:count] == t[:count])
    assert np.all(r[count:] < t[count:])


@pytest.mark.parametrize("eps", [1e-4, 0.1, 0.3])
def test_uniform_keeps_its_distance_from_both_ends(eps):
    r, t = draw(eps=eps, flow_matching_ratio=0.25)
    assert min(r.min(), t.min()) >= eps * (1 - 1e-5)
    assert max(r.max(), t.max()) <= 1 - eps + 1e-7
    # ... and reaches the neighbourhood of both.
    assert r.min() < eps + 0.01
    assert t.max() > 1 - eps - 0.01


# The seed is fixed, so these are no gamble: a right law passes for all but one seed in a thousand, a wrong one never.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_t_is_the_later_of_two_draws(kind, fraction):
    _, t = draw(kind=kind, flow_matching_ratio=fraction)
    cdf = single_cdf(kind)
    assert stats.kstest(t, lambda q: cdf(q) ** 2).pvalue > 1e-3
    assert stats.kstest(t, cdf).pvalue < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_r_is_the_earlier_of_two_draws(kind):
    r, _ = draw(kind=kind, flow_matching_ratio=0.0)
    cdf = single_cdf(kind)
    assert stats.kstest(r, lambda q: 1 - (1 - cdf(q)) ** 2).pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(-0.4, 1.0), (1.0, 0.3)])
def test_logit_normal_has_its_mean_and_std(mean, std):
    r, t = draw(kind="logit_normal", mean=mean, std=std, flow_matching_ratio=0.0)
    both = np.concatenate([r, t])  # together the sorted pairs are 2 n independent draws
    logits = np.log(both / (1 - both))
    assert abs(logits.mean() - mean) < 5 * std / np.sqrt(2 * N)
    assert abs(logits.std() - std) < 5 * std / np.sqrt(4 * N)
    assert stats.kstest(logits, stats.norm(mean, std).cdf).pvalue > 1e-3


def test_the_gap_moves_r_and_leaves_t():
    wide, narrow = draw(flow_matching_ratio=0.0), draw(flow_matching_ratio=0.0, max_gap=0.3)
    np.testing.assert_array_equal(wide[1], narrow[1])
    np.testing.assert_allclose(narrow[0], np.maximum(wide[0], wide[1] - 0.3), atol=1e-6)


# ------------------------------------------------------------------------------------------------ laws of the family

FAMILY = {
    "shifted": {"shift": 3.0},
    "terminal": {},
    "u_shaped": {},
    "dyadic": {},
    "to_data": {"mean": -1.0, "std": 1.4},
}


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_every_law_keeps_order_range_and_its_share_of_the_diagonal(kind, fraction):
    r, t = draw(kind=kind, flow_matching_ratio=fraction, **FAMILY[kind])
    assert np.all((r >= 0) & (r <= t) & (t <= 1))
    count = round(fraction * N)
    assert np.all(r[:count] == t[:count])
    assert np.mean(r[count:] < t[count:]) > 0.99


def test_shifted_times_are_a_mobius_map_of_uniform_ones():
    r, t = draw(kind="shifted", shift=3.0, flow_matching_ratio=0.0)
    both = np.concatenate([r, t])
    assert stats.kstest(both, lambda q: q / (3 - 2 * q)).pvalue > 1e-3  # the inverse of u -> 3 u / (1 + 2 u)


def test_terminal_gaps_and_starts_have_their_laws():
    r, t = draw(kind="terminal", mean=-0.4, gap_mean=-0.8, gap_std=0.7, flow_matching_ratio=0.0)
    gap = t - r
    assert stats.kstest(np.log(gap / (1 - gap)), stats.norm(-0.8, 0.7).cdf).pvalue > 1e-3
    # Given the gap, the start is a logit-normal cut at 1 - gap: its distribution function there is uniform.
    start, end = np.log(r / (1 - r)) + 0.4, np.log((1 - gap) / gap) + 0.4
    assert stats.kstest(stats.norm.cdf(start) / stats.norm.cdf(end), "uniform").pvalue > 1e-3


def test_u_shaped_times_have_their_density_and_jump_to_the_data():
    r, t = draw(kind="u_shaped", flow_matching_ratio=0.0)
    below = t[t < 0.98]

    def cdf(q):
        return (np.expm1(4 * q) + np.exp(4) - np.exp(4 - 4 * q)) / (2 * np.expm1(4))

    assert stats.kstest(below, lambda q: cdf(q) / cdf(0.98)).pvalue > 1e-3
    assert t.max() == pytest.approx(80 / 81)
    late = (t > 0.8) & (r < 0.4)
    assert late.any()
    assert np.all(r[late] == 0)


def test_dyadic_times_lie_on_their_grids():
    r, t = draw(kind="dyadic", flow_matching_ratio=0.5)
    fine = t[: N // 2] * 128
    np.testing.assert_array_equal(fine, np.round(fine))
    assert fine.min() >= 1
    gap, start = (t - r)[N // 2 :], r[N // 2 :]
    levels = -np.log2(gap)
    np.testing.assert_array_equal(levels, np.round(levels))
    assert set(levels) == set(range(7))
    assert np.all(np.abs(np.bincount(levels.astype(int)) / (N // 2) - 1 / 7) < 5 * np.sqrt(1 / 7 / (N // 2)))
    np.testing.assert_array_equal(start / gap, np.round(start / gap))


def test_jumps_to_the_data_have_log_normal_noise_levels():
    r, t = draw(kind="to_data", mean=-1.0, std=1.4, flow_matching_ratio=0.0)
    assert np.all(r == 0)
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(-1.0, 1.4).cdf).pvalue > 1e-3


def test_the_diagonal_and_the_second_draw_may_have_laws_of_their_own():
    _, t = draw(kind="logit_normal", mean=2.0, diagonal_mean=-1.0, flow_matching_ratio=1.0)
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(-1.0, 1.0).cdf).pvalue > 1e-3
    r, t = draw(kind="logit_normal", mean=0.4, r_mean=-1.2, flow_matching_ratio=0.0)
    logits = np.log(np.concatenate([r, t]) / (1 - np.concatenate([r, t])))
    mixture = [stats.norm(mean, 1.0) for mean in (0.4, -1.2)]
    assert stats.kstest(logits, lambda q: sum(part.cdf(q) for part in mixture) / 2).pvalue > 1e-3


def test_mean_gap_is_that_off_the_diagonal():
    assert Uniform(eps=0.0, flow_matching_ratio=0.75).mean_gap() == pytest.approx(1 / 3, abs=2e-3)
    assert ToData(mean=0.0).mean_gap() == pytest.approx(0.5, abs=2e-3)


def test_keys_decide():
    assert np.array_equal(draw(seed=1), draw(seed=1))
    assert not np.array_equal(draw(seed=1), draw(seed=2))


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("uniform", {"flow_matching_ratio": -0.1}, "flow-matching-ratio"),
        ("uniform", {"flow_matching_ratio": 1.1}, "flow-matching-ratio"),
        ("uniform", {"flow_matching_ratio": float("nan")}, "flow-matching-ratio"),
        ("uniform", {"max_gap": 0.0}, "max-gap"),
        ("uniform", {"max_gap": 1.5}, "max-gap"),
        ("logit_normal", {"std": 0.0}, "std"),
        ("uniform", {"eps": 0.5}, "eps"),
        ("uniform", {"eps": -1e-3}, "eps"),
        ("shifted", {"shift": 0.0}, "shift"),
        ("terminal", {"gap_std": -1.0}, "gap-std"),
        ("teacher_grid", {"points": 1}, "points"),
    ],
)
def test_refusals_name_the_field(kind, options, name):
    with pytest.raises(UserError, match=name):
        DISTRIBUTIONS[kind](**options)


def test_the_grid_has_pairs_of_different_points():
    r, t = draw(40_000, kind="teacher_grid", flow_matching_ratio=0.0)
    pairs, counts = np.unique(np.stack([r, t]) * 16, axis=1, return_counts=True)
    np.testing.assert_array_equal(pairs, np.round(pairs))
    assert np.all(pairs[0] < pairs[1])
    assert pairs.shape[1] == 17 * 16 / 2
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_published_grid_is_shifted():
    """16 times, t = 6.93 s / (1 + 5.93 s) of even s."""
    r, t = draw(40_000, kind="teacher_grid", points=16, shift=6.93, flow_matching_ratio=0.0)
    even = np.stack([r, t]) / (6.93 - 5.93 * np.stack([r, t])) * 15
    np.testing.assert_allclose(even, np.round(even), atol=2e-5)
    pairs, counts = np.unique(np.round(even), axis=1, return_counts=True)
    assert np.all(pairs[0] < pairs[1])
    assert pairs.shape[1] == 16 * 15 / 2
    assert stats.chisquare(counts).pvalue > 1e-3
    times = TeacherGrid(points=16, shift=6.93)
    np.testing.assert_array_equal(times.index(times.grid()), np.arange(16))


def by_the_official_procedure(n, mean, r_mean, std, share):
    """Recipe v1 of MeanFlow on CIFAR-10, row by row: t, r of their own, r := t at random, r := min(t, r)."""
    rng = np.random.default_rng(3)
    t, r = (1 / (1 + np.exp(-m - std * rng.normal(size=n))) for m in (mean, r_mean))
    r = np.where(rng.uniform(size=n) < share, t, r)
    return np.minimum(t, r), t


@pytest.mark.parametrize(
    ("r_mean", "share"), [(-4.0, 0.25), (-0.6, 0.25), (0.4, 0.0), (-4.0, 1.0)], ids=["v1", "same", "late", "equal"]
)
def test_r_is_cut_at_t_as_in_the_official_recipe(r_mean, share):
    published = -0.6, r_mean, 1.6, share
    times = LogitNormalMin(mean=-0.6, r_mean=r_mean, std=1.6, flow_matching_ratio=share)
    expected_r, expected_t = by_the_official_procedure(200_000, *published)
    on = expected_r == expected_t
    assert abs(times.diagonal_fraction - on.mean()) < 5 * 0.5 / np.sqrt(200_000)
    r, t = (np.asarray(a, np.float64) for a in times.draw(jax.random.key(0), 10_000))
    count = times.num_diagonal(10_000)
    assert abs(count - 10_000 * times.diagonal_fraction) <= 0.5
    assert np.all(r[:count] == t[:count])
    assert np.sum(r[count:] >= t[count:]) <= 1  # in single precision
    # Every row as published, on the diagonal and off it ...
    pairs = [(t[:count], expected_t[on])]
    if share < 1:
        pairs += [
            (t[count:], expected_t[~on]),
            (r[count:], expected_r[~on]),
            ((t - r)[count:], (expected_t - expected_r)[~on]),
        ]
        pairs.append((np.log(r / t)[count:], np.log(expected_r / expected_t)[~on]))
    for found, expected in pairs:
        assert stats.ks_2samp(found, expected).pvalue > 1e-3
    # ... and all rows together by closed forms: t is never moved, and r is the lesser of two or t itself.
    cdf_t, cdf_r = single_cdf("", mean=-0.6, std=1.6), single_cdf("", mean=r_mean, std=1.6)
    assert stats.kstest(t, cdf_t).pvalue > 1e-3
    assert (
        stats.kstest(r, lambda q: share * cdf_t(q) + (1 - share) * (1 - (1 - cdf_t(q)) * (1 - cdf_r(q)))).pvalue > 1e-3
    )
    # The sorted law of recipe v0 is another.
    if r_mean == -4.0 and share < 1:
        sorted_too = LogitNormal(mean=-0.6, r_mean=-4.0, std=1.6, flow_matching_ratio=times.diagonal_fraction)
        other = sorted_too.draw(jax.random.key(0), 10_000)[1]
        assert stats.ks_2samp(other[:count], expected_t[on]).pvalue < 1e-6


def test_the_law_of_the_diagonal_moves_over_training():
    """From mid and high noise back to the law's own mean (arXiv:2511.19065)."""
    times = LogitNormal(diagonal_mean=Schedule("linear", 0.0, -0.4, 0, 100), flow_matching_ratio=1.0)
    for step, mean in ((0, 0.0), (50, -0.2), (100, -0.4), (1000, -0.4)):
        t = np.asarray(times.draw(jax.random.key(0), N, step)[1], np.float64)
        assert stats.kstest(t, single_cdf("logit_normal", mean=mean)).pvalue > 1e-3
    assert np.mean(times.draw(jax.random.key(0), N, 0)[1]) > np.mean(times.draw(jax.random.key(0), N, 100)[1]) + 0.03
