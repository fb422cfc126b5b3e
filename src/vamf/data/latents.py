"""Latents as a data set: pictures encoded once by an autoencoder (`encoding.py`), kept in shards.

    FOLDER/latents.json        settings, classes, shards, mean and standard deviation of each channel
    FOLDER/latents-00000.npz   mean (n, views, h, w, c), std of the same shape where latents are random, label (n,)

A view is the picture or, the second one, its mirror image. Where the encoder gives a Gaussian, every draw is a new
sample of it, and the statistics are those of samples: Var = Var[mean] + E[std^2].
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vamf.autoencoders import Autoencoder
from vamf.autoencoders.pictures import in_batches, to_bytes
from vamf.data import images, shards
from vamf.data import stream as streams
from vamf.data.dataset import Dataset
from vamf.data.images import MINIMUM, parted
from vamf.data.pictures import line
from vamf.data.shards import Shards
from vamf.data.stream import Stream
from vamf.errors import UserError

INDEX = "latents.json"
FORMAT = 1
FOUND = ("count", "shape", "mean", "std")
"""What the index of a finished encoding says."""


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
    folder: Path, *, holdout: float = 0.1, standardise: bool = True, memory: float = 4.0, streamed: bool = False
) -> Dataset:
    """The latents of a folder as a data set; original units are the autoencoder's latents.

    Args:
        holdout: share of the pictures kept for evaluation, in [0, 0.5].
        standardise: mean 0 and standard deviation 1 for each channel; otherwise latents as they are (those of Stable
            Diffusion times 0.18215).
        memory: largest set to hold in memory, in GiB; a larger one is streamed from disk.
        streamed: from disk, whatever the size.

    Raises:
        UserError: no index, an encoding that is not finished, or a damaged shard (named).
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
    shift = np.asarray(index["mean"] if standardise else 0.0, np.float32)
    scale = np.asarray(index["std"] if standardise else 1.0, np.float32)

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
    kind = "x".join(map(str, shape)) + (f" in {index['num_classes']} classes" if index["num_classes"] else "")
    used = f"{len(held):,} held out" if len(held) else "none held out"
    return Dataset(
        name=folder.name,
        event_shape=shape,
        arrays=arrays,
        draw=draw,
        reference=reference,
        shift=shift,
        scale=scale,
        num_classes=index["num_classes"],
        latents=folder,
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


def check_autoencoder(folder: Path, autoencoder: Autoencoder) -> None:
    """Refuse an autoencoder that did not make a folder's latents."""
    made = read_index(folder)["settings"]
    if made["autoencoder_sha256"] != autoencoder.sha256:
        raise UserError(
            f"{folder}: made by {made['autoencoder']} of sha256 {made['autoencoder_sha256'][:12]}, the autoencoder "
            f"given is {autoencoder.name} of sha256 {autoencoder.sha256[:12]}"
        )


def _rows(stored: dict[str, np.ndarray], rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in stored.items()}


def _gibibytes(folder: Path, index: dict[str, Any]) -> float:
    """Size of the shards; of those that are there."""
    files = (folder / name for name in index["shards"])
    return sum(file.stat().st_size for file in files if file.exists()) / images.GIB
