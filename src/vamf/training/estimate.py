"""What a training will cost, before it is started: operations, memory on each device, days on a named chip.

Nothing is trained and, unless asked, nothing compiled: the step is traced with shapes only. Its operations are the
compiler's own count of the lowered step, which takes the body of a loop once; the products of the other rounds are
added. Its state is counted exactly. What it stores between its operations is modelled (`counting.py`).

Days are operations over what the chip reaches: a stated share of its peak. Small networks reach far less, since they
wait for one kernel after another; for those a measurement is the better estimate.
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
from vamf.training import counting
from vamf.training.config import TrainConfig
from vamf.training.step import Member, State, Trainer, build_network, optimiser
from vamf.training.stored import load_teacher
from vamf.training.windows import WINDOW_BYTES

Precision = Literal["float32", "tf32", "bfloat16"]
GB, GIB = 10**9, 2**30
MEMBER: Any = Member(jax.ShapeDtypeStruct((), jnp.uint32), {})  # pyright: ignore[reportArgumentType]
"""The shapes of a training's seed and options."""


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
"""Event shape and classes of the presets' data, where they need not be there."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a training costs."""

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

    def days(self, steps: int, devices: int, peak: float, share: float) -> float:
        """Days of so many steps on so many devices of a peak, in operations a second."""
        return self.flops * steps / (devices * peak * share) / 86_400


def stand_in(config: TrainConfig, shape: Sequence[int] = (), classes: int | None = None) -> Dataset:
    """Data to trace a step with: those of the configuration where they are, else noise of their shape.

    Args:
        shape, classes: of noise in their place; left out, what is known of the preset's data.

    Raises:
        UserError: the data is neither there nor known by shape.
    """
    known = SHAPES.get(config.data, ((), 0))
    event = tuple(shape) or known[0]
    if not event or (not shape and Path(config.data).exists()):
        return config.load_data()
    count = known[1] if classes is None else classes
    count = count if config.conditional else 0

    def draw(arrays, key, n):
        x = jax.random.normal(key, (n, *event))
        return x, jax.random.randint(key, (n,), 0, count) if count else None

    picture = event if len(event) == 3 and config.augment.features else None
    return Dataset(config.data, event, (), draw, lambda n, seed: np.zeros((n, *event)), num_classes=count,
                   picture=picture)  # fmt: skip


def trainer_of(config: TrainConfig, dataset: Dataset) -> Trainer:
    """The pure functions of a training, without its state.

    Raises:
        UserError: the teacher that the training needs is not there.
    """
    objective = config.build_objective()
    network = build_network(config, dataset)
    teacher = load_teacher(config, dataset).velocity if config.needs_teacher else None
    return Trainer(config, dataset, network, objective, optimiser(config), teacher)


def traced(trainer: Trainer) -> Any:
    """One step with its batch, traced; the state is given up."""

    def step(arrays, member, state):
        return trainer.step(trainer.batch(arrays, member, state.step), member, state)

    return jax.jit(step, donate_argnums=2).trace(_shapes(trainer.dataset.arrays), MEMBER, state_of(trainer))


def state_of(trainer: Trainer) -> State:
    """The shapes of a training's state."""
    return jax.eval_shape(trainer.init, MEMBER)


def estimate(config: TrainConfig, dataset: Dataset, devices: int = 1, sharded: bool = False) -> Estimate:
    """The cost of a training whose batch is divided over devices.

    Args:
        sharded: parameters, moving average, gradients and the optimiser's state are divided too.

    Raises:
        UserError: the batch cannot be divided.
    """
    require(devices >= 1, "devices", devices, "1 or more")
    if config.batch_size % devices:
        raise UserError(f"devices = {devices}: allowed are divisors of batch-size = {config.batch_size}")
    part = dataclasses.replace(config, batch_size=config.batch_size // devices)
    trainer = trainer_of(part, dataset)
    program = traced(trainer)
    state = state_of(trainer)
    parameters = _bytes(state.params)
    working = counting.working_bytes(program.jaxpr.jaxpr)
    parts = devices if sharded else 1
    data = _bytes(dataset.arrays) if dataset.stream is None else 2 * WINDOW_BYTES
    memory = {
        "parameters": parameters // parts,
        "moving average": _bytes((state.average, state.others)) // parts,
        "optimiser": _bytes(state.opt_state) // parts,
        "gradients": parameters // parts,
        "activations": max(0, working - parameters),
        "memory of the objective": _bytes(state.memory),
        "data": data,
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Estimate(count, devices * flops(program), {name: size for name, size in memory.items() if size})


def flops(program: Any) -> float:
    """Operations of a traced program: the compiler's count of it as lowered, with all rounds of its loops."""
    counted = (program.lower().cost_analysis() or {}).get("flops")
    jaxpr = program.jaxpr.jaxpr
    return counting.products(jaxpr) if counted is None else counted + counting.repeated(jaxpr)


def measure(config: TrainConfig, dataset: Dataset, steps: int = 3) -> dict[str, float]:
    """The same of a compiled step on one device of this machine: operations, bytes, and seconds, the best of a few."""
    trainer = trainer_of(config, dataset)
    compiled = traced(trainer).lower().compile()
    member = Member(jnp.uint32(config.seed))
    state, seconds = jax.jit(trainer.init)(member), []
    for _ in range(steps + 1):  # the first warms up
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(dataset.arrays, member, state))
        seconds.append(time.perf_counter() - start)
    return {"flops": compiled_flops(compiled), "memory": compiled_bytes(compiled), "seconds": min(seconds[1:])}


def compiled_flops(compiled: Any) -> float:
    """Operations of a compiled program, as its compiler counts them."""
    return float((compiled.cost_analysis() or {}).get("flops", math.nan))


def compiled_bytes(compiled: Any) -> float:
    """Bytes of a compiled program: what it is given and returns, and stores between."""
    found = compiled.memory_analysis()
    if found is None:
        return math.nan
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return float(given + found.temp_size_in_bytes)


def this_machine(size: int = 1024) -> Chip:
    """The device of this process; its peak is what a product of two square matrices reaches."""
    a = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(multiply(a, a))
        seconds.append(time.perf_counter() - start)
    reached = 2 * size**3 / min(seconds) / 1e12
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit") or _machine_bytes()
    kind = jax.devices()[0].device_kind
    return Chip(limit, reached, reached, reached, f"measured: {kind}, a product of {size} x {size}")


def precision_of(config: TrainConfig) -> Precision:
    """What most of a training's products are computed in, by the network's and the derivative's types."""
    low = getattr(config.network, "dtype", "float32") == "bfloat16" and config.jvp_dtype == "network"
    return "bfloat16" if low else "tf32"


def _machine_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
