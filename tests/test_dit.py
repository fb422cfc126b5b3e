import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import (
    arguments,
    attention,
    build,
    count,
    cut,
    embed_number,
    equations,
    linear,
    paste,
    quick,
    random_parameters,
    shapes,
    silu,
    squared_residual,
)
from vamf.average_velocity import total_derivative
from vamf.errors import UserError
from vamf.networks import attention as attention_module
from vamf.networks.dit import DiT, DiTConfig
from vamf.optimizers.kernels import is_kernel

EVENT = (8, 12, 3)
SMALL = functools.partial(DiTConfig, depth=1, width=16, heads=2, patch=4)
BOTH = ("velocity", "log_variance")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("S/4", 33_142_336),
        ("B/4", 131_165_248),
        ("B/2", 131_091_472),
        ("M/2", 308_019_216),
        ("L/2", 459_137_040),
        ("XL/2", 676_440_592),
    ],
)
def test_parameter_counts_are_the_official_codes(name, published):
    config = DiTConfig.named(name)
    one, two = (count(shapes(build(DiT, dataclasses.replace(config, depth=d), (32, 32, 4), 1000))) for d in (1, 2))
    assert one + (config.depth - 1) * (two - one) == published


def test_the_default_is_b4():
    assert DiTConfig() == DiTConfig.named("B/4")
    assert count(shapes(build(DiT, DiTConfig(), (32, 32, 4), 1000))) == 131_165_248


@pytest.mark.parametrize(
    "config",
    [
        SMALL(depth=2),
        SMALL(times="t,r", qk_norm=True),
        SMALL(times="t,r,t-r"),
        SMALL(times="t-r"),
        SMALL(depth=2, decoupled_depth=1),
        SMALL(decoupled_depth=1),
    ],
)
def test_is_the_transformer_of_its_description(config):
    with jax.enable_x64(True):
        network = build(DiT, config, EVENT, 3, BOTH)
        params = random_parameters(network, dtype=np.float64)
        z, r, t = arguments(EVENT, dtype=np.float64)
        label = jnp.array([0, 2, -1])
        u = network.bind(params)
        for last, ours, at in (("last", quick(u)(z, r, t, label), r), ("head", quick(u.velocity)(z, t, label), t)):
            for row in range(3):
                expected = plain(params, config, last, *(np.asarray(a)[row] for a in (z, at, t, label)))
                np.testing.assert_allclose(ours[row], expected, rtol=1e-6, atol=1e-6)


def plain(params, config, last, z, r, t, label):
    """One image through the network, in numpy."""
    of_label = np.asarray(params["classes"]["embedding"])[label]
    at = {"t": t, "r": r, "t-r": t - r}
    names = ["t"] if config.decoupled_depth else config.times.split(",")
    early = late = silu(sum(embed_number(params["times"][name], at[name]) for name in names) + of_label)
    if config.decoupled_depth:
        late = silu(embed_number(params["times"]["t"], r) + of_label)
    x = linear(params["patches"], cut(z, config.patch)) + places(z.shape, config)
    for depth in range(config.depth):
        block = params["blocks"][depth]
        six = np.split(linear(block["modulation"], early if depth < config.decoupled_depth else late), 6)
        x = x + six[2] * attention(block["attention"], norm(x, *six[:2]), config.heads)
        hidden = linear(block["up"], norm(x, *six[3:5]))
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + six[5] * linear(block["down"], hidden)
    shift, scale = np.split(linear(params[last]["modulation"], late), 2)
    return paste(linear(params[last]["linear"], norm(x, shift, scale)), config.patch, z.shape)


def norm(x, shift, scale):
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6) * (1 + scale) + shift


def places(shape, config):
    """Sines and cosines of the column, then of the row, for every patch."""
    quarter = config.width // 4
    frequency = [10_000 ** (-i / quarter) for i in range(quarter)]
    grid = [(i, j) for i in range(shape[0] // config.patch) for j in range(shape[1] // config.patch)]
    waves = [[[wave(f * at) for wave in (np.sin, np.cos) for f in frequency] for at in (j, i)] for i, j in grid]
    return np.reshape(waves, (len(grid), config.width))


def test_everything_is_zero_at_the_start():
    network = build(DiT, SMALL(qk_norm=True), EVENT, 3, BOTH)
    u = network.bind(quick(network.init)(jax.random.key(0)))
    z, r, t = arguments(EVENT)
    derivative = quick(lambda z, r, t: total_derivative(u, z, r, t, z))
    for out in (*derivative(z, r, t), quick(u.velocity)(z, t), u.log_variance(r, t)):
        np.testing.assert_array_equal(out, jnp.zeros_like(out))


def test_blocks_are_the_identity_at_the_start():
    """With the gates at zero the image passes through unchanged, whatever the depth."""
    outputs = []
    for depth in (1, 2):
        network = build(DiT, SMALL(depth=depth), EVENT)
        params = quick(network.init)(jax.random.key(0))
        params["last"]["linear"]["kernel"] = jnp.ones_like(params["last"]["linear"]["kernel"])
        params["patches"]["kernel"] = jnp.ones_like(params["patches"]["kernel"])
        outputs.append(quick(network.bind(params))(*arguments(EVENT)))
    np.testing.assert_array_equal(*outputs)


def test_labels_change_the_output_and_none_is_the_last_class():
    network = build(DiT, SMALL(), EVENT, 3)
    u = quick(network.bind(random_parameters(network)))
    z, r, t = arguments(EVENT)
    outputs = [u(z, r, t, jnp.full(3, k)) for k in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.max(np.abs(outputs[i] - outputs[j])) > 1e-3
    for none in (None, jnp.full(3, -1), jnp.full(3, -7)):
        np.testing.assert_allclose(u(z, r, t, none), outputs[3], rtol=1e-5, atol=1e-5)


def test_rows_do_not_see_one_another():
    network = build(DiT, SMALL(), EVENT, 3)
    u = quick(network.bind(random_parameters(network)))
    z, r, t = arguments(EVENT)
    label = jnp.array([0, 1, 2])
    alone = [u(z[i : i + 1], r[i : i + 1], t[i : i + 1], label[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(u(z, r, t, label), np.stack(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("times", "matters"),
    [("t,t-r", (True, True, True)), ("t,r", (True, True, True)), ("t-r", (True, True, False))],
)
def test_which_times_matter(times, matters):
    """Moving t, moving r, moving both by the same."""
    network = build(DiT, SMALL(times=times), EVENT)
    u = quick(network.bind(random_parameters(network)))
    z, r, t = arguments(EVENT)
    base = u(z, r, t)
    for expected, (by_r, by_t) in zip(matters, [(0, 0.1), (0.1, 0), (0.1, 0.1)], strict=True):
        assert (np.max(np.abs(u(z, r + by_r, t + by_t) - base)) > 1e-3) == expected


@pytest.mark.parametrize("config", [SMALL(), SMALL(times="t-r"), SMALL(decoupled_depth=1)])
def test_diagonal_called_with_one_array_is_the_diagonal(config):
    """u(z, t, t) with t twice the same object takes a shorter way to the same value."""
    network = build(DiT, config, EVENT)
    u = network.bind(random_parameters(network))
    z, _, t = arguments(EVENT)
    np.testing.assert_allclose(quick(lambda z, t: u(z, t, t))(z, t), quick(u)(z, t, t), rtol=1e-4, atol=1e-5)


def test_decoupled_is_the_velocity_network_on_the_diagonal():
    """Wherever the split is; and it is the coupled network whose embedding of the gap is 0."""
    z, r, t = arguments(EVENT)
    coupled = build(DiT, SMALL(depth=2), EVENT, 3)
    whole = random_parameters(coupled)
    whole["times"]["t-r"]["second"] = jax.tree.map(jnp.zeros_like, whole["times"]["t-r"]["second"])
    params = {**whole, "times": {"t": whole["times"]["t"]}}
    expected = quick(coupled.bind(whole))(z, t, t)
    networks = [quick(build(DiT, SMALL(depth=2, decoupled_depth=split), EVENT, 3).bind(params)) for split in (1, 2)]
    for u in networks:
        np.testing.assert_allclose(u(z, t, t), expected, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(networks[0](z, r, t) - networks[1](z, r, t))) > 1e-2


@pytest.mark.parametrize("config", [SMALL(qk_norm=True), SMALL(depth=2, decoupled_depth=1, remat=True)])
def test_forward_mode_matches_differences(config):
    with jax.enable_x64(True):
        network = build(DiT, config, EVENT, 3)
        params = random_parameters(network, dtype=np.float64)
        u, label = quick(network.bind(params)), jnp.arange(3)
        z, r, t = arguments(EVENT, dtype=np.float64)
        _, derivative = total_derivative(u, z, r, t, jnp.cos(z), label)
        h = 1e-5
        ahead, behind = (u(z + s * jnp.cos(z), r, t + s, label) for s in (h, -h))
        np.testing.assert_allclose(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_gradient_through_the_derivative_matches_differences():
    """Reverse over forward mode, with nothing stopped."""
    with jax.enable_x64(True):
        network = build(DiT, SMALL(), EVENT)
        params, along = (random_parameters(network, seed, dtype=np.float64) for seed in (0, 1))
        z, r, t = arguments(EVENT, dtype=np.float64)

        def loss(params):
            return jnp.mean(total_derivative(network.bind(params), z, r, t, jnp.cos(z))[1] ** 2)

        def moved(step):
            return value(jax.tree.map(lambda leaf, by: leaf + step * by, params, along))

        value, gradient = quick(loss), quick(jax.grad(loss))(params)
        products = jax.tree.map(lambda g, by: jnp.sum(g * by), gradient, along)
        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "qk_norm": True, "remat": True}])
def test_gradient_of_the_derivative_lowers_for_cuda(options):
    """Some operations have no forward mode on an accelerator, and only lowering shows it."""
    network = build(DiT, SMALL(**options), EVENT, 3)
    args = shapes(network), *arguments(EVENT), jnp.arange(3)
    lowered = jax.jit(jax.grad(squared_residual(network))).trace(*args).lower(lowering_platforms=("cuda",))
    assert "dot_general" in lowered.as_text()
    assert "custom_call" not in lowered.as_text()


def test_half_precision_is_that_of_the_products_alone():
    exact, half = (build(DiT, SMALL(dtype=dtype, qk_norm=True), EVENT, 3) for dtype in ("float32", "bfloat16"))
    params = random_parameters(exact)
    z, r, t = arguments(EVENT)
    found, expected = (quick(network.bind(params))(z, r, t, jnp.arange(3)) for network in (half, exact))
    assert found.dtype == jnp.float32
    error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert 1e-5 < error < 0.05
    inside = list(equations(jax.make_jaxpr(half.bind(params))(z, r, t, jnp.arange(3)).jaxpr))

    def precisions(name):
        return [eqn.invars[0].aval.dtype for eqn in inside if eqn.primitive.name == name]

    assert set(precisions("exp")) == set(precisions("rsqrt")) == {jnp.dtype(jnp.float32)}  # softmax and norms
    # In the block: queries to values, logits, the weighted sum, the output, up and down.
    assert precisions("dot_general").count(jnp.bfloat16) == 6
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(half)))


@pytest.mark.slow
def test_recomputed_blocks_store_less_and_change_nothing():
    stored, recomputed = (build(DiT, SMALL(depth=2, remat=remat), EVENT, 3) for remat in (False, True))
    params = random_parameters(stored)
    args = *arguments(EVENT), jnp.arange(3)

    def gradient_and_storage(network):
        loss = functools.partial(squared_residual(network), z=args[0], r=args[1], t=args[2], label=args[3])
        storage = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return jax.tree.leaves(quick(jax.grad(loss))(params)), count(storage)

    (expected, much), (found, little) = map(gradient_and_storage, (stored, recomputed))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(theirs))))
    assert little < much / 2


def test_deep_networks_trace_one_block():
    """Start-up of a deep network: its blocks share one lowered function."""
    lengths = []
    for depth in (2, 12):
        network = build(DiT, SMALL(depth=depth), EVENT)
        args = shapes(network), *arguments(EVENT), None
        text = jax.jit(jax.grad(squared_residual(network))).trace(*args).lower().as_text()
        lengths.append(text.count("dot_general"))
    assert lengths[0] == lengths[1]


def test_members_of_a_grid_are_trained_side_by_side():
    """The parameters are plain arrays: vmap over seeds equals one seed after another."""
    network = build(DiT, SMALL(), EVENT)
    z, r, t = arguments(EVENT)

    def run(key):
        return network.bind(jax.tree.map(lambda leaf: leaf + 0.01, network.init(key)))(z, r, t, None)

    keys = jax.random.split(jax.random.key(0), 3)
    alone = quick(run)
    np.testing.assert_allclose(quick(jax.vmap(run))(keys), np.stack([alone(key) for key in keys]), rtol=1e-4)


def test_learned_scale_sees_both_times():
    network = build(DiT, SMALL(), EVENT, 0, BOTH)
    u = network.bind(random_parameters(network))
    _, r, t = arguments(EVENT)
    base = u.log_variance(r, t)
    assert base.shape == (3,)
    assert np.min(np.abs(u.log_variance(r + 0.1, t) - base)) > 0
    assert np.min(np.abs(u.log_variance(r, t + 0.1) - base)) > 0
    without = shapes(build(DiT, SMALL(), EVENT))
    assert count(shapes(network)) - count(without) == (256 + 1) + count(without["last"])


def test_kernels_are_told_from_tables():
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes(build(DiT, SMALL(), EVENT, 3)))
    tables = [path for path, leaf in flat if leaf.ndim == 2 and not is_kernel(path, leaf)]
    assert [path[0].key for path in tables] == ["classes"]


def test_initial_kernels():
    network = build(DiT, DiTConfig(depth=1, width=128, heads=4, patch=4), (16, 16, 4), 100)
    params = quick(network.init)(jax.random.key(0))
    block = params["blocks"][0]
    for kernel in (block["attention"]["inputs"], block["attention"]["output"], block["up"], params["patches"]):
        bound = np.sqrt(6 / sum(kernel["kernel"].shape))
        assert np.max(np.abs(kernel["kernel"])) <= bound
        np.testing.assert_allclose(np.std(kernel["kernel"]), bound / np.sqrt(3), rtol=0.05)
    for table in (params["classes"]["embedding"], params["times"]["t"]["first"]["kernel"]):
        np.testing.assert_allclose(np.std(table), 0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"depth": 0}, "depth"),
        ({"heads": 0}, "heads"),
        ({"heads": 3}, "heads"),
        ({"width": 18, "heads": 2}, "width"),
        ({"patch": -1}, "patch"),
        ({"decoupled_depth": 2}, "decoupled-depth"),
        ({"decoupled_depth": -1}, "decoupled-depth"),
        ({"decoupled_depth": 1, "times": "t-r"}, "times"),
    ],
)
def test_refusals_name_the_field(options, name):
    with pytest.raises(UserError, match=name):
        SMALL(**options)


@pytest.mark.parametrize("name", ["B", "H/2", "B/x", "/4", "B/0"])
def test_unknown_sizes_are_refused(name):
    with pytest.raises(UserError):
        DiTConfig.named(name)


@pytest.mark.parametrize(("event", "match"), [((64,), "images"), ((8, 8), "images"), ((8, 10, 3), "patch")])
def test_other_data_is_refused(event, match):
    with pytest.raises(UserError, match=match):
        build(DiT, SMALL(), event)


def test_blocks_of_another_network_do_not_disturb():
    """The traced block is found by its shape: two networks in one program keep their own parameters."""
    network = build(DiT, SMALL(), EVENT)
    first, second = (random_parameters(network, seed) for seed in (0, 1))
    args = arguments(EVENT)
    both = quick(lambda a, b: (network.bind(a)(*args), network.bind(b)(*args)))(first, second)
    for params, found in zip((first, second), both, strict=True):
        np.testing.assert_allclose(found, quick(network.bind(params))(*args), rtol=1e-4, atol=1e-4)
    assert attention_module.apply_blocks([], args[1]) is args[1]
