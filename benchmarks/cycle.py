"""What the cycle term does to samples, to the round trip of jumps and to likelihoods: rao_blackwell on two moons.

    python benchmarks/cycle.py [--steps 5000] [--seeds 0 1 2] [--rows 2000] [--runs FOLDER] [--out FILE]

For weights 0 (no term), 0.1 and 1: SW1 of 20,000 one-step samples; the root mean square of ||C|| at two independent
uniform times, and from data to noise and back in one jump each; mean log-likelihoods of fresh rows under the ODE,
under 1, 2 and 4 jumps (Newton's inverse, and rows without one), and under the network's own inverse.
"""

import argparse
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vamf.average_velocity import flow_map
from vamf.likelihood import ODE, FewStep
from vamf.likelihood.runs import run_log_density
from vamf.metrics import sliced_wasserstein
from vamf.path import interpolate
from vamf.progress import Progress
from vamf.training import presets
from vamf.training.run import Run

WEIGHTS = (0.0, 0.1, 1.0)
SAMPLES = 20_000
METHODS = {"ODE": ODE(), **{f"{k} jumps": FewStep(k) for k in (1, 2, 4)},
           **{f"{k} of the inverse": FewStep(k, "reverse") for k in (1, 2, 4)}}  # fmt: skip


def measure(run, rows):
    """The numbers of a trained run."""
    state, _ = run.load(Progress(show=False))
    x = run.dataset.reference(rows, 0)
    samples = run.sample(state, SAMPLES, 1)
    row = {"SW1": sliced_wasserstein(samples, run.dataset.reference(SAMPLES, 5))}
    params = jax.tree.map(lambda leaf: leaf[0], run.inference.collect(state.ema_params))
    u = run.inference.unsharded_network.bind(jax.tree.map(jnp.asarray, params))
    rng = np.random.default_rng(3)
    times = {"any times": rng.uniform(size=(2, rows)), "data to noise": np.tile([[0.0], [1.0]], rows)}
    e = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    for name, pair in times.items():
        s, t = jnp.asarray(pair, jnp.float32)
        start = interpolate(jnp.asarray(x, jnp.float32), e, s)
        back = flow_map(u, flow_map(u, start, s, t), t, s)
        row[f"round trip, {name}"] = float(jnp.sqrt(jnp.mean(jnp.sum((start - back) ** 2, axis=1))))
    for name, method in METHODS.items():
        log_p = run_log_density(run, state, x, method=method).log_p
        row[name] = float(np.nanmean(log_p))
        if name.endswith("jumps"):
            row[f"{name}, rows left out"] = int(np.isnan(log_p).sum())
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=Path, help="folder of the runs; those that are there are not trained again")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of every run")
    options = parser.parse_args()
    folder = options.runs or Path(tempfile.mkdtemp())
    results = {}
    for weight in WEIGHTS:
        terms = {"terms": {"cycle": {"weight": weight}}} if weight else {}
        for seed in options.seeds:
            place = folder / f"moons-{weight:g}-{seed}"
            if place.exists():
                run = Run.open(place)
            else:
                config = presets.for_data(
                    "two_moons", method="rao_blackwell", steps=options.steps, seed=seed, objective=terms
                )
                run = Run.create(config, place)
                run.train(Progress())
            results.setdefault(f"{weight:g}", []).append(measure(run, options.rows))
        rows = results[f"{weight:g}"]
        for name in rows[0]:
            values = [row[name] for row in rows]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            print(f"weight {weight:g}: {name}: {np.mean(values):.4f}{spread}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
