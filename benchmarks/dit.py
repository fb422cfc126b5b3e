"""A training step of a diffusion transformer on latents: time and memory of what beta costs, and of what saves time.

    python benchmarks/dit.py [--size small | tiny | S/4 | B/4 ...] [--batch N] [--dtype float32 | bfloat16]
                             [--seconds S] [--official FOLDER] [--out FILE]

Latents are 32x32x4 of 1,000 classes, with MeanFlow's guidance (scale 2, mix 0.5) and 75 % of the rows at r = t. `small`
is depth 4, width 192, patch 4; `tiny`, to see that all runs, depth 1, width 48, patch 8. The variants, each a complete
training step (batch, gradient, Adam, EMA):

| variant           | what it is                                                                                 |
|-------------------|--------------------------------------------------------------------------------------------|
| `beta = 0`        | MeanFlow with guidance as published; one pass is prediction and kappa's velocity at r = t  |
| `beta = 0.5`      | half of the tangent's noise replaced by the EMA's velocity                                 |
| `online`          | the same by the network's velocity, which guidance computes anyway                         |
| `corner`          | beta = 1 with an anchor on every sixteenth row                                             |
| `corner, all`     | beta = 1 with an anchor on every row                                                       |
| `..., all rows`   | the Jacobian-vector product also on the rows with r = t                                    |
| `..., jvp in bf16`| with bfloat16: the derivative in the network's precision too                               |

The variants take turns, a few steps each. Reported are the median of the rounds, its ratio to `beta = 0` of the same
round, the program's memory (arguments and temporaries, as the compiler plans them), and the fraction of the peak: the
operations of a step as the compiler counts them, relative to the rate of products of 4096 x 4096 (`tiny`: 512) in the
same precision.
`--official` names a clone of the official JAX code (github.com/Gsunshine/meanflow), whose loss then takes part with the
same optimizer. It bounds with `jnp.clip(..., a_min, a_max)`, names that JAX has dropped: while it is traced, `jnp.clip`
takes them again. Its files stay as they are.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vamf.data import Dataset
from vamf.files import write_json
from vamf.networks import DiTConfig
from vamf.training import presets
from vamf.training.ensemble import Ensemble
from vamf_worker import all_rows

HERE = Path(__file__).resolve().parent
EVENT, CLASSES, ROWS = (32, 32, 4), 1000, 256
SIZES = {
    "small": {"depth": 4, "width": 192, "heads": 3, "patch": 4},
    "tiny": {"depth": 1, "width": 48, "heads": 3, "patch": 8},
}
MIX = 0.5
ANCHOR = {"weight": 0.1, "interval": [0.0, 1e-3]}
VARIANTS = {
    "beta = 0": {},
    "beta = 0.5": {"beta": 0.5},
    "online": {"beta": 0.5, "proxy": "online"},
    "corner": {"beta": 1.0, "anchor": {**ANCHOR, "every": 16}},
    "corner, all": {"beta": 1.0, "anchor": ANCHOR},
}


def latents():
    """Latents that are noise: what a step costs does not depend on them."""
    random = np.random.default_rng(0)
    arrays = {
        "x": jnp.asarray(random.standard_normal((ROWS, *EVENT), np.float32)),
        "label": jnp.asarray(random.integers(CLASSES, size=ROWS, dtype=np.int32)),
    }

    def draw(arrays, key, n):
        rows = jax.random.randint(key, (n,), 0, ROWS)
        return arrays["x"][rows], arrays["label"][rows]

    return Dataset("latents", EVENT, arrays, draw, lambda n, seed: arrays["x"][:n], num_classes=CLASSES)


def sizes(name):
    """The options of a size's `DiTConfig`."""
    return SIZES[name] if name in SIZES else dataclasses.asdict(DiTConfig.named(name))


def config(args, beta=0.0, **options):
    """The step of a variant, as `TrainConfig`."""
    base = presets.for_data("imagenet_dit_b4")
    jvp = options.pop("jvp_dtype", base.jvp_dtype)
    return dataclasses.replace(
        base,
        network=DiTConfig(**sizes(args.size) | {"dtype": args.dtype, "remat": args.remat}),
        batch_size=args.batch,
        objective={**base.objective, "beta": beta, "proxy": "ema", **options},
        jvp_dtype=jvp,
    )


@contextlib.contextmanager
def former_clip():
    """Within it `jnp.clip` also takes its bounds by their former names, a_min and a_max."""
    clip = jnp.clip

    def both(arr=None, /, min=None, max=None, *, a_min=None, a_max=None):
        return clip(arr, min if a_min is None else a_min, max if a_max is None else a_max)

    jnp.clip = both
    try:
        yield
    finally:
        jnp.clip = clip


class Variant:
    """A compiled training that is advanced a few steps at a time."""

    def __init__(self, program, state):
        self.program, self.state, self.seconds = program, state, []

    @classmethod
    def ours(cls, args, dataset, steps, rows="", **options):
        ensemble = Ensemble(config(args, **options), dataset, (0,), strategy="loop")
        if rows:
            ensemble.train_step = all_rows(ensemble.train_step)
        state = ensemble.init()
        member = jax.tree.map(lambda leaf: leaf[0], ensemble.points)
        function = functools.partial(ensemble._chunk, steps, dataset.arrays, member)
        return cls.compiled(function, jax.tree.map(lambda leaf: leaf[0], state))

    @classmethod
    def official(cls, args, dataset, steps):
        """The official loss under optax's Adam and an EMA, on the same data."""
        sys.path.insert(0, str(args.official))
        from meanflow import MeanFlow
        from models import models_dit

        size = sizes(args.size)
        models_dit.benchmarked = functools.partial(
            models_dit.DiT,
            depth=size["depth"],
            hidden_size=size["width"],
            patch_size=size["patch"],
            num_heads=size["heads"],
        )
        # The official code's omega and kappa: scale 2 and mix 0.5 of ours.
        model = MeanFlow(model_str="benchmarked", model_config={}, omega=1.0, kappa=MIX)
        key = jax.random.key(0)
        x, label = dataset.draw(dataset.arrays, key, args.batch)
        params = model.init({"params": key, "gen": key}, x, jnp.ones(args.batch), label)
        adam = optax.adam(1e-4, b2=0.95)

        def step(carry, count):
            params, average, moments = carry
            x, label = dataset.draw(dataset.arrays, jax.random.fold_in(key, count), args.batch)
            rngs = {"gen": jax.random.fold_in(key, count)}

            def loss(params):
                return model.apply(params, x, label, rngs=rngs, method=model.forward)[0]

            value, gradient = jax.value_and_grad(loss)(params)
            updates, moments = adam.update(gradient, moments, params)
            params = optax.apply_updates(params, updates)
            average = optax.incremental_update(params, average, 1e-4)
            return (params, average, moments), value

        def chunk(carry):
            return jax.lax.scan(step, carry, jnp.arange(steps))

        with former_clip():
            return cls.compiled(chunk, (params, jax.tree.map(jnp.copy, params), adam.init(params)))

    @classmethod
    def compiled(cls, function, state):
        return cls(jax.jit(function, donate_argnums=0).lower(state).compile(), state)

    def advance(self):
        start = time.perf_counter()
        self.state, metrics = self.program(self.state)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    @property
    def bytes(self):
        """Arguments and temporaries of the program; what is donated is counted once."""
        plan = self.program.memory_analysis()
        return plan.argument_size_in_bytes + plan.temp_size_in_bytes


def operations(args, dataset, options):
    """Floating-point operations of one step, from the compiler's count of a program that is not run."""
    ensemble = Ensemble(config(args, **options), dataset, (0,), strategy="loop")
    member = jax.tree.map(lambda leaf: leaf[0], ensemble.points)
    state = jax.eval_shape(ensemble.train_step.init, member)

    def step(state):
        return ensemble.train_step.step(ensemble.train_step.batch(dataset.arrays, member, state.step), member, state)

    return jax.jit(step).lower(state).cost_analysis()["flops"]


def peak(dtype, n, rounds=10):
    """Operations per second of n x n matrix products."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def measure(args):
    dataset = latents()
    steps = args.steps or (4 if jax.default_backend() == "cpu" else 20)
    chosen = VARIANTS | {f"{name}, all rows": {**VARIANTS[name], "rows": "all"} for name in ("beta = 0", "beta = 0.5")}
    if args.dtype == "bfloat16":
        chosen["beta = 0, jvp in bf16"] = {"jvp_dtype": "network"}
    if args.variants:
        chosen = {name: chosen[name] for name in args.variants.split(";")}
    variants = {}
    for name, options in chosen.items():
        print(f"compiling {name}", file=sys.stderr, flush=True)
        variants[name] = Variant.ours(args, dataset, steps, **options)
    if args.official:
        variants["official MeanFlow"] = Variant.official(args, dataset, steps)
    for variant in variants.values():
        variant.advance()
    start = time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        for variant in variants.values():
            variant.seconds.append(variant.advance() / steps)
    base = variants["beta = 0"].seconds
    fastest = peak(args.dtype, 512 if args.size == "tiny" else 4096)
    rows = []
    for name, variant in variants.items():
        row = {
            "variant": name,
            "ms": 1e3 * statistics.median(variant.seconds),
            "steps_per_second": 1 / statistics.median(variant.seconds),
            "to_beta_0": statistics.median(
                seconds / other for seconds, other in zip(variant.seconds, base, strict=True)
            ),
            "mib": variant.bytes / 2**20,
            "rounds": len(variant.seconds),
        }
        if name in VARIANTS:
            row["peak_fraction"] = (
                operations(args, dataset, VARIANTS[name]) / statistics.median(variant.seconds) / fastest
            )
        rows.append(row)
    return rows, fastest


def show(rows, title):
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", "ms/step", "steps/s", "to beta = 0", "MiB", "of peak", title=title)
    for row in rows:
        fraction = f"{row['peak_fraction']:.0%}" if "peak_fraction" in row else ""
        numbers = f"{row['ms']:.1f}", f"{row['steps_per_second']:.2f}", f"{row['to_beta_0']:.3f}", f"{row['mib']:.0f}"
        table.add_row(row["variant"], *numbers, fraction)
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="small", help="small, tiny, or a published one such as B/4")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--remat", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--seconds", type=float, default=60, help="to measure for, after compilation")
    parser.add_argument("--steps", type=int, default=0, help="steps of a variant's turn; 0: 4 on a CPU, 20 elsewhere")
    parser.add_argument(
        "--variants", default="", help="some variants only, separated by semicolons; `beta = 0` among them"
    )
    parser.add_argument("--official", type=Path, help="a clone of the official JAX code of MeanFlow")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    rows, fastest = measure(args)
    device = jax.devices()[0]
    title = f"DiT {args.size}, batch {args.batch}, {args.dtype}, {device.device_kind}"
    show(rows, title)
    if args.out:
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "size": args.size,
            "batch": args.batch,
            "dtype": args.dtype,
            "remat": args.remat,
            "load_average": os.getloadavg()[0],
            "hardware": {"device": device.device_kind, "cores": os.cpu_count(), "system": platform.platform()},
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "peak_gflops": fastest / 1e9,
            "variants": rows,
        }
        write_json(args.out, report)


if __name__ == "__main__":
    main()
