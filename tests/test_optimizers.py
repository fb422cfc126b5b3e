"""SPlus against its rule worked out by hand, and the table of optimizers within a run."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vamf import data
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.optimizers import OPTIMIZERS, eval_params, registry, splus
from vamf.optimizers.kernels import is_kernel
from vamf.optimizers.splus import Side
from vamf.training import loop
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.config_file import identity
from vamf.training.ensemble import Ensemble
from vamf.training.step import learning_rate, optimizer

# A matrix and three gradients without symmetry: no entry of a rotated momentum is near 0, whose sign rounding decides.
START = np.array([[0.5, -1.0], [2.0, 0.25]])
GRADIENTS = np.array([[[1.0, 2.0], [-3.0, 0.5]], [[-9.0, 4.0], [2.0, 7.0]], [[-2.0, -5.0], [6.0, 1.0]]])


def eigenvectors(symmetric):
    """Of a symmetric 2x2 matrix in closed form: the first axis is at half the angle of (a - d, 2 b)."""
    (a, b), (_, d) = symmetric
    angle = np.arctan2(2 * b, a - d) / 2
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def take(transform, params, gradients):
    """Parameters and states after each of the steps."""
    state, history = transform.init(params), []
    update = jax.jit(transform.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize("refresh_every", [2, 100])
def test_three_steps_by_hand(refresh_every):
    """b1 = 0.9, b2 = 0.999, rho = 0.999, weight decay 0.01, rate 0.4: every step is 0.4 * 2 / (2 + 2) = 0.2."""
    g1, g2, g3 = GRADIENTS
    # Step 1: both bases are I.
    m1 = 0.1 * g1
    w1 = START - 0.2 * (np.sign(m1) + 0.01 * START)
    left1, right1 = 0.001 * g1 @ g1.T, 0.001 * g1.T @ g1
    ql1, qr1 = eigenvectors(left1), eigenvectors(right1)
    # Step 2: the bases of step 1.
    m2 = 0.9 * m1 + 0.1 * g2
    w2 = w1 - 0.2 * (ql1 @ np.sign(ql1.T @ m2 @ qr1) @ qr1.T + 0.01 * w1)
    left2, right2 = 0.999 * left1 + 0.001 * g2 @ g2.T, 0.999 * right1 + 0.001 * g2.T @ g2
    # Step 3: the bases of step 2 where it was a multiple of refresh_every, else still those of step 1.
    fresh = eigenvectors(left2), eigenvectors(right2)
    ql2, qr2 = fresh if refresh_every == 2 else (ql1, qr1)
    m3 = 0.9 * m2 + 0.1 * g3
    w3 = w2 - 0.2 * (ql2 @ np.sign(ql2.T @ m3 @ qr2) @ qr2.T + 0.01 * w2)
    left3, right3 = 0.999 * left2 + 0.001 * g3 @ g3.T, 0.999 * right2 + 0.001 * g3.T @ g3
    # The average is of the parameters that each step started from.
    weights = 0.001 * np.array([0.999**2, 0.999, 1])
    average = (weights[0] * START + weights[1] * w1 + weights[2] * w2) / (1 - 0.999**3)

    history = take(splus(0.4, refresh_every=refresh_every), *as_float32(({"w": START}, [{"w": g} for g in GRADIENTS])))
    for (params, _), expected in zip(history, (w1, w2, w3), strict=True):
        np.testing.assert_allclose(params["w"], expected, atol=2e-6)
    state = history[-1][1]
    assert state.step == 3
    np.testing.assert_allclose(state.momentum["w"], m3, atol=1e-6)
    np.testing.assert_allclose(state.left["w"].statistic, left3, atol=1e-6)
    np.testing.assert_allclose(state.right["w"].statistic, right3, atol=1e-6)
    np.testing.assert_allclose(eval_params(state)["w"], average, atol=2e-6)
    # The case tells the two kinds of refresh apart, and a rotated sign from a plain one.
    other = (ql1, qr1) if refresh_every == 2 else fresh
    assert (
        np.abs(w3 - (w2 - 0.2 * (other[0] @ np.sign(other[0].T @ m3 @ other[1]) @ other[1].T + 0.01 * w2))).max() > 0.01
    )
    assert np.abs(w3 - (w2 - 0.2 * (np.sign(m3) + 0.01 * w2))).max() > 0.01


def test_signs_and_order_of_eigenvectors_do_not_matter():
    """U = Q_L sign(Q_L^T M Q_R) Q_R^T: for signed permutations P, sign(P^T X) = P^T sign(X), and P P^T = I."""
    transform = splus(0.1)
    rng = np.random.default_rng(0)
    params = as_float32({"w": rng.normal(size=(4, 3))})
    gradients = as_float32([{"w": rng.normal(size=(4, 3))} for _ in range(3)])
    params, state = take(transform, params, gradients[:2])[-1]
    swapped = state.left["w"].basis[:, jnp.array([2, 0, 3, 1])] * jnp.array([1, -1, -1, 1])
    mirrored = state.right["w"].basis * jnp.array([-1, 1, -1])
    other = state._replace(
        left={"w": state.left["w"]._replace(basis=swapped)}, right={"w": state.right["w"]._replace(basis=mirrored)}
    )
    ours, theirs = (transform.update(gradients[2], one, params)[0]["w"] for one in (state, other))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # One basis changed in another way, by a rotation that is no symmetry of the signs, does matter.
    c, s = np.cos(0.7), np.sin(0.7)
    turned = state.right["w"].basis @ jnp.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], jnp.float32)
    other = state._replace(right={"w": state.right["w"]._replace(basis=turned)})
    assert not np.allclose(ours, transform.update(gradients[2], other, params)[0]["w"], atol=1e-3)


def test_other_parameters():
    """Vectors, tensors and matrices that are no kernels move by other_scale; every matrix is rotated, and it alone."""
    rng = np.random.default_rng(1)
    shapes = {
        "first": {"kernel": (3, 5), "bias": (5,)},
        "classes": {"embedding": (4, 3)},
        "Embed_0": {"kernel": (2, 3)},
        "LayerNorm": {"scale": (2, 2)},
        "stack": {"kernel": (2, 3, 4)},
    }

    def draw():
        return {outer: {name: rng.normal(size=shape) for name, shape in of.items()} for outer, of in shapes.items()}

    g1, g2 = draw(), draw()
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), g1)
    transform = splus(0.5, weight_decay=0, other_scale=1e-2)
    (first, _), (second, state) = take(transform, start, as_float32([g1, g2]))
    for outer, inner in shapes.items():
        for name, shape in inner.items():
            step = 0.5 * (2 / 8 if (outer, name) == ("first", "kernel") else 1e-2)
            one, two = g1[outer][name], g2[outer][name]
            np.testing.assert_allclose(first[outer][name], -step * np.sign(one), rtol=1e-6)
            later = second[outer][name] - first[outer][name]
            plain = -step * np.sign(0.09 * one + 0.1 * two)
            if len(shape) == 2:  # all m n signs, rotated: of the same norm, and not the same
                assert np.linalg.norm(later) == pytest.approx(step * np.sqrt(np.prod(shape)), rel=1e-3)
                assert np.abs(later - plain).max() > 0.1 * step
            else:
                assert state.left[outer][name] is None
                assert state.right[outer][name] is None
                np.testing.assert_allclose(later, plain, rtol=1e-4)


def test_kernels_are_told_by_shape_and_name():
    tree = {
        "hidden": [{"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}],
        "classes": {"table": np.zeros((2, 2))},
        "PatchEmbed": {"kernel": np.zeros((2, 2))},
        "layernorm": {"scale": np.zeros((2, 2))},
    }
    kernels = jax.tree_util.tree_map_with_path(is_kernel, tree)
    assert kernels["hidden"] == [{"kernel": True, "bias": False}]
    assert not any(jax.tree.leaves({name: kernels[name] for name in ("classes", "PatchEmbed", "layernorm")}))


def test_long_sides_are_left_as_they_are():
    """A side of max_dim has no basis; the other side still has, and the parameter the other scale."""
    rng = np.random.default_rng(2)
    gradients = rng.normal(size=(2, 2, 4))
    params = {"w": jnp.zeros((2, 4)), "v": jnp.zeros((4, 4))}
    given = as_float32([{"w": g, "v": np.ones((4, 4))} for g in gradients])
    (_, state), (later, _) = take(splus(1.0, max_dim=4, weight_decay=0, other_scale=0.1), params, given)
    assert (state.right["w"], state.left["v"], state.right["v"]) == (None, None, None)
    g1, g2 = gradients
    q, m2 = eigenvectors(g1 @ g1.T), 0.09 * g1 + 0.1 * g2
    np.testing.assert_allclose(later["w"], -0.1 * (np.sign(g1) + q @ np.sign(q.T @ m2)), atol=1e-6)
    np.testing.assert_allclose(later["v"], -0.2 * np.ones((4, 4)), rtol=1e-6)
    whole = splus(1.0, max_dim=5).init(params)
    assert all(isinstance(side, Side) for side in (*whole.left.values(), *whole.right.values()))


def test_weight_decay_is_inside_the_scale():
    """Without a gradient a kernel shrinks by learning rate x 2 / (m + n) x decay, a bias by learning rate x 0.001 x."""
    params = {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    [(params, _)] = take(splus(0.5, weight_decay=0.2), params, [nothing])
    np.testing.assert_allclose(params["kernel"], 1 - 0.5 * 2 / 8 * 0.2, rtol=1e-6)
    np.testing.assert_allclose(params["bias"], 1 - 0.5 * 0.001 * 0.2, rtol=1e-6)


def test_schedule_counts_the_steps_before():
    rates = jnp.array([0.4, 0.1, 0.7])
    gradients = [{"w": jnp.full(1, 2.0)}] * 3
    history = take(splus(lambda step: rates[step], weight_decay=0, other_scale=1.0), {"w": jnp.zeros(1)}, gradients)
    np.testing.assert_allclose([params["w"][0] for params, _ in history], -np.cumsum(rates), rtol=1e-6)


def test_eval_params_finds_its_state_in_a_chain():
    transform = optax.chain(optax.clip_by_global_norm(1.0), splus(0.1))
    params, gradient = {"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 2))}
    history = take(transform, params, [gradient, gradient])
    np.testing.assert_allclose(eval_params(history[0][1])["w"], 1, rtol=1e-6)  # what the first step started from
    started = (0.999 * np.ones((2, 2)) + np.asarray(history[0][0]["w"])) / 1.999
    np.testing.assert_allclose(eval_params(history[1][1])["w"], started, rtol=1e-5)
    with pytest.raises(UserError, match="opt-state = 0 states of SPlus: allowed is exactly one"):
        eval_params(optax.adam(1e-3).init(params))
    with pytest.raises(UserError, match="params = None"):
        transform.update(gradient, transform.init(params))


def test_vmap_and_scan_agree_with_a_loop():
    """Members side by side under one scan, one of which is a step ahead, so that refreshes do not coincide."""
    transform = splus(0.2, refresh_every=3)
    rng = np.random.default_rng(3)
    starts = as_float32([{"w": rng.normal(size=(3, 3)), "b": rng.normal(size=3)} for _ in range(3)])
    gradients = as_float32(
        [[{"w": rng.normal(size=(3, 3)), "b": rng.normal(size=3)} for _ in range(8)] for _ in starts]
    )
    ahead = [take(transform, start, path[:lead])[-1] if lead else (start, transform.init(start))
             for start, path, lead in zip(starts, gradients, (0, 1, 0), strict=True)]  # fmt: skip

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def step(carry, gradient):
        params, state = carry
        updates, state = transform.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def train(carry, path):
        return jax.lax.scan(step, carry, path)[0]

    carries, paths = stack(ahead), stack([stack(path[2:]) for path in gradients])
    together = jax.jit(jax.vmap(train))(carries, paths)
    nested = jax.vmap(jax.vmap(train))(*jax.tree.map(lambda leaf: leaf[None], (carries, paths)))
    mapped = jax.lax.map(lambda one: train(*one), (carries, paths))
    for index, (carry, path) in enumerate(zip(ahead, gradients, strict=True)):
        for gradient in path[2:]:
            carry, _ = step(carry, gradient)
        params, state = carry
        for batched in (together, jax.tree.map(lambda leaf: leaf[0], nested), mapped):
            mine = jax.tree.map(lambda leaf, index=index: leaf[index], batched)
            for ours, theirs in zip(jax.tree.leaves(mine[0]), jax.tree.leaves(params), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
            assert mine[1].step == state.step
            for side in (mine[1].left["w"], mine[1].right["w"]):  # a basis is one of its own member's statistics
                np.testing.assert_allclose(side.basis.T @ side.basis, np.eye(3), atol=1e-5)


def test_no_eigendecomposition_between_refreshes():
    """Also side by side: there a plain `lax.cond` would decompose at every step and throw the result away."""
    transform = splus(0.1)
    params = {"w": jnp.ones((2, 3, 3))}
    state = jax.vmap(transform.init)(params)
    text = jax.jit(jax.vmap(transform.update)).lower(params, state, params).as_text()
    main = text[text.index("@main") :]
    assert "stablehlo.case" in main
    # In its place a condition for each member would be a selection beside calls of the decomposition.
    assert "@eigh" not in main[: main.index("stablehlo.case")]
    assert "@eigh" in main


def tiny(name, rate, **changes) -> TrainConfig:
    config = TrainConfig(
        "swiss_roll",
        steps=20,
        batch_size=32,
        learning_rate=rate,
        checkpoint_every=10,
        network=MLPConfig(width=16, depth=1),
        optimizer=OptimizerConfig(name),
        log=LogConfig(every=10, variance_every=0),
    )
    return dataclasses.replace(config, **changes)


RATES = {"adam": 0.03, "adamw": 0.03, "radam": 0.1, "muon": 0.1, "splus": 0.1}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_a_quadratic(name):
    transform = optimizer(tiny(name, RATES[name], steps=100))
    rng = np.random.default_rng(4)
    target = as_float32({"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)})
    start = jax.tree.map(jnp.zeros_like, target)

    def distance(params):
        return 0.5 * sum(jnp.sum((params[key] - target[key]) ** 2) for key in params)

    def step(carry, _):
        params, state = carry
        updates, state = transform.update(jax.grad(distance)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))((start, transform.init(start)))
    for key in target:
        before, after = (float(jnp.sum((tree[key] - target[key]) ** 2)) for tree in (start, params))
        # SPlus moves what is no kernel by a thousandth of the learning rate.
        assert after < (0.995 if (name, key) == ("splus", "bias") else 0.3) * before


@pytest.mark.parametrize("name", ["adamw", "muon", "splus"])
def test_each_kind_trains_a_network(name):
    """Flat with decay, kernels apart, sides: on one batch over and over the loss falls by a tenth."""
    config = tiny(name, RATES[name] if name != "splus" else 0.3, data="digits", conditional=True, method="meanflow")
    ensemble = Ensemble(config, data.load("digits"), [1])
    state = jax.tree.map(lambda leaf: leaf[0], ensemble.init())
    assert "classes" in state.params
    member = jax.tree.map(lambda leaf: leaf[0], ensemble.points)
    batch = ensemble.train_step.batch(ensemble.dataset.arrays, member, 0)

    def train(state):
        return jax.lax.scan(lambda state, _: ensemble.train_step.step(batch, member, state), state, length=20)

    _, metrics = jax.jit(train)(state)
    assert metrics.loss[-1] < 0.9 * metrics.loss[0]


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_elementwise_optimisers_are_those_of_optax(name):
    """On one flat vector, with the schedule, the moments and the decay of the configuration."""
    decay = {"weight_decay": 0.3} if name == "adamw" else {}
    config = tiny(name, 0.1, optimizer=OptimizerConfig(name, b1=0.8, b2=0.95, **decay))
    rng = np.random.default_rng(5)
    params = as_float32({"w": rng.normal(size=(2, 3)), "b": rng.normal(size=2)})
    gradients = as_float32([{"w": rng.normal(size=(2, 3)), "b": rng.normal(size=2)} for _ in range(8)])
    reference = getattr(optax, name)(learning_rate(config), b1=0.8, b2=0.95, **decay)
    ours, theirs = (take(transform, params, gradients)[-1][0] for transform in (optimizer(config), reference))
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_muon_keeps_to_kernels():
    """Its momentum is that of kernels alone, and their updates have root mean square 0.2 times the learning rate."""
    params = as_float32({"first": {"kernel": np.zeros((8, 8)), "bias": np.zeros(8)}, "classes": np.zeros((3, 8))})
    rng = np.random.default_rng(6)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    transform = OPTIMIZERS["muon"](0.1, 0.9, 0.999)
    updates, _ = transform.update(gradient, transform.init(params), params)
    assert np.sqrt(np.mean(updates["first"]["kernel"] ** 2)) == pytest.approx(0.02, rel=0.25)
    for other, g in ((updates["first"]["bias"], gradient["first"]["bias"]), (updates["classes"], gradient["classes"])):
        # Adam's first step: all entries alike.
        np.testing.assert_allclose(other, -np.abs(other).max() * np.sign(g), rtol=1e-3)


def test_configuration_reaches_splus():
    """b1, b2, weight decay and clipping: seen in the state and the step of one update."""
    options = OptimizerConfig("splus", b1=0.75, b2=0.5, weight_decay=0.2, clip_norm=2.0)
    transform = optimizer(tiny("splus", 0.4, optimizer=options))
    params, gradient = as_float32(({"w": np.eye(2)}, {"w": np.array([[3.0, -4.0], [-12.0, 84.0]])}))  # of norm 85
    updates, state = transform.update(gradient, transform.init(params), params)
    clipped = np.asarray(gradient["w"]) * 2 / np.linalg.norm(gradient["w"])
    [inner] = [
        part for part in jax.tree.leaves(state, is_leaf=lambda part: hasattr(part, "left")) if hasattr(part, "left")
    ]
    np.testing.assert_allclose(inner.momentum["w"], 0.25 * clipped, rtol=1e-5)
    np.testing.assert_allclose(inner.left["w"].statistic, 0.5 * clipped @ clipped.T, rtol=1e-5)
    np.testing.assert_allclose(updates["w"], -0.2 * (np.sign(clipped) + 0.2 * np.eye(2)), rtol=1e-5)


def test_splus_resumes_from_its_checkpoint(tmp_path):
    """The state, sides that are None included, comes back from the disk; what follows has the very bits."""
    ensemble = Ensemble(tiny("splus", 0.3), data.load("swiss_roll"), [1])
    halfway, _ = ensemble.advance(ensemble.init(), 10)
    with loop.open_checkpoints(ensemble, tmp_path) as checkpoints:
        checkpoints.save(10, ensemble.collect(halfway))
    whole, _ = ensemble.advance(halfway, 10)
    with loop.open_checkpoints(ensemble, tmp_path) as checkpoints:
        restored, step = loop.restore(ensemble, checkpoints)
    resumed, _ = ensemble.advance(restored, 10)
    assert step == 10
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(ensemble.sample(resumed, 4)).all()
    # The trainer's average is what runs are sampled from; SPlus's own stands beside it.
    own = jax.vmap(eval_params)(resumed.opt_state)
    assert jax.tree.structure(own) == jax.tree.structure(resumed.ema_params)


def test_names_match_the_table():
    assert list(typing.get_args(registry.Name)) == list(OPTIMIZERS)
    assert OptimizerConfig().name == "adam"
    # Types are enforced in these tests; elsewhere, as in a config.json, an unknown name comes as far as this.
    with pytest.raises(UserError, match="= 'sgd': allowed are adam, adamw, radam, muon, splus"):
        registry.check("sgd", None)


def test_optimisers_and_their_decay_tell_trainings_apart():
    assert len({identity(tiny(name, 1e-3)) for name in OPTIMIZERS}) == len(OPTIMIZERS)
    decayed = [tiny("splus", 1e-3, optimizer=OptimizerConfig("splus", weight_decay=decay)) for decay in (None, 0.0)]
    assert identity(decayed[0]) != identity(decayed[1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight_decay": 0.1}, "optimizer.weight-decay = 0.1: adam has none; allowed with adamw, muon, splus"),
        ({"name": "radam", "weight_decay": 0.0}, "optimizer.weight-decay = 0.0: radam has none"),
        ({"name": "splus", "weight_decay": -1.0}, "optimizer.weight-decay = -1.0: allowed is 0 or more"),
        ({"name": "muon", "weight_decay": float("nan")}, "optimizer.weight-decay = nan: allowed is 0 or more"),
        ({"name": "splus", "b2": 1.0}, r"optimizer.b2 = 1.0: allowed is \[0, 1\)"),
    ],
)
def test_bad_configurations_are_one_line(options, expected):
    with pytest.raises(UserError, match=expected) as caught:
        OptimizerConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"b1": 1.0}, "b1 = 1.0: allowed is"),
        ({"b2": -0.1}, "b2 = -0.1"),
        ({"ema_decay": 1.5}, "ema-decay = 1.5"),
        ({"weight_decay": -1.0}, "weight-decay = -1.0: allowed is 0 or more"),
        ({"eps": float("nan")}, "eps = nan"),
        ({"other_scale": -1e-3}, "other-scale = -0.001"),
        ({"refresh_every": 0}, "refresh-every = 0: allowed is 1 or more"),
        ({"max_dim": 0}, "max-dim = 0"),
    ],
)
def test_bad_values_of_splus_are_one_line(options, expected):
    with pytest.raises(UserError, match=expected):
        splus(0.1, **options)


def test_command_line_says_what_is_allowed(capsys, tmp_path, monkeypatch):
    from vamf import cli

    monkeypatch.chdir(tmp_path)
    for options, expected in (
        (["--optimizer.name", "sgd"], "splus"),
        (["--optimizer.weight-decay", "0.1"], "optimizer.weight-decay = 0.1: adam has none"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "swiss_roll", *options])
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert len(err.strip().splitlines()) == 1
        assert expected in err
