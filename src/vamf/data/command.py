"""`vamf data`: preparing data ahead of a training."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from vamf import autoencoders
from vamf.data import encoding
from vamf.progress import Progress


@dataclasses.dataclass(frozen=True)
class Latents:
    """Encode pictures into latents to train on. The same command continues an interrupted encoding."""

    source: Path
    """Folder of pictures or another source of them: .npz, .parquet, IDX or CIFAR-10 files."""
    autoencoder: Path
    """File of an autoencoder's weights, or the folder of its encoder and decoder."""
    out: Path
    """Folder to write."""
    options: Annotated[encoding.LatentConfig, tyro.conf.arg(name="")] = encoding.LatentConfig()
    """How pictures are encoded."""
    kind: autoencoders.Kind = "auto"
    """Layout of the autoencoder."""


def encode(wanted: Latents, progress: Progress) -> None:
    """`vamf data latents`."""
    model = autoencoders.load(wanted.autoencoder, wanted.kind)
    size = wanted.options.size
    progress.say(f"{wanted.source} with {model.name} at {size}x{size} -> {wanted.out}")
    index = encoding.encode(wanted.source, model, wanted.out, wanted.options, progress)
    damaged = [name for shard in index["shards"].values() for name in shard["damaged"]]
    if damaged:
        progress.say(f"{len(damaged)} damaged and left out, the first: {damaged[0]}")
    print(f"{index['count']:,} latents of {'x'.join(map(str, index['shape']))}: {wanted.out}")
    for name in ("mean", "std"):
        print(f"{name} of each channel: {' '.join(f'{value:.4g}' for value in index[name])}")
    if index["psnr"] is not None:
        print(f"pictures encoded and decoded: {index['psnr']:.1f} dB PSNR (mean over the first {encoding.CHECKED})")
