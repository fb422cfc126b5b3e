"""`vamf data`: prepare data for training."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from vamf import autoencoders
from vamf.data import encoding, image_files
from vamf.data.classes import decode_labels
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import Channels
from vamf.data.image_reading import decode
from vamf.errors import require
from vamf.files import check_source, write_arrays
from vamf.progress import Progress


@dataclasses.dataclass(frozen=True)
class Check:
    """Report on data before training: damaged and repeated images, sizes, classes, values, and what training would do.

    Exit status 2 where they cannot be trained on as they are.
    """

    source: Path
    """Images, latents or a table, as `vamf train` takes them."""
    images: ImageConfig = ImageConfig()
    """How images are prepared."""
    holdout: float = 0.1
    """Fraction kept for evaluation."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclasses.dataclass(frozen=True)
class Latents:
    """Encode images into latents to train on. The same command continues an interrupted encoding."""

    source: Path
    """Folder of images or another source of them: .npz, .parquet, IDX or CIFAR-10 files."""
    autoencoder: Path
    """File of an autoencoder's weights, or the folder of its encoder and decoder."""
    out: Path
    """Folder to write."""
    options: Annotated[encoding.LatentConfig, tyro.conf.arg(name="")] = encoding.LatentConfig()
    """How images are encoded."""
    kind: autoencoders.Kind = "auto"
    """Layout of the autoencoder."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Write images as training prepares them, all of one size: the reference of `vamf fid`."""

    source: Path
    """Folder of images or another source of them: .npz, .parquet, IDX or CIFAR-10 files."""
    out: Path
    """File to write, .npz."""
    size: int | None = None
    """Height and width after shrinking and a centre crop; as stored if left out."""
    channels: Channels = "stored"
    """grey or rgb converts; stored takes grey or RGB images as they are and refuses others."""
    strict: bool = False
    """Refuse damaged images instead of leaving them out."""
    memory: float = 4.0
    """Largest set to hold in memory, in GiB."""

    def __post_init__(self):
        require(self.out.suffix == ".npz", "out", self.out, "a file that ends in .npz")


def prepare(options: Images, progress: Progress) -> None:
    """`vamf data images`."""
    check_source("out", options.out, options.source)
    config = ImageConfig(size=options.size, channels=options.channels, strict=options.strict, memory=options.memory)
    source = image_files.read(options.source)
    decoded = decode(source, config, str(options.source), progress)
    if decoded.corrupt:
        progress.say(f"{len(decoded.corrupt)} damaged and left out, the first: {decoded.corrupt[0]}")
    labels = {} if decoded.label is None else {"labels": decode_labels(decoded.label, source.classes)}
    write_arrays(options.out, {"images": decoded.pixels} | labels)
    print(f"{len(decoded.pixels):,} images of {'x'.join(map(str, decoded.pixels.shape[1:]))}: {options.out}")


def encode(options: Latents, progress: Progress) -> None:
    """`vamf data latents`."""
    autoencoder = autoencoders.load(options.autoencoder, options.kind)
    size = options.options.size
    progress.say(f"{options.source} with {autoencoder.name} at {size}x{size} -> {options.out}")
    index = encoding.encode(options.source, autoencoder, options.out, options.options, progress)
    corrupt = [name for shard in index["shards"].values() for name in shard["damaged"]]
    if corrupt:
        progress.say(f"{len(corrupt)} damaged and left out, the first: {corrupt[0]}")
    print(f"{index['count']:,} latents of {'x'.join(map(str, index['shape']))}: {options.out}")
    for name in ("mean", "std"):
        print(f"{name} of each channel: {' '.join(f'{value:.4g}' for value in index[name])}")
    if index["psnr"] is not None:
        print(
            f"images encoded and decoded: {index['psnr']:.1f} dB PSNR (mean over the first {encoding.NUM_PSNR_IMAGES})"
        )
