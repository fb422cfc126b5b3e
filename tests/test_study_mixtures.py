"""The study of dense mixtures: its closed forms against independent ones; complete, resumable, honest about spread."""

import csv
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import cli, data
from vamf.data.mixtures import dense_gaussian_mixture
from vamf.errors import UserError
from vamf.metrics import sliced_wasserstein
from vamf.studies import engine, exact_noise, measures, mixtures, paper, summary
from vamf.studies import mixtures_page as report
from vamf.studies.mixtures import STUDY, WIDE, Budget
from vamf.theory import GaussianMixture
from vamf.training import loop, presets
from vamf.training.ensemble import Ensemble

TINY = Budget("tiny", ("dgmm2", WIDE), 20, (4, 5), 10, 1e-3, (0.0, 0.5, 1.0), points=32)
MEANS = np.array([[1.0, 0.5], [-1.2, 0.3], [0.1, -1.4]])
MIXTURE = GaussianMixture(np.full(3, 1 / 3), MEANS, np.full(3, 0.4))
ORACLE = oracles.Mixture(np.full(3, 1 / 3), MEANS, 0.4)


# ---------------------------------------------------------------------------------------------------- the closed form


def test_noise_is_the_quadratic_form_of_an_independent_flow():
    rng = np.random.default_rng(0)
    z, r, t = rng.normal(size=(5, 2)), np.array([0.0, 0.2, 0.0, 0.5, 0.7]), np.array([1.0, 0.6, 0.4, 0.9, 0.7])
    parabola = exact_noise.noise(MIXTURE, *(jnp.asarray(part, jnp.float32) for part in (z, r, t)))
    best = parabola.best()
    sigma = ORACLE.covariance(z, t)
    for i in range(5):
        one = slice(i, i + 1)
        s = oracles.jacobian(lambda point, one=one: ORACLE.flow(point[None], r[one], t[one])[0], z[i])

        def expected(beta, s=s, i=i):
            n = (1 - beta) * s + beta * np.eye(2)
            return np.trace(n @ sigma[i] @ n.T)

        for beta in (0.0, 0.3, 1.0):
            assert parabola.at(beta)[i] == pytest.approx(expected(beta), rel=2e-4)
        if r[i] < t[i]:
            betas = np.linspace(0, 1, 1001)
            assert best[i] == pytest.approx(betas[np.argmin([expected(beta) for beta in betas])], abs=2e-3)
    assert best[4] == 0  # r = t: every beta is as good


def test_training_noise_averages_over_the_training_times():
    """Gaussian data: noise(beta) = s^2/s_t^2 (S + beta (1 - S))^2, integrated over sorted uniforms, a quarter r = t."""
    n, sd = 768, 2.0
    result = exact_noise.training_noise(GaussianMixture([1.0], [[0.0]], [sd]), n)
    gaussian, nodes = oracles.Gaussian(sd), (np.arange(400) + 0.5) / 400
    r, t = np.minimum(*np.meshgrid(nodes, nodes)), np.maximum(*np.meshgrid(nodes, nodes))
    s = gaussian.expansion(r, t)

    def mean(beta):
        off = np.mean(gaussian.variance(t) * (s + beta * (1 - s)) ** 2)
        return 0.75 * off + 0.25 * np.mean(gaussian.variance(t))  # t is distributed as a maximum on the diagonal too

    for beta, ratio, error in zip(*result["curve"].values(), strict=True):
        assert abs(ratio - mean(beta) / mean(0.0)) < 5 * error + 1e-5
        assert error < 0.1
    betas = np.linspace(0, 1, 101)
    assert result["best_beta"] == pytest.approx(betas[np.argmin([mean(beta) for beta in betas])], abs=0.1)
    fraction = np.mean(s[r < t] > 1)  # beta* is 1 where the flow map expands and 0 where it contracts
    assert abs(result["fraction"] - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / (0.75 * n)) + 1e-3
    assert result["pointwise_ratio"] <= result["best_ratio"] <= 1


@pytest.mark.parametrize("sd", [2.0, 0.5])
def test_over_time_of_a_gaussian(sd):
    gaussian = oracles.Gaussian(sd)
    for name, line in exact_noise.noise_over_time(GaussianMixture([1.0], [[0.0, 0.0]], [sd]), 8).items():
        t = np.array(line["t"])
        s = gaussian.expansion(np.zeros_like(t) if name == "r = 0" else t - exact_noise.GAP, t)
        np.testing.assert_allclose(line["amplification"], s**2, rtol=1e-5)
        np.testing.assert_array_equal(line["beta"], s > 1)
        np.testing.assert_allclose(line["error"], 0, atol=1e-6)  # S does not depend on z


def test_plane_of_three_modes():
    side, reach, t = 4, 2.0, 0.6
    mixture = exact_noise.three_modes()
    plane = exact_noise.plane(mixture, t, reach, side)
    line = np.linspace(-reach, reach, side)
    independent = oracles.Normals.isotropic(mixture.weights, mixture.means, mixture.stds)
    for row, column in [(0, 3), (1, 2), (3, 0)]:
        z = np.array([line[column], line[row]])
        sigma, s = independent.covariance(z, t), oracles.jacobian(lambda z: independent.flow(z, 0.0, t), z)
        assert plane.variance[row, column] == pytest.approx(np.trace(sigma), rel=1e-4)
        assert plane.amplified[row, column] == pytest.approx(np.trace(s @ sigma @ s.T), rel=1e-4)
        log_density = np.log(np.sum(np.exp(independent.log_joint(z, t))))
        assert plane.log_density[row, column] == pytest.approx(log_density, abs=1e-4)


# ------------------------------------------------------------------------------------- distances of a known network


@pytest.fixture
def shifted_ensemble():
    """An ensemble of two members whose average velocities are known, and the points at which they were evaluated."""
    ensemble, calls = Ensemble(presets.for_data("dgmm2"), data.load("dgmm2"), [0, 1]), []
    centres = dense_gaussian_mixture(2).means
    exact = oracles.Mixture(np.full(64, 1 / 64), centres, 0.5, steps=16)

    def velocity(state, z, r, t):
        z, r, t = (np.asarray(part, np.float64) for part in (z, r, t))
        calls.append((z, r, t))
        u = exact.velocity(z, t) if np.array_equal(r, t) else exact.average_velocity(z, r, t)
        return np.stack([np.zeros_like(z), u + np.array([0.3, -0.4])]).astype(np.float32)

    object.__setattr__(ensemble, "velocity", velocity)
    return ensemble, exact, calls


@pytest.mark.slow
def test_exact_error_against_an_independent_integrator(shifted_ensemble):
    ensemble, exact, calls = shifted_ensemble
    zero, shifted = measures.exact_error(dense_gaussian_mixture(2))(ensemble, ensemble.init())
    for (z, r, t), key in zip(calls, ("u_error", "jump_error"), strict=True):
        assert zero[key] == pytest.approx(np.sqrt(np.mean(exact.average_velocity(z, r, t) ** 2)), rel=1e-4)
        assert shifted[key] == pytest.approx(0.5 / np.sqrt(2), rel=1e-4)
    (_, r, t), (noise, start, end) = calls
    assert np.all(r < t)
    assert t.mean() == pytest.approx(2 / 3, abs=5 * np.sqrt(1 / 18 / len(t)))
    assert (set(start), set(end)) == ({0.0}, {1.0})
    assert np.mean(noise**2) == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size))


@pytest.mark.slow
def test_proxy_bias_is_relative_to_the_noise(shifted_ensemble):
    ensemble, exact, calls = shifted_ensemble
    _, shifted = mixtures.network_measure(ensemble.dataset)(ensemble, ensemble.init())
    rng, n = np.random.default_rng(1), 4000
    t = rng.uniform(size=n)
    x = exact.means[rng.integers(64, size=n)] + 0.5 * rng.normal(size=(n, 2))
    noise = np.einsum("nii->n", exact.covariance((1 - t)[:, None] * x + t[:, None] * rng.normal(size=(n, 2)), t))
    error = 0.25 / noise.mean() ** 2 * noise.std() * np.sqrt(1 / n + 1 / len(calls[-1][0]))
    assert abs(shifted["proxy_bias"] - 0.25 / noise.mean()) < 5 * error


# ------------------------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study, with fewer points in its figures and a single map."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_noise, "TIMES", (0.5, 0.9))
        patch.setattr(exact_noise, "ROWS", 16)
        patch.setattr(report, "MAP_TIMES", (0.5,))
        folder = tmp_path_factory.mktemp("studies") / "tiny"
        STUDY.at(folder, TINY).run()
        yield folder


@pytest.mark.slow
def test_results_are_complete(finished):
    results = json.loads((finished / "results.json").read_text())
    assert len(results["members"]) == 3 * 2
    for member in results["members"]:
        assert member["finite"]
        assert member["sw2"] >= member["sw1"] > 0
        assert min(member["u_error"], member["jump_error"], member["proxy_bias"]) > 0
        assert member["gradient_variance"] == member["variance_history"]["value"][1]  # the second half
    with (finished / "members.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(float(row["beta"]), int(row["seed"])) for row in rows] == [(b, s) for b in TINY.betas for s in TINY.seeds]
    samples = np.load(finished / "runs" / "dgmm2-sweep" / "samples.npy")
    reference = data.load("dgmm2").reference(4096, 0)
    assert sliced_wasserstein(samples[3], reference) == pytest.approx(results["members"][3]["sw1"], rel=1e-4)


@pytest.mark.slow
def test_matched_row_agrees_with_members(finished):
    results = json.loads((finished / "results.json").read_text())
    row, members = results["matched"][0], results["members"]
    zero, one = ([m for m in members if m["beta"] == beta] for beta in (0, 1))
    assert row["sw1_zero"] == pytest.approx(np.mean([m["sw1"] for m in zero]))
    assert row["sw1_zero_std"] == pytest.approx(np.std([m["sw1"] for m in zero], ddof=1))
    ratios = [after["gradient_variance"] / before["gradient_variance"] for before, after in zip(zero, one, strict=True)]
    assert row["gradient_variance_change"] == pytest.approx(np.mean(ratios) - 1)
    assert row["gradient_variance_change_error"] == pytest.approx(np.std(ratios, ddof=1) / np.sqrt(2))
    assert row["exact_ratio"] == results["exact_noise"]["2"]["training"]["curve"]["ratio"][10]


@pytest.mark.slow
def test_loss_variance_lines_meet_where_they_share_a_point(finished):
    growth = json.loads((finished / "results.json").read_text())["loss_variance"]
    jumps, gaps = growth["r = 0"], growth["t"]  # both hold r = 0, t = 0.9
    for kind in ("stochastic", "deterministic"):
        assert jumps[kind][jumps["at"].index(0.9)] == pytest.approx(gaps[kind][gaps["at"].index(0.9)], rel=1e-4)


@pytest.mark.slow
def test_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<figure>") == len(list((finished / "figures").iterdir())) == 7
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert "d = 2:" in page
    assert page.count("<td>0.152</td>") == 1  # the paper's Table 5 at beta = 0


@pytest.mark.slow
def test_finished_trainings_are_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(exact_noise, "noise", lambda *_: pytest.fail("computed again"))
    before = (finished / "results.json").read_text()
    STUDY.at(finished, TINY).run()
    assert (finished / "results.json").read_text() == before


@pytest.mark.slow
def test_interrupted_study_continues_where_it_stopped(finished, tmp_path, monkeypatch):
    folder, train, calls = tmp_path / "cut", loop.train, []
    shutil.copytree(finished, folder)  # as an interruption in the last training leaves it
    for name in ("runs/eight_gaussians-meanflow/result.json", "results.json", "report.html"):
        (folder / name).unlink()
    monkeypatch.setattr(
        loop, "train", lambda ensemble, place, progress: calls.append(place.name) or train(ensemble, place, progress)
    )
    STUDY.at(folder, TINY).run()
    assert calls == ["eight_gaussians-meanflow"]
    assert (folder / "results.json").read_text() == (finished / "results.json").read_text()
    assert (folder / "report.html").read_text() == (finished / "report.html").read_text()


@pytest.mark.slow
def test_folder_of_another_study_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="other settings"):
        STUDY.at(finished, mixtures.QUICK).run()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a study"):
        STUDY.at(tmp_path, TINY).run()


def test_budgets_are_the_papers_grid():
    assert mixtures.PAPER.dims == mixtures.DEFAULT.dims == tuple(paper.MIXTURES) == (2, 4, 8, 16, 32, 64)
    assert mixtures.PAPER.betas == mixtures.DEFAULT.betas == paper.BETAS
    assert all(len(line) == len(paper.BETAS) for line in paper.MIXTURES.values())
    assert (mixtures.PAPER.steps, mixtures.PAPER.seeds) == (200_000, (42, 0, 1))


# ------------------------------------------------------------------------------------------------------- sentences


def rows_of(zero, one):
    return [{"beta": beta, "seed": seed, "sw1": value} for beta, values in ((0.0, zero), (1.0, one))
            for seed, value in enumerate(values)]  # fmt: skip


@pytest.mark.parametrize(
    ("zero", "one", "change", "clear"),
    [
        ((1.0, 2.0, 4.0), (0.9, 1.8, 3.6), -0.1, True),  # the spread over seeds is large, that of the changes is not
        ((1.0, 1.0, 1.0), (1.1, 1.2, 0.99), 0.29 / 3, False),  # not one sign
        ((1.0, 1.0, 1.0), (1.01, 1.01, 1.4), 0.14, False),  # below two standard errors
    ],
)
def test_changes_are_taken_seed_by_seed(zero, one, change, clear):
    estimate, is_clear = summary.paired_change(rows_of(zero, one), "sw1", 1.0)
    assert estimate.value == pytest.approx(change)
    assert is_clear == clear


def test_change_of_a_diverged_training_is_left_out():
    rows = rows_of((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    del rows[4]["sw1"]
    assert summary.paired_change(rows, "sw1", 1.0)[0].value == pytest.approx(1.0)
    assert np.isnan(summary.paired_change(rows, "u_error", 1.0)[0].value)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ((0.8, 0.82, 0.81), ["lowest at beta = 1, 0.810.", "SW1 falls by 19.0", "beta = 1, is seen here."]),
        (
            (0.8, 1.1, 0.9),
            ["which is within the spread over seeds", "SW1 stays within the spread", "is within the spread here."],
        ),
        (
            (1.2, 1.21, 1.22),
            ["no beta does better than MeanFlow's SW1 of 1.000", "SW1 grows by 21.0", "is not seen here."],
        ),
    ],
)
def test_sentence_says_no_more_than_the_spread_allows(one, expected):
    sweep = [{**row, "sw2": 1.0, "jump_error": 1.0, "gradient_variance": 1.0} for row in rows_of((1.0,) * 3, one)]
    exact = {"curve": {"ratio": [1.0, 0.7], "error": [0.0, 0.01]}, "best_beta": 1.0, "best_ratio": 0.7,
             "pointwise_ratio": 0.6, "fraction": 0.57}  # fmt: skip
    text = report.sentence(mixtures.matched_row(2, sweep, {"sw1": 0.1, "sw2": 0.1}, exact))
    for part in [*expected, "expects 0.70 times the noise", "57 % of the points"]:
        assert part in text


# ------------------------------------------------------------------------------------------------ the command line


def test_study_command_finds_the_study(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(engine.Execution, "run", lambda self: calls.append(self) or self.folder / "report.html")
    cli.main(["study", "mixtures", "--quick", "--out", str(tmp_path / "here")])
    assert [(one.study, one.folder, one.budget) for one in calls] == [(STUDY, tmp_path / "here", mixtures.QUICK)]
    assert f"report: {tmp_path / 'here' / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mixtures", "adaptive"])
def test_as_published_is_for_toys_only(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", name, "--as-published"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"vamf: --as-published: only the study toys has it, not {name}\n"
