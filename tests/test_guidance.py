"""Guided losses against the published ones: the official code's values, and rules written out row by row."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
from modules import quick
from official import meanflow_dit
from vamf import objectives
from vamf.average_velocity import total_derivative
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.errors import UserError
from vamf.networks import DiTConfig, build
from vamf.objectives.batch import LossSample
from vamf.objectives.guidance import Guidance, draw_scale
from vamf.objectives.residuals import Eulerian
from vamf.objectives.terms import VelocityHead
from vamf.objectives.velocity import Conditional
from vamf.objectives.weighting import Power
from vamf.sampling import integrate
from vamf.schedules import Schedule
from vamf.times import Uniform
from vamf.training import presets

DATA = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
OFFICIAL = DATA.parent / "weights" / "meanflow_guided_losses.npz"
NETWORK, PROXY = (oracles.Smooth.random(seed, 2) for seed in (0, 1))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def paper(omega, kappa, start, end, **options):
    """MeanFlow in the paper's own constants."""
    guidance = Guidance(omega / (1 - kappa), kappa, (start, end), dropout=0.1)
    return objectives.create("meanflow", guidance=guidance, **options)


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"no {OFFICIAL.name}: losses of the official code")
def test_the_official_guided_losses():
    """Loss, gradient norm and the last kernel's gradient of the official network, with labels dropped and intervals."""
    given = np.load(OFFICIAL)
    network = build(DiTConfig(depth=3, width=48, heads=4, patch=2), (8, 8, 4), 10)
    x, e, t, r = (jnp.asarray(given[f"check/{name}"]) for name in ("x", "e", "t", "r"))
    label = jnp.asarray(given["check/y"], jnp.int32)
    params = jax.tree.map(jnp.asarray, meanflow_dit(given, 3))
    for case, row in enumerate(given["cases"].tolist()):
        omega, kappa, start, end, hidden, p, c = row
        objective = paper(omega, kappa, start, end, weighting=Power(p, c))
        dropped = jnp.arange(len(x)) < hidden

        def loss(params, objective=objective, dropped=dropped):
            draws = {"guidance": {"dropped": dropped}}
            return objective.loss_at(network.bind(params), x, e, r, t, label, draws=draws).mean()

        value, gradient = quick(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(value, given["loss"][case], rtol=1e-5)
        np.testing.assert_allclose(optax.tree.norm(gradient), given["grad_norm"][case], rtol=1e-5)
        np.testing.assert_allclose(
            gradient["last"]["linear"]["kernel"],
            given["grad_last"][case],
            rtol=1e-5,
            atol=1e-5 * given["grad_norm"][case],
        )


def batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    x, e = (jnp.asarray(rng.normal(size=(n, 2))) for _ in range(2))
    t = jnp.asarray(rng.uniform(0.2, 0.95, n))
    return x, e, t * rng.uniform(0.1, 0.9, n), t, jnp.asarray(rng.integers(0, 3, n), jnp.int32)


def meanflow_row(x, e, r, t, label, dropped, omega, kappa, start, end):
    """v_g and the squared residual of one row, in the words of arXiv:2505.13447."""
    z, v = (1 - t) * x + t * e, e - x

    def u(z, r, t, label):
        return NETWORK(z[None], jnp.array([r]), jnp.array([t]), jnp.array([label]))[0]

    w, k = (omega, kappa) if start <= t <= end else (1.0, 0.0)
    v_g = v
    if not dropped:
        v_g = w * v + k * u(z, t, t, label) + (1 - w - k) * u(z, t, t, -1)
    seen = -1 if dropped else label
    value, dudt = jax.jvp(lambda z, t: u(z, r, t, seen), (z, t), (v_g, jnp.ones(())))
    return jnp.sum((value - (v_g - (t - r) * dudt)) ** 2)


@pytest.mark.parametrize("equal", [0, 3, None])
@pytest.mark.parametrize("rule", [(1.0, 0.5, 0.0, 1.0), (0.2, 0.92, 0.0, 0.6), (2.0, 0.0, 0.3, 0.8)])
def test_guidance_row_by_row(rule, equal):
    """Rows without a label and rows outside the interval have v_c itself, in the target and in the tangent."""
    x, e, r, t, label = batch()
    on = jnp.arange(8) < (3 if equal is None else equal)
    r = jnp.where(on, t, r)
    dropped = jnp.arange(8) % 3 == 0
    assert np.any((t < rule[2]) | (t > rule[3])) or rule[2:] == (0.0, 1.0)
    objective = paper(*rule)
    sample = LossSample(e, r, t, {"guidance": {"dropped": dropped}})
    found, _ = objective.loss(NETWORK, x, sample, label, 0, None, equal)
    for row in range(8):
        parts = (part[row] for part in (x, e, r, t, label, dropped))
        np.testing.assert_allclose(found[row], meanflow_row(*parts, *rule), rtol=1e-9, err_msg=f"row {row}")


@pytest.mark.parametrize("scale", [1.0, 1.7, 2.5])
def test_published_rules_of_the_mix(scale):
    """Improved and Decoupled MeanFlow's noise of v_c is 1, Re-MeanFlow's max(1, W - 1)."""
    x, e, _, t, label = batch()
    z, v_c = x + t[:, None] * (e - x), e - x
    shown, hidden = NETWORK(z, t, t, label), NETWORK(z, t, t, jnp.full(8, -1))
    w, k = max(1.0, scale - 1), 1 - max(1.0, scale - 1) / scale
    targets = {"unit": v_c + (1 - 1 / scale) * (shown - hidden), "capped": w * v_c + k * shown + (1 - w - k) * hidden}
    for rule, target in targets.items():
        # the largest scale is 2.5, and the batch's lies where scale_fraction says
        objective = objectives.create("meanflow", guidance=Guidance(2.5, rule, per_batch=True, dropout=0.1))
        share = jnp.full(8, (scale - 1) / 1.5)
        found = objective.loss_at(NETWORK, x, e, t, t, label, draws={"guidance": {"scale_fraction": share}})
        np.testing.assert_allclose(found, np.sum((shown - target) ** 2, axis=1), rtol=1e-8)


def test_re_meanflow_s_guided_run():
    """Its scale: none in the first half of the run, then one for each batch, uniform on [1, 2.5]; its code guides
    the rows without a label too, with the label hidden in both passes."""
    scale = Schedule("step", 1.0, 2.5, 0, 100)
    guidance = Guidance(scale, "capped", per_batch=True, unlabelled=True, dropout=0.1)
    objective = objectives.create("rectified_meanflow", guidance=guidance)
    x, e, _, t, label = batch()
    z, v_c = x + t[:, None] * (e - x), e - x
    samples = jax.vmap(lambda key: objective.sample(key, x))(jax.random.split(jax.random.key(0), 400))
    shares = samples.draws["guidance"]["scale_fraction"]
    np.testing.assert_array_equal(np.ptp(shares, axis=1), 0.0)  # one number a batch
    assert abs(shares.mean() - 0.5) < 5 / np.sqrt(12 * 400)
    objective = objectives.create("rectified_meanflow", guidance=guidance, weighting=Power(), reduction="sum")
    share, dropped = jnp.full(8, 0.8), jnp.arange(8) < 3
    seen = jnp.where(dropped, -1, label)
    shown, hidden = NETWORK(z, t, t, seen), NETWORK(z, t, t, jnp.full(8, -1))
    draws = {"guidance": {"scale_fraction": share, "dropped": dropped}}
    for step, scale in ((0, 1.0), (99, 1 + 0.8 * 1.5)):
        w = max(1.0, scale - 1)
        k = 1 - w / scale
        target = w * v_c + k * shown + (1 - w - k) * hidden
        found = objective.loss_at(NETWORK, x, e, t, t, label, step=step, draws=draws)
        np.testing.assert_allclose(found, np.sum((shown - target) ** 2, axis=1), rtol=1e-8)


def test_alphaflow_s_guided_run():
    """arXiv:2510.20771: MeanFlow's v_g in the finite step and in its target, labels dropped where guidance acts."""
    x, e, r, t, label = batch()
    alpha, (omega, kappa), until = 0.3, (0.2, 0.92), 0.7
    guidance = Guidance(omega / (1 - kappa), kappa, interval=(0.0, until), dropout=0.5, dropout_interval=(0.0, until))
    objective = objectives.create("alphaflow", alpha=alpha, clip=4.0, guidance=guidance)
    samples = jax.vmap(lambda key: objective.sample(key, x))(jax.random.split(jax.random.key(0), 50))
    dropped, times = np.asarray(samples.draws["guidance"]["dropped"]), np.asarray(samples.t)
    assert dropped.any()
    assert not dropped[times > until].any()
    z, v_c = x + t[:, None] * (e - x), e - x
    acts = (t <= until)[:, None]
    shown, hidden = NETWORK(z, t, t, label), NETWORK(z, t, t, jnp.full(8, -1))
    v_g = jnp.where(acts, omega * v_c + kappa * shown + (1 - omega - kappa) * hidden, v_c)
    s = alpha * r + (1 - alpha) * t
    later = NETWORK(z - (t - s)[:, None] * v_g, r, s, label)
    error = NETWORK(z, r, t, label) - jnp.clip(alpha * v_g + (1 - alpha) * later, -4, 4)
    squared = jnp.mean(error**2, axis=1)
    found = objective.loss_at(NETWORK, x, e, r, t, label)
    np.testing.assert_allclose(found, alpha * squared / (squared + 1e-3), rtol=1e-8)


def test_guidance_leaves_hidden_labels_and_other_times_alone():
    x, e, r, t, _ = batch()
    label = jnp.array([-1, 0, 1, 2, -1, 0, 1, 2])
    for mix in (0.0, 0.5):
        objective = paper((1 - mix) * 2.0, mix, 0.0, 0.5)
        found = objective.loss_at(NETWORK, x, e, r, t, label)
        without = objectives.create("meanflow").loss_at(NETWORK, x, e, r, t, label)
        alone = (label == -1) | (t > 0.5)
        assert 0 < np.sum(alone) < 8
        np.testing.assert_allclose(found[alone], without[alone], rtol=1e-12)
        assert np.all(np.abs(found - without)[~alone] > 1e-6)
        with pytest.raises(UserError, match="no classes and no other condition"):
            objective.loss_at(NETWORK, x, e, r, t)


def test_beta_mixes_on_top_of_guidance():
    """The paper's tangent is (1 - beta) v_g + beta v_hat in every row; the target stays v_g."""
    x, e, r, t, label = batch()
    z, v_c = x + t[:, None] * (e - x), e - x
    dropped = jnp.arange(8) < 3
    seen = jnp.where(dropped, -1, label)
    shown, hidden = NETWORK(z, t, t, seen), NETWORK(z, t, t, jnp.full(8, -1))
    v_g = jnp.where(dropped[:, None], v_c, v_c + 0.5 * (shown - hidden))
    w = 0.7 * v_g + 0.3 * PROXY(z, t, t, seen)
    value, dudt = total_derivative(NETWORK, z, r, t, w, seen)
    expected = np.sum((value - v_g + (t - r)[:, None] * dudt) ** 2, axis=1)
    objective = objectives.create("vamf", beta=0.3, guidance=Guidance(2.0, 0.5, dropout=0.1))
    draws = {"guidance": {"dropped": dropped}}
    found = objective.loss_at(NETWORK, x, e, r, t, label, proxy=PROXY, draws=draws)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_sources_that_know_nothing_of_guidance_are_guided():
    """A guided target in a method whose target is all v_hat: v_hat is guided instead of v_c."""
    x, e, _, t, _ = batch()
    label = jnp.zeros(8, jnp.int32)
    z = x + t[:, None] * (e - x)
    hidden, shown = NETWORK(z, t, t, jnp.full(8, -1)), NETWORK(z, t, t, label)
    bank = oracles.Bank(np.asarray(x)).velocity(np.asarray(z), np.asarray(t))
    for name, v_hat in (("rao_blackwell", bank), ("meanflow_rae", PROXY(z, t, t, label))):
        guidance = Guidance(2.0, 0.25, dropout=0.1)
        objective = objectives.create(name, guidance=guidance, weighting=Power(), times=Uniform())
        target = 0.75 * (2 * v_hat - hidden) + 0.25 * shown
        found = objective.loss_at(NETWORK, x, e, t, t, label, proxy=PROXY)
        np.testing.assert_allclose(found, np.sum((shown - target) ** 2, axis=1), rtol=1e-8)


def test_published_presets_hold_their_guidance():
    """omega, kappa and the interval of arXiv:2505.13447, table 4."""
    published = {
        "imagenet_dit_b4": (1.0, 0.5, (0.0, 1.0)),
        "imagenet_dit_b2": (1.0, 0.5, (0.0, 1.0)),
        "imagenet_dit_m2": (0.2, 0.92, (0.0, 0.8)),
        "imagenet_dit_l2": (0.2, 0.92, (0.0, 0.8)),
        "imagenet_dit_xl2": (0.2, 0.92, (0.0, 0.75)),
    }
    for name, (omega, kappa, interval) in published.items():
        objective = presets.PRESETS[name].build_objective()
        guidance = objective.guidance
        assert guidance.scale * (1 - guidance.mix) == pytest.approx(omega)
        assert (guidance.mix, guidance.interval, guidance.dropout) == (kappa, interval, 0.1)
        assert isinstance(objective.residual, Eulerian)
        assert objective.residual.tangent == objective.target
        assert objective.target.v == Conditional()
        assert objective.weighting == Power(1.0, 0.01)


# ------------------------------------------------------------------------------------- a network that is told its scale


class Scaled:
    """A network that is told the scale of guidance and its times, with a velocity head."""

    def __call__(self, z, r, t, told):
        return self._asked(NETWORK, z, r, t, told)

    def with_velocity(self, z, r, t, told):
        return self(z, r, t, told), self._asked(PROXY, z, r, t, told)

    def velocity(self, z, t, told):
        return self._asked(PROXY, z, t, t, told)

    def _asked(self, network, z, r, t, told):
        scale = told.scale
        extra = jnp.log(scale.omega) * (0.3 - 0.2 * scale.t_min + 0.1 * scale.t_max * r)
        return network(z, r, t, told.label) * (1 + extra[:, None]) + 0.1 * told.label[:, None]


def told(label, omega, low, high):
    scale = GuidanceScale(*(jnp.array([value]) for value in (omega, low, high)))
    return Conditioning(jnp.array([label]), scale=scale)


@pytest.mark.slow
def test_drawn_scales_are_improved_meanflow_s():
    """arXiv:2512.02012, row by row: the guided target, the head in u's own pass, the tangent that knows no interval."""
    x, label = batch()[0], jnp.arange(8) % 3
    guidance = Guidance(8.0, scale_power=1.0, dropout=0.3)

    def improved(**options):
        times = Uniform(flow_matching_ratio=0.25)
        return objectives.create("improved_meanflow", proxy="head", times=times, **options)

    chosen = {
        "row": improved(guidance=guidance),
        "diagonal": improved(
            guidance=dataclasses.replace(guidance, dropped_scale="one"), head=VelocityHead(trained_in="diagonal")
        ),
    }
    sample = chosen["row"].sample(jax.random.key(2), x)
    drawn = sample.draws["guidance"]
    dropped, scale = drawn["dropped"], drawn["scale"]
    assert np.any(dropped)
    assert np.any(scale.at(sample.t)[2:] > 1)
    assert np.all(scale.t_max[:2] - scale.t_min[:2] == 1)
    for where, objective in chosen.items():
        for split in (2, None):
            found, _ = objective.loss(Scaled(), x, sample, label, 0, None, split)
            for row in range(8):
                parts = (sample.r, sample.t, scale.omega, scale.t_min, scale.t_max)
                given = (x[row], sample.e[row], label[row], dropped[row], *(part[row] for part in parts))
                np.testing.assert_allclose(found[row], improved_loss(where, *given), rtol=1e-8)


def improved_loss(where, x, e, label, dropped, r, t, omega, low, high):
    """Of one row, as its code writes it; the head at r = t, with its scale at t alone, where that is asked."""
    z, v_c, u = (1 - t) * x + t * e, e - x, Scaled()
    here = omega if low <= t <= high else 1.0
    seen = jnp.array(-1) if dropped else label
    if where == "diagonal" and dropped:
        omega = here = 1.0
    v_n, v_0 = (u.velocity(z[None], t[None], told(*given, 0.0, 1.0))[0] for given in ((seen, here), (-1, 1.0)))
    target = v_c if dropped else v_c + (1 - 1 / here) * (v_n - v_0)

    def both(z, t):
        value, head = u.with_velocity(z[None], r[None], t[None], told(seen, omega, low, high))
        return value[0], head[0]

    value, dudt, head = jax.jvp(both, (z, t), (v_n, jnp.ones(())), has_aux=True)
    head = head if where == "row" else v_n
    errors = (jnp.sum((value + (t - r) * dudt - target) ** 2), jnp.sum((head - target) ** 2))
    return sum(squared / (squared + 0.01) for squared in errors)


def test_a_velocity_is_told_its_scale_at_its_time():
    """Wherever u is asked at r = t: the flow-matching term, the pair, an end of a jump, and samplers of the ODE."""
    x, e, r, t, label = batch()
    z = x + t[:, None] * (e - x)
    scale = GuidanceScale(jnp.full(8, 3.0), jnp.full(8, 0.3), jnp.full(8, 0.6))
    cond = Conditioning(label, scale=scale)
    asked = []

    def u(z, r, t, told):
        if r is t:
            asked.append((np.asarray(told.scale.omega), np.asarray(t), np.asarray(told.scale.t_max - told.scale.t_min)))
        return NETWORK(z, r, t, told.label)

    terms, at = {"flow_matching.weight": 1.0, "temporal_pair.weight": 0.5}, {"flow_matching": {"t": 0.9 * t}}
    objectives.create("vamf", beta=0.5, proxy="online", **terms).loss_at(u, x, e, r, t, cond, draws=at)
    objectives.create("lagrangian_map", weighting="power").loss_at(u, x, e, r, t, cond)
    objectives.create("flow_matching").loss_at(u, x, e, r, t, cond)
    with jax.disable_jit():
        integrate(u, z, 4, cond)
    assert len(asked) > 10
    for omega, at, length in asked:
        np.testing.assert_array_equal(omega, np.where((at >= 0.3) & (at <= 0.6), 3.0, 1.0))
        np.testing.assert_array_equal(length, 1.0)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_drawn_scales_have_their_density(power):
    t = jnp.full(20_000, 0.7)
    scale = draw_scale(jax.random.key(0), 0 * t, t, 8.0, power)
    edges = np.linspace(1.0, 8.0, 2001)
    mass = np.cumsum(((edges[1:] + edges[:-1]) / 2) ** -power)
    expected = np.interp([0.1, 0.5, 0.9], np.concatenate([[0], mass]) / mass[-1], edges)
    np.testing.assert_allclose(np.quantile(scale.omega, [0.1, 0.5, 0.9]), expected, rtol=0.03)
    for part, (low, high) in ((scale.t_min, (0.0, 0.5)), (scale.t_max, (0.5, 1.0))):
        np.testing.assert_allclose([part.min(), part.max()], [low, high], atol=0.01)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("improved_meanflow", {"scale_power": 1.0}, "largest scale"),
        ("meanflow", {"mix": 0.5}, "above 1"),
        ("meanflow", {"scale": 2.0}, r"guidance\.dropout above 0"),
        ("meanflow", {"scale": 2.0, "dropout": 0.1, "mix": 1.0}, r"guidance\.mix = 1.0: allowed is \[0"),
        ("meanflow", {"scale": Schedule("step", 0.5, 2.0, 0, 9), "dropout": 0.1}, "1 .none. or more"),
        ("vamf", {"scale": 8.0, "scale_power": 1.0, "dropout": 0.1}, "not that of 'ema'"),
        ("meanflow", {"scale": 8.0, "scale_power": 1.0, "per_batch": True}, "each row"),
        ("meanflow", {"dropout_interval": (0.5, 0.2)}, "low <= high"),
    ],
)
def test_what_guidance_cannot_be(method, options, message):
    with pytest.raises(UserError, match=message):
        objectives.create(method, guidance=options)


def test_the_flow_matching_term_has_the_target_of_the_diagonal():
    """Decoupled MeanFlow's model guidance w = 0.6 in both terms, and v_c in the rows without a label."""
    x, e, r, t, label = batch()
    dropped = jnp.arange(8) % 3 == 0
    z, v_c = x + t[:, None] * (e - x), e - x
    shown, hidden = NETWORK(z, t, t, label), NETWORK(z, t, t, jnp.full(8, -1))
    v_g = jnp.where(dropped[:, None], v_c, v_c + 0.6 * (shown - hidden))
    seen = jnp.where(dropped, -1, label)
    squared = np.sum((NETWORK(z, t, t, seen) - v_g) ** 2, axis=1)
    options = {"guidance": Guidance(2.5, "unit", dropout=0.1), "weighting": Power(), "reduction": "sum"}
    draws = {"guidance": {"dropped": dropped}, "flow_matching": {"t": t, "e": e}}
    with_term, without = (
        objectives.create("decoupled_meanflow", **options, flow_matching={"weight": weight}).loss_at(
            NETWORK, x, e, r, t, label, draws=draws
        )
        for weight in (1.0, 0.0)
    )
    np.testing.assert_allclose(with_term - without, squared, rtol=1e-8)


def test_labels_are_dropped_at_their_rate():
    x = jnp.zeros((4000, 2))
    objective = objectives.create("meanflow", guidance={"dropout": 0.25})
    dropped = objective.sample(jax.random.key(0), x).draws["guidance"]["dropped"]
    assert np.mean(dropped) == pytest.approx(0.25, abs=5 * np.sqrt(0.1875 / 4000))
    seen = []

    def u(z, r, t, label):
        seen.append(label)
        return z

    objective(u, x, jnp.ones(4000, jnp.int32), jax.random.key(0), 0)
    np.testing.assert_array_equal(np.concatenate([np.asarray(label) for label in seen[:1]]) == -1,
                                  dropped[: len(seen[0])])  # fmt: skip
