"""The doctor against Gaussian data, where S = s_r / s_t makes every number known, and against its own measurements."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from vamf import cli, figures, objectives
from vamf.diagnosis import BETAS, Finding, advise, diagnose, log_checks
from vamf.diagnosis import run as run_diagnosis
from vamf.diagnosis.advice import Current, with_error
from vamf.diagnosis.results import Curve
from vamf.diagnosis.run import in_both_roles, mixed_objective, run_gradients
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.objectives import METHODS
from vamf.objectives.velocity import Mix
from vamf.theory.estimate import Estimate
from vamf.theory.estimators import gradient_contrasts
from vamf.times import Uniform
from vamf.training.config import OptimizerConfig, TrainConfig
from vamf.training.run import Run

D = 3
B = np.array([0.4, -0.2, 0.3])


def gaussian(sd, n=20_000):
    return jnp.asarray(sd * np.random.default_rng(0).normal(size=(n, D)))


@pytest.fixture(scope="module", params=[0.5, 2.0])
def exact(request):
    """sd, the exact u of Gaussian data, and its diagnosis."""
    with jax.enable_x64(True):
        oracle = oracles.Gaussian(request.param)
        return oracle, diagnose(oracle.average_velocity, gaussian(request.param), cells=4, samples=2048)


@pytest.fixture(scope="module")
def training_law():
    """A fine sample of the default law of times with r < t, drawn by numpy."""
    pair = np.random.default_rng(1).uniform(1e-4, 1 - 1e-4, (2, 2_000_000))
    return pair.min(axis=0), pair.max(axis=0)


def agrees(estimate, expected, errors=4.5):
    assert abs(estimate.value - expected) < errors * estimate.error + 1e-9
    assert estimate.error < 0.15 * abs(expected) + 0.02


# --------------------------------------------------------------------------------------------------------- measurements


def test_cells(exact):
    oracle, found = exact
    assert len(found.cells) == 10
    assert sum(cell.weight for cell in found.cells) == pytest.approx(1)
    for cell in found.cells:
        s, sigma = oracle.expansion(cell.t - cell.gap, cell.t), oracle.variance(cell.t)
        agrees(cell.amplification, s**2)
        agrees(cell.beta, s / (s - 1))
        agrees(cell.noise, s**2 * D * sigma)
        agrees(cell.floor, D * sigma)
        agrees(cell.trace, s)
        agrees(cell.frobenius, s**2)
        agrees(cell.stochastic, 2 * D * s**4 * sigma**2)
        agrees(cell.deterministic, 2 * D * sigma**2)
        # (t - r) D_w u = (w - u) at the exact u with w = v, plus M xi: v - u has the slope a - (1 - S) / gap.
        slope = float(oracle.velocity(np.ones((1, 1)), np.array([cell.t]))[0, 0]) - (1 - s) / cell.gap
        agrees(cell.derivative, D * (slope**2 * oracle.scale(cell.t) ** 2 + (1 - s) ** 2 * sigma))


def test_weights_are_the_training_law(exact, training_law):
    _, found = exact
    r, t = training_law
    for cell in found.cells:
        inside = (abs(t - cell.t) < 0.125) & (abs(t - r - cell.gap) < 0.125)
        assert cell.weight == pytest.approx(inside.mean(), abs=0.005)


def test_shares_of_the_plane(exact):
    oracle, found = exact
    expands = [cell.weight * (oracle.expansion(cell.t - cell.gap, cell.t) > 1) for cell in found.cells]
    undecided = 1 - found.helps - found.harms
    assert sum(expands) - undecided - 1e-9 <= found.helps <= sum(expands) + undecided + 1e-9
    assert undecided < 0.2


def test_curves_and_optimum_over_the_training_law(exact, training_law):
    """The noise is Sigma (S + beta (1 - S))^2 in each dimension, and the mean-field residual is 0."""
    oracle, found = exact
    r, t = training_law
    s, sigma = oracle.expansion(r, t), oracle.variance(t)
    agrees(found.amplification, np.mean(sigma * s**2) / np.mean(sigma))
    best = np.mean(sigma * s * (s - 1)) / np.mean(sigma * (s - 1) ** 2)
    agrees(found.optimum.bound, best)
    agrees(found.optimum.biased, best)
    assert not found.of_gradient
    for curve in (found.measured, found.predicted):
        for beta, relative in zip(BETAS, curve.relative, strict=True):
            expected = np.mean(sigma * (s + beta * (1 - s)) ** 2) / np.mean(sigma * s**2)
            assert abs(relative.value - expected) < 4.5 * relative.error + 1e-9
    assert found.beta == (1.0 if best > 1 else 0.0)


def test_isotropic_estimates_know_or_lose_the_sign(exact, training_law):
    oracle, found = exact
    s = oracle.expansion(*training_law)
    assert found.optimum.signed.value == pytest.approx(1.0 if s.mean() > 1 else 0.0, abs=1e-9)
    a = np.sqrt(np.mean(s**2))  # the sign of A = -S is gone
    agrees(found.optimum.unsigned, a / (a + 1))


def test_bias_enters_the_denominator():
    """v_hat = v + b: the second moment of xi is Sigma + b b^T, and ||M b||^2 joins it below."""
    oracle = oracles.Gaussian(2.0)
    with jax.enable_x64(True):
        found = diagnose(
            oracle.average_velocity,
            gaussian(2.0),
            proxy=lambda z, r, t, label: oracle.velocity(z, t) + B,
            cells=3,
            samples=2048,
        )
    for cell in found.cells:
        s, noise = oracle.expansion(cell.t - cell.gap, cell.t), D * oracle.variance(cell.t) + B @ B
        agrees(cell.beta, s / (s - 1) * noise / (noise + B @ B))
    assert found.tracking_gap.value == pytest.approx(B @ B)


@pytest.mark.slow
def test_images_and_labels():
    network = oracles.Smooth.random(2, 6)
    with jax.enable_x64(True):
        x, label = jnp.asarray(np.random.default_rng(3).normal(size=(50, 6))), jnp.arange(50) % 3

        def image(z, r, t, label):
            return network(z.reshape(-1, 6), r, t, label).reshape(z.shape)

        options = {"cells": 2, "samples": 64, "key": jax.random.key(3)}
        flat = diagnose(network, x, label, **options).as_dict()
        shaped = diagnose(image, x.reshape(50, 2, 3), label, **options).as_dict()
        other = diagnose(network, x, label * 0, **options).as_dict()
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-9), flat, shaped)
    assert flat["amplification"] != other["amplification"]
    json.dumps(flat)


@pytest.mark.parametrize("dropped", [0.0, 0.4])
def test_guided_rows_have_the_guided_noise(dropped):
    """raw = W v_c + (1 - W) v has the noise W xi where the label is shown, xi elsewhere; what maps expand stays."""
    oracle, scale = oracles.Gaussian(2.0), 2.5
    with jax.enable_x64(True):
        found = diagnose(
            lambda z, r, t, label: oracle.average_velocity(z, r, t),
            gaussian(2.0),
            jnp.zeros(20_000, jnp.int32),
            training_cond=lambda key, r, t, label: jnp.where(jax.random.bernoulli(key, dropped, t.shape), -1, label),
            target_velocity=lambda z, t, cond, v_c: jnp.where(
                (cond == -1)[:, None], v_c, scale * v_c + (1 - scale) * oracle.velocity(z, t)
            ),
            cells=2,
            samples=4096,
        )
    for cell in found.cells:
        factor = dropped + (1 - dropped) * scale**2
        agrees(cell.floor, factor * D * oracle.variance(cell.t))
        agrees(cell.amplification, oracle.expansion(cell.t - cell.gap, cell.t) ** 2)


def test_pairs_keep_their_noise():
    """With e = x of every pair v_c is 0, and xi = -v."""
    oracle, x = oracles.Gaussian(2.0), gaussian(2.0)
    with jax.enable_x64(True):
        found = diagnose(oracle.average_velocity, x, start=x, cells=2, samples=4096)
        for cell in found.cells:
            v = oracle.velocity(np.asarray(x), np.full(len(x), cell.t))
            agrees(cell.floor, np.sum(v**2, axis=1).mean())


def test_times_with_a_largest_gap():
    oracle = oracles.Gaussian(2.0)
    with jax.enable_x64(True):
        found = diagnose(oracle.average_velocity, gaussian(2.0, 500), times=Uniform(max_gap=0.5), cells=4, samples=64)
    assert sum(cell.weight for cell in found.cells if cell.gap > 0.5) == 0
    assert sum(cell.weight for cell in found.cells if 0.25 < cell.gap < 0.5) > 0.3  # the capped gaps among them


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"samples": 8}, "samples = 8: allowed is 32 or more"),
        ({"cells": 1}, "cells = 1: allowed is 2 or more"),
        ({"replicas": 2}, "replicas = 2: allowed is 4 or more"),
    ],
)
def test_bad_counts(options, line):
    with pytest.raises(UserError, match=line):
        diagnose(oracles.Gaussian(1.0).average_velocity, jnp.zeros((4, D)), **options)


# --------------------------------------------------------------------------------------------------------------- advice


@pytest.fixture(scope="module", params=[0.5, 2.0])
def with_gradient(request):
    """A network theta u*, one theta for each dimension, on Gaussian data: its diagnosis, and its gradient."""
    sd, oracle = request.param, oracles.Gaussian(request.param)
    with jax.enable_x64(True):
        data = gaussian(sd, 4000)

        def gradient(beta, key):
            pick_key, loss_key = jax.random.split(key)
            x = data[jax.random.randint(pick_key, (64,), 0, len(data))]
            objective = objectives.create("vamf", beta=beta, proxy=oracle.average_velocity)

            def loss(theta):
                return objective(lambda z, r, t, label: theta * oracle.average_velocity(z, r, t), x, None, loss_key, 0)[
                    0
                ].mean()

            return jax.grad(loss)(jnp.full(D, 1.1))

        found = diagnose(
            oracle.average_velocity,
            data,
            gradient=gradient,
            rao_blackwell=lambda key: 0.5 * gradient(jnp.zeros(()), key),
            run_gradient=lambda key: 2.0 * gradient(jnp.zeros(()), key),
            cells=3,
            samples=256,
        )
        return sd, found, gradient


@pytest.mark.slow
def test_advice_agrees_with_the_measured_variance(with_gradient):
    """Variances from other batches, by their definition, along the whole curve."""
    sd, found, gradient = with_gradient
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(99), 400)
        gradients = np.asarray(
            jax.jit(lambda betas: jax.lax.map(lambda b: jax.vmap(lambda key: gradient(b, key))(keys), betas))(
                jnp.asarray(BETAS)
            )
        )
    variances = gradients.var(axis=1, ddof=1).sum(axis=-1)
    recommended = BETAS.index(found.beta)
    assert variances[recommended] < 1.1 * variances.min()
    assert found.beta == pytest.approx(1.0 if sd > 1 else 0.0, abs=0.2)
    for relative, variance in zip(found.measured.relative, variances / variances[0], strict=True):
        # Two standard errors of the second curve: sqrt(2/400) of a variance in each of three dimensions, partly shared.
        assert abs(relative.value - variance) < 4 * relative.error + 0.1
    assert found.of_gradient
    assert found.rao_blackwell is not None
    assert found.rao_blackwell.value == pytest.approx(0.25)
    assert found.run_gradient is not None
    assert found.run_gradient.value == pytest.approx(4)
    said = [
        finding for finding in advise(found, Current("split_meanflow", None, 0.999)) if "split_meanflow" in finding.text
    ]
    assert ["times higher" in finding.text for finding in said] == [True]


@pytest.mark.slow
def test_advice_names_the_setting(with_gradient):
    sd, found, _ = with_gradient
    plain = advise(found)
    assert plain[0].setting == ("--method rao_blackwell" if found.measured.relative[-1].value > 0.25 else "--beta 1")
    far, near = (
        [finding for finding in advise(found, Current("meanflow", beta, 0.999)) if "measured gradient variance is" in
         finding.text or "No constant" in finding.text][-1]
        for beta in ((0.0, 1.0) if sd > 1 else (1.0, 0.0))
    )  # fmt: skip
    assert far.severity == "advice"
    assert far.setting == f"--method vamf --beta {found.beta:g}"
    assert near.severity == "good"
    assert near.setting == ""
    for method, beta in (("rao_blackwell", None), ("vamf", "binned")):
        assert not any("--beta" in finding.setting for finding in advise(found, Current(method, beta, 0.999)))


def _amplification(found, side):
    """Of the cells clearly on one side of 1, together."""
    cells = [
        (cell.weight, cell.noise.value, cell.floor.value)
        for cell in found.cells
        if side(cell.amplification.value, 1) and abs(cell.amplification.value - 1) > 2 * cell.amplification.error
    ]
    weight, noise, floor = np.array(cells).T
    return weight @ noise / (weight @ floor)


def test_plane_and_curve_say_the_same(exact):
    oracle, found = exact
    texts = " ".join(finding.text for finding in advise(found))
    if oracle.sd > 1:
        assert found.helps > 0.8
        assert f"lower the noise {_amplification(found, np.greater):.2f} times on {found.helps:.0%}" in texts
        assert "At beta = 1 the measured squared residual" in texts
    else:
        assert f"raise it {1 / _amplification(found, np.less):.2f} times on {found.harms:.0%}" in texts
        assert "No constant beta" in texts
        assert not any("--beta" in finding.setting for finding in advise(found))


def test_recommended_is_the_smallest_beta_within_its_error():
    relative = tuple(Estimate(value, 0.1) for value in (1.0, 0.7, 0.52, 0.5, 0.6))
    excess = tuple(
        Estimate(value, error) for value, error in ((0.5, 0.1), (0.2, 0.05), (0.02, 0.03), (0, 0), (0.1, 0.2))
    )
    assert Curve(relative, excess).recommended == 2
    assert Curve(relative, excess).best == 3


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(4.9312, 0.62), "4.93 ± 0.62"),
        (Estimate(52.5, 4.8), "52.5 ± 4.8"),
        (Estimate(1234.5, 62.0), "1234 ± 62"),
        (Estimate(1.18612, 0.00034), "1.18612 ± 0.00034"),
        (Estimate(1.0, 0.0), "1.000 ± 0.000"),
        (Estimate(0.0, float("inf")), "not measurable"),
    ],
)
def test_numbers_carry_their_errors(estimate, text):
    assert with_error(estimate) == text


# -------------------------------------------------------------------------------------------------------------- the log


def log(n=20, **changes):
    """n lines of a healthy training; `changes` map a key to {line: value} or to a function of the line."""
    rng = np.random.default_rng(5)
    records = []
    for i in range(n):
        record = {"step": 100 * (i + 1), "loss": 2.0, "residual": 2.0 + 0.001 * rng.normal(), "v_loss": 2.0}
        record |= {"grad_norm": 1.0, "grad_norm_max": 2.5, "jvp_norm": 3.0, "lr": 1e-3, "beta": None}
        for key, change in changes.items():
            record[key] = change(i) if callable(change) else change.get(i, record[key])
        records.append(record)
    return records


CONFIG = TrainConfig(data="swiss_roll", steps=2000)


def test_growth_under_a_weight_of_power_1_has_another_remedy():
    (finding,) = [one for one in log_checks.read(log(jvp_norm=lambda i: 1.2**i), CONFIG, 1.0) if "keeps" in one.text]
    assert finding.setting == "--learning-rate 0.0003"


@pytest.mark.parametrize(
    ("records", "severity", "text", "setting"),
    [
        (log(), "good", "healthy: the largest gradient norm is 2.5 times the median", ""),
        (log(3), "warning", "ends at step 300 of 2,000", "--learning-rate 0.0003"),
        (log(grad_norm_max={12: 40.0}), "warning", "spikes: 40 times its median of 1 before step 1,300", "clip-norm 3"),
        (log(jvp_norm=lambda i: 1.2**i), "warning", "keeps growing: 6.2 times", "--weighting power --weighting.power"),
        (log(loss={7: None}), "problem", "loss is not finite in the steps before 800", "--optimizer.clip-norm 1"),
        (log(residual={7: float("nan")}), "problem", "residual is not finite", "--learning-rate 0.0003"),
        (log(residual=lambda i: 2.0 + 0.1 * i), "warning", "risen by 16% over the last quarter", "--learning-rate"),
        (log(residual=lambda i: 4.0 - 0.1 * i), "advice", "still falls, by 18%", "--steps 4000"),
        ([], "note", "no log", ""),
    ],
)
def test_log(records, severity, text, setting):
    found = [finding for finding in log_checks.read(records, CONFIG) if text in finding.text]
    assert len(found) == 1
    assert found[0].severity == severity
    assert setting in found[0].setting


def test_healthy_log_says_nothing_else():
    assert len(log_checks.read(log(), CONFIG)) == 1


def test_clipping_that_catches_the_spikes_is_no_warning():
    config = TrainConfig(data="swiss_roll", steps=2000, optimizer=OptimizerConfig(clip_norm=3.0))
    found = log_checks.read(log(grad_norm_max={12: 40.0}), config)
    assert found[0].severity == "note"
    assert "Clipping at 3" in found[0].text


def test_weighted_loss_near_one_is_explained():
    found = log_checks.read(log(loss=lambda i: 1.0), CONFIG, weight_power=1.0)
    assert [finding.severity for finding in found] == ["good", "note"]
    assert "near 1 whatever happens" in found[1].text


def test_growth_names_the_region(exact):
    _, found = exact
    cell = max(found.cells, key=lambda cell: cell.weight * cell.derivative.value)
    text = log_checks.read(log(jvp_norm=lambda i: 1.2**i), CONFIG, diagnosis=found)[0].text
    assert f"t = {cell.t:.2f}, t - r = {cell.gap:.2f}" in text


# ---------------------------------------------------------------------------------------------------------- the program


def run(*arguments, capsys):
    try:
        cli.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


GUIDED = {
    "guidance": {"scale": 2.0, "dropout": 0.3, "interval": [0.0, 0.8]},
    "weighting": {"type": "power", "power": 1.0},
}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("vamf", {"beta": 0.5, "gamma": 0.5, "proxy": "online", **GUIDED}),
        ("meanflow", {"anchor": {"weight": 0.3, "every": 2}, "gap_weight": 0.5, **GUIDED}),
        pytest.param("decoupled_meanflow", GUIDED, marks=pytest.mark.slow),
        pytest.param(
            "consistency", {"residual": {"jvp_scale": 0.5}, "reduction": "mean", **GUIDED}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_curve_is_of_the_gradient_that_is_trained(method, options, tmp_path):
    """With equal keys the variance at the run's beta is its own trainer's, with guidance and label dropout."""
    config = TrainConfig(
        "digits",
        method=method,
        objective=options,
        network=MLPConfig(width=16, depth=1),
        batch_size=32,
    )
    run = Run(tmp_path, config)
    state, train_step = run.ensemble.init(), run.ensemble.train_step
    member, one = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (run.ensemble.points, state))
    one = one._replace(
        params=jax.tree.map(lambda leaf: leaf + 0.1, one.params)
    )  # away from u = 0, and from the average
    state = jax.tree.map(lambda leaf: leaf[None], one)
    found, arrays, keys = run_gradients(run, state), run.dataset.arrays, jax.random.split(jax.random.key(3), 5)

    @jax.jit
    def variances(beta):
        own = gradient_contrasts(lambda key: train_step.gradient(arrays, key, member, one), keys)
        return own, gradient_contrasts(lambda key: found.mixed(beta, key), keys)

    own, mixed = variances(jnp.float32(0.5 if method == "vamf" else 0.0))
    np.testing.assert_allclose(mixed, own, rtol=1e-3)
    assert found.run_gradient is None
    assert found.bank is not None
    assert not np.allclose(variances(jnp.float32(1.0))[1], own, rtol=1e-2)


def test_other_residuals_lend_all_that_they_share():
    """Of terminal velocity matching, a flow map and a bank; what cannot be combined is said."""
    shared = {
        "guidance": {"scale": 2.0, "dropout": 0.1},
        "anchor": {"weight": 0.2},
        "flow_matching": {"times": {"type": "uniform", "max_gap": 0.5}},
    }
    for name in ("terminal_velocity", "progressive_map", "alphaflow", "flow_matching", "rao_blackwell"):
        config = TrainConfig("digits", method=name, objective=shared, network=MLPConfig())
        own, found = config.build_objective(), mixed_objective(config, 0.25)
        method = METHODS[name].values(config.steps, config.objective)
        proxy = method.get("proxy", "bank")
        expected = objectives.create(
            "vamf",
            **{part: method[part] for part in METHODS["vamf"].options if part in method}
            | {"beta": 0.25, "gamma": 0.0, "proxy": "ema" if proxy == "bank" else proxy},
        )
        assert found == expected
        assert (found.times, found.weighting, found.terms, found.guidance, found.reduction) == (
            own.times, own.weighting, own.terms if name != "terminal_velocity" else found.terms, own.guidance,
            own.reduction,
        )  # fmt: skip
        assert isinstance(found.residual.tangent, Mix)
        assert found.residual.tangent.beta == 0.25
        bank = in_both_roles(config)
        assert bank.target.beta == bank.residual.tangent.beta == 1.0
        assert "bank" in bank.needs
        assert bank.guidance.scale == 2.0
    with pytest.raises(UserError, match="distribution-matching: needs the proxy"):
        in_both_roles(TrainConfig("digits", method="flow_consist", network=MLPConfig()))


@pytest.mark.slow
def test_diagnose_a_run(tmp_path, capsys, monkeypatch):
    """Labels, and a beta that finds itself."""
    folder = tmp_path / "run"
    small = ["--network.width", "16", "--network.depth", "1", "--batch-size", "32", "--log.every", "5", "--steps", "40"]
    guided = ["--guidance.scale", "2", "--guidance.dropout", "0.2", "--gamma", "0.3"]
    assert run("train", "digits", *small, *guided, "--beta", "binned", "--out", folder, capsys=capsys)[0] == 0
    status, out, _ = run("diagnose", folder, "--json", "--seed", 3, capsys=capsys)
    assert status == 0
    result = json.loads(out)
    assert result == json.loads((folder / "diagnosis.json").read_text())
    assert result["step"] == 40
    assert result["seed"] == 3
    assert {"value", "error"} == set(result["optimum"]["biased"])
    assert len(result["cells"]) == 36
    assert result["of_gradient"]
    findings = [Finding(**finding) for finding in (*result["advice"], *result["log"])]
    assert not any("--beta" in finding.setting for finding in findings)
    assert any("Left out of the maps" in finding.text and "gamma" in finding.text for finding in findings)
    page = (folder / "diagnosis.html").read_text()
    for finding in findings:
        assert finding.text.replace("'", "&#x27;") in page
    for elsewhere in ('src="http', 'href="http', "@import", "<script"):
        assert elsewhere not in page

    # The same measurements as sentences.
    words = run_diagnosis.RunDiagnosis(str(folder), 40, 3, measured(), findings[:1], findings[1:])
    monkeypatch.setattr(run_diagnosis, "diagnose_run", lambda *_: words)
    status, out, _ = run("diagnose", folder, capsys=capsys)
    assert status == 0
    assert len(out.splitlines()) == len(findings) + 1
    assert out.splitlines()[-1] == f"report: {folder / 'diagnosis.html'}"
    for finding in findings:
        assert finding.text in out


@pytest.mark.slow
def test_a_run_of_another_kind_says_what_its_own_loss_does(tmp_path, capsys):
    """Two jumps for one: less noise than MeanFlow's tangent has on the same network."""
    folder = tmp_path / "run"
    small = ["--network.width", "16", "--network.depth", "1", "--batch-size", "64", "--steps", "400"]
    run("train", "swiss_roll", *small, "--method", "split_meanflow", "--out", folder, capsys=capsys)
    result = json.loads(run("diagnose", folder, "--json", capsys=capsys)[1])
    assert 0 < result["own"]["value"] < 1
    assert any("split_meanflow" in finding["text"] for finding in result["advice"])


def measured():
    return diagnose(oracles.Gaussian(2.0).average_velocity, jnp.ones((4, D)), cells=2, samples=32)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["nowhere"], "nowhere: holds no run"), ([], "RUN"), (["x", "--cells", "3"], "--cells")],
)
def test_bad_input_is_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("diagnose", *arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert expected in err


def test_heatmaps_with_blanks_still_draw():
    values = np.array([[1.0, np.nan], [25.0, 0.04]])
    maps = [
        figures.Heatmap("a", values, about_one=True),
        figures.Heatmap("b", values, high=1.0),
        figures.Heatmap("c", values * 0),
    ]
    image = figures.heatmaps(maps, [0, 0.5, 1], "t", "t - r").decode()
    assert "<svg" in image
    for number in ("1.00", "25", "0.04"):
        assert f"<!-- {number} -->" in image
