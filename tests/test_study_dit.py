"""The image study: variants are the paper's mixes, numbers match closed forms; complete, resumable."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vamf import cli
from vamf.conditioning import NULL_LABEL
from vamf.data import Dataset
from vamf.errors import UserError
from vamf.files import write_arrays
from vamf.networks import DiTConfig, Network
from vamf.objectives import create
from vamf.objectives.batch import LossSample
from vamf.objectives.guidance import Guidance
from vamf.objectives.posterior_mean import ClassMemoryBank
from vamf.objectives.velocity import EMA
from vamf.objectives.weighting import Power
from vamf.progress import Progress
from vamf.studies import dit, dit_results, evaluator, image_noise, paper, runner
from vamf.studies.dit import STUDY, Budget
from vamf.studies.image_noise import TIMES, NoiseProbe
from vamf.theory.estimate import Estimate
from vamf.training import loop, presets
from vamf.training.config import TrainConfig

QUIET = Progress(show=False)
NETWORK = DiTConfig(depth=1, width=16, heads=2, patch=4)
TINY = Budget(name="tiny", steps=4, seeds=(4, 5), betas=(0.0, 0.5, 1.0), others=(dit.OTHERS[3],), network=NETWORK,
              stops=2, samples=36, epochs=1, rows=8)  # fmt: skip


def write_images(path, n=90):
    """Images of 8x8 in three classes, which differ in brightness."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 3
    write_arrays(path, {"images": (rng.integers(0, 60, (n, 8, 8)) + 80 * label[:, None, None]).astype(np.uint8),
                        "labels": label})  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study, of images made up."""
    folder = tmp_path_factory.mktemp("studies")
    write_images(folder / "shapes.npz")
    with pytest.MonkeyPatch.context() as patch:
        base = TrainConfig(data=str(folder / "shapes.npz"), batch_size=8, network=NETWORK, **presets.guided(0.5, 2.0))
        patch.setitem(presets.PRESETS, "shapes", base)
        study = STUDY.at(folder / "tiny", TINY, preset="shapes")
        study.run()
        yield study


# -------------------------------------------------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_every_variant_is_scored_at_equal_steps(finished):
    with (finished.folder / "members.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    variants = ["beta = 0", "beta = 0.5", "beta = 1", "beta = 0, class-wise bank"]
    assert [(row["variant"], int(row["seed"]), int(row["step"])) for row in rows] == [
        (variant, seed, step) for variant in variants for seed in (4, 5) for step in (2, 4)
    ]
    assert {row["tangent_mix"] for row in rows if row["variant"].startswith("beta = 0.5")} == {"0.5"}
    for row in rows:
        assert float(row["frechet"]) > 0
        assert 0 <= float(row["accuracy"]) <= 1
    results = json.loads((finished.folder / "results.json").read_text())
    assert results["evaluator"]["score"] == "Fréchet distance (shapes-classifier 128)"
    assert results["evaluator"]["baseline"]["n"] == 8  # held out from the evaluator: a tenth of 81
    assert [row["step"] for row in results["bias_history"]] == [2, 4]
    bank = next(member for member in results["members"] if "bank" in member["variant"])
    assert len(bank["effective_sizes"]["class"]) == len(dit.BANK_TIMES)


@pytest.mark.slow
def test_one_step_samples_share_noise_and_labels(finished):
    """At the start networks are 0, so that samples are their noise; one training step later they still resemble it."""
    sweep, bank = (runner.load_samples(finished.folder, spec) for spec in finished.specs(""))
    assert sweep.shape == (6, 6, 8, 8, 1)
    assert np.corrcoef(sweep[0].ravel(), bank[0].ravel())[0, 1] > 0.95
    assert np.corrcoef(sweep[0][0].ravel(), sweep[0][1].ravel())[0, 1] < 0.6


@pytest.mark.slow
def test_the_report_stands_alone(finished):
    page = (finished.folder / "report.html").read_text()
    assert page.count("<figure>") == 6
    assert "Fréchet distance (shapes-classifier 128)" in page
    assert "FID" not in re.sub(r"the paper's FID|paper&#x27;s FID", "", re.sub(r"base64,[^\"]*", "", page))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_reports_the_same(finished, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(evaluator.classifier, "train", lambda *_: pytest.fail("evaluator trained again"))
    names = ("report.html", "members.csv", "matched.csv")
    before = [(finished.folder / name).read_text() for name in names]
    finished.run()
    assert [(finished.folder / name).read_text() for name in names] == before


# ------------------------------------------------------------------------------------------------------------ variants


def sweep(execution, beta):
    """The configuration of a beta of the sweep."""
    return execution.variants("")[0].configure(execution.base(""), {"beta": beta})


def study(tmp_path, **options):
    return STUDY.at(tmp_path / "study", dataclasses.replace(TINY, betas=dit.BETAS, others=dit.OTHERS), **options)


@pytest.mark.parametrize("beta", dit.BETAS)
def test_the_noise_of_the_tangent_is_the_papers(tmp_path, beta):
    """With u = k z R is affine in v_c; the paper's N_beta = (1 - beta) M - I, times omega = (1 - kappa) W."""
    objective = sweep(study(tmp_path), beta).build_objective()
    assert (objective.guidance.scale, objective.guidance.mix) == (2, 0.5)
    tangent = objective.residual.tangent
    assert objective.target == objective.unbiased == getattr(tangent, "a", tangent)
    assert getattr(tangent, "b", EMA()) == EMA()
    k, v_hat, z = 1.7, 0.6, 0.3
    r, t = np.array([0.2, 0.0, 0.1]), np.array([0.7, 0.9, 0.15])

    def residual(v):
        """||R||^2 of rows that are all at z, with conditional velocity v."""
        x, e = (jnp.asarray((z + weight * v)[:, None], jnp.float32) for weight in (-t, 1 - t))
        sample = LossSample(e, jnp.asarray(r, jnp.float32), jnp.asarray(t, jnp.float32), {})
        u, proxy = (lambda z, r, t, label: k * z), (lambda z, r, t, label: jnp.full_like(z, v_hat))
        return np.asarray(objective.loss(u, x, sample, jnp.zeros(3, jnp.int32), 0, proxy)[1]["residual"], np.float64)

    low, middle, high = (residual(np.full(3, v)) for v in (-1.0, 0.0, 1.0))
    coefficient = np.sqrt((low - 2 * middle + high) / 2)
    factor = (t - r) * k
    np.testing.assert_allclose(coefficient, np.abs((1 - beta) * factor - 1), rtol=1e-3)
    a, b = objective.noise(0)
    assert (a, b) == pytest.approx((1 - beta, beta))


def test_variants_differ_in_what_they_are_named_for(tmp_path):
    specs = dict(zip(("sweep", *(one.name for one in dit.OTHERS)), study(tmp_path).specs(""), strict=True))
    sweep = specs["sweep"]
    assert sweep.values["beta"] == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert list(sweep.seeds) == [4, 5] * 4
    made = {name: spec.config.build_objective() for name, spec in specs.items()}
    plain = made.pop("sweep")
    assert (plain.weighting, plain.terms, "bank" in plain.needs) == (Power(1.0, 1e-2), (), False)
    for name, objective in made.items():
        assert getattr(objective.residual.tangent, "beta", 0.0) == (0.0 if "bank" in name else 1.0)
        assert objective.weighting.power == (0 if "p = 0" in name else 1)
        assert [term.weight for term in objective.terms] == ([0.1] if "anchor" in name else [])
        assert [part.memory for part in objective.parts if part.name == "bank"] == ([256] * ("bank" in name))
        changed = dataclasses.replace(objective, weighting=Power(1.0, 1e-2), terms=())
        if "bank" not in name:
            assert (objective.residual.tangent.a, objective.residual.tangent.b) == (plain.residual.tangent, EMA())
            assert dataclasses.replace(changed, residual=plain.residual) == plain


def test_budgets(tmp_path):
    default, full = STUDY.at(tmp_path).base(""), STUDY.at(tmp_path, dit.PAPER).base("")
    assert default.images.expect == "fashion_mnist"
    assert (full.images.expect, full.steps) == ("cifar10", 40_000)
    imagenet = STUDY.at(tmp_path, dit.PAPER, preset="imagenet_dit_b4").base("")
    assert imagenet.network == DiTConfig.named("B/4")
    assert imagenet.optimizer.ema_decay == pytest.approx(0.9999)  # the paper's, constant
    assert not any(base.optimizer.ema_warmup for base in (default, full, imagenet))
    assert (imagenet.holdout, default.holdout) == (0.1, 0.1)  # the evaluator needs images that no variant sees
    for base, stops in ((default, 5), (full, 10), (imagenet, 10)):
        assert base.log.variance_every * stops == base.steps
        assert base.log.variance_every % base.checkpoint_every == 0
        assert base.checkpoint_every <= presets.imagenet_dit("B/4").checkpoint_every


@pytest.mark.slow
def test_the_history_of_an_interrupted_training_is_whole(tmp_path):
    base = TrainConfig(data="two_moons", steps=6, batch_size=8, checkpoint_every=2)
    spec, steps = runner.RunSpec("moons", base, (0, 1)), []

    def on_checkpoint(ensemble, step, state):
        if step == 4 and 4 not in steps:
            steps.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        mean = ensemble.sample(state, 16).mean(axis=(1, 2))
        return None if step == 2 else [{"mean": float(value)} for value in mean]

    def finish(ensemble, state):
        return ensemble.sample(state, 3), [{"done": True}] * ensemble.size

    def run(folder):
        return runner.run_or_load(spec, folder, runner.Measurement("request", finish, on_checkpoint), QUIET)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    cut = run(tmp_path / "cut")
    assert steps == [2, 4, 4, 6]
    assert cut == run(tmp_path / "cut") == run(tmp_path / "whole")
    assert [entry["step"] for entry in cut[1]["history"]] == [4, 6]


# -------------------------------------------------------------------------------------------------- the noise measured


def linear():
    """A network u = p z, that knows nothing of times and classes."""
    return Network(init=lambda key: jnp.ones(1), bind=lambda p: lambda z, r, t, label: p * z)


def guided(**options):
    return create("vamf", beta=0.0, guidance=Guidance(2.0, 0.25, dropout=0.1), **options)


def gaussian(key, n):
    return jax.random.normal(key, (n, 5)), jnp.zeros(n, jnp.int32)


@pytest.fixture(scope="module")
def measured():
    """A linear network, p = 1.6 and in the average 1.2, on Gaussian data: kappa 0.25, W 2, d 5."""
    probe = NoiseProbe(of_draws(lambda arrays, key, n: gaussian(key, n), (5,)), linear(), guided(), 20_000)
    nets = np.full(1, 1.6, np.float32), np.full(1, 1.2, np.float32)
    return {plain: probe.at_times(*nets, plain) for plain in (True, False)}, probe.at_training_times(*nets)


def of_draws(draw, shape):
    return Dataset("made-up", shape, (), draw, reference=lambda n, seed: np.zeros((n, *shape)))


def gaussians(plain):
    """Coefficients of (x, e) in v_c (or v_g), v_hat, u and xi at each time, and the gaps."""
    t = np.array(TIMES)
    z = np.stack([1 - t, t])
    v_c, u, v_hat = np.stack([-np.ones(9), np.ones(9)]), 1.6 * z, 1.2 * z
    tangent = v_c if plain else 0.75 * (2 * v_c - u) + 0.25 * u
    return tangent, v_hat, u, tangent - v_hat, np.minimum(t, 0.25)


def energy(coefficients):
    """E||.||^2 in 5 dimensions."""
    return 5 * np.sum(coefficients**2, axis=0)


@pytest.mark.parametrize("plain", [True, False])
def test_loss_variance_of_a_linear_network(measured, plain):
    tangent, v_hat, u, _, gap = gaussians(plain)
    variances = image_noise.loss_variance(measured[0][plain])
    for name, w in (("stochastic", tangent), ("deterministic", v_hat)):
        residual = u + gap * 1.6 * w - tangent
        expected = 2 * energy(residual) ** 2 / 5  # chi-squared with 5 degrees of freedom
        np.testing.assert_allclose([estimate.value for estimate in variances[name]], expected, rtol=0.06)


def test_the_bias_history_of_a_linear_network(measured):
    history = image_noise.bias_history(measured[0][True])
    _, v_hat, u, xi, gap = gaussians(True)
    lag, floor = energy(v_hat - u)[4], energy(xi)[4]
    assert history["tracking_gap"].value == pytest.approx(lag, rel=0.03)
    assert history["noise"].value == pytest.approx(floor, rel=0.03)
    assert history["shrinkage"].value == pytest.approx(floor / (floor + lag), rel=0.01)
    factor, noise = (gap * 1.6)[::2], energy(xi)[::2]
    assert history["bound"].value == pytest.approx(
        np.sum((factor - 1) * factor * noise) / np.sum(factor**2 * noise), rel=0.03
    )


def test_the_predicted_curve_is_the_parabola_of_its_terms(measured):
    terms = measured[1]
    mse = image_noise.predicted_mse(terms)
    factor = np.sqrt(terms["jvp_energy"] / terms["floor"])  # M = gap p >= 0 for every row, xi as it is
    np.testing.assert_allclose(terms["cross"] / terms["floor"], (factor - 1) * factor, rtol=0.01, atol=1e-3)
    for index, beta in ((0, 0.0), (5, 0.5), (10, 1.0)):
        noise = terms["floor"] * ((1 - beta) * factor - 1) ** 2 + beta**2 * terms["bias_energy"]
        expected = np.mean(noise) / np.mean(terms["floor"] * (factor - 1) ** 2)
        assert mse[index].value == pytest.approx(expected, rel=1e-3)


def test_the_effective_size_of_a_full_memory():
    x = jax.random.normal(jax.random.key(0), (64, 3))
    label = jnp.arange(64) % 2
    memory = ClassMemoryBank.empty(2, 8, (3,)).push(x, label)
    dataset = of_draws(lambda arrays, key, n: (x[:n], label[:n]), (3,))
    sizes = image_noise.effective_sizes(dataset, memory, 16, (0.01, 1.0))
    assert sizes["class"][1] == pytest.approx(9, rel=1e-4)  # at t = 1 every point is as likely
    assert sizes["all"][1] == pytest.approx(9, rel=1e-4)
    assert 1 <= sizes["class"][0] <= 2.01  # the row's own point, which the memory may hold too


# ---------------------------------------------------------------------------------------------------------- the numbers


def members(scores, error=0.1):
    """Members of variants with the given distances, a list over seeds for each variant and two equal steps."""
    return [
        {"variant": variant, "seed": seed, "gradient_variance": 1.0, "history": [
            {"step": step, "frechet": value, "frechet_error": error, "accuracy": 0.5} for step in (1, 2)]}
        for variant, values in scores.items() for seed, value in enumerate(values)
    ]  # fmt: skip


def test_gaps_are_paired_by_seed():
    paired = members({"beta = 0": [10.0, 14.0, 12.0], "beta = 1": [11.0, 16.0, 12.0]}, error=1e-3)
    estimate = dit_results.gap(paired, "beta = 1", 2)
    assert estimate.value == pytest.approx(1.0)
    assert estimate.error == pytest.approx(np.std([1, 2, 0], ddof=1) / np.sqrt(3))
    single = members({"beta = 0": [10.0], "beta = 1": [11.0]}, error=0.3)
    assert dit_results.gap(single, "beta = 1", 2).error == pytest.approx(0.3 * np.sqrt(2))
    agreeing = members({"beta = 0": [10.0, 14.0], "beta = 1": [11.0, 15.0]}, error=0.3)
    assert dit_results.gap(agreeing, "beta = 1", 2).error == pytest.approx(0.3)  # not 0
    broken = members({"beta = 0": [10.0, 14.0], "beta = 1": [11.0, None]})
    assert np.isnan(dit_results.gap(broken, "beta = 1", 2).value)


def test_the_quadratic_prediction_of_the_papers_numbers():
    gaps = {beta: Estimate(value, 0.02) for beta, value in paper.IMAGES_GAPS.items()}
    prediction = dit_results.prediction(gaps)
    assert prediction.anchor.value == pytest.approx(paper.IMAGES_ANCHOR, abs=0.05)
    assert prediction.ratio.value == pytest.approx(paper.IMAGES_RATIO, abs=0.05)
    assert prediction.at(0.25).value == pytest.approx(1.14 / 4)
    assert "more than quadratic (the paper: 2.6 times)" in dit_results.of_prediction(prediction)
    exact = dit_results.prediction({beta: Estimate(3 * beta**2, 0.01) for beta in (0.25, 0.5, 1.0)})
    assert exact.ratio.value == pytest.approx(1)
    assert exact.ratio.error == pytest.approx(np.hypot(0.01, 0.04) / 3)
    assert "quadratic to within two standard errors" in dit_results.of_prediction(exact)
    assert dit_results.prediction({0.25: gaps[0.25], 1.0: gaps[1.0]}) is None


def test_without_a_clear_gap_there_is_no_anchor():
    for half in (Estimate(0.1, 0.08), Estimate(-1.0, 0.1)):
        prediction = dit_results.prediction({0.5: half, 1.0: Estimate(5.0, 0.1)})
        assert prediction.ratio is None
        assert "no anchor here" in dit_results.of_prediction(prediction)


def test_sentences_follow_the_numbers():
    rising = {0.25: Estimate(0.5, 0.1), 0.5: Estimate(1.0, 0.1), 1.0: Estimate(4.0, 0.1)}
    assert "It rises with beta, as in the paper." in dit_results.of_order(rising)
    assert "Within" not in dit_results.of_order(rising)
    falling = {0.25: Estimate(-0.1, 0.2), 0.5: Estimate(-1.0, 0.1), 1.0: Estimate(-4.0, 0.1)}
    text = dit_results.of_order(falling)
    assert "this does not" in text
    assert "no change: beta = 0.25." in text
    assert "−4.00 ± 0.10 at beta = 1" in text
    rows = members({"beta = 0": [10.0], "beta = 1": [12.0], "beta = 1, anchor": [11.0], "beta = 1, p = 0": [15.0],
                     "beta = 1, p = 0, anchor": [14.5]}, error=0.0)  # fmt: skip
    text = dit_results.of_confound(rows, 2)
    assert "p = 0 +3.00 ± 0.00; the anchor −1.00 ± 0.00; both, as in the paper's run +2.50 ± 0.00" in text
    assert "the tangent alone makes +2.00 ± 0.00, with both changes +4.50 ± 0.00" in text


# ------------------------------------------------------------------------------------------------------------- refusals


def test_images_without_classes_are_refused(tmp_path, monkeypatch):
    write_arrays(tmp_path / "plain.npz", {"images": np.zeros((60, 8, 8), np.uint8)})
    base = TrainConfig(data=str(tmp_path / "plain.npz"), network=NETWORK, **presets.guided(0.5, 2.0))
    monkeypatch.setitem(presets.PRESETS, "plain", base)
    with pytest.raises(UserError, match="the study dit needs images with classes"):
        STUDY.at(tmp_path / "study", TINY, preset="plain").run()
    assert not (tmp_path / "study").exists()


def test_latents_need_an_autoencoder_and_inception(monkeypatch):
    monkeypatch.delenv(evaluator.AUTOENCODER, raising=False)
    dataset = dataclasses.replace(of_draws(lambda arrays, key, n: gaussian(key, n), (5,)), latents=Path("somewhere"))
    with pytest.raises(UserError, match="made-up: latents are scored as images; set VAMF_AUTOENCODER"):
        evaluator.check(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "toys", "--preset", "cifar10_dit"], "--preset: only the study dit has it, not toys"),
        (["study", "adaptive", "--data", "here"], "--data: only the study dit has it, not adaptive"),
        (["study", "dit", "--as-published"], "--as-published: only the study toys has it, not dit"),
        (
            ["study", "dit", "--quick", "--data", "nowhere"],
            "nowhere: no such folder; fashion_mnist needs a folder with",
        ),
    ],
)
def test_options_that_do_not_fit(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert f"vamf: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_dropped_labels_are_dropped():
    """The view without class shows the network no class, the other shows the data's."""
    labels = []

    def bind(p):
        def u(z, r, t, label):
            jax.debug.callback(lambda label: labels.append(np.unique(label)), label)
            return p * z

        return u

    dataset = of_draws(lambda arrays, key, n: (jnp.ones((n, 2)), jnp.full(n, 3, jnp.int32)), (2,))
    network = Network(init=lambda key: jnp.ones(1), bind=bind)
    probe = NoiseProbe(dataset, network, guided(), 4)
    for plain, expected in ((True, {NULL_LABEL}), (False, {NULL_LABEL, 3})):  # guidance evaluates without class too
        labels.clear()
        probe.at_times(np.ones(1, np.float32), np.ones(1, np.float32), plain)
        jax.effects_barrier()
        assert {int(value) for values in labels for value in values} == expected
