"""Latents as a data set: pictures encoded once by an autoencoder (`encoding.py`), kept in shards.

    FOLDER/latents.json        settings, classes, shards, mean and standard deviation of each channel
    FOLDER/latents-00000.npz   mean (n, views, h, w, c), std of the same shape where latents are random, label (n,)

A view is the picture or, the second one, its mirror image. Where the encoder gives a Gaussian, every draw is a new
sample of it, and the statistics are those of samples: Var = Var[mean] + E[std^2].

The network sees (latent - shift) / scale; samples are mapped back before they are decoded. With w the latents in the
autoencoder's own units and f w what is stored (f = 0.18215 for Stable Diffusion's, 1 for the tiny ones), it sees

| `latents.scale` | the network sees                                                    | published by           |
|-----------------|---------------------------------------------------------------------|------------------------|
| `standardise`   | each channel of these very latents with mean 0 and deviation 1      |                        |
| `factor`        | f w                                                                 | MeanFlow, VaMF         |
| `fixed`         | (w - mean) / std, the constants of ImageNet in `autoencoders/kl.py` | improved MeanFlow, TVM |
| `own`           | (w - mean) / std, constants of one's own                            |                        |
"""

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vamf.autoencoders import FACTORS, Autoencoder, kl
from vamf.autoencoders.pictures import in_batches, to_bytes
from vamf.data import images, shards
from vamf.data import stream as streams
from vamf.data.classes import in_classes
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import MINIMUM, parted
from vamf.data.pictures import line
from vamf.data.shards import Shards
from vamf.data.stream import Stream
from vamf.errors import UserError, require
from vamf.field_types import check_field_types

INDEX = "latents.json"
FORMAT = 1
FOUND = ("count", "shape", "mean", "std")
"""What the index of a finished encoding says."""


@dataclasses.dataclass(frozen=True)
@check_field_types("latents.")
class LatentScale:
    """The units in which the network sees latents."""

    scale: Literal["standardise", "factor", "fixed", "own"] = "standardise"
    """standardise: mean 0 and standard deviation 1 for each channel of these latents; factor: times the autoencoder's
    factor, 0.18215 for Stable Diffusion's, not centred (MeanFlow, VaMF); fixed: less a mean and over a deviation for
    each channel, published for ImageNet (improved MeanFlow, TVM); own: those of latents.mean and latents.std."""
    mean: tuple[float, ...] = ()
    """own: what is subtracted, one number or one for each channel, in the autoencoder's units before its factor; 0 if
    left out."""
    std: tuple[float, ...] = ()
    """own: what is divided by, likewise."""

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            allowed = self.scale == "own" or not value
            require(allowed, f"latents.{name}", value, "none, unless latents.scale = own")
            require(bool(np.isfinite(value).all()), f"latents.{name}", value, "finite numbers")
        given = self.scale != "own" or (len(self.std) > 0 and min(self.std) > 0)
        require(given, "latents.std", self.std, "with latents.scale = own one number above 0, or one for each channel")

    def of(self, folder: Path, index: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale (c,) of stored latents, float32: the network sees (stored - shift) / scale.

        Raises:
            UserError: constants for another number of channels.
        """
        channels, made = index["shape"][-1], index["settings"]["autoencoder"]
        raw = FACTORS.get(made, 1.0)
        mean, std = {
            "standardise": (index["mean"], index["std"]),
            "factor": (0.0, 1.0),
            "fixed": (kl.SCALE * np.array(kl.CHANNEL_MEAN), kl.SCALE * np.array(kl.CHANNEL_STD)),
            "own": (raw * np.array(self.mean or (0.0,)), raw * np.array(self.std)),
        }[self.scale]
        for name, found in (("mean", mean), ("std", std)):
            if np.size(found) not in (1, channels):
                raise UserError(
                    f"{folder}: latents of {channels} channels ({made}); latents.scale = {self.scale} has "
                    f"{np.size(found)} for {name}" + "; choose standardise, factor or own" * (self.scale == "fixed")
                )
        return np.full(channels, mean, np.float32), np.full(channels, std, np.float32)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of latents."""
    return (path / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of latents.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        written = index["settings"]["format"]
        fields = {"shards", "num_classes", *(FOUND if index["complete"] else ())}
        if not fields <= set(index):
            raise ValueError(f"without {', '.join(sorted(fields - set(index)))}")
    except FileNotFoundError:
        raise UserError(f"{folder}: no latents here (no {INDEX})") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX}: not a readable index ({line(error)})") from None
    if written != FORMAT:
        raise UserError(f"{folder / INDEX}: format {written}; allowed is {FORMAT}")
    return index


def load(
    folder: Path,
    *,
    holdout: float = 0.1,
    units: LatentScale = LatentScale(),
    memory: float = 4.0,
    streamed: bool = False,
) -> Dataset:
    """The latents of a folder as a data set; original units are those of the stored latents, which are decoded.

    Args:
        holdout: share of the pictures kept for evaluation, in [0, 0.5].
        units: what the network sees.
        memory: largest set to hold in memory, in GiB; a larger one is streamed from disk.
        streamed: from disk, whatever the size.

    Raises:
        UserError: no index, an encoding that is not finished, a damaged shard (named), or units of other latents.
    """
    index = read_index(folder)
    if not index["complete"]:
        raise UserError(
            f"{folder}: the encoding is not finished; continue it with the same `vamf data latents` command"
        )
    if index["count"] < MINIMUM:
        raise UserError(f"{folder}: {index['count']} pictures; at least {MINIMUM} are needed")
    train, held = parted(index["count"], holdout)
    test = held if len(held) else train
    shape = tuple(index["shape"])
    shift, scale = units.of(folder, index)

    def take(arrays, keys, rows):
        view_key, noise_key = keys
        view = jax.random.randint(view_key, (len(rows),), 0, arrays["mean"].shape[1])
        x = arrays["mean"][rows, view].astype(jnp.float32)
        if "std" in arrays:
            x = x + arrays["std"][rows, view] * jax.random.normal(noise_key, x.shape)
        x = (x.reshape(-1, *shape) - shift) / scale
        return x, arrays["label"][rows] if "label" in arrays else None

    def draw(arrays, key, n):
        row_key, *keys = jax.random.split(key, 3)
        return take(arrays, keys, jax.random.randint(row_key, (n,), 0, len(arrays["mean"])))

    stream = None
    if streamed or _gibibytes(folder, index) > memory:
        streams.check_grain(folder)
        source = Shards(folder, index, train)
        arrays, rows_of = streams.kept(source), source.gather
        digest = hashlib.sha256(json.dumps(index["shards"]).encode()).hexdigest()
        stream = Stream(source, lambda arrays, key, rows: take(arrays, jax.random.split(key), rows), digest)
    else:
        stored = shards.read(folder, index)
        arrays, rows_of = {name: jnp.asarray(array[train]) for name, array in stored.items()}, partial(_rows, stored)

    def reference(n, seed):
        rng = np.random.default_rng(seed)
        found = rows_of(rng.permutation(test)[:n])
        x = found["mean"][:, 0].astype(np.float32)
        if "std" in found:
            x = x + found["std"][:, 0] * rng.standard_normal(x.shape, np.float32)
        return x.reshape(-1, *shape)

    settings = index["settings"]
    classes = tuple(index.get("classes", ()))
    kind = "x".join(map(str, shape)) + in_classes(index["num_classes"], classes)
    used = f"{len(held):,} held out" if len(held) else "none held out"
    return Dataset(
        name=folder.name,
        event_shape=shape,
        arrays=arrays,
        draw=draw,
        reference=reference,
        unseen=len(held) > 0,
        shift=shift,
        scale=scale,
        num_classes=index["num_classes"],
        classes=classes,
        latents=folder,
        autoencoder=(settings["autoencoder"], settings["autoencoder_sha256"]),
        weights=index.get("weights") or "",
        held_out=None if stream else lambda: rows_of(held),
        stream=stream,
        summary=(
            f"{folder.name}: {len(train):,} latents of {kind} ({settings['autoencoder']}, pictures of "
            f"{settings['size']}) to train on{', streamed from disk' if stream else ''}, {used}"
        ),
    )


def decode(
    autoencoder: Autoencoder, latents: Float[np.ndarray, "n h w c"], batch_size: int = 16
) -> UInt8[np.ndarray, "n height width 3"]:
    """Latents in the autoencoder's units as pictures."""

    def pictures(part):
        return to_bytes(np.asarray(autoencoder.decode(part)))

    return in_batches(pictures, np.asarray(latents, np.float32), min(batch_size, len(latents)))


def check_autoencoder(dataset: Dataset, autoencoder: Autoencoder) -> None:
    """Refuse an autoencoder that did not make a data set's latents."""
    name, sha256 = dataset.autoencoder or ("", "")
    if sha256 != autoencoder.sha256:
        raise UserError(
            f"{dataset.latents}: made by {name} of sha256 {sha256[:12]}, the autoencoder "
            f"given is {autoencoder.name} of sha256 {autoencoder.sha256[:12]}"
        )


def _rows(stored: dict[str, np.ndarray], rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in stored.items()}


def _gibibytes(folder: Path, index: dict[str, Any]) -> float:
    """Size of the shards; of those that are there."""
    files = (folder / name for name in index["shards"])
    return sum(file.stat().st_size for file in files if file.exists()) / images.GIB
