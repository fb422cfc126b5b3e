"""What a run is said to cost, against counts by hand and against compiled programs."""

import dataclasses
import json
import typing

import jax
import jax.numpy as jnp
import pytest

from vamf import networks
from vamf.cli import main
from vamf.errors import UserError
from vamf.networks import DiTConfig
from vamf.report.cost import ChipName
from vamf.training import cost, flop_count, presets
from vamf.training.cost import CHIPS

F32 = jnp.float32


def shaped(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def program(function, *args):
    return jax.jit(function).trace(*args)


def dit_products(config: DiTConfig, shape: tuple[int, int, int], rows: int, gap_rows: int) -> float:
    """Operations of a transformer's products by hand: 2 m n k for a product of (m, k) and (k, n).

    Args:
        gap_rows: rows of the embedding of t - r.
    """
    height, width, channels = shape
    n, d, pixels = height * width // config.patch**2, config.width, config.patch**2 * channels
    ends = 2 * (2 * rows * n * pixels * d)  # patches to tokens and back
    blocks = config.depth * (2 * rows * n * 12 * d * d + 4 * rows * n * n * d)  # 4 d^2 attention, 8 d^2 MLP
    modulation = 2 * rows * d * (6 * d * config.depth + 2 * d)
    times = 2 * (rows + gap_rows) * (256 * d + d * d)
    return ends + blocks + modulation + times


def test_products_of_a_transformer_are_those_by_hand():
    config, shape, rows = DiTConfig.named("B/4"), (32, 32, 4), 8
    network = networks.build(config, shape, 1000)
    params = jax.eval_shape(network.init, jax.random.key(0))

    def u(params, z, r, t, label):
        return network.bind(params)(z, r, t, label)

    args = params, shaped(rows, *shape), shaped(rows), shaped(rows), shaped(rows, dtype=jnp.int32)
    traced = program(u, *args)
    assert flop_count.matmul_flops(traced.jaxpr.jaxpr) == dit_products(config, shape, rows, rows)
    counted = cost.flops(traced)
    assert dit_products(config, shape, rows, rows) < counted < 1.1 * dit_products(config, shape, rows, rows)


def test_step_of_a_transformer_is_three_times_its_forward_pass():
    """Flow matching on the preset's network and batch: each product has two more in the gradient, and little besides.

    The first layer's input has no gradient, nor have the times.
    """
    config = dataclasses.replace(presets.for_data("imagenet_dit_b4"), method="flow_matching", objective={})
    found = cost.estimate(config, cost.synthetic_dataset(config))
    assert isinstance(config.network, DiTConfig)
    by_hand = 3 * dit_products(config.network, (32, 32, 4), config.batch_size, 1)
    assert found.flops == pytest.approx(by_hand, rel=0.2)
    assert found.parameters == pytest.approx(131e6, rel=0.02)  # the paper's B/4
    assert found.memory["optimizer"] == pytest.approx(2 * found.memory["parameters"], rel=1e-6)  # Adam's moments


def test_rounds_of_a_loop_count():
    def ten(a, b):
        return jax.lax.scan(lambda x, _: (x @ b, None), a, length=10)[0]

    one = 2 * 32 * 64 * 64
    traced = program(ten, shaped(32, 64), shaped(64, 64))
    assert flop_count.matmul_flops(traced.jaxpr.jaxpr) == 10 * one
    assert cost.flops(traced) == pytest.approx(10 * one, rel=0.01)


def test_convolutions_count():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    traced = program(convolve, shaped(5, 9, 9, 3), shaped(3, 3, 3, 7))
    assert flop_count.matmul_flops(traced.jaxpr.jaxpr) == 2 * (5 * 4 * 4 * 7) * (3 * 3 * 3)


def test_a_chain_of_products_stores_what_its_gradient_reads():
    """Three layers: the inputs of the second and third product and of the last sum are stored for the way back."""
    rows, width = 1000, 10

    def loss(weights, x):
        for weight in weights:
            x = jnp.maximum(x @ weight, 0.0)
        return jnp.sum(x**2)

    traced = program(jax.grad(loss), [shaped(width, width)] * 3, shaped(rows, width))
    stored = flop_count.peak_activation_bytes(traced.jaxpr.jaxpr) / (4 * rows * width)
    assert 3 <= stored <= 6


def test_elementwise_chains_store_nothing():
    traced = program(lambda x: jnp.exp(jnp.sin(x) * 2 + 1) - x, shaped(1000))
    assert flop_count.peak_activation_bytes(traced.jaxpr.jaxpr) == 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("swiss_roll", {}),
        pytest.param("digits", {}, marks=pytest.mark.slow),
        pytest.param("fashion_mnist", {"batch_size": 16}, marks=pytest.mark.slow),
        pytest.param("ddpm_cifar10", {"batch_size": 8}, marks=pytest.mark.slow),
    ],
)
def test_estimate_is_near_the_compiled_step(name, changes):
    """Operations and memory within 20 % of what the compiler says of the compiled step on this machine."""
    config = dataclasses.replace(presets.for_data(name), **changes)
    shape, classes = cost.SHAPES.get(config.data, ((), None))
    dataset = cost.synthetic_dataset(config, shape, classes)
    found = cost.estimate(config, dataset)
    compiled = cost.trace_step(cost.train_step_of(config, dataset)).lower().compile()
    assert found.flops == pytest.approx(cost.compiled_flops(compiled), rel=0.2)
    assert found.total == pytest.approx(cost.compiled_bytes(compiled), rel=0.2)


def test_devices_share_the_batch_and_what_is_sharded():
    config = presets.for_data("swiss_roll")
    dataset = cost.synthetic_dataset(config)
    one, four, sharded = (
        cost.estimate(config, dataset, 1),
        cost.estimate(config, dataset, 4),
        cost.estimate(config, dataset, 4, sharded=True),
    )
    assert four.flops == pytest.approx(one.flops, rel=0.05)
    assert four.memory["parameters"] == one.memory["parameters"] == 4 * one.parameters
    assert sharded.memory["optimizer"] == one.memory["optimizer"] // 4
    assert four.memory["activations"] < 0.5 * one.memory["activations"]
    with pytest.raises(UserError, match="devices = 3: allowed are divisors of batch-size = 256"):
        cost.estimate(config, dataset, 3)


def test_days_are_operations_over_what_is_reached():
    found = cost.CostEstimate(1, 1e15, {})
    assert found.days(86_400, 10, 1e15, 0.5) == pytest.approx(0.2)
    assert typing.get_args(ChipName) == ("", *CHIPS, "this")
    for chip in CHIPS.values():
        assert chip.float32 <= chip.tf32 <= chip.bfloat16
        assert 16e9 <= chip.memory <= 150e9


def test_command(capsys):
    """A short transformer on data that is not here; every chip is listed, and JSON has the same days."""
    command = ["estimate", "imagenet_dit_b4", "--network.depth", "1", "--batch-size", "16", "--devices", "4"]
    main(command)
    said = capsys.readouterr().out
    assert "on each device" in said
    assert all(name in said for name in CHIPS)
    main([*command, "--chip", "h100", "--json"])
    found = json.loads(capsys.readouterr().out)
    peak = 4 * 494.7e12 * 0.4
    assert found["days"] == {"h100": pytest.approx(found["flops"] * 300_000 / peak / 86_400)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["nothing"], "data = 'nothing'"),
        (["swiss_roll", "--share", "2"], "share = 2.0: allowed is (0, 1]"),
        (["swiss_roll", "--devices", "0"], "devices = 0: allowed is 1 or more"),
        ([], "estimate needs a CONFIG"),
    ],
)
def test_bad_options_are_one_line(options, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", *options])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_measurement_beside_the_estimate(capsys):
    main(["estimate", "swiss_roll", "--chip", "this", "--measure", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["flops"] == pytest.approx(found["flops"], rel=0.2)
    assert found["measured"]["seconds"] > 0
    assert found["days"]["this"] > 0
