"""The cost of a run before it starts: FLOPs, memory on each device, days on a named chip.

Nothing is trained and, unless requested, nothing compiled: the step is traced with shapes only. Its FLOPs are the
compiler's count of the lowered step, which counts the body of a loop once; the matrix products of the other iterations
are added. Its state is counted exactly. The memory of its activations is modelled (`flop_count.py`).

Days are FLOPs over the throughput that the chip reaches: a given fraction of its peak. Small networks reach far less,
since they wait for one kernel after another; for those a measurement is the better estimate.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vamf.data import Dataset
from vamf.errors import UserError, require
from vamf.training import flop_count
from vamf.training.config import TrainConfig
from vamf.training.prefetch import WINDOW_BYTES
from vamf.training.step import State, SweepPoint, TrainStep, build_network, optimizer
from vamf.training.stored import load_teacher

Precision = Literal["float32", "tf32", "bfloat16"]
GB, GIB = 10**9, 2**30
ABSTRACT_POINT: Any = SweepPoint(jax.ShapeDtypeStruct((), jnp.uint32), {})  # pyright: ignore[reportArgumentType]
"""The shapes of a run's seed and swept options."""


class Chip(NamedTuple):
    """Peak figures of one chip, dense."""

    memory: int
    """Bytes."""
    float32: float
    """Operations a second, in 10^12."""
    tf32: float
    """Those of products of float32 numbers at JAX's default precision: TF32 on NVIDIA, one bfloat16 pass on a TPU."""
    bfloat16: float
    source: str


CHIPS = {
    "h100": Chip(80 * GB, 67, 494.7, 989.4, "NVIDIA H100 SXM data sheet"),
    "h200": Chip(141 * GB, 67, 494.7, 989.4, "NVIDIA H200 SXM data sheet"),
    "a100": Chip(80 * GB, 19.5, 156, 312, "NVIDIA A100 80GB SXM data sheet"),
    "l40s": Chip(48 * GB, 91.6, 183, 362, "NVIDIA L40S data sheet"),
    "rtx4090": Chip(24 * GB, 82.6, 82.6, 165.2, "NVIDIA Ada architecture whitepaper"),
    "tpu_v4": Chip(32 * GIB, 275 / 6, 275, 275, "Google Cloud TPU v4 documentation"),
    "tpu_v5e": Chip(16 * GB, 197 / 6, 197, 197, "Google Cloud TPU v5e documentation"),
    "tpu_v5p": Chip(95 * GB, 459 / 6, 459, 459, "Google Cloud TPU v5p documentation"),
}
"""Chips by name. Sparsity is not counted. A TPU's float32 is six passes of bfloat16."""

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "data/fashion-mnist": ((28, 28, 1), 10),
    "data/cifar10": ((32, 32, 3), 10),
    "data/imagenet-latents": ((32, 32, 4), 1000),
}
"""Event shape and number of classes of the presets' data, for estimates without the data."""


@dataclasses.dataclass(frozen=True)
class CostEstimate:
    """What a run costs."""

    parameters: int
    """Numbers of the network, a second one included where the method trains it."""
    flops: float
    """Operations of one step, all devices together."""
    memory: dict[str, int]
    """Bytes on one device, by what they hold."""

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())

    def days(self, steps: int, devices: int, peak: float, fraction: float) -> float:
        """Days of a number of steps on devices that reach a fraction of a peak in operations a second."""
        return self.flops * steps / (devices * peak * fraction) / 86_400


def synthetic_dataset(config: TrainConfig, shape: Sequence[int] = (), classes: int | None = None) -> Dataset:
    """Data to trace a step with: those of the configuration where they exist, else noise of their shape.

    Args:
        shape, classes: of the noise; by default those of the preset's data.

    Raises:
        UserError: the data do not exist and their shape is unknown.
    """
    preset_shape, preset_classes = SHAPES.get(config.data, ((), 0))
    event = tuple(shape) or preset_shape
    if not event or (not shape and Path(config.data).exists()):
        return config.load_data()
    count = preset_classes if classes is None else classes
    count = count if config.conditional else 0

    def draw(arrays, key, n):
        x = jax.random.normal(key, (n, *event))
        return x, jax.random.randint(key, (n,), 0, count) if count else None

    image_shape = event if len(event) == 3 and config.augment.features else None
    return Dataset(config.data, event, (), draw, lambda n, seed: np.zeros((n, *event)), num_classes=count,
                   image_shape=image_shape)  # fmt: skip


def train_step_of(config: TrainConfig, dataset: Dataset) -> TrainStep:
    """The pure functions of a run, without its state.

    Raises:
        UserError: the teacher that the run needs is not there.
    """
    objective = config.build_objective()
    network = build_network(config, dataset)
    teacher = load_teacher(config, dataset).velocity if config.needs_teacher else None
    return TrainStep(config, dataset, network, objective, optimizer(config), teacher)


def trace_step(train_step: TrainStep) -> Any:
    """One step with its batch, traced; the state is donated."""

    def step(arrays, point, state):
        return train_step.step(train_step.batch(arrays, point, state.step), point, state)

    return jax.jit(step, donate_argnums=2).trace(
        _shapes(train_step.dataset.arrays), ABSTRACT_POINT, abstract_state(train_step)
    )


def abstract_state(train_step: TrainStep) -> State:
    """The shapes of a run's state."""
    return jax.eval_shape(train_step.init, ABSTRACT_POINT)


def estimate(config: TrainConfig, dataset: Dataset, devices: int = 1, sharded: bool = False) -> CostEstimate:
    """The cost of a run whose batch is divided over devices.

    Args:
        sharded: parameters, EMA, gradients and the optimizer's state are divided too.

    Raises:
        UserError: the batch cannot be divided.
    """
    require(devices >= 1, "devices", devices, "1 or more")
    if config.batch_size % devices:
        raise UserError(f"devices = {devices}: allowed are divisors of batch-size = {config.batch_size}")
    device_config = dataclasses.replace(config, batch_size=config.batch_size // devices)
    train_step = train_step_of(device_config, dataset)
    program = trace_step(train_step)
    state = abstract_state(train_step)
    parameters = _bytes(state.params)
    activations = flop_count.peak_activation_bytes(program.jaxpr.jaxpr)
    shards = devices if sharded else 1
    data = _bytes(dataset.arrays) if dataset.stream is None else 2 * WINDOW_BYTES
    memory = {
        "parameters": parameters // shards,
        "EMA": _bytes((state.ema_params, state.other_emas)) // shards,
        "optimizer": _bytes(state.opt_state) // shards,
        "gradients": parameters // shards,
        "activations": max(0, activations - parameters),
        "memory of the objective": _bytes(state.objective_state),
        "data": data,
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return CostEstimate(count, devices * flops(program), {name: size for name, size in memory.items() if size})


def flops(program: Any) -> float:
    """FLOPs of a traced program: the compiler's count of the lowered program, with all iterations of its loops."""
    compiler_flops = (program.lower().cost_analysis() or {}).get("flops")
    jaxpr = program.jaxpr.jaxpr
    return flop_count.matmul_flops(jaxpr) if compiler_flops is None else compiler_flops + flop_count.loop_flops(jaxpr)


def measure(config: TrainConfig, dataset: Dataset, steps: int = 3) -> dict[str, float]:
    """The same, measured on a compiled step on one device of this machine: FLOPs, bytes, and the least seconds."""
    train_step = train_step_of(config, dataset)
    compiled = trace_step(train_step).lower().compile()
    point = SweepPoint(jnp.uint32(config.seed))
    state, seconds = jax.jit(train_step.init)(point), []
    for _ in range(steps + 1):  # the first warms up
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(dataset.arrays, point, state))
        seconds.append(time.perf_counter() - start)
    return {"flops": compiled_flops(compiled), "memory": compiled_bytes(compiled), "seconds": min(seconds[1:])}


def compiled_flops(compiled: Any) -> float:
    """Operations of a compiled program, as its compiler counts them."""
    return float((compiled.cost_analysis() or {}).get("flops", math.nan))


def compiled_bytes(compiled: Any) -> float:
    """Bytes of a compiled program: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return math.nan
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return float(arguments + analysis.temp_size_in_bytes)


def this_machine(size: int = 1024) -> Chip:
    """The device of this process; its peak is the measured throughput of a product of two square matrices."""
    a = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(multiply(a, a))
        seconds.append(time.perf_counter() - start)
    peak = 2 * size**3 / min(seconds) / 1e12
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit") or _machine_bytes()
    kind = jax.devices()[0].device_kind
    return Chip(limit, peak, peak, peak, f"measured: {kind}, a product of {size} x {size}")


def precision_of(config: TrainConfig) -> Precision:
    """The precision of most of a run's matrix products, by the types of the network and its derivative."""
    low = getattr(config.network, "dtype", "float32") == "bfloat16" and config.jvp_dtype == "network"
    return "bfloat16" if low else "tf32"


def _machine_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
