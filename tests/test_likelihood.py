"""Log densities against closed forms: of Gaussians and mixtures, and of networks that have learnt nothing yet."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import oracles
from vamf import cli, data
from vamf.data.network_units import are_bytes, to_network, uniform_noise
from vamf.data.table_units import TableUnits
from vamf.data.whitening import whiten
from vamf.errors import UserError
from vamf.likelihood import ODE, FewStep, log_density, runs
from vamf.likelihood.gaussian import Gaussian
from vamf.likelihood.runs import evaluate, run_log_density
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.theory import GaussianMixture
from vamf.training.config import TrainConfig
from vamf.training.run import Run

QUIET = Progress(show=False)
MEANS, COVARIANCES = (
    np.array([[1.5, 0.5], [-1.0, -0.5]]),
    np.array([[[0.3, 0.1], [0.1, 0.5]], [[0.8, -0.2], [-0.2, 0.3]]]),
)
MIXTURE = GaussianMixture([0.4, 0.6], MEANS, covariances=COVARIANCES)
NORMALS = oracles.Normals(np.array([0.4, 0.6]), MEANS, COVARIANCES)


def points(n=12, d=2, scale=1.5, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(n, d))


def mixture_log_density(x):
    return np.array([special.logsumexp(NORMALS.log_joint(row, 0.0)) for row in x])


def gaussian_log_density(x, sd):
    return stats.norm.logpdf(x, scale=sd).reshape(len(x), -1).sum(axis=1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# --------------------------------------------------------------------------------------------------- average velocities


@pytest.mark.parametrize("method", [ODE(), ODE(100, "heun"), ODE(16, tolerance=1e-5)])
def test_ode_of_a_mixture_is_its_density(method, float64):
    x = points()
    result = log_density(MIXTURE, x, method=method)
    np.testing.assert_allclose(result.log_p, mixture_log_density(x), atol=1e-3 if method.solver == "heun" else 1e-4)
    np.testing.assert_array_equal(result.std_error, 0)
    assert result.log_p.dtype == np.float64
    if method.tolerance:
        assert result.error.mean() <= 1e-5
        assert result.iterations.min() > 16
    ends = np.stack([NORMALS.flow(row, 1.0, 0.0) for row in x[:3]])
    np.testing.assert_allclose(result.noise[:3], ends, atol=1e-3)


@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_exact_jumps_of_a_mixture_have_its_density(steps, float64):
    x = points(6)
    result = log_density(MIXTURE, x, method=FewStep(steps))
    np.testing.assert_allclose(result.log_p, mixture_log_density(x), atol=1e-6)
    assert result.error.max() < 1e-7


@pytest.mark.parametrize("sd", [0.5, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, (1.0, 0.9, 0.2, 0.0)])
@pytest.mark.parametrize("inverse", ["newton", "fixed_point", "reverse"])
def test_exact_jumps_of_a_gaussian_have_its_density(sd, steps, inverse, float64):
    """The fixed point is found where each jump S = s_r / s_t has |1 - S| < 1, and not where one expands more."""
    exact, x = oracles.Gaussian(sd), points(5, 3)
    result = log_density(exact.average_velocity, x, method=FewStep(steps, inverse))
    grid = np.linspace(1, 0, steps + 1) if isinstance(steps, int) else np.array(steps)
    expansions = exact.expansion(grid[1:], grid[:-1])
    if inverse == "fixed_point" and np.any(np.abs(1 - expansions) >= 1):
        assert np.isnan(result.log_p).all()
        return
    np.testing.assert_allclose(result.log_p, gaussian_log_density(x, sd), atol=1e-6)
    np.testing.assert_allclose(result.noise, x / sd, atol=1e-6)


def test_float32_is_enough():
    exact, x = oracles.Gaussian(2.0), points(5, 3).astype(np.float32)
    for method in (ODE(), FewStep(2)):
        result = log_density(exact_as_average_velocity(exact), x, method=method)
        assert result.log_p.dtype == np.float32
        np.testing.assert_allclose(result.log_p, gaussian_log_density(x, 2.0), atol=1e-4)


def exact_as_average_velocity(exact):
    return lambda z, r, t, label=None: exact.average_velocity(z, r, t)


def test_folded_maps():
    """X(z) = z^2: -1 has no start, 4 has two, of which one counts."""

    def u(z, r, t, label):
        return z - z**2

    result = log_density(u, np.array([[-1.0], [4.0]], np.float32), method=FewStep(1))
    assert np.isnan(result.log_p[0])
    np.testing.assert_allclose(np.abs(result.noise[1]), 2, atol=1e-3)
    np.testing.assert_allclose(result.log_p[1], stats.norm.logpdf(2) - math.log(4), atol=1e-3)
    assert result.error[0] >= 1
    assert result.error[1] < 1e-4


def test_conditions_and_blocks(float64):
    """Each row by its own class, in blocks as at once, the probes included."""

    def u(z, r, t, label):
        return oracles.Gaussian(2.0 + label).average_velocity(z, r, t)

    x, label = points(7, 2), np.arange(7) % 3
    expected = np.concatenate([gaussian_log_density(row[None], 2.0 + k) for row, k in zip(x, label, strict=True)])
    for method in (ODE(), FewStep(2)):
        done = []
        result = log_density(u, x, jnp.asarray(label), method, block=3, on_rows=done.append)
        np.testing.assert_allclose(result.log_p, expected, atol=1e-6)
        assert done == [3, 6, 7]
    method = ODE(divergence="hutchinson", probe="gaussian")
    at_once, in_blocks = (log_density(u, x, jnp.asarray(label), method, block=block).log_p for block in (7, 2))
    np.testing.assert_allclose(at_once, in_blocks, rtol=1e-12)
    other = log_density(u, x, jnp.asarray(label), method, jax.random.key(1)).log_p
    assert np.all(np.abs(other - at_once) > 1e-6)


# ---------------------------------------------------------------------------------------------------------- Hutchinson


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_within_its_error(probe, float64):
    """Its mean over rows is that of the exact divergence, and the stated errors are those that it has."""
    n, x = 2000, points(2000)
    result = log_density(MIXTURE, x, method=ODE(16, divergence="hutchinson", probes=16, probe=probe))
    error = result.log_p - log_density(MIXTURE, x, method=ODE(16)).log_p
    assert np.abs(error).max() > 0.1
    assert abs(error.mean()) < 4 * math.sqrt(np.mean(result.std_error**2) / n)
    # Squared errors, whose mean is that of the squared standard errors whatever the distribution.
    squares = error**2 - result.std_error**2
    assert abs(squares.mean()) < 4 * squares.std() / math.sqrt(n)
    assert np.mean(result.std_error**2) > 4 * squares.std() / math.sqrt(n)


def test_hutchinson_of_a_multiple_of_the_identity(float64):
    """Signs know the trace of c I exactly; normal probes have the standard error |integral of c| sqrt(2 d / k)."""
    d, k, sd, x = 5, 40, 3.0, points(200, 5)
    u = oracles.Gaussian(sd).average_velocity
    signs, normal = (
        log_density(u, x, method=ODE(divergence="hutchinson", probes=k, probe=probe))
        for probe in ("rademacher", "gaussian")
    )
    np.testing.assert_allclose(signs.log_p, gaussian_log_density(x, sd), atol=1e-4)
    np.testing.assert_allclose(signs.std_error, 0, atol=1e-10)
    # The integral of c over [0, 1] is log(s_1 / s_0) = -log sd.
    np.testing.assert_allclose(np.mean(normal.std_error**2), math.log(sd) ** 2 * 2 * d / k, rtol=0.1)


def test_many_dimensions_take_hutchinson():
    assert ODE().is_exact(64)
    assert not ODE().is_exact(65)
    x = points(3, 65).astype(np.float32)
    result = log_density(exact_as_average_velocity(oracles.Gaussian(2.0)), x, method=ODE(probes=1))
    np.testing.assert_allclose(result.log_p, gaussian_log_density(x, 2.0), atol=1e-2)
    assert np.isnan(result.std_error).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_density(MIXTURE, np.zeros((0, 2))), r"x: shape \(0, 2\)"),
        (lambda: log_density(MIXTURE, np.zeros((3, 2), int)), "allowed are floats"),
        (lambda: log_density(MIXTURE, np.full((3, 2), np.inf)), "not finite"),
        (lambda: log_density(MIXTURE, np.zeros((3, 2)), block=0), "block = 0"),
        (lambda: log_density(MIXTURE, np.zeros((3, 2000), np.float32), method=FewStep()), "2,000 dimensions"),
        (lambda: ODE(0), "steps = 0"),
        (lambda: ODE(probes=0), "probes = 0"),
        (lambda: ODE(tolerance=0.0), "tolerance = 0"),
        (lambda: FewStep(0), "steps = 0"),
        (lambda: FewStep((0.0, 1.0)), r"steps = \(0, 1\)"),
        (lambda: FewStep(iterations=0), "iterations = 0"),
        (lambda: FewStep(tolerance=-1.0), "tolerance = -1"),
    ],
)
def test_bad_arguments_are_one_line(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------- data

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, 200)
TABLE = np.stack(
    [10 * LABEL + RNG.normal(size=200), np.full(200, 7.0), RNG.integers(0, 50, 200), RNG.normal(3, 0.01, 200)], axis=1
)
"""A column that tells the class, a constant one, integers, and a narrow one."""


def test_network_units_undo_original_units():
    for dataset in (data.load({"x": TABLE}), whiten(data.load({"x": TABLE}), 1e-4), data.load("digits")):
        drawn = np.asarray(dataset.draw(dataset.arrays, jax.random.key(0), 50)[0])
        if dataset.table is not None:  # not rounded, so that it can be undone
            columns = [dataclasses.replace(c, kind="real", low=-np.inf, high=np.inf) for c in dataset.table.columns]
            dataset = dataclasses.replace(dataset, table=TableUnits(tuple(columns)))
        back, log_det = to_network(dataset, dataset.to_original(drawn))
        np.testing.assert_allclose(back, drawn, atol=2e-3)
        constants = {} if dataset.table is None else dict(dataset.table.constants)
        varying = [column for column in range(dataset.sample_shape[0]) if column not in constants]
        origin = dataset.to_original(np.zeros((1, *dataset.event_shape)))
        moved = dataset.to_original(np.eye(*dataset.event_shape)) - origin
        expected = -np.linalg.slogdet(moved[:, varying])[1]
        np.testing.assert_allclose(log_det, expected, atol=1e-6)


def test_rows_that_do_not_fit_are_refused():
    dataset = data.load({"x": TABLE})
    with pytest.raises(UserError, match=r"\(n, 4\) is needed"):
        to_network(dataset, TABLE[:, :3])
    with pytest.raises(UserError, match="not finite"):
        to_network(dataset, TABLE * np.nan)
    odd = dataset.__class__(**{**vars(dataset), "inverse_transform": Odd()})
    with pytest.raises(UserError, match="Odd has no `log_det`"):
        to_network(odd, TABLE)


class Odd:
    def __call__(self, samples):
        return samples

    def forward(self, samples):
        return samples


def test_classes_of_held_out_rows():
    """They are those of the rows of `reference`: here a row's first number, or an image's grey, tells its class."""
    table = data.load({"x": TABLE, "label": LABEL})
    np.testing.assert_array_equal(table.reference_rows(15, 3)["label"], np.round(table.reference(15, 3)[:, 0] / 10))
    greys = np.broadcast_to((100 * LABEL)[:, None, None, None], (200, 4, 4, 1)).astype(np.uint8)
    images = data.load({"x": greys, "label": np.array(["a", "b", "c"])[LABEL]})
    np.testing.assert_array_equal(images.reference_rows(15, 3)["label"], images.reference(15, 3)[:, 0, 0, 0] / 100)
    assert images.classes == ("a", "b", "c")
    official = data.images.from_pixels(
        "greys", greys, label=LABEL, held_out=greys[50:90], held_out_label=LABEL[50:90].astype(np.int32)
    )
    np.testing.assert_array_equal(official.reference_rows(40, 1)["label"], official.reference(40, 1)[:, 0, 0, 0] / 100)


def test_noise_is_on_what_samples_round():
    table, images = data.load({"x": TABLE}), data.load({"x": RNG.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)})
    noisy, count = uniform_noise(table, TABLE, 0)
    assert count == 1
    np.testing.assert_array_equal(noisy[:, [0, 1, 3]], TABLE[:, [0, 1, 3]])
    np.testing.assert_array_equal(np.rint(noisy[:, 2]), TABLE[:, 2])
    np.testing.assert_allclose((noisy - TABLE)[:, 2].var(), 1 / 12, rtol=0.3)
    assert are_bytes(images)
    assert not are_bytes(table)
    assert not are_bytes(data.load({"x": RNG.uniform(size=(40, 4, 4, 1))}))
    assert uniform_noise(images, images.reference(4, 0), 0)[1] == 16


def test_gaussian_baseline():
    rows = RNG.normal(size=(100, 3)) @ RNG.normal(size=(3, 3)) + 1
    expected = stats.multivariate_normal(rows.mean(0), np.cov(rows, rowvar=False)).logpdf(rows)
    np.testing.assert_allclose(Gaussian.fit(rows).log_density(rows), expected, rtol=1e-9)
    twice = np.concatenate([rows, rows[:, :1]], axis=1)
    assert np.isfinite(Gaussian.fit(twice).log_density(twice)).all()


# ---------------------------------------------------------------------------------------------------------------- runs


def make_run(folder, source, **options):
    """A run whose u is almost 0, as at the start of every training: each log density is that of a normal y."""
    config = TrainConfig(
        "array", steps=1, batch_size=16, learning_rate=1e-12, network=MLPConfig(width=8, depth=2), **options
    )
    run = Run.create(config, folder, data=source)
    return run, run.ensemble.init()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood")
    np.savez(folder / "table.npz", x=TABLE, label=LABEL)
    run, _ = make_run(folder / "run", folder / "table.npz", objective={"terms": ["cycle"]})
    return run, run.train(QUIET).state


def test_a_run_in_original_units(labelled):
    run, state = labelled
    x, label = TABLE[:5] + 0.25, LABEL[:5]
    varying = [0, 2, 3]
    dataset = run.dataset
    expected = stats.norm.logpdf(x[:, varying], dataset.shift, dataset.scale).sum(axis=1)
    for method in (ODE(8), FewStep(1)):
        result = run_log_density(run, state, x, label, method)
        np.testing.assert_allclose(result.log_p, expected, atol=1e-2)
    with pytest.raises(UserError, match="label is missing"):
        run_log_density(run, state, x)


def test_a_whitened_run(tmp_path):
    """Of the Gaussian with the data's mean and covariance, but for rounding in the floor."""
    correlated = RNG.normal(size=(300, 2)) @ np.array([[2.0, 0.5], [0.0, 0.3]]) + [5, -1]
    run, state = make_run(tmp_path / "run", correlated, whitening=1e-6)
    whitener, dataset = run.dataset.inverse_transform, run.dataset
    covariance = (whitener.vectors * whitener.spread**2) @ whitener.vectors.T * np.outer(dataset.scale, dataset.scale)
    mean = whitener.mean * dataset.scale + dataset.shift
    expected = stats.multivariate_normal(mean, covariance).logpdf(correlated[:5])
    np.testing.assert_allclose(run_log_density(run, state, correlated[:5], method=ODE(8)).log_p, expected, atol=1e-2)


def test_evaluation_on_the_command_line(labelled, capsys, monkeypatch):
    monkeypatch.setattr(runs, "JUMPS", (1, 2))
    run, _ = labelled
    cli.main(["evaluate", str(run.folder), "--likelihood", "--likelihood-rows", "15"])
    said = capsys.readouterr().out
    assert "15 held-out rows" in said
    found = json.loads((run.folder / "evaluation.json").read_text())["likelihood"]
    for line in (*found["notes"], *found["densities"]):
        assert line in said
    assert list(found["densities"]) == [
        "ODE of u(z, t, t)", "1 jump", "2 jumps", "1 of the inverse", "2 of the inverse", "Gaussian",
    ]  # fmt: skip
    assert (found["rows"], found["dimensions"], found["noisy"], found["unseen"]) == (15, 3, 1, True)
    dataset = run.dataset
    x = uniform_noise(dataset, dataset.reference(15, 0), 0)[0][:, [0, 2, 3]]
    expected = stats.norm.logpdf(x, dataset.shift, dataset.scale).sum(axis=1)
    for name, row in found["densities"].items():
        if name != "Gaussian":
            assert row["log_likelihood"] == pytest.approx(expected.mean(), abs=1e-2)
            assert row["std_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(15), rel=1e-2)
            assert row["not_inverted"] == 0
    text = " ".join(found["notes"])
    for said in ("uniform noise of width 1 on 1 numbers", "1 constant columns", "given the condition of each row"):
        assert said in text


def test_bits_per_dimension_of_bytes(tmp_path):
    pixels = RNG.integers(0, 256, (60, 9, 9, 1)).astype(np.uint8)
    run, state = make_run(tmp_path / "run", pixels)
    found = evaluate(run, state, rows=6, probes=2)
    assert list(found["densities"]) == ["ODE of u(z, t, t)", "Gaussian"]
    x = uniform_noise(run.dataset, run.dataset.reference(6, 0), 0)[0]
    expected = math.log2(127.5) - stats.norm.logpdf(x / 127.5 - 1).mean() / math.log(2)
    row = found["densities"]["ODE of u(z, t, t)"]
    assert row["bits_per_dim"] == pytest.approx(expected, abs=1e-3)
    assert row["bits_std_error"] == pytest.approx(row["std_error"] / (81 * math.log(2)))
    assert any("no density of jumps" in note for note in found["notes"])
    assert any("Hutchinson" in note for note in found["notes"])


def test_known_densities_are_there(tmp_path):
    config = TrainConfig("dgmm2", "flow_matching", steps=1, batch_size=16, network=MLPConfig(width=8, depth=2))
    run = Run.create(config, tmp_path / "run")
    found = evaluate(run, run.ensemble.init(), rows=200)
    assert list(found["densities"]) == ["ODE of u(z, t, t)", "Gaussian", "the data's own"]
    mixture = run.dataset.mixture
    x = run.dataset.reference(200, 0)
    normals = oracles.Normals.isotropic(mixture.weights, mixture.means, mixture.stds)
    expected = np.mean([special.logsumexp(normals.log_joint(row, 0.0)) for row in x])
    assert found["densities"]["the data's own"]["log_likelihood"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--likelihood-rows 5", "likelihood-rows = 5: only with --likelihood"),
        ("--likelihood --likelihood-rows 1", "likelihood-rows = 1: allowed is 2 or more"),
        ("--likelihood --probes 1", "probes = 1: allowed is 2 or more"),
        ("--likelihood --ema all", "ema = all: not with --likelihood"),
    ],
)
def test_bad_options_are_one_line(labelled, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(labelled[0].folder), *words.split()])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert message in said
    assert said.count("\n") == 1


def test_runs_without_such_a_density_are_refused(tmp_path):
    run, state = make_run(tmp_path / "flow", TABLE, method="flow_matching")
    with pytest.raises(UserError, match="flow_matching trains none; take the ODE"):
        run_log_density(run, state, TABLE[:2], method=FewStep(1))
    pairs, state = make_run(tmp_path / "pairs", {"x": TABLE[:, :1], "start": TABLE[:, :1]}, objective={"path": "pairs"})
    with pytest.raises(UserError, match="prior of this run"):
        run_log_density(pairs, state, TABLE[:2, :1])


def test_a_logarithm_has_a_density_and_a_category_none():
    """log p of a log-normal column from that of its logarithm, and one line for what has no density."""
    income = np.exp(np.random.default_rng(0).normal(3, 1.5, (400, 1)))
    dataset = data.load({"x": income})
    assert dataset.table.columns[0].transform == "log"
    values, log_det = to_network(dataset, income)
    std = np.log(income[:, 0]).std()
    z = (np.log(income[:, 0]) - np.log(income[:, 0]).mean()) / std
    np.testing.assert_allclose(values[:, 0], z, atol=0.2)  # mean and spread are those of the training rows
    np.testing.assert_allclose(log_det, -np.log(income[:, 0]) - np.log(dataset.scale[0]), rtol=1e-9)
    flags = data.load({"x": np.random.default_rng(0).random((64, 2)) < 0.5})
    with pytest.raises(UserError, match="boolean values have no density"):
        to_network(flags, np.zeros((3, 2)))
