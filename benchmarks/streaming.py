"""A run on images in memory against the same one on images streamed from disk, in turns.

    python benchmarks/streaming.py [--images 2000] [--size 32] [--steps 100] [--turns 5] [--jpeg]

The images are noise, written as PNG (or JPEG) files into a temporary folder; the network is a small transformer,
depth 4, width 128, patch 4, batches of 64. Windows are made small enough to be read many times. The steps of a turn
are one chunk, compiled before. Reported: steps a second, the best and the median of the turns, their ratio, and
images a second of reading alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vamf.data import ImageConfig
from vamf.data import stream as streams
from vamf.networks import DiTConfig
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble

BATCH = 64


def write(folder, count, size, suffix):
    """Images of noise over a gradient, so that they are neither trivial nor incompressible."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, size)[None, :, None]
    for at in range(count):
        image = ramp + rng.integers(0, 56, (size, size, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{at:05d}.{suffix}")


def ensemble(folder, steps, turns, streamed):
    """A run that has taken its first chunk."""
    config = TrainConfig(
        data=str(folder),
        images=ImageConfig(stream=streamed, flip=True),
        batch_size=BATCH,
        steps=steps * (turns + 1),
        checkpoint_every=steps,
        network=DiTConfig(depth=4, width=128, heads=4, patch=4),
        log=LogConfig(every=min(steps, 10), variance_every=0),
        **{name: getattr(presets.images(""), name) for name in ("method", "objective")},
    )
    made = Ensemble(config, config.load_data(), [0])
    return made, made.advance(made.init(), steps)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--jpeg", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.images, args.size, "jpg" if args.jpeg else "png")
        running = {
            kind: ensemble(folder, args.steps, args.turns, kind == "streamed") for kind in ("memory", "streamed")
        }
        rates = {kind: [] for kind in running}
        for _ in range(args.turns):
            for kind, (one, state) in running.items():
                start = time.perf_counter()
                running[kind] = one, one.advance(state, args.steps)[0]
                rates[kind].append(args.steps / (time.perf_counter() - start))
        source = running["streamed"][0].dataset.stream.source
        start = time.perf_counter()
        streams.window(source, 1, 0, len(source))
        reading = len(source) / (time.perf_counter() - start)
    for kind, values in rates.items():
        print(f"{kind:9} {max(values):8.2f} steps/s at best, median {statistics.median(values):.2f}")
    best, median = (of(rates["streamed"]) / of(rates["memory"]) for of in (max, statistics.median))
    print(f"ratio     {best:8.2f} at best, median {median:.2f}")
    print(f"reading   {reading:8,.0f} images/s alone; training takes {BATCH * max(rates['memory']):,.0f}")


if __name__ == "__main__":
    main()
