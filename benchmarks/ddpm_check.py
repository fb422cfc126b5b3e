"""DDPM on real images, small enough for two cores: the loss falls as it should, and samples look like the data.

    python benchmarks/ddpm_check.py --data FOLDER [--steps N] [--held-out N] [--sampler-steps N] [--out FILE]
                                    [--image FILE]

FOLDER holds the four official IDX files of Fashion-MNIST. The run is that of the preset `ddpm_cifar10` at about a
hundredth of its size: the same diffusion, loss, U-Net (fewer channels and blocks), dropout, mirrors, clipping and
warm-up, on images of 16x16, with a larger learning rate and a faster EMA for the fewer steps.

Reported is the loss on the official test set, of the EMA and without dropout, with the same noise and steps
of the diffusion throughout. Its scale has two marks: 1 for a network that knows nothing, and the least loss of a
prediction that is affine in z. With l_i the eigenvalues of the covariance of the run images, mirrored ones
among them, that is

    mean over steps k and i of   abar_k l_i / (abar_k l_i + 1 - abar_k).

A network below it has learnt more than the mean and the covariance. The image has samples of the ancestral sampler on
the left and test images on the right; nothing is chosen.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vamf import figures
from vamf.data import ImageConfig
from vamf.diffusion import DDPM
from vamf.errors import UserError
from vamf.files import write_atomic, write_json
from vamf.networks import UNetConfig
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble

HERE = Path(__file__).resolve().parent
NETWORK = UNetConfig(
    kind="ddpm",
    channels=32,
    multipliers=(1, 2, 2),
    blocks=1,
    attention=(8,),
    time_features=32,
    predicts="noise",
    dropout=0.1,
)
CHUNKS = 10
SAMPLES = 40
SEED = 0


def configuration(data, steps):
    """The run."""
    return TrainConfig(
        data=data,
        images=ImageConfig(expect="fashion_mnist", size=16, flip=True),
        conditional=False,
        method="ddpm",
        steps=steps,
        batch_size=64,
        learning_rate=1e-3,
        seed=SEED,
        network=NETWORK,
        optimizer=OptimizerConfig(final_learning_rate=1.0, warmup=100, clip_norm=1.0, ema_decay=0.99, ema_warmup=False),
        log=LogConfig(variance_every=0),
    )


def affine_loss(dataset):
    """The least loss of a prediction of the noise that is affine in z."""
    pixels = np.asarray(dataset.arrays["pixels"], np.float32).reshape(-1, *dataset.event_shape) / dataset.scale
    both = np.concatenate([pixels, pixels[:, :, ::-1]]).reshape(2 * len(pixels), -1)
    alpha_bar = DDPM.alpha_bar[:-1, None]
    variances = alpha_bar * np.linalg.eigvalsh(np.cov(both, rowvar=False).astype(np.float64))
    return float(np.mean(variances / (variances + 1 - alpha_bar)))


def held_out_loss(ensemble, count):
    """State -> loss on `count` test images, the same ones with the same noise at every call."""
    dataset, objective = ensemble.dataset, ensemble.train_step.objective
    x = jnp.asarray((dataset.reference(count, 0) - dataset.shift) / dataset.scale, jnp.float32)
    sample = objective.sample(jax.random.key(SEED + 1), x)

    @jax.jit
    def loss(params):
        def block(part):
            x, sample = part
            return objective.loss(ensemble.network.bind(params), x, sample, None, 0, num_diagonal=len(x))[0]

        blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, min(256, count), *leaf.shape[1:]), (x, sample))
        return jax.lax.map(block, blocks).mean()

    return lambda state: float(loss(jax.tree.map(lambda leaf: leaf[0], state.ema_params)))


def image(samples, real):
    """Rows of samples on the left, of test images on the right, white between them."""
    side = 8
    white = np.full((side * (len(samples) // side), *samples.shape[1:]), 255.0)
    rows = [
        np.concatenate([left, white[:1], right])
        for left, right in zip(*(part.reshape(-1, side, *samples.shape[1:]) for part in (samples, real)), strict=True)
    ]
    return figures.image_grid(np.concatenate(rows), 2 * side + 1, 3, 0.0, 255.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--steps", type=int, default=1000, help=f"training steps, a multiple of {CHUNKS}")
    parser.add_argument("--held-out", type=int, default=2048, help="test images, below 256 or a multiple of it")
    parser.add_argument("--sampler-steps", type=int, default=250, help="steps of the samples in the image")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ddpm-cpu.json", help="where the JSON goes")
    figure = HERE.parent / "docs" / "figures" / "ddpm.png"
    parser.add_argument("--image", type=Path, default=figure, help="where the image goes")
    args = parser.parse_args()
    if args.steps < CHUNKS or args.steps % CHUNKS:
        parser.error(f"--steps = {args.steps}: allowed are multiples of {CHUNKS}")
    if args.held_out < 1 or (args.held_out > 256 and args.held_out % 256):
        parser.error(f"--held-out = {args.held_out}: allowed are 1 to 256 and multiples of 256")
    try:
        config = configuration(str(args.data), args.steps)
        dataset = config.load_data()
    except UserError as error:
        parser.error(str(error))
    ensemble = Ensemble(config, dataset, [SEED])
    evaluate, state = held_out_loss(ensemble, args.held_out), ensemble.init()
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": dataset.summary.split(":")[0],
        "hardware": {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: importlib.metadata.version(name) for name in ("vamf", "jax", "jaxlib", "optax", "numpy")},
        "seeds": {"training": SEED, "held-out noise": SEED + 1, "samples": SEED},
        "configuration": dataclasses.asdict(dataclasses.replace(config, data="fashion_mnist")),
        "parameters": ensemble.parameters,
        "loss of the best affine prediction": affine_loss(dataset),
        "losses": [{"step": 0, "train": None, "held_out": evaluate(state)}],
    }
    print(f"{dataset.summary}; {ensemble.parameters:,} parameters", flush=True)
    print(f"best affine prediction: {report['loss of the best affine prediction']:.4f}", flush=True)
    print(f"step {0:6,}: held-out loss {report['losses'][0]['held_out']:.4f}", flush=True)
    paces, begin = [], time.perf_counter()
    for chunk in range(CHUNKS):
        start = time.perf_counter()
        state, metrics = ensemble.advance(state, args.steps // CHUNKS)
        if chunk:  # the first one compiles
            paces.append((time.perf_counter() - start) / (args.steps // CHUNKS))
        row = {"step": int(state.step[0]), "train": float(metrics.loss.mean()), "held_out": evaluate(state)}
        report["losses"].append(row)
        print(f"step {row['step']:6,}: loss {row['train']:.4f}, held-out {row['held_out']:.4f}", flush=True)
    report["milliseconds_per_step"] = 1e3 * float(np.median(paces))
    report["seconds_training"] = time.perf_counter() - begin
    begin = time.perf_counter()
    samples = ensemble.draw(state, SAMPLES, args.sampler_steps, SEED, None, "ancestral")[0][0]
    report["sampling"] = {"sampler": "ancestral", "steps": args.sampler_steps, "n": SAMPLES,
                          "seconds": time.perf_counter() - begin}  # fmt: skip
    try:
        write_json(args.out, report)
        write_atomic(args.image, image(samples, dataset.reference(SAMPLES, SEED + 1)))
    except UserError as error:
        parser.error(str(error))
    print(f"{report['seconds_training']:.0f} s of training; {args.out}, {args.image}")


if __name__ == "__main__":
    main()
