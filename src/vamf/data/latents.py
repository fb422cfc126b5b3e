"""Latent data sets: images encoded once by an autoencoder (`encoding.py`), stored in shards.

    FOLDER/latents.json        settings, classes, shards, mean and standard deviation of each channel
    FOLDER/latents-00000.npz   mean (n, views, h, w, c), std of the same shape where latents are random, label (n,)

View 0 is the image, view 1 its mirror image. Where the encoder gives a Gaussian, every draw is a new sample of it, and
the statistics are those of samples: Var = Var[mean] + E[std^2].

The network takes (latent - shift) / scale; samples are mapped back before decoding. With w the latents in the
autoencoder's units and f w the stored latents (f = 0.18215 for Stable Diffusion's, 1 for the tiny ones), its input is

| `latents.scale` | input of the network                                                | published by           |
|-----------------|---------------------------------------------------------------------|------------------------|
| `standardise`   | each channel of these latents with mean 0 and standard deviation 1  |                        |
| `factor`        | f w                                                                 | MeanFlow, VaMF         |
| `fixed`         | (w - mean) / std, the constants of ImageNet in `autoencoders/kl.py` | improved MeanFlow, TVM |
| `own`           | (w - mean) / std, custom constants                                  |                        |
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
from vamf.autoencoders.images import map_in_batches, to_bytes
from vamf.data import shards
from vamf.data import stream as streams
from vamf.data.classes import describe_classes
from vamf.data.conditions import LABEL
from vamf.data.dataset import Dataset
from vamf.data.image_dataset import MIN_IMAGES, train_test_split
from vamf.data.image_decoding import error_line
from vamf.data.image_reading import GIB
from vamf.data.shards import Shards
from vamf.data.stream import Stream
from vamf.errors import UserError, require
from vamf.field_types import check_field_types

INDEX = "latents.json"
FORMAT = 1
RESULT_KEYS = ("count", "shape", "mean", "std")
"""Keys of the index of a complete encoding."""


@dataclasses.dataclass(frozen=True)
@check_field_types("latents.")
class LatentScale:
    """The network's units of latents."""

    scale: Literal["standardise", "factor", "fixed", "own"] = "standardise"
    """standardise: mean 0 and standard deviation 1 for each channel of these latents; factor: times the autoencoder's
    factor, 0.18215 for Stable Diffusion's, not centred (MeanFlow, VaMF); fixed: published mean and standard
    deviation of each channel on ImageNet (improved MeanFlow, TVM); own: by latents.mean and latents.std."""
    mean: tuple[float, ...] = ()
    """own: the mean to subtract, one number or one for each channel, in the autoencoder's units before its factor;
    default 0."""
    std: tuple[float, ...] = ()
    """own: the standard deviation to divide by, likewise."""

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            allowed = self.scale == "own" or not value
            require(allowed, f"latents.{name}", value, "none, unless latents.scale = own")
            require(bool(np.isfinite(value).all()), f"latents.{name}", value, "finite numbers")
        valid_std = self.scale != "own" or (len(self.std) > 0 and min(self.std) > 0)
        require(
            valid_std, "latents.std", self.std, "with latents.scale = own one number above 0, or one for each channel"
        )

    def shift_and_scale(self, folder: Path, index: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale (c,) of stored latents, float32: the network takes (stored - shift) / scale.

        Raises:
            UserError: constants for another number of channels.
        """
        channels, autoencoder_name = index["shape"][-1], index["settings"]["autoencoder"]
        factor = FACTORS.get(autoencoder_name, 1.0)
        mean, std = {
            "standardise": (index["mean"], index["std"]),
            "factor": (0.0, 1.0),
            "fixed": (kl.SCALE * np.array(kl.CHANNEL_MEAN), kl.SCALE * np.array(kl.CHANNEL_STD)),
            "own": (factor * np.array(self.mean or (0.0,)), factor * np.array(self.std)),
        }[self.scale]
        for name, value in (("mean", mean), ("std", std)):
            if np.size(value) not in (1, channels):
                raise UserError(
                    f"{folder}: latents of {channels} channels ({autoencoder_name}); latents.scale = {self.scale} has "
                    f"{np.size(value)} for {name}" + "; choose standardise, factor or own" * (self.scale == "fixed")
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
        version = index["settings"]["format"]
        fields = {"shards", "num_classes", *(RESULT_KEYS if index["complete"] else ())}
        if not fields <= set(index):
            raise ValueError(f"without {', '.join(sorted(fields - set(index)))}")
    except FileNotFoundError:
        raise UserError(f"{folder}: no latents here (no {INDEX})") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX}: not a readable index ({error_line(error)})") from None
    if version != FORMAT:
        raise UserError(f"{folder / INDEX}: format {version}; allowed is {FORMAT}")
    return index


def load(
    folder: Path,
    *,
    holdout: float = 0.1,
    units: LatentScale = LatentScale(),
    memory: float = 4.0,
    from_disk: bool = False,
) -> Dataset:
    """The latents of a folder as a data set; original units are those of the stored latents.

    Args:
        holdout: fraction of images held out for evaluation, in [0, 0.5].
        units: the network's units.
        memory: largest data set to hold in memory, in GiB; a larger one is streamed from disk.
        from_disk: stream from disk, whatever the size.

    Raises:
        UserError: no index, an incomplete encoding, a damaged shard, or units for other latents.
    """
    index = read_index(folder)
    if not index["complete"]:
        raise UserError(
            f"{folder}: the encoding is not finished; continue it with the same `vamf data latents` command"
        )
    if index["count"] < MIN_IMAGES:
        raise UserError(f"{folder}: {index['count']} images; at least {MIN_IMAGES} are needed")
    train_rows, test_rows = train_test_split(index["count"], holdout)
    compared = test_rows if len(test_rows) else train_rows
    shape = tuple(index["shape"])
    shift, scale = units.shift_and_scale(folder, index)

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
    if from_disk or _gibibytes(folder, index) > memory:
        streams.check_grain(folder)
        source = Shards(folder, index, train_rows)
        arrays, gather = streams.resident_arrays(source), source.gather
        digest = hashlib.sha256(json.dumps(index["shards"]).encode()).hexdigest()
        stream = Stream(source, lambda arrays, key, rows: take(arrays, jax.random.split(key), rows), digest)
    else:
        arrays_in_memory = shards.read(folder, index)
        arrays, gather = (
            {name: jnp.asarray(array[train_rows]) for name, array in arrays_in_memory.items()},
            partial(_select_rows, arrays_in_memory),
        )

    def reference(n, seed):
        rng = np.random.default_rng(seed)
        rows = gather(rng.permutation(compared)[:n])
        x = rows["mean"][:, 0].astype(np.float32)
        if "std" in rows:
            x = x + rows["std"][:, 0] * rng.standard_normal(x.shape, np.float32)
        return x.reshape(-1, *shape)

    def reference_rows(n, seed):
        return {LABEL: gather(np.random.default_rng(seed).permutation(compared)[:n])["label"]}

    settings = index["settings"]
    classes = tuple(index.get("classes", ()))
    kind = "x".join(map(str, shape)) + describe_classes(index["num_classes"], classes)
    split_text = f"{len(test_rows):,} held out" if len(test_rows) else "none held out"
    return Dataset(
        name=folder.name,
        event_shape=shape,
        arrays=arrays,
        draw=draw,
        reference=reference,
        unseen=len(test_rows) > 0,
        shift=shift,
        scale=scale,
        num_classes=index["num_classes"],
        classes=classes,
        latents=folder,
        autoencoder=(settings["autoencoder"], settings["autoencoder_sha256"]),
        weights=index.get("weights") or "",
        held_out=None if stream else lambda: gather(test_rows),
        reference_rows=reference_rows if index["num_classes"] else None,
        stream=stream,
        summary=(
            f"{folder.name}: {len(train_rows):,} latents of {kind} ({settings['autoencoder']}, images of "
            f"{settings['size']}) to train on{', streamed from disk' if stream else ''}, {split_text}"
        ),
    )


def decode(
    autoencoder: Autoencoder, latents: Float[np.ndarray, "n h w c"], batch_size: int = 16
) -> UInt8[np.ndarray, "n height width 3"]:
    """Latents in the autoencoder's units as images."""

    def decode_batch(batch):
        return to_bytes(np.asarray(autoencoder.decode(batch)))

    return map_in_batches(decode_batch, np.asarray(latents, np.float32), min(batch_size, len(latents)))


def check_autoencoder(dataset: Dataset, autoencoder: Autoencoder) -> None:
    """Refuse any autoencoder but the one that encoded a data set's latents, or another kind where that one has no
    digest: published networks do not say which weights encoded their latents."""
    name, sha256 = dataset.autoencoder or ("", "")
    if name and not sha256:
        if name == autoencoder.name:
            return
        raise UserError(f"{dataset.name}: latents of {name}; the autoencoder here is {autoencoder.name}")
    if sha256 != autoencoder.sha256:
        raise UserError(
            f"{dataset.latents}: encoded by {name} of sha256 {sha256[:12]}; the autoencoder "
            f"here is {autoencoder.name} of sha256 {autoencoder.sha256[:12]}"
        )


def _select_rows(stored: dict[str, np.ndarray], rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in stored.items()}


def _gibibytes(folder: Path, index: dict[str, Any]) -> float:
    """Size of the existing shards."""
    files = (folder / name for name in index["shards"])
    return sum(file.stat().st_size for file in files if file.exists()) / GIB
