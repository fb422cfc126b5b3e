"""`vamf data latents`: pictures through an encoder, shard by shard, with nothing lost when it is killed.

Shards hold consecutive pictures and are written whole, the index after each of them: a killed encoding goes on with the
first shard that the index does not know.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vamf import locks
from vamf.autoencoders import Autoencoder
from vamf.autoencoders.pictures import from_bytes, in_batches, psnr, to_bytes
from vamf.data import image_dataset, image_files, images
from vamf.data.image_dataset import ImageConfig
from vamf.data.images import QUIET
from vamf.data.latents import FORMAT, INDEX, is_folder, read_index
from vamf.data.pictures import Damaged, Encoded, Pictures
from vamf.errors import UserError, require
from vamf.field_types import check_field_types
from vamf.files import finite, write_arrays, write_json
from vamf.progress import Progress, Task

CHECKED = 16
"""Pictures whose reconstruction is measured."""


@dataclasses.dataclass(frozen=True)
@check_field_types()
class LatentConfig:
    """How pictures are encoded."""

    size: int = 256
    """Height and width of the pictures after shrinking and a centre crop."""
    flip: bool = False
    """Encode the mirror images too; a draw takes either."""
    shard: int = 4096
    """Pictures in a shard."""
    batch_size: int = 16
    """Pictures encoded together."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the numbers kept."""
    strict: bool = False
    """Refuse damaged pictures instead of leaving them out."""

    def __post_init__(self):
        for name in ("size", "shard", "batch_size"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "1 or more")


def encode(
    path: Path,
    autoencoder: Autoencoder,
    folder: Path,
    config: LatentConfig = LatentConfig(),
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Encode the pictures of a file or folder; the same call continues where an earlier one stopped.

    Returns:
        The index, as it stands in `latents.json`.

    Raises:
        UserError: pictures that cannot be used, a folder that holds something else or that another process is encoding
            into, or a file that cannot be written.
    """
    down = autoencoder.downsampling
    require(config.size % down == 0, "size", config.size, f"a multiple of {down}, the autoencoder's factor")
    source = image_files.read(path)
    with locks.folder_lock(folder, "encoded"):
        return _encode(path, source, autoencoder, folder, config, progress)


def _encode(
    path: Path, source: Pictures, autoencoder: Autoencoder, folder: Path, config: LatentConfig, progress: Progress
) -> dict[str, Any]:
    label, classes, num_classes = image_dataset.classed(str(path), source.label, source.classes, source.num_classes)
    source = source._replace(label=label)
    index = _open(folder, _settings(path, source, autoencoder, config))
    index["source"] = str(path.resolve())
    index["weights"] = None if autoencoder.path is None else str(autoencoder.path)
    if classes:
        index["classes"] = list(classes)
    index["num_classes"] = num_classes
    total = len(source.items)
    shards = [
        (f"latents-{number:05d}.npz", slice(first, min(first + config.shard, total)))
        for number, first in enumerate(range(0, total, config.shard))
    ]
    known = {name for name, _ in shards if name in index["shards"] and (folder / name).exists()}
    if index["complete"] and len(known) == len(shards):
        return index
    done = sum(rows.stop - rows.start for name, rows in shards if name in known)
    with progress.task(f"encoding {path.name}", total, done, "pictures") as task:
        for name, rows in shards:
            if name in known:
                continue
            arrays, damaged = _encode_shard(source, rows, autoencoder, config, partial(_advance, task, done))
            write_arrays(folder / name, arrays)
            index["shards"][name] = _summary(arrays) | {"damaged": damaged}
            write_json(folder / INDEX, index)
            done += rows.stop - rows.start
    index |= _statistics(list(index["shards"].values()))
    index["psnr"] = finite(reconstruction(source, autoencoder, config))
    index["complete"] = True
    write_json(folder / INDEX, index)
    return index


def reconstruction(source: Pictures, autoencoder: Autoencoder, config: LatentConfig, count: int = CHECKED) -> float:
    """Mean PSNR in dB of the first pictures, encoded and decoded, against their bytes; NaN if none can be read."""
    found = images.each(source.items[:count], _prepared(config))
    readable = [picture for picture in found if not isinstance(picture, Damaged)]
    if not readable:
        return math.nan
    pixels = np.stack(readable)
    latents = in_batches(autoencoder.encode, from_bytes(pixels), config.batch_size)
    decoded = to_bytes(in_batches(autoencoder.decode, latents, config.batch_size))
    return float(np.mean(psnr(decoded, pixels)))


def _encode_shard(
    source: Pictures, rows: slice, autoencoder: Autoencoder, config: LatentConfig, update: Callable[[int], None]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of one shard and the pictures left out."""
    kept, damaged, waiting = [], [], []
    parts: list[tuple[np.ndarray, ...]] = []

    def flush():
        pixels = from_bytes(np.stack(waiting))
        views = np.stack([pixels, pixels[:, :, ::-1]] if config.flip else [pixels], axis=1)
        flat = views.reshape(-1, *pixels.shape[1:])
        found = in_batches(autoencoder.moments or autoencoder.encode, flat, config.batch_size)
        moments = found if isinstance(found, tuple) else (found,)
        split = (part.reshape(*views.shape[:2], *part.shape[1:]) for part in moments)
        with np.errstate(over="ignore"):
            parts.append(tuple(part.astype(config.dtype) for part in split))
        waiting.clear()

    for at, found in enumerate(images.each(source.items[rows], _prepared(config))):
        if isinstance(found, Damaged):
            damaged.append(str(found))
        else:
            kept.append(rows.start + at)
            waiting.append(found)
        if len(waiting) == config.batch_size:
            flush()
            update(at + 1)
    if waiting:
        flush()
    update(rows.stop - rows.start)
    if not kept:
        raise UserError(f"none of {len(damaged)} pictures of a shard can be read; the first: {damaged[0]}")
    arrays = dict(zip(("mean", "std"), map(np.concatenate, zip(*parts, strict=True)), strict=False))
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"latents of {autoencoder.name} are not finite in {config.dtype}; are these the right weights?")
    return arrays | ({} if source.label is None else {"label": source.label[kept]}), damaged


def _advance(task: Task, before: int, at: int) -> None:
    task.update(before + at)


def _prepared(config: LatentConfig) -> ImageConfig:
    return ImageConfig(size=config.size, channels="rgb", strict=config.strict)


def _settings(path: Path, source: Pictures, autoencoder: Autoencoder, config: LatentConfig) -> dict[str, Any]:
    """What a folder of latents was made from; all of it must agree for an encoding to go on."""
    digest = hashlib.sha256(b"" if source.label is None else source.label.tobytes())
    for item in source.items:
        digest.update(item.name.removeprefix(str(path)).encode() if isinstance(item, Encoded) else item.tobytes())
    kept = {name: getattr(config, name) for name in ("size", "flip", "shard", "dtype", "strict")}
    return kept | {
        "format": FORMAT,
        "pictures": len(source.items),
        "pictures_sha256": digest.hexdigest(),
        "autoencoder": autoencoder.name,
        "autoencoder_sha256": autoencoder.sha256,
    }


def _open(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The index of an encoding to go on with, or a new one."""
    if is_folder(folder):
        index = read_index(folder)
        for left_over in folder.glob(".latents*.tmp"):
            left_over.unlink()
        for name, value in settings.items():
            if index["settings"].get(name) != value:
                raise UserError(
                    f"{folder}: holds latents with {name} = {index['settings'].get(name)}, asked is {value}; "
                    "choose another folder"
                )
        return index
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {locks.LOCK}):
        raise UserError(f"{folder}: exists and is not empty; choose another folder")
    index = {"settings": settings, "num_classes": 0, "shards": {}, "complete": False}
    write_json(folder / INDEX, index)
    return index


def _summary(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Count, and mean and variance of each channel, of a shard."""
    mean = arrays["mean"].astype(np.float64).reshape(-1, arrays["mean"].shape[-1])
    variance = mean.var(axis=0)
    if "std" in arrays:
        variance += (arrays["std"].astype(np.float64).reshape(mean.shape) ** 2).mean(axis=0)
    return {
        "count": len(arrays["mean"]),
        "shape": list(arrays["mean"].shape[1:]),
        "mean": mean.mean(axis=0).tolist(),
        "variance": variance.tolist(),
    }


def _statistics(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each channel over all shards."""
    weight = np.array([shard["count"] for shard in shards], float)
    weight /= weight.sum()
    means, variances = (np.array([shard[name] for shard in shards]) for name in ("mean", "variance"))
    mean = weight @ means
    std = np.sqrt(weight @ (variances + (means - mean) ** 2))
    std[std == 0] = 1.0  # a constant channel keeps its scale
    count = sum(shard["count"] for shard in shards)
    return {"count": count, "shape": shards[0]["shape"][1:], "mean": mean.tolist(), "std": std.tolist()}
