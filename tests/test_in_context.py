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
    linear,
    paste,
    quick,
    random_parameters,
    rms_norm,
    shapes,
    silu,
    squared_residual,
)
from vamf.average_velocity import total_derivative
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.errors import UserError
from vamf.networks.in_context import InContextConfig, InContextTransformer
from vamf.optimizers.kernels import is_kernel

EVENT = (4, 6, 3)
SMALL = functools.partial(InContextConfig, depth=2, width=12, heads=2, patch=2, head_depth=1)
VELOCITY = ("velocity",)
of = functools.partial(build, InContextTransformer)


def test_parameter_counts_are_the_official_codes():
    """145,596,960 in training; 88,948,256 at sampling, where the official code keeps the velocity head's last layer."""
    config = InContextConfig.named("B/2")
    assert config == InContextConfig()
    training, sampling = (shapes(of(config, (32, 32, 4), 1000, heads)) for heads in (VELOCITY, ()))
    assert count(training) == 145_596_960
    assert count(training) - count(training["head"]) == 88_948_256
    assert count(sampling) == 88_948_256 - count(training["head_last"])
    assert count(training["head_last"]) == 768 + (768 + 1) * 16


@pytest.mark.parametrize(("name", "depth", "width"), [("M/2", 24, 768), ("L/2", 32, 1024), ("XL/2", 48, 1024)])
def test_named_sizes(name, depth, width):
    config = InContextConfig.named(name)
    assert (config.depth, config.width, config.width // config.heads, config.head_depth) == (depth, width, 64, 8)


def test_is_the_transformer_of_its_description():
    with jax.enable_x64(True):
        config = SMALL()
        network = of(config, EVENT, 3, VELOCITY)
        params = random_parameters(network, dtype=np.float64)
        u = network.bind(params)
        z, r, t = arguments(EVENT, dtype=np.float64)
        label, guidance = jnp.array([0, 2, -1]), (jnp.array([1.0, 2.5, 7.0]), jnp.array([0.0, 0.2, 0.4]), 0.9)
        cond = Conditioning(label, scale=GuidanceScale(*guidance))
        found = {
            ("own", "last"): quick(u)(z, r, t, cond),
            ("head", "head_last"): quick(u.velocity)(z, t, cond),
        }
        for (blocks, last), ours in found.items():
            for row in range(3):
                gap = float(t[row] - r[row]) if blocks == "own" else 0.0
                told = {"omega": 1 - 1 / guidance[0][row], "t_min": guidance[1][row], "t_max": 0.9, "h": gap}
                expected = plain(params, config, blocks, last, np.asarray(z[row]), told, label[row])
                np.testing.assert_allclose(ours[row], expected, rtol=1e-6, atol=1e-6)


def plain(params, config, blocks, last, z, told, label):
    """One image through the network, in numpy."""
    vectors = [np.asarray(params["classes"]["embedding"])[label]] * 8
    for name, copies in (("omega", 4), ("t_min", 2), ("t_max", 2), ("h", 4)):
        vectors += [embed_number(params["numbers"][name], float(told[name]))] * copies
    before = np.stack(vectors) + np.asarray(params["token_embedding"])
    x = np.concatenate([before, linear(params["patches"], cut(z, config.patch))])
    for block in (*params["shared"].values(), *params[blocks].values()):
        first, second = (np.asarray(gate) for gate in block["gates"].values())
        x = x + first * attention(
            block["attention"], rms_norm(block["norms"][0]["gain"], x), config.heads, rotated=True
        )
        gate, value = np.split(linear(block["up"], rms_norm(block["norms"][1]["gain"], x)), 2, axis=1)
        x = x + second * linear(block["down"], silu(gate) * value)
    out = linear(params[last]["linear"], rms_norm(params[last]["norm"]["gain"], x[20:]))
    return paste(out, config.patch, z.shape)


def test_everything_is_zero_at_the_start():
    network = of(SMALL(), EVENT, 3, ("velocity", "log_variance"))
    u = network.bind(quick(network.init)(jax.random.key(0)))
    z, r, t = arguments(EVENT)
    derivative = quick(lambda z, r, t: total_derivative(u, z, r, t, z))
    for out in (*derivative(z, r, t), quick(u.velocity)(z, t), u.log_variance(r, t)):
        np.testing.assert_array_equal(out, jnp.zeros_like(out))


def test_no_guidance_where_none_is_given():
    network = of(SMALL(), EVENT, 3)
    u = quick(network.bind(random_parameters(network)))
    z, r, t = arguments(EVENT)
    said = u(z, r, t, Conditioning(scale=GuidanceScale(jnp.ones(3), jnp.zeros(3), jnp.ones(3))))
    np.testing.assert_allclose(u(z, r, t, None), said, rtol=1e-5, atol=1e-5)


def test_what_is_told_matters():
    """Label, omega, t_min and t_max; of the two times, their gap alone."""
    network = of(SMALL(), EVENT, 3)
    network = network.bind(random_parameters(network, size=1.0))

    @quick
    def u(z, r, t, label=None, **scale):
        return network(z, r, t, Conditioning(label, scale=GuidanceScale(**scale) if scale else None))

    z, r, t = arguments(EVENT)
    given = {
        "label": jnp.zeros(3, int),
        "omega": jnp.full(3, 2.0),
        "t_min": jnp.full(3, 0.3),
        "t_max": jnp.full(3, 0.8),
    }
    base = u(z, r, t, **given)
    for name, value in given.items():
        assert np.max(np.abs(u(z, r, t, **{**given, name: value + 1}) - base)) > 1e-3
    assert np.max(np.abs(u(z, r / 2, t, **given) - base)) > 1e-3
    np.testing.assert_allclose(u(z, r - 0.125, t - 0.125, **given), base, rtol=1e-4, atol=1e-4)
    for none in (jnp.full(3, 3), jnp.full(3, -1)):
        np.testing.assert_allclose(u(z, r, t, none), u(z, r, t, None), rtol=1e-5, atol=1e-5)


def test_the_diagonal_is_u_at_equal_times():
    network = of(SMALL(), EVENT)
    u = network.bind(random_parameters(network, size=1.0))
    z, _, t = arguments(EVENT)
    np.testing.assert_allclose(quick(u.diagonal)(z, t), quick(u)(z, t, t), rtol=1e-4, atol=1e-5)


def test_the_two_heads_share_the_first_blocks_alone():
    network = of(SMALL(), EVENT, 3, VELOCITY)
    params = random_parameters(network)
    z, r, t = arguments(EVENT)

    def reached(of_u):
        def loss(params):
            u = network.bind(params)
            return jnp.sum((u(z, r, t, None) if of_u else u.velocity(z, t)) ** 2)

        gradient = quick(jax.grad(loss))(params)
        return {name for name, part in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}

    reaches_u, reaches_v = reached(True), reached(False)
    assert reaches_u - reaches_v == {"own", "last"}
    assert reaches_v - reaches_u == {"head", "head_last"}
    assert reaches_u & reaches_v == {"shared", "patches", "classes", "numbers", "token_embedding"}


def test_forward_mode_matches_differences():
    with jax.enable_x64(True):
        network = of(SMALL(remat=True), EVENT, 3)
        u, label = quick(network.bind(random_parameters(network, dtype=np.float64))), jnp.arange(3)
        z, r, t = arguments(EVENT, dtype=np.float64)
        cond = Conditioning(label, scale=GuidanceScale(3.0, 0.0, 1.0))
        _, derivative = jax.jvp(lambda z, t: u(z, r, t, cond), (z, t), (jnp.cos(z), jnp.ones(3)))
        h = 1e-5
        ahead, behind = (u(z + s * jnp.cos(z), r, t + s, cond) for s in (h, -h))
        np.testing.assert_allclose(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "remat": True}])
def test_gradient_of_the_derivative_lowers_for_cuda(options):
    network = of(SMALL(**options), EVENT, 3)
    args = shapes(network), *arguments(EVENT), jnp.arange(3)
    lowered = jax.jit(jax.grad(squared_residual(network))).trace(*args).lower(lowering_platforms=("cuda",))
    assert "dot_general" in lowered.as_text()
    assert "custom_call" not in lowered.as_text()


def test_half_precision_is_near():
    exact, half = (of(SMALL(dtype=dtype), EVENT, 3) for dtype in ("float32", "bfloat16"))
    params = random_parameters(exact)
    found, expected = (quick(network.bind(params))(*arguments(EVENT), None) for network in (half, exact))
    assert found.dtype == jnp.float32
    assert 1e-5 < np.max(np.abs(found - expected)) / np.max(np.abs(expected)) < 0.05


def test_deep_networks_trace_one_block():
    lengths = []
    for depth in (2, 12):
        network = of(SMALL(depth=depth), EVENT)
        args = shapes(network), *arguments(EVENT), None
        text = jax.jit(jax.grad(squared_residual(network))).trace(*args).lower().as_text()
        lengths.append(text.count("dot_general"))
    assert lengths[0] == lengths[1]


def test_kernels_are_told_from_tables():
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes(of(SMALL(), EVENT, 3, VELOCITY)))
    tables = [path for path, leaf in flat if leaf.ndim == 2 and not is_kernel(path, leaf)]
    assert [path[0].key for path in tables] == ["classes", "token_embedding"]


def test_initial_kernels():
    network = of(InContextConfig(depth=1, width=192, heads=4, patch=4, head_depth=0), (16, 16, 4), 100)
    params = quick(network.init)(jax.random.key(0))
    block = params["shared"][0]
    for kernel in (block["attention"]["inputs"], block["attention"]["output"], block["up"], block["down"]):
        assert set(kernel) == {"kernel"}  # no bias
        np.testing.assert_allclose(np.std(kernel["kernel"]), 0.32 / np.sqrt(kernel["kernel"].shape[0]), rtol=0.05)
    for table in (
        params["classes"]["embedding"],
        params["token_embedding"],
        params["numbers"]["h"]["second"]["kernel"],
    ):
        np.testing.assert_allclose(np.std(table), 1 / np.sqrt(192), rtol=0.05)
    assert block["down"]["kernel"].shape == (512, 192)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"depth": 0}, "depth"), ({"heads": 4}, "heads"), ({"patch": -1}, "patch"), ({"head_depth": 3}, "head-depth")],
)
def test_refusals_name_the_field(options, name):
    with pytest.raises(UserError, match=name):
        SMALL(**options)


@pytest.mark.parametrize("name", ["S/2", "B", "B/x"])
def test_unknown_sizes_are_refused(name):
    with pytest.raises(UserError):
        InContextConfig.named(name)


def test_other_data_is_refused():
    with pytest.raises(UserError, match="images"):
        of(SMALL(), (64,))
    assert dataclasses.replace(SMALL(), patch=3).patch == 3
    with pytest.raises(UserError, match="patch"):
        of(SMALL(patch=3), EVENT)
