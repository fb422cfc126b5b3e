"""`vamf data`: preparing data ahead of a training."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from vamf import autoencoders
from vamf.data import encoding, image_files, images
from vamf.data.classes import called
from vamf.data.image_dataset import ImageConfig
from vamf.data.pictures import Channels
from vamf.errors import require
from vamf.files import check_source, write_arrays
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


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Write pictures as training prepares them, all of one size: the reference of `vamf fid`."""

    source: Path
    """Folder of pictures or another source of them: .npz, .parquet, IDX or CIFAR-10 files."""
    out: Path
    """File to write, .npz."""
    size: int | None = None
    """Height and width after shrinking and a centre crop; as stored if left out."""
    channels: Channels = "stored"
    """grey or rgb converts; stored takes grey or RGB pictures as they are and refuses others."""
    strict: bool = False
    """Refuse damaged pictures instead of leaving them out."""
    memory: float = 4.0
    """Largest set to hold in memory, in GiB."""

    def __post_init__(self):
        require(self.out.suffix == ".npz", "out", self.out, "a file that ends in .npz")


def prepare(wanted: Pictures, progress: Progress) -> None:
    """`vamf data pictures`."""
    check_source("out", wanted.out, wanted.source)
    config = ImageConfig(size=wanted.size, channels=wanted.channels, strict=wanted.strict, memory=wanted.memory)
    source = image_files.read(wanted.source)
    found = images.decode(source, config, str(wanted.source), progress)
    if found.damaged:
        progress.say(f"{len(found.damaged)} damaged and left out, the first: {found.damaged[0]}")
    labels = {} if found.label is None else {"labels": called(found.label, source.classes)}
    write_arrays(wanted.out, {"images": found.pixels} | labels)
    print(f"{len(found.pixels):,} pictures of {'x'.join(map(str, found.pixels.shape[1:]))}: {wanted.out}")


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
