"""`vamf data latents`: encoding images shard by shard; a killed encoding can be resumed.

Shards hold consecutive images and are written atomically, and the index after each of them: a resumed encoding
continues with the first shard that is not in the index.
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
from vamf.autoencoders.images import from_bytes, map_in_batches, psnr, to_bytes
from vamf.data import image_dataset, image_files
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import CorruptImage, EncodedImage, ImageSet
from vamf.data.image_reading import QUIET, iter_decoded
from vamf.data.latents import FORMAT, INDEX, is_folder, read_index
from vamf.errors import UserError, require
from vamf.field_types import check_field_types
from vamf.files import finite, write_arrays, write_json
from vamf.progress import Progress, Task

NUM_PSNR_IMAGES = 16
"""Number of images whose reconstruction is measured."""


@dataclasses.dataclass(frozen=True)
@check_field_types()
class LatentConfig:
    """How images are encoded."""

    size: int = 256
    """Height and width of the images after shrinking and a centre crop."""
    flip: bool = False
    """Encode the mirror images too; each draw takes one of the two."""
    shard: int = 4096
    """Images in a shard."""
    batch_size: int = 16
    """Images encoded together."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored latents."""
    strict: bool = False
    """Refuse damaged images instead of leaving them out."""

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
    """Encode the images of a file or folder; the same call resumes an interrupted encoding.

    Returns:
        The index, as in `latents.json`.

    Raises:
        UserError: unsupported images, a folder with other contents, one in which another process is encoding, or a file
            that cannot be written.
    """
    factor = autoencoder.downsampling
    require(config.size % factor == 0, "size", config.size, f"a multiple of {factor}, the autoencoder's factor")
    source = image_files.read(path)
    with locks.folder_lock(folder, "encoded"):
        return _encode(path, source, autoencoder, folder, config, progress)


def _encode(
    path: Path, source: ImageSet, autoencoder: Autoencoder, folder: Path, config: LatentConfig, progress: Progress
) -> dict[str, Any]:
    label, classes, num_classes = image_dataset.resolve_classes(
        str(path), source.label, source.classes, source.num_classes
    )
    source = source._replace(label=label)
    index = _open_index(folder, _settings(path, source, autoencoder, config))
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
    on_disk = {name for name, _ in shards if name in index["shards"] and (folder / name).exists()}
    if index["complete"] and len(on_disk) == len(shards):
        return index
    done = sum(rows.stop - rows.start for name, rows in shards if name in on_disk)
    with progress.task(f"encoding {path.name}", total, done, "images") as task:
        for name, rows in shards:
            if name in on_disk:
                continue
            arrays, corrupt = _encode_shard(source, rows, autoencoder, config, partial(_advance, task, done))
            write_arrays(folder / name, arrays)
            index["shards"][name] = _shard_statistics(arrays) | {"damaged": corrupt}
            write_json(folder / INDEX, index)
            done += rows.stop - rows.start
    index |= _total_statistics(list(index["shards"].values()))
    index["psnr"] = finite(reconstruction(source, autoencoder, config))
    index["complete"] = True
    write_json(folder / INDEX, index)
    return index


def reconstruction(
    source: ImageSet, autoencoder: Autoencoder, config: LatentConfig, count: int = NUM_PSNR_IMAGES
) -> float:
    """Mean PSNR in dB of the first images, encoded and decoded, against their bytes; NaN if none can be read."""
    decoded_images = iter_decoded(source.items[:count], _image_config(config))
    readable = [image for image in decoded_images if not isinstance(image, CorruptImage)]
    if not readable:
        return math.nan
    pixels = np.stack(readable)
    latents = map_in_batches(autoencoder.encode, from_bytes(pixels), config.batch_size)
    reconstructed = to_bytes(map_in_batches(autoencoder.decode, latents, config.batch_size))
    return float(np.mean(psnr(reconstructed, pixels)))


def _encode_shard(
    source: ImageSet, rows: slice, autoencoder: Autoencoder, config: LatentConfig, update: Callable[[int], None]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of one shard, and the corrupt images."""
    valid_rows, corrupt, pending = [], [], []
    parts: list[tuple[np.ndarray, ...]] = []

    def flush():
        pixels = from_bytes(np.stack(pending))
        views = np.stack([pixels, pixels[:, :, ::-1]] if config.flip else [pixels], axis=1)
        flat = views.reshape(-1, *pixels.shape[1:])
        outputs = map_in_batches(autoencoder.moments or autoencoder.encode, flat, config.batch_size)
        moments = outputs if isinstance(outputs, tuple) else (outputs,)
        by_view = (part.reshape(*views.shape[:2], *part.shape[1:]) for part in moments)
        with np.errstate(over="ignore"):
            parts.append(tuple(part.astype(config.dtype) for part in by_view))
        pending.clear()

    for index, image in enumerate(iter_decoded(source.items[rows], _image_config(config))):
        if isinstance(image, CorruptImage):
            corrupt.append(str(image))
        else:
            valid_rows.append(rows.start + index)
            pending.append(image)
        if len(pending) == config.batch_size:
            flush()
            update(index + 1)
    if pending:
        flush()
    update(rows.stop - rows.start)
    if not valid_rows:
        raise UserError(f"none of {len(corrupt)} images of a shard can be read; the first: {corrupt[0]}")
    arrays = dict(zip(("mean", "std"), map(np.concatenate, zip(*parts, strict=True)), strict=False))
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"latents of {autoencoder.name} are not finite in {config.dtype}; are these the right weights?")
    return arrays | ({} if source.label is None else {"label": source.label[valid_rows]}), corrupt


def _advance(task: Task, offset: int, done: int) -> None:
    task.update(offset + done)


def _image_config(config: LatentConfig) -> ImageConfig:
    return ImageConfig(size=config.size, channels="rgb", strict=config.strict)


def _settings(path: Path, source: ImageSet, autoencoder: Autoencoder, config: LatentConfig) -> dict[str, Any]:
    """Settings of a folder of latents, all of which must agree for an encoding to resume."""
    digest = hashlib.sha256(b"" if source.label is None else source.label.tobytes())
    for item in source.items:
        digest.update(item.name.removeprefix(str(path)).encode() if isinstance(item, EncodedImage) else item.tobytes())
    settings = {name: getattr(config, name) for name in ("size", "flip", "shard", "dtype", "strict")}
    return settings | {
        "format": FORMAT,
        "images": len(source.items),
        "images_sha256": digest.hexdigest(),
        "autoencoder": autoencoder.name,
        "autoencoder_sha256": autoencoder.sha256,
    }


def _open_index(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The index of an encoding to resume, or a new one."""
    if is_folder(folder):
        index = read_index(folder)
        for temporary in folder.glob(".latents*.tmp"):
            temporary.unlink()
        for name, value in settings.items():
            if index["settings"].get(name) != value:
                raise UserError(
                    f"{folder}: holds latents with {name} = {index['settings'].get(name)}, requested is {value}; "
                    "choose another folder"
                )
        return index
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {locks.LOCK}):
        raise UserError(f"{folder}: exists and is not empty; choose another folder")
    index = {"settings": settings, "num_classes": 0, "shards": {}, "complete": False}
    write_json(folder / INDEX, index)
    return index


def _shard_statistics(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Number of images, and mean and variance of each channel, of a shard."""
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


def _total_statistics(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each channel over all shards."""
    weight = np.array([shard["count"] for shard in shards], float)
    weight /= weight.sum()
    means, variances = (np.array([shard[name] for shard in shards]) for name in ("mean", "variance"))
    mean = weight @ means
    std = np.sqrt(weight @ (variances + (means - mean) ** 2))
    std[std == 0] = 1.0  # a constant channel keeps its scale
    count = sum(shard["count"] for shard in shards)
    return {"count": count, "shape": shards[0]["shape"][1:], "mean": mean.tolist(), "std": std.tolist()}
