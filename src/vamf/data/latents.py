"""Latents as a data set: pictures encoded once by an autoencoder (`encoding.py`), kept in shards.

    FOLDER/latents.json        settings, classes, shards, mean and standard deviation of each channel
    FOLDER/latents-00000.npz   mean (n, views, h, w, c), std of the same shape where latents are random, label (n,)

A view is the picture or, the second one, its mirror image. Where the encoder gives a Gaussian, every draw is a new
sample of it, and the statistics are those of samples: Var = Var[mean] + E[std^2].
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vamf.autoencoders import Autoencoder
from vamf.autoencoders.pictures import in_batches, to_bytes
from vamf.data import images
from vamf.data.dataset import Dataset
from vamf.data.images import MINIMUM
from vamf.data.pictures import line
from vamf.errors import UserError, require

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


def load(folder: Path, *, holdout: float = 0.1, standardise: bool = True, memory: float = 4.0) -> Dataset:
    """The latents of a folder as a data set; original units are the autoencoder's latents.

    Args:
        holdout: share of the pictures kept for evaluation, in [0, 0.5].
        standardise: mean 0 and standard deviation 1 for each channel; otherwise latents as they are (those of Stable
            Diffusion times 0.18215).
        memory: largest set to hold in memory, in GiB.

    Raises:
        UserError: no index, an encoding that is not finished, a damaged shard (named), or too many latents.
    """
    require(0 <= holdout <= 0.5, "holdout", holdout, "[0, 0.5], a share of the pictures")
    index = read_index(folder)
    if not index["complete"]:
        raise UserError(
            f"{folder}: the encoding is not finished; continue it with the same `vamf data latents` command"
        )
    if index["count"] < MINIMUM:
        raise UserError(f"{folder}: {index['count']} pictures; at least {MINIMUM} are needed")
    stored = _read_shards(folder, index, memory)
    order = np.random.default_rng(0).permutation(index["count"])
    held = max(1, round(holdout * index["count"])) if holdout else 0
    test, train = np.sort(order[:held]) if held else np.sort(order), np.sort(order[held:])
    arrays = {name: jnp.asarray(array[train]) for name, array in stored.items()}
    shape = tuple(index["shape"])
    shift = np.asarray(index["mean"] if standardise else 0.0, np.float32)
    scale = np.asarray(index["std"] if standardise else 1.0, np.float32)

    def draw(arrays, key, n):
        row_key, view_key, noise_key = jax.random.split(key, 3)
        count, views = arrays["mean"].shape[:2]
        rows, view = jax.random.randint(row_key, (n,), 0, count), jax.random.randint(view_key, (n,), 0, views)
        x = arrays["mean"][rows, view].astype(jnp.float32)
        if "std" in arrays:
            x = x + arrays["std"][rows, view] * jax.random.normal(noise_key, x.shape)
        x = (x.reshape(n, *shape) - shift) / scale
        return x, arrays["label"][rows] if "label" in arrays else None

    def reference(n, seed):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(test)[:n]
        x = stored["mean"][rows, 0].astype(np.float32)
        if "std" in stored:
            x = x + stored["std"][rows, 0] * rng.standard_normal(x.shape, np.float32)
        return x.reshape(-1, *shape)

    settings = index["settings"]
    kind = "x".join(map(str, shape)) + (f" in {index['num_classes']} classes" if index["num_classes"] else "")
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
        summary=(
            f"{folder.name}: {len(train):,} latents of {kind} ({settings['autoencoder']}, pictures of "
            f"{settings['size']}) to train on, " + (f"{held:,} held out" if held else "none held out")
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


def _read_shards(folder: Path, index: dict[str, Any], memory: float) -> dict[str, np.ndarray]:
    """All shards as flat rows: mean and std (n, views, h w c), label (n,)."""
    stored: dict[str, np.ndarray] = {}
    at = 0
    for name, facts in sorted(index["shards"].items()):
        arrays = _read_shard(folder / name, facts)
        if not stored:
            size = sum(array.nbytes for array in arrays.values()) / facts["count"] * index["count"] / images.GIB
            if size > memory:
                raise UserError(
                    f"{folder}: {index['count']:,} latents are {size:,.1f} GiB, memory = {memory:g}; allow more"
                )
            stored = {key: np.empty((index["count"], *array.shape[1:]), array.dtype) for key, array in arrays.items()}
        for key, array in arrays.items():
            stored[key][at : at + len(array)] = array
        at += facts["count"]
    return stored


def _read_shard(path: Path, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in ("mean", "std", "label") if name in loaded.files}
        if arrays["mean"].shape != (facts["count"], *facts["shape"]):
            raise ValueError(f"mean of shape {arrays['mean'].shape}, expected {(facts['count'], *facts['shape'])}")
    except FileNotFoundError:
        raise UserError(f"{path}: this shard is missing; the same `vamf data latents` command makes it again") from None
    except Exception as error:
        raise UserError(
            f"{path}: damaged shard ({line(error)}); delete it, and the same `vamf data latents` command makes it again"
        ) from None
    flat = (facts["count"], facts["shape"][0], math.prod(facts["shape"][1:]))
    return {name: array if name == "label" else array.reshape(flat) for name, array in arrays.items()}
