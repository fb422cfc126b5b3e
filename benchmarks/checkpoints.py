"""What checkpoints cost: steps a second of the toy preset with one every 1000 steps against none, in turns.

    python benchmarks/checkpoints.py [--every 1000] [--checkpoints 3] [--turns 5] [--out benchmarks/results/FILE.json]

A turn is a run by `vamf.training.loop.train`, with the log, without samples, gradient variances or a report:
first with a checkpoint every `every` steps, read back, then with none before the end; the next turn the other way
round. The first `every` steps and the last `every` are left out: compilation, and the checkpoint at the end that both
have. What is left holds the saves at `every`, 2 `every` and so on, and the reading back. Reported: the median over
turns of the time with checkpoints over that without, less 1, and all times.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import tempfile
from pathlib import Path

import jax

from vamf.files import write_json
from vamf.progress import Progress
from vamf.training import loop, presets
from vamf.training.config import LogConfig
from vamf.training.cores import keep_on_one_core
from vamf.training.ensemble import Ensemble
from vamf.training.logs import read


def seconds(ensemble: Ensemble, folder: Path, every: int) -> float:
    """From the log's first `every` steps to the line at which the last `every` begin."""
    loop.train(ensemble, folder, Progress(show=False))
    at = {record["step"]: record["time"] for record in read(folder / "metrics.jsonl")}
    return at[ensemble.config.steps - every] - at[every]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=3, help="measured in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    steps = args.every * (args.checkpoints + 2)
    log = LogConfig(every=args.every // 2, variance_every=0)
    config = dataclasses.replace(presets.for_data("swiss_roll"), steps=steps, log=log)
    keep_on_one_core(config)
    ensembles = {
        name: Ensemble(dataclasses.replace(config, checkpoint_every=every), config.load_data(), [0])
        for name, every in {"with": args.every, "without": steps}.items()
    }
    times = {name: [] for name in ensembles}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.turns):
            for name in ("with", "without") if turn % 2 else ("without", "with"):
                times[name].append(seconds(ensembles[name], Path(folder) / f"{name}-{turn}", args.every))
    costs = [one / other - 1 for one, other in zip(times["with"], times["without"], strict=True)]
    result = {
        "every": args.every,
        "steps_measured": args.every * args.checkpoints,
        "parameters": ensembles["with"].parameters,
        "seconds_with": times["with"],
        "seconds_without": times["without"],
        "cost_of_each_turn": costs,
        "median_cost": statistics.median(costs),
        "cost_of_best_times": min(times["with"]) / min(times["without"]) - 1,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}, jax {jax.__version__}",
        "load_average": os.getloadavg()[0],
    }
    print(f"median {100 * result['median_cost']:.2f} %, of the best times {100 * result['cost_of_best_times']:.2f} %")
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
