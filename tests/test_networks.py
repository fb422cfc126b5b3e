import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import quick
from vamf.average_velocity import total_derivative
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.errors import UserError
from vamf.networks import KINDS, DiTConfig, InContextConfig, MLPConfig, UNetConfig, build, kind_of, overlay
from vamf.networks.embeddings import sinusoidal
from vamf.training.config import OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble

EVENTS = [(2,), (64,), (8, 8)]


def arguments(event, n=5, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.3, 1.0, n)
    return [jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(n, *event)), t * rng.uniform(0, 1, n), t)]


def perturbed(params, seed=1, size=0.3):
    """Parameters away from the start, where the last layer hides all others."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + np.float32(size) * rng.normal(size=leaf.shape).astype(np.float32), params)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("classes", [0, 10])
def test_shape_and_almost_zero_at_the_start(event, classes):
    network = build(MLPConfig(), event, classes)
    z, r, t = arguments(event)
    out = network.bind(network.init(jax.random.key(0)))(z, r, t, None)
    assert out.shape == z.shape
    assert out.dtype == jnp.float32
    assert 0 < np.max(np.abs(out)) < 1e-4


def test_the_start_is_the_identity_map():
    network = build(MLPConfig(), (2,))
    u = network.bind(network.init(jax.random.key(0)))
    z, r, t = arguments((2,))
    _, derivative = total_derivative(u, z, r, t, z)
    assert np.max(np.abs(derivative)) < 1e-3


@pytest.mark.parametrize("size", [2, 64])
def test_parameter_count(size):
    found = count(build(MLPConfig(), (size,)).init(jax.random.key(0)))
    assert found == (size + 2 * 32 + 1) * 128 + 2 * (128 + 1) * 128 + (128 + 1) * size
    if size == 2:
        assert found == 41_858


def test_classes_add_one_vector_each_and_one_for_none():
    with_classes, without = (build(MLPConfig(), (2,), classes).init(jax.random.key(0)) for classes in (10, 0))
    assert count(with_classes) - count(without) == 11 * 128


def test_keys_decide_the_start():
    network = build(MLPConfig(), (2,))
    first, again, other = (jax.tree.leaves(network.init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim == 2]
    assert len(kernels) == 4
    assert not any(np.array_equal(a, b) for a, b in kernels)


def test_hidden_kernels_are_xavier_uniform():
    params = build(MLPConfig(width=256), (2,)).init(jax.random.key(0))
    square = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (256, 256)]
    bound = np.sqrt(6 / 512)
    for kernel in square:
        assert np.max(np.abs(kernel)) <= bound
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.02)


def test_labels_change_the_output_and_none_is_the_last_class():
    network = build(MLPConfig(), (2,), 3)
    u = network.bind(perturbed(network.init(jax.random.key(0))))
    z, r, t = arguments((2,))
    outputs = [u(z, r, t, jnp.full(5, k)) for k in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.min(np.max(np.abs(outputs[i] - outputs[j]), axis=1)) > 1e-3
    np.testing.assert_array_equal(u(z, r, t, None), outputs[3])


def test_rows_do_not_see_one_another():
    network = build(MLPConfig(), (8, 8), 3)
    u = network.bind(perturbed(network.init(jax.random.key(0)), size=0.05))
    z, r, t = arguments((8, 8))
    label = jnp.array([0, 1, 2, 0, 1])
    alone = [u(z[i : i + 1], r[i : i + 1], t[i : i + 1], label[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(u(z, r, t, label), np.stack(alone), rtol=1e-4, atol=1e-4)


def test_both_times_matter():
    network = build(MLPConfig(), (2,))
    u = network.bind(perturbed(network.init(jax.random.key(0))))
    z, r, t = arguments((2,))
    assert np.max(np.abs(u(z, r, t, None) - u(z, r / 2, t, None))) > 1e-3
    assert np.max(np.abs(u(z, r, t, None) - u(z, r, (1 + t) / 2, None))) > 1e-3


def test_diagonal_called_with_one_array_is_the_diagonal():
    """u(z, t, t) with t twice the same object takes a shorter way to the same value and the same gradient."""
    network = build(MLPConfig(width=16), (2,))
    params = perturbed(network.init(jax.random.key(0)))
    z, _, t = arguments((2,))

    def total(params, r):
        return jnp.sum(network.bind(params)(z, r, t, None) ** 2)

    short, long = (jax.value_and_grad(total)(params, r) for r in (t, t + 0))
    for ours, theirs in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_is_the_perceptron_of_its_description(depth):
    """A plain numpy evaluation of [z, emb(t), emb(t) - emb(r)] with SiLU between the layers."""
    network = build(MLPConfig(width=16, depth=depth, time_features=8), (2,))
    params = perturbed(network.init(jax.random.key(0)))
    z, r, t = (np.asarray(a, np.float64) for a in arguments((2,)))

    def embed(t):
        angle = t[:, None] * 1e4 ** -(np.arange(4) / 4)
        return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(t), 8)

    layers = [params["first"], *(params["hidden"][k] for k in sorted(params.get("hidden", {}))), params["last"]]
    h = np.concatenate([z, embed(t), embed(t) - embed(r)], axis=1)
    for i, layer in enumerate(layers):
        h = h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if i < len(layers) - 1:
            h = h / (1 + np.exp(-h))
    assert len(layers) == depth + 1
    np.testing.assert_allclose(network.bind(params)(*arguments((2,)), None), h, rtol=1e-4, atol=1e-5)


def test_embedding_is_sine_and_cosine_of_unscaled_time():
    t = np.array([0.0, 0.3, 1.0], np.float32)
    found = np.asarray(sinusoidal(jnp.asarray(t), 6))
    angle = t[:, None] * np.array([1.0, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3)])
    np.testing.assert_allclose(np.sort(found), np.sort(np.concatenate([np.sin(angle), np.cos(angle)], 1)), atol=1e-6)
    # du/dt passes through here: no feature may be steeper than time itself.
    _, slope = jax.jvp(lambda t: sinusoidal(t, 32), (jnp.asarray(t),), (jnp.ones(3),))
    assert np.max(np.abs(slope)) <= 1 + 1e-6


@pytest.mark.parametrize("event", EVENTS)
def test_forward_mode_matches_differences(event):
    with jax.enable_x64(True):
        network = build(MLPConfig(), event, 3)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), perturbed(network.init(jax.random.key(0))))
        u, label = jax.jit(network.bind(params)), jnp.arange(5) % 3
        z, r, t = (jnp.asarray(a, jnp.float64) for a in arguments(event))
        _, derivative = total_derivative(u, z, r, t, jnp.cos(z), label)
        h = 1e-5
        ahead, behind = (u(z + s * jnp.cos(z), r, t + s, label) for s in (h, -h))
        np.testing.assert_allclose(derivative, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_gradient_of_the_derivative_lowers(platform):
    """Some operations have no forward mode on an accelerator, and only lowering shows it."""
    network = build(MLPConfig(), (8, 8), 3)

    def loss(params, z, r, t, label):
        value, derivative = total_derivative(network.bind(params), z, r, t, z, label)
        return jnp.sum((value + jax.lax.stop_gradient(derivative)) ** 2)

    args = network.init(jax.random.key(0)), *arguments((8, 8)), jnp.arange(5) % 3
    text = jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text


def test_members_of_a_grid_are_trained_side_by_side():
    """The parameters are plain arrays: vmap over seeds equals one seed after another."""
    network = build(MLPConfig(width=16), (2,))
    z, r, t = arguments((2,))

    def run(key):
        params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(key))
        return network.bind(params)(z, r, t, None)

    keys = jax.random.split(jax.random.key(0), 3)
    alone = jax.jit(run)
    together = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_allclose(together, np.stack([alone(key) for key in keys]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"width": 0}, "width"), ({"depth": 0}, "depth"), ({"time_features": 3}, "time"), ({"time_features": 0}, "time")],
)
def test_refusals_name_the_field(options, name):
    with pytest.raises(UserError, match=name):
        MLPConfig(**options)


SMALL = [
    MLPConfig(width=8, depth=2),
    DiTConfig(depth=2, width=16, heads=2, patch=4),
    InContextConfig(depth=2, width=16, heads=2, patch=4, head_depth=1),
    UNetConfig(channels=4, multipliers=(1,), blocks=1, attention=()),
]


def test_every_kind_has_a_name():
    assert {kind_of(config) for config in SMALL} == set(KINDS)


@pytest.mark.parametrize("config", SMALL, ids=kind_of)
def test_kinds_are_called_alike(config):
    network = build(config, (8, 8, 1), 3, ("velocity", "log_variance", "fake"))
    params = perturbed(network.init(jax.random.key(0)))
    z, r, t = arguments((8, 8, 1))
    label = jnp.array([0, 1, 2, -1, 1])

    @jax.jit
    def outputs(params):
        u = network.bind(params)
        return u(z, r, t, label), u.velocity(z, t, label), u.fake(z, t, label), u.log_variance(r, t)

    *images, scale = outputs(params)
    assert scale.shape == (5,)
    for one in images:
        assert one.shape == z.shape
        assert np.all(np.isfinite(one))
    assert all(np.max(np.abs(one - images[0])) > 1e-6 for one in images[1:])


@pytest.mark.parametrize("config", SMALL, ids=kind_of)
def test_parameters_of_another_training_take_their_places(config):
    plain, more = (build(config, (8, 8, 1), 0, heads) for heads in ((), ("log_variance", "fake")))
    found = overlay(more.init(jax.random.key(0)), plain.init(jax.random.key(1)))
    z, r, t = arguments((8, 8, 1))
    np.testing.assert_array_equal(more.bind(found)(z, r, t), plain.bind(plain.init(jax.random.key(1)))(z, r, t))
    with pytest.raises(UserError, match=r"init-from: its \S+ has shape"):
        overlay(plain.init(jax.random.key(0)), build(config, (8, 8, 3)).init(jax.random.key(0)))


@pytest.mark.slow
def test_drawn_scales_of_guidance_reach_the_network(tmp_path):
    """The loss at the very start does not depend on them, since u = 0; after a few steps the network does."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", images=rng.integers(0, 256, (40, 8, 8, 1), np.uint8), labels=np.arange(40) % 3)
    config = TrainConfig(
        data=str(tmp_path / "p.npz"),
        method="improved_meanflow",
        objective={"proxy": "head", "guidance": {"scale": 8.0, "scale_power": 1.0, "dropout": 0.1}},
        network=InContextConfig(depth=2, width=12, heads=2, patch=4, head_depth=1),
        batch_size=8,
        steps=20,
        learning_rate=0.03,
        optimizer=OptimizerConfig(ema_decay=0.5),
    )
    grid = Ensemble(config, config.load_data(), [0])
    state, metrics = grid.advance(grid.init(), 20)
    assert np.all(np.isfinite(metrics.loss))
    u = grid.network.bind(jax.tree.map(lambda leaf: leaf[0], state.params))
    z, r, t = arguments((8, 8, 1))
    asked = [GuidanceScale(jnp.full(5, omega), jnp.zeros(5), jnp.ones(5)) for omega in (1.0, 8.0)]
    one, eight = (u(z, r, t, Conditioning(jnp.zeros(5, int), scale=scale)) for scale in asked)
    assert np.max(np.abs(one - eight)) > 1e-4
    np.testing.assert_allclose(u(z, r, t, jnp.zeros(5, int)), one, rtol=1e-4, atol=1e-5)
    drawn = [grid.draw(state, 5, label=np.zeros(5), scale=(omega, 0.0, 1.0))[0] for omega in (1.0, 8.0)]
    assert np.max(np.abs(drawn[0] - drawn[1])) > 1e-3
    with pytest.raises(UserError, match="in_context"):
        dataclasses.replace(config, network=MLPConfig())


@pytest.mark.parametrize("kind", ["dit", "in_context", pytest.param("unet", marks=pytest.mark.slow)])
def test_derivatives_are_in_single_precision_unless_asked(kind):
    """Values of half-precision networks are off by parts in a thousand; their derivatives are not."""
    small = {
        "dit": DiTConfig(depth=1, width=16, heads=2, patch=4),
        "in_context": InContextConfig(depth=1, width=16, heads=2, patch=4, head_depth=0),
        "unet": UNetConfig(channels=8, multipliers=(1,), blocks=1, time_features=8, attention=()),
    }[kind]
    z, r, t = arguments((8, 8, 3))
    exact = build(small, (8, 8, 3))
    params = perturbed(exact.init(jax.random.key(0)))
    half = dataclasses.replace(small, dtype="bfloat16")

    def derivative(network):
        return quick(lambda params: total_derivative(network.bind(params), z, r, t, z)[1])(params)

    expected = derivative(exact)
    np.testing.assert_allclose(derivative(build(half, (8, 8, 3))), expected, rtol=1e-4, atol=1e-4)
    rounded = derivative(build(half, (8, 8, 3), jvp_dtype="network"))
    assert np.max(np.abs(rounded - expected)) > 1e-3 * np.max(np.abs(expected))
    values = [quick(lambda params, u=u: u.bind(params)(z, r, t))(params) for u in (exact, build(half, (8, 8, 3)))]
    assert np.max(np.abs(values[1] - values[0])) > 1e-3 * np.max(np.abs(values[0]))
