"""Adam against SPlus on the handwritten digits, with the same number of steps each.

    python benchmarks/optimizers.py [--steps N] [--quick] [--out FILE]

The run is the preset `digits` with the smaller network of tables, 3 layers of 256; a variant is an optimizer with a
learning rate, and its three seeds are trained one after another by one program. Reported for each seed: SW1 and SW2 of
one-step samples to the held-out digits, `residual` as the mean over the last tenth of the steps, and for the variant
the milliseconds of one model's step (median over chunks, without compilation). A variant that diverges has nulls.

SPlus's rule for its learning rate, that of Adam times width times 2, gives 0.5 from 1e-3; its grid goes around that.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from vamf import data
from vamf.errors import UserError
from vamf.files import write_json
from vamf.metrics import sliced_wasserstein
from vamf.networks import MLPConfig
from vamf.training import presets
from vamf.training.ensemble import Ensemble

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
VARIANTS = [("adam", rate) for rate in (1e-3, 3e-3, 1e-2)] + [("splus", rate) for rate in (0.2, 0.5, 1.0, 2.0)]
NETWORK = MLPConfig(width=256, depth=3)
SAMPLES, CHUNKS = 4096, 10


def baseline(dataset):
    """Distances of as many training rows to the held-out ones, one draw."""
    x, _ = dataset.draw(dataset.arrays, jax.random.key(1), SAMPLES)
    return distances(dataset.to_original(np.asarray(x)), dataset)


def distances(points, dataset):
    """SW1 and SW2 to the held-out rows; None where the points are not finite."""
    if not np.isfinite(points).all():
        return {"sw1": None, "sw2": None}
    reference = dataset.reference(SAMPLES, 0)
    return {f"sw{order}": sliced_wasserstein(points, reference, order) for order in (1, 2)}


def measure(name, rate, steps, dataset):
    """One variant: the scores of each seed, and the milliseconds of a step."""
    preset = presets.for_data("digits")
    optimizer = dataclasses.replace(preset.optimizer, name=name)
    config = dataclasses.replace(preset, network=NETWORK, steps=steps, learning_rate=rate, optimizer=optimizer)
    # One device, its members in turn: a step's time is then that of a single model.
    ensemble = Ensemble(config, dataset, SEEDS, strategy="loop")
    state, residuals, step_times = ensemble.init(), [], []
    for chunk in range(CHUNKS):
        start = time.perf_counter()
        state, metrics = ensemble.advance(state, steps // CHUNKS)  # its metrics are on the host: it has ended
        seconds = time.perf_counter() - start
        if chunk:  # the first one compiles
            step_times.append(1e3 * seconds / (steps // CHUNKS) / ensemble.size)
        residuals = metrics.residual.mean(axis=1)
    samples = ensemble.sample(state, SAMPLES, seed=0)
    members = [
        {"seed": seed, **distances(points, dataset), "residual": float(residual)}
        for seed, points, residual in zip(SEEDS, samples, residuals, strict=True)
    ]
    return {"optimizer": name, "learning_rate": rate, "ms_per_step": statistics.median(step_times), "members": members}


def show(report, console):
    """One line a variant: mean and standard deviation over seeds."""
    from rich.table import Table

    table = Table("optimizer", "learning rate", "SW1", "SW2", "residual", "ms/step", title=f"{report['steps']:,} steps")
    for variant in report["variants"]:
        cells = []
        for key in ("sw1", "sw2", "residual"):
            values = [member[key] for member in variant["members"]]
            finite = all(value is not None and np.isfinite(value) for value in values)
            cells.append(f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" if finite else "diverged")
        table.add_row(variant["optimizer"], f"{variant['learning_rate']:g}", *cells, f"{variant['ms_per_step']:.2f}")
    table.add_row("real digits", "", f"{report['baseline']['sw1']:.4f}", f"{report['baseline']['sw2']:.4f}", "", "")
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help=f"training steps, a multiple of {CHUNKS}")
    parser.add_argument("--quick", action="store_true", help="each optimizer at one learning rate only")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "optimizers.json", help="where the JSON goes")
    args = parser.parse_args()
    if args.steps < 2 * CHUNKS or args.steps % CHUNKS:
        parser.error(f"--steps = {args.steps}: allowed are multiples of {CHUNKS} from {2 * CHUNKS} on")
    from rich.console import Console

    console = Console()
    dataset = data.load("digits")
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "steps": args.steps,
        "network": dataclasses.asdict(NETWORK),
        "hardware": {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "baseline": baseline(dataset),
        "variants": [],
    }
    for name, rate in dict(VARIANTS).items() if args.quick else VARIANTS:
        with console.status(f"{name}, learning rate {rate:g}"):
            report["variants"].append(measure(name, rate, args.steps, dataset))
        try:
            write_json(args.out, report)  # after each variant: an interrupted benchmark keeps what it has
        except UserError as error:
            parser.error(str(error))
    show(report, console)


if __name__ == "__main__":
    main()
