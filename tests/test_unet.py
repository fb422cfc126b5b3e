import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special
from flax import nnx

from modules import equations, quick
from vamf.average_velocity import total_derivative
from vamf.conditioning import Conditioning, CondShape
from vamf.diffusion import DDPM
from vamf.errors import UserError
from vamf.networks import unet_blocks as blocks
from vamf.networks.bound_network import BoundNetwork
from vamf.networks.unet import CIFAR10, DDPM_CIFAR10, UNet, UNetConfig

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), time_features=8)
KINDS = {
    "ddpm++": SMALL,
    "ddpm": dataclasses.replace(SMALL, kind="ddpm"),
    "velocity": dataclasses.replace(SMALL, predicts="velocity"),
    "noise": dataclasses.replace(SMALL, kind="ddpm", predicts="noise"),
}
TINY = UNetConfig(channels=4, multipliers=(1,), blocks=1, attention=(), time_features=4)
EVENT = (8, 8, 3)


def cheap_key(seed):
    """A key whose random numbers are one operation, not a hundred."""
    return jax.random.key(seed, impl="unsafe_rbg")


def make(config, event=EVENT, classes=0, heads=()):
    return UNet(config, event, classes, heads, rngs=nnx.Rngs(cheap_key(0)))


@functools.cache
def start(config, event=EVENT, classes=0, heads=()):
    """The network as it begins, made by one compiled program: operation by operation takes much longer."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(config, event, classes, heads)))
    return nnx.merge(graph, quick(lambda: nnx.state(make(config, event, classes, heads)))())


@functools.cache
def moved(config, event=EVENT, classes=0, size=0.2):
    """The network away from its start, compiled: u(z, r, t, label, **keywords)."""
    graph, params = nnx.split(away(nnx.eval_shape(lambda: make(config, event, classes)), size))
    call = quick(lambda params, *args, **keywords: nnx.merge(graph, params)(*args, **keywords))
    return functools.partial(call, params)


def away(network, size=0.2, dtype=np.float32):
    """The network with parameters away from the start, where the last layers hide all others."""
    rng = np.random.default_rng(1)

    def value(path, leaf):
        centre = 1.0 if "norm" in jax.tree_util.keystr(path) and "scale" in jax.tree_util.keystr(path) else 0.0
        spread = max(size, min(1.0, np.prod(leaf.shape[:-1]) ** -0.5)) if leaf.ndim > 1 else size
        return jnp.asarray(centre + spread * rng.normal(size=leaf.shape), dtype)

    nnx.update(network, jax.tree_util.tree_map_with_path(value, nnx.state(network, nnx.Param)))
    return network


def arguments(event=EVENT, n=4, dtype=np.float32):
    rng = np.random.default_rng(0)
    t = rng.uniform(0.3, 0.95, n)
    return [jnp.asarray(a, dtype) for a in (rng.normal(size=(n, *event)), t * rng.uniform(0, 1, n), t)]


def count(config, event=(32, 32, 3), **more):
    state = nnx.state(nnx.eval_shape(lambda: make(config, event, **more)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


# ------------------------------------------------------------------------------------------------------ the published


@pytest.mark.slow
def test_parameter_counts_are_the_published_ones():
    """55,932,419 counted in the official MeanFlow network, 35,746,307 in a port of the official DDPM's."""
    assert count(CIFAR10) == 55_932_419
    assert count(DDPM_CIFAR10) == 35_746_307
    assert count(TINY, EVENT, classes=10) - count(TINY, EVENT) == 11 * 8


def test_half_precision_is_that_of_the_products_alone():
    """Read from the program: on a CPU, XLA's compiler now and then does not return from one in bfloat16."""
    network = nnx.eval_shape(lambda: make(dataclasses.replace(SMALL, dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(away(network).__call__)(*arguments())
    assert program.out_avals[0].dtype == jnp.float32
    inside = list(equations(program.jaxpr))

    def precisions(name):
        return {equation.invars[0].aval.dtype for equation in inside if equation.primitive.name == name}

    assert precisions("conv_general_dilated") == {jnp.dtype(jnp.bfloat16)}
    assert precisions("exp") == precisions("rsqrt") == {jnp.dtype(jnp.float32)}  # softmax and norms
    products = [equation.outvars[0].aval for equation in inside if equation.primitive.name == "dot_general"]
    single = [found.shape for found in products if found.dtype == jnp.float32]
    assert sorted(single) == [(4, 1, 16, 16)] * 3 + [(4, 32)] * 2  # logits, and the mapping of the times


# ------------------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize("kind", ["ddpm++", "ddpm"])
def test_almost_zero_at_the_start(kind):
    z, r, t = arguments()
    network = start(dataclasses.replace(TINY, kind=kind), heads=("velocity", "log_variance"))
    for out in (quick(network.__call__)(z, r, t), quick(network.velocity)(z, t)):
        assert out.shape == z.shape
        assert 0 < np.max(np.abs(out)) < 1e-3
    np.testing.assert_array_equal(network.log_variance(r, t), np.zeros(4))


def test_noise_is_almost_zero_at_the_start():
    z, _, _ = arguments()
    e_hat = DDPM.noise_prediction(quick(start(dataclasses.replace(TINY, predicts="noise")).__call__))
    found = e_hat(z, jnp.array([0.0, 10.0, 500.0, 999.0]), None)
    assert 0 < np.max(np.abs(found)) < 1e-3


def test_kernels_begin_with_xaviers_law():
    for kind, law in (("ddpm++", 0.2 * 6 / (64 + 3 * 64)), ("ddpm", 6 / (64 + 64))):

        def kernels(kind=kind):
            block = make(dataclasses.replace(TINY, kind=kind, channels=64)).middle[0]
            return block.conv1.kernel[...], block.attention.qkv.kernel[...]

        for kernel, square in zip(quick(kernels)(), (6 / (9 * (64 + 64)), law), strict=True):
            assert 0.99 * np.sqrt(square) < np.max(np.abs(kernel)) <= np.sqrt(square)


# --------------------------------------------------------------------------------------------------- what it depends on


@pytest.mark.parametrize("kind", KINDS)
def test_times_matter_as_promised(kind):
    z, r, t = arguments()
    u = moved(KINDS[kind])
    assert np.max(np.abs(u(z, r, t) - u(z, r, 0.9 * t))) > 1e-3
    change = np.max(np.abs(u(z, r, t) - u(z, 0.5 * r, t)))
    assert (change > 1e-3) == (kind in ("ddpm", "ddpm++"))


def test_labels_change_the_output_and_none_is_the_last_class():
    u = moved(TINY, classes=3)
    outputs = [u(*arguments(), jnp.full(4, k)) for k in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.min(np.max(np.abs(outputs[i] - outputs[j]), axis=(1, 2, 3))) > 1e-4
    np.testing.assert_array_equal(u(*arguments(), None), outputs[3])
    np.testing.assert_array_equal(u(*arguments(), jnp.full(4, -1)), outputs[3])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_one_another(kind):
    u = moved(KINDS[kind])
    args = arguments()
    others = [jnp.concatenate([a[:1], 0.5 * a[:0:-1]]) for a in args]
    found, expected = u(*others), u(*args)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert np.min(np.max(np.abs(found[1:] - expected[1:]), axis=(1, 2, 3))) > 1e-2


@pytest.mark.parametrize("kind", ["ddpm++", "ddpm"])
def test_all_pixels_are_seen_from_everywhere(kind):
    z, r, t = arguments((8, 16, 1), 1)
    u = moved(KINDS[kind], (8, 16, 1))
    corner = z.at[0, 0, 0, 0].add(1.0)
    assert np.min(np.abs(u(corner, r, t) - u(z, r, t))) > 0


def test_augment_label_is_used_and_absent_is_zero():
    u = moved(dataclasses.replace(TINY, augment_features=6))
    z, r, t = arguments()
    some = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32)
    assert np.max(np.abs(u(z, r, t, Conditioning(augment=some)) - u(z, r, t))) > 1e-3
    np.testing.assert_allclose(u(z, r, t, Conditioning(augment=0 * some)), u(z, r, t), rtol=1e-5, atol=1e-5)


def test_condition_goes_in_the_place_of_the_label():
    seen = []

    def network(z, r, t, label, **keywords):
        seen.append((label, keywords.get("key")))
        return z

    label, augment, key = jnp.arange(4), jnp.arange(8.0).reshape(4, 2), jax.random.key(0)
    z, r, t = arguments()
    BoundNetwork(network, key)(z[2:], r[2:], t[2:], Conditioning(label, augment)[2:])
    BoundNetwork(network)(z, r, t, label)
    BoundNetwork(network)(z, r, t)
    np.testing.assert_array_equal(seen[0][0].label, [2, 3])
    np.testing.assert_array_equal(seen[0][0].augment, [[4, 5], [6, 7]])
    assert seen[0][1] is key
    assert seen[1][0] is label
    assert seen[1][1] is None
    assert seen[2] == (None, None)


# -------------------------------------------------------------------------------------------------------- forward mode


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rate"), [("ddpm++", 0.3), ("noise", 0.3)])
def test_forward_mode_matches_differences(kind, rate):
    """With dropout too: the same key has the same mask in value and tangent, inside a compiled function."""
    with jax.enable_x64(True):
        config = dataclasses.replace(KINDS[kind], dropout=rate)
        graph, params = nnx.split(away(nnx.eval_shape(lambda: make(config, classes=3)), dtype=np.float64))
        z, r, t = arguments(dtype=np.float64)
        z, r, t, label = z[:2], r[:2], t[:2], jnp.arange(2)
        if kind == "noise":  # away from the kinks of the interpolated step number
            t = jnp.asarray(DDPM.times[[400, 700]] + 3e-4)
        u = functools.partial(
            quick(lambda p, z, t, key: BoundNetwork(nnx.merge(graph, p), key)(z, r, t, label)), params
        )
        key = cheap_key(5)

        @quick
        def derivative(params, z, t, key):
            return total_derivative(BoundNetwork(nnx.merge(graph, params), key), z, r, t, jnp.cos(z), label)

        value, slope = derivative(params, z, t, key)
        h = 1e-6
        ahead, behind = (u(z + s * jnp.cos(z), t + s, key) for s in (h, -h))
        np.testing.assert_allclose(value, u(z, t, key), rtol=1e-10, atol=1e-10)
        expected = (ahead - behind) / (2 * h)
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.max(np.abs(expected)))
        other = np.max(np.abs(u(z, t, cheap_key(6)) - value))
        assert (other > 1e-3) == (rate > 0)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("ddpm++", "float32"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("ddpm", "float32"), ("ddpm++", "bfloat16"))),
    ],
)
def test_gradient_of_the_derivative_lowers_for_cuda(kind, dtype):
    """Some operations have no forward mode on an accelerator, and only lowering shows it."""
    config = dataclasses.replace(KINDS[kind], dtype=dtype, dropout=0.1, augment_features=6)
    network = nnx.eval_shape(lambda: make(config, classes=3, heads=("velocity", "log_variance")))
    graph, params = nnx.split(network)

    def loss(params, z, r, t, condition, key):
        u = BoundNetwork(nnx.merge(graph, params), key)
        value, derivative = total_derivative(lambda z, r, t, _: u(z, r, t, condition), z, r, t, z)
        residual = jnp.sum((value + jax.lax.stop_gradient(derivative)) ** 2)
        return residual + jnp.sum(u.velocity(z, t, condition) ** 2) + jnp.sum(u.log_variance(r, t))

    condition = Conditioning(jnp.arange(4) % 3, jnp.ones((4, 6)))
    args = params, *arguments(), condition, jax.random.key(0)
    text = jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "convolution" in text
    assert "dot_general" in text


# ------------------------------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_the_mean_and_drops_the_share():
    x = jnp.ones((200, 500))
    found = np.asarray(blocks.dropout(x, 0.2, jax.random.key(0)))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1.25)}
    np.testing.assert_allclose(np.mean(found == 0), 0.2, atol=4 * np.sqrt(0.16 / found.size))
    assert blocks.dropout(x, 0.2, None) is x


def test_every_block_has_its_own_mask(monkeypatch):
    seen = []
    monkeypatch.setattr(blocks, "dropout", lambda x, rate, key: seen.append(key) or x)

    def keys(key):
        z, _, t = arguments()
        away(nnx.eval_shape(lambda: make(SMALL, heads=("velocity",)))).velocity(z, t, key=key)
        return [jax.random.key_data(key) for key in seen]

    found = {tuple(key.tolist()) for key in quick(keys)(jax.random.key(0))}
    assert len(found) == len(seen) == 3 + 2 + 5 + 1  # down and up blocks too


# ------------------------------------------------------------------------------------------------------ building blocks


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 3, 2, 1)])
def test_resampling_is_scipys(taps):
    """A strided correlation with zeros outside, and its adjoint scaled to keep a constant image's brightness."""
    rng = np.random.default_rng(0)
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    small, large = (rng.normal(size=(side, side + 2)) for side in (8, 16))
    pad = len(taps) // 2 - 1
    full = scipy.signal.correlate2d(np.pad(large, pad + 1), kernel, mode="valid")[1:, 1:]
    found = blocks.halve(jnp.asarray(large[None, :, :, None]), taps)[0, :, :, 0]
    np.testing.assert_allclose(found, full[::2, ::2][:8, :9], atol=1e-5)

    wide = scipy.signal.upfirdn(taps, small, up=2, axis=0)
    wide = scipy.signal.upfirdn(taps, wide, up=2, axis=1) * 4 / sum(taps) ** 2
    found = blocks.double(jnp.asarray(small[None, :, :, None]), taps)[0, :, :, 0]
    np.testing.assert_allclose(found, wide[pad : pad + 16, pad : pad + 20], atol=1e-5)


def test_shortest_filter_averages_and_repeats():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    np.testing.assert_allclose(blocks.halve(x, (1, 1)), x.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4)), atol=1e-6)
    np.testing.assert_allclose(blocks.double(x, (1, 1)), x.repeat(2, axis=1).repeat(2, axis=2), atol=1e-6)


def pieces(seed=0, fan_in=12, fan_out=16, **more):
    """A block and an input for it."""
    options = {"width": 8, "dropout": 0.0, "scale": 0.5**0.5, "attention_scale": 0.2, "groups": "most", "dtype": None}
    options |= more
    block = away(nnx.eval_shape(lambda: blocks.Block(fan_in, fan_out, rngs=nnx.Rngs(0), **options)), 0.3)
    rng = np.random.default_rng(seed)
    x, at = rng.normal(size=(2, 6, 4, fan_in)), rng.normal(size=(2, 8))
    return block, jnp.asarray(x, jnp.float32), jnp.asarray(at, jnp.float32)


def numbers(module):
    """Parameters as numpy arrays, by path."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...], np.float64) for path, leaf in flat}


def by_numpy(block, x, at, groups):
    """The block's formula, pixel by pixel."""
    p = numbers(block)

    def silu(a):
        return a * scipy.special.expit(a)

    def norm(name, a, groups):
        parts = a.reshape(*a.shape[:3], groups, -1)
        mean, spread = (f(parts, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        return ((parts - mean) / np.sqrt(spread + 1e-6)).reshape(a.shape) * p[f"{name}.scale"] + p[f"{name}.bias"]

    def conv(name, a):
        padded = np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # batch h w channels 3 3
        return np.einsum("bhwcij,ijcd->bhwd", windows, p[f"{name}.kernel"]) + p[f"{name}.bias"]

    x, at = np.asarray(x, np.float64), np.asarray(at, np.float64)
    h = conv("conv1", silu(norm("norm1", x, groups[0])))
    h = h + (at @ p["shift.kernel"] + p["shift.bias"])[:, None, None, :]
    h = conv("conv2", silu(norm("norm2", h, groups[1])))
    h = (x @ p["skip.kernel"] + p["skip.bias"] + h) * block.scale
    flat = norm("attention.norm", h, groups[1]).reshape(len(h), -1, h.shape[-1])
    q, k, v = np.split(flat @ p["attention.qkv.kernel"] + p["attention.qkv.bias"], 3, axis=-1)
    share = scipy.special.softmax(np.einsum("bic,bjc->bij", q, k) / np.sqrt(h.shape[-1]), axis=-1)
    out = (share @ v) @ p["attention.last.kernel"] + p["attention.last.bias"]
    return (h + out.reshape(h.shape)) * block.scale


def test_block_is_its_formula():
    block, x, at = pieces(attends=True)
    np.testing.assert_allclose(block(x, at, None), by_numpy(block, x, at, groups=(3, 4)), rtol=1e-4, atol=1e-4)
    block, x, at = pieces(attends=True, groups="power_of_two")
    np.testing.assert_allclose(block(x, at, None), by_numpy(block, x, at, groups=(1, 4)), rtol=1e-4, atol=1e-4)


def test_groups_are_the_official_ones_wherever_those_divide_the_channels():
    """min(32, channels // 4), as the networks of Karras et al. have it."""
    for channels in range(4, 1025, 4):
        official, found = min(32, channels // 4), blocks.GROUPS["most"](channels)
        assert channels % found == 0
        assert found == official if channels % official == 0 else found < official
    for channels in (128, 256, 384, 512):  # those of the published networks: runs with either name are the same
        assert blocks.GROUPS["power_of_two"](channels) == blocks.GROUPS["most"](channels)


def by_torch(torch, block, x, at, groups):
    """The same with PyTorch's operations, channels first."""
    p = {name: torch.tensor(value) for name, value in numbers(block).items()}
    ops = torch.nn.functional
    x, at = torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2), torch.tensor(np.asarray(at, np.float64))

    def norm(name, a, groups):
        return ops.group_norm(a, groups, p[f"{name}.scale"], p[f"{name}.bias"], eps=1e-6)

    def conv(name, a):
        return ops.conv2d(a, p[f"{name}.kernel"].permute(3, 2, 0, 1), p[f"{name}.bias"], padding=1)

    def one(name, a):
        return ops.conv2d(a, p[f"{name}.kernel"].T[:, :, None, None], p[f"{name}.bias"])

    h = conv("conv1", ops.silu(norm("norm1", x, groups[0])))
    h = h + ops.linear(at, p["shift.kernel"].T, p["shift.bias"])[:, :, None, None]
    h = conv("conv2", ops.silu(norm("norm2", h, groups[1])))
    h = (one("skip", x) + h) * block.scale
    q, k, v = one("attention.qkv", norm("attention.norm", h, groups[1])).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    mixed = ops.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
    return ((h + one("attention.last", mixed)) * block.scale).permute(0, 2, 3, 1).numpy()


def test_block_is_torchs():
    torch = pytest.importorskip("torch")
    block, x, at = pieces(1, fan_in=64, fan_out=32, attends=True)
    np.testing.assert_allclose(block(x, at, None), by_torch(torch, block, x, at, (16, 8)), rtol=1e-4, atol=1e-4)


def test_halving_convolution_is_torchs():
    """TensorFlow's padding, below and on the right, as the official DDPM has it."""
    torch = pytest.importorskip("torch")
    module = away(nnx.eval_shape(lambda: blocks.Halve(3, None, rngs=nnx.Rngs(0))))
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 3))
    p = {name: torch.tensor(value) for name, value in numbers(module).items()}
    padded = torch.nn.functional.pad(torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 0, 1))
    out = torch.nn.functional.conv2d(padded, p["conv.kernel"].permute(3, 2, 0, 1), p["conv.bias"], stride=2)
    found = module(jnp.asarray(x, jnp.float32), None, None)
    np.testing.assert_allclose(found, out.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resample", ["halve", "double"])
def test_resampling_block_changes_both_paths_before_their_weights(resample):
    """It is the plain block on resampled inputs, but for the first norm, which sees the full resolution."""
    block, x, at = pieces(2, 12, 12, resample=functools.partial(getattr(blocks, resample), taps=(1, 3, 3, 1)))
    changed = block.resample(x)
    h = block.conv1(block.resample(jax.nn.silu(block.norm1(x)))) + block.shift(at)[:, None, None]
    expected = (block.skip(changed) + block.conv2(jax.nn.silu(block.norm2(h)))) * block.scale
    np.testing.assert_allclose(block(x, at, None), expected, rtol=1e-5, atol=1e-5)
    assert block(x, at, None).shape == {"halve": (2, 3, 2, 12), "double": (2, 12, 8, 12)}[resample]


def test_time_features_reach_both_ends_of_the_frequencies():
    mapping = blocks.Mapping(8, True, CondShape(), 0, 4, rngs=nnx.Rngs(0))
    t, gap = np.array([0.3, 700.0]), np.array([0.1, 0.0])
    found = mapping.times(jnp.asarray(t, jnp.float32), jnp.asarray(gap, jnp.float32))
    frequency = np.array([1.0, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3), 1e-4])
    parts = [f(at[:, None] * frequency) for at in (t, gap) for f in (np.sin, np.cos)]
    order = [*range(4), *range(8, 12)]
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(np.sort(found[:, :8]), np.sort(expected[:, :8]), atol=2e-4)
    np.testing.assert_allclose(found[:, ::2], expected[:, order], atol=2e-4)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"channels": 6}, "channels"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"blocks": 0}, "blocks"),
        ({"time_features": 2}, "time-features"),
        ({"augment_features": -1}, "augment-features"),
        ({"filter": (1, 2, 1)}, "filter"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_refusals_name_the_field(options, name):
    with pytest.raises(UserError, match=rf"network\.{name} = "):
        UNetConfig(**options)


@pytest.mark.parametrize(("event", "text"), [((64,), "images"), ((28, 28, 1), "multiples of 8"), ((8, 12, 1), "of 8")])
def test_events_that_are_no_images_are_refused(event, text):
    with pytest.raises(UserError, match=text):
        make(dataclasses.replace(SMALL, multipliers=(1, 1, 1, 1)), event)
