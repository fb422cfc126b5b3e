"""The runs that `toys.py` measures, in vamf.

A worker of `toys.py`: one JSON request a line on standard input, one JSON reply a line on standard output.

| kind         | request                                                    | replies                                 |
|--------------|------------------------------------------------------------|-----------------------------------------|
| `peak`       | library, n, seconds                                        | GFLOP/s of n x n matrix products        |
| `training`   | chunk, seconds, and what `build` takes                     | model steps per second                  |
| `run`        | variance, seconds                                          | steps per second with all a run does    |
| `trajectory` | width, batch                                               | a start and the losses that follow      |
"""

import dataclasses
import inspect
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vamf import data
from vamf.networks import MLPConfig
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.cores import keep_on_one_core, spread_over_cores
from vamf.training.ensemble import Ensemble
from vamf.training.step import SweepPoint

BETAS, SEEDS = 11, 3


def build(width, batch, beta=0.5, ensemble=False, strategy="auto", equal=0.25, variant=None, steps=20_000, decay=0.999):
    """An ensemble of one run or of all betas and seeds; a variant changes one part of the step."""
    config = TrainConfig(
        "swiss_roll",
        objective={"beta": beta, "times": {"flow_matching_ratio": equal}},
        batch_size=batch,
        steps=steps,
        network=MLPConfig(width),
        optimizer=OptimizerConfig(ema_decay=decay, ema_warmup=False),
    )
    members = [(seed, i / (BETAS - 1)) for i in range(BETAS) for seed in range(SEEDS)] if ensemble else [(0, None)]
    seeds, betas = zip(*members, strict=True)
    if not ensemble:
        keep_on_one_core(config)  # as `vamf train` does
    result = Ensemble(config, data.load("swiss_roll"), seeds, {"beta": betas} if ensemble else None, strategy)
    if variant:
        result.train_step = VARIANTS[variant](result.train_step)
    return result


def all_rows(train_step):
    """The Jacobian-vector product also on the rows with r = t."""
    signature, parts = inspect.signature(train_step.objective.loss), dataclasses.fields(train_step.objective)

    class AllRows(type(train_step.objective)):
        def loss(self, *args, **options):
            bound = signature.bind(*args, **options)
            bound.arguments["num_diagonal"] = 0
            return super().loss(*bound.args, **bound.kwargs)

    objective = AllRows(**{part.name: getattr(train_step.objective, part.name) for part in parts})
    return dataclasses.replace(train_step, objective=objective)


def no_metrics(train_step):
    """Nothing reported, so that the compiler leaves out what only the report needs."""

    class NoMetrics(type(train_step)):
        def step(self, batch, member, state):
            return super().step(batch, member, state)[0], ()

    return NoMetrics(**vars(train_step))


def drawn_before(train_step, count=64):
    """Batches looked up by the step instead of drawn. (One constant batch would let the compiler fold its work.)"""
    draw = jax.jit(jax.vmap(lambda step: train_step.batch((), SweepPoint(np.uint32(0)), step)))
    batches = draw(np.arange(count))

    class DrawnBefore(type(train_step)):
        def batch(self, arrays, member, step):
            return jax.tree.map(lambda leaf: leaf[step % count], batches)

    return DrawnBefore(**vars(train_step))


VARIANTS = {
    "all rows": all_rows,
    "no metrics": no_metrics,
    "drawn before": drawn_before,
    "one batch": lambda train_step: drawn_before(train_step, 1),
}


def training(chunk, **job):
    """A function that advances a training and returns how many model steps it made."""
    ensemble = build(**job)
    state = ensemble.init()

    def advance():
        nonlocal state
        state, _ = ensemble.advance(state, chunk)
        jax.block_until_ready(state)
        return chunk * ensemble.size

    return advance


def peak(library, n):
    """A function that multiplies two n x n matrices and returns the operations in 1e9."""
    matrix = np.random.default_rng(0).standard_normal((n, n), np.float32)
    if library == "jax":
        matrix, product = jnp.asarray(matrix), jax.jit(lambda a: a @ a)
        return lambda: (product(matrix).block_until_ready(), 2e-9 * n**3)[1]
    return lambda: (matrix @ matrix, 2e-9 * n**3)[1]


def through_run(variance):
    """Steps per second of a run in a folder: log, samples, a checkpoint in 2,000 steps, optional gradient variance."""
    from vamf.progress import Progress
    from vamf.training.logs import read
    from vamf.training.run import Run

    log = LogConfig(variance_every=2000 if variance else 0)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig("swiss_roll", steps=4500, log=log)
        keep_on_one_core(config)
        run = Run.create(config, Path(folder) / "run")
        run.train(Progress(show=False))
        at = {record["step"]: record["time"] for record in read(run.folder / "metrics.jsonl")}
    return 2000 / (at[4500] - at[2500])


def trajectory(width, batch, steps=5):
    """A few steps on one batch from parameters that are not small: where torch starts and the losses it has to find.

    The learning rate falls and the EMA moves fast enough for the later losses to show both. (Parameters
    are not compared: where a gradient is all rounding, Adam turns it into a full step.)
    """
    ensemble = build(width, batch, variant="one batch", steps=steps, decay=0.5)
    batch_of_step = ensemble.train_step.batch((), None, 0)
    random = np.random.default_rng(0)

    def perturb(tree):
        return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), tree)

    def as_lists(tree):  # torch keeps kernels transposed
        tree = jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree)
        layers = [tree["first"], *(tree["hidden"][key] for key in sorted(tree["hidden"])), tree["last"]]
        return [leaf.tolist() for layer in layers for leaf in (layer["kernel"].T, layer["bias"])]

    state = ensemble.init()
    state = state._replace(params=perturb(state.params), ema_params=perturb(state.ema_params))
    start = {"params": as_lists(state.params), "average": as_lists(state.ema_params)}
    arrays = [
        np.asarray(leaf).tolist()
        for leaf in (batch_of_step.x, batch_of_step.sample.e, batch_of_step.sample.r, batch_of_step.sample.t)
    ]
    _, metrics = ensemble.advance(ensemble.place(state), steps)
    start |= {
        "batch": arrays,
        "beta": 0.5,
        "equal": ensemble.train_step.objective.times.num_diagonal(batch),
        "steps": steps,
        "ema_decay": 0.5,
    }
    return {"start": start, "losses": metrics.loss[0].tolist()}


def main():
    """Answer requests until standard input ends."""
    if "--spread" in sys.argv:
        spread_over_cores()
    built = {}
    for line in sys.stdin:
        request = json.loads(line)
        kind, seconds = request.pop("kind"), request.pop("seconds", 0)
        if kind == "trajectory":
            reply = trajectory(**request)
        elif kind == "run":
            reply = {"rate": through_run(**request) if seconds else 0}
        else:
            key = json.dumps([kind, request])
            if key not in built:
                built[key] = {"peak": peak, "training": training}[kind](**request)
                built[key]()
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                done += built[key]()
            reply = {"rate": done / elapsed if done else 0}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
