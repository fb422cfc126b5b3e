"""Feature extractors, and the features of images.

Any network can replace Inception: an `Extractor` is two functions and an identity, which names the scores.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vamf import distributed, tensors
from vamf.errors import UserError
from vamf.metrics import cifar_resnet, classifier, inception
from vamf.metrics.identity import Identity, is_inception_2015
from vamf.metrics.images import Images
from vamf.metrics.moments import Moments
from vamf.metrics.resize import Method, resize

PIXELS = "pixels"
ENV_VARIABLE = "VAMF_INCEPTION"
"""Environment variable with the default path of the weights."""
PUBLISHED_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
MAX_PIXELS = 32 * 32


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features."""

    identity: Identity
    """Identifies the features."""
    prepare: Callable[[UInt8[np.ndarray, "n h w 3"]], Array]
    """Images of any size -> the network's input of fixed size."""
    apply: Callable[[Array], dict[str, Array]]
    """Inputs -> "features" (n, dims), and "logits" (n, classes) where there are classes."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of images and their moments."""

    identity: Identity
    """The extractor."""
    moments: Moments
    """Count, mean and scatter."""
    rows: Float[np.ndarray, "n d"] | None
    """The features, if `keep` was set."""
    logits: Float[np.ndarray, "n classes"] | None
    """The logits, if `keep` was set and the extractor has them."""
    sha256: str
    """Hash of the images, their sizes and order."""


# ---------------------------------------------------------------------------------------------------------- extractors


def open_extractor(weights: str = "", dims: int | None = None, method: Method = "tensorflow") -> Extractor:
    """The extractor whose weights are in a file, recognised by its tensors; or `pixels`, which needs none.

    Args:
        weights: path of Inception's weights (see `vamf.metrics.inception.load`), of a CIFAR-10 ResNet's or of a
            classifier of `vamf.metrics.classifier`; where empty, by the variable VAMF_INCEPTION.
        dims: length of the features; by default the deepest in the file.
        method: resizing before Inception.

    Raises:
        UserError: no file, a file of another network, tensors missing or misshapen, or an unsupported length.
    """
    weights = weights or os.environ.get(ENV_VARIABLE, "")
    if not weights:
        raise UserError(
            f"weights: no file named. FID needs Inception's, {PUBLISHED_WEIGHTS} from the releases of pytorch-fid: "
            f"give --weights FILE or set {ENV_VARIABLE}; --weights {PIXELS} compares raw pixels"
        )
    if weights == PIXELS:
        return _pixels(dims)
    path = Path(weights)
    state_dict = tensors.read(path)
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    if "weights_conv" in state_dict or "Conv2d_1a_3x3.conv.weight" in state_dict:
        return _inception(state_dict, dims, method, sha256, path)
    if any(name.removeprefix("module.") == "layer1.0.conv1.weight" for name in state_dict):
        return _cifar_resnet(state_dict, dims, sha256, path)
    if classifier.is_classifier(state_dict):
        return _classifier(state_dict, dims, sha256, path)
    names = ", ".join(list(state_dict)[:3])
    raise UserError(f"{path}: tensors {names}, ...: allowed are Inception's of 2015 and those of CIFAR-10 ResNets")


def _inception(
    state_dict: dict[str, np.ndarray], dims: int | None, method: Method, sha256: str, path: Path
) -> Extractor:
    deepest = 2048 if "Conv2d_1a_3x3.conv.weight" in state_dict else 1280
    dims = dims or deepest
    if dims not in inception.DIMENSIONS:
        raise UserError(f"dims = {dims}: allowed are {', '.join(map(str, inception.DIMENSIONS))}")
    parameters = inception.load(state_dict, dims, path)

    @jax.jit
    def run(parameters, x):
        outputs = inception.features(parameters, (x - 128) / 128, dims)
        return {"features": outputs.pop(str(dims)), **{name: outputs[name] for name in ("logits",) if name in outputs}}

    return Extractor(
        Identity("inception-2015-12-05" if is_inception_2015(sha256) else path.name, dims, method, sha256),
        prepare=lambda images: resize(images, inception.SIZE, method),
        apply=lambda x: run(parameters, x),
    )


def _cifar_resnet(state_dict: dict[str, np.ndarray], dims: int | None, sha256: str, path: Path) -> Extractor:
    if dims not in (None, cifar_resnet.DIMENSIONS):
        raise UserError(f"dims = {dims}: a CIFAR ResNet has {cifar_resnet.DIMENSIONS}")
    parameters = cifar_resnet.load(state_dict, path)

    @jax.jit
    def run(parameters, x):
        outputs = cifar_resnet.features(parameters, x)
        return {"features": outputs[str(cifar_resnet.DIMENSIONS)], "logits": outputs["logits"]}

    def prepare(images):
        if images.shape[1:3] != (cifar_resnet.SIZE, cifar_resnet.SIZE):
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]}: a CIFAR ResNet takes 32x32 only")
        return jnp.asarray(images, jnp.float32)

    identity = Identity(path.stem, cifar_resnet.DIMENSIONS, sha256=sha256)
    return Extractor(identity, prepare, lambda x: run(parameters, x))


def _classifier(state_dict: dict[str, np.ndarray], dims: int | None, sha256: str, path: Path) -> Extractor:
    if dims not in (None, classifier.DIMENSIONS):
        raise UserError(f"dims = {dims}: a classifier of vamf has {classifier.DIMENSIONS}")
    parameters, size = classifier.load(state_dict, path)
    run = jax.jit(classifier.features)
    identity = Identity(path.stem, classifier.DIMENSIONS, sha256=sha256)
    return Extractor(identity, lambda images: classifier.prepare(images, size), lambda x: run(parameters, x))


def _pixels(dims: int | None) -> Extractor:
    if dims is not None:
        raise UserError(f"dims = {dims}: fixed by the size of the images for raw pixels")

    def prepare(images):
        if images.shape[1] * images.shape[2] > MAX_PIXELS:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]}: raw pixels are compared up to 32x32")
        return jnp.asarray(images.reshape(len(images), -1), jnp.float32) / 255

    return Extractor(Identity(PIXELS, 0), prepare, lambda x: {"features": jnp.asarray(x)})


# --------------------------------------------------------------------------------------------------------- extraction


def extract(
    images: Images,
    extractor: Extractor,
    batch_size: int = 64,
    keep: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features of all images, batch by batch; memory holds one batch, with `keep` also all features.

    Several processes share the batches and broadcast their features: all return the same result, bit-identical to that
    of a single process.

    Args:
        advance: called with the number of processed images.

    Raises:
        UserError: an image does not suit the extractor, or fewer than two can be read.
    """
    digest = hashlib.sha256()
    moments: Moments | None = None
    batches: list[dict[str, np.ndarray]] = []
    done = 0
    for batch in _extract_batches(_batches(images, batch_size, digest), images.path, extractor):
        batch_moments = Moments.of(batch["features"])
        moments = batch_moments if moments is None else moments + batch_moments
        done += len(batch["features"])
        advance(done)
        if keep:
            batches.append(batch)
    if moments is None or moments.count < 2:
        raise UserError(f"{images.path}: {done} readable images; two or more are needed")
    rows, logits = (
        np.concatenate([batch[name] for batch in batches]) if batches and name in batches[0] else None
        for name in ("features", "logits")
    )
    identity = dataclasses.replace(extractor.identity, dims=len(moments.mean))
    return Features(identity, moments, rows, logits, digest.hexdigest())


def _batches(images: Images, size: int, digest: Any) -> Iterator[tuple[list[np.ndarray], int]]:
    """Batches of exactly `size` images, as pieces of equal image size, and how many are no padding."""
    size = min(size, images.count)
    pieces: list[np.ndarray] = []
    for batch in images.batches(size):
        for image in batch:
            digest.update(f"{image.shape[0]} {image.shape[1]} ".encode() + image.tobytes())
        room = size - sum(map(len, pieces))
        pieces.append(batch[:room])
        if len(batch) >= room:
            yield pieces, size
            pieces = [batch[room:]] if len(batch) > room else []
    if num_left := sum(map(len, pieces)):
        yield [*pieces, np.repeat(pieces[-1][-1:], size - num_left, axis=0)], num_left


def _extract_batches(
    batches: Iterator[tuple[list[np.ndarray], int]], path: Path, extractor: Extractor
) -> Iterator[dict[str, np.ndarray]]:
    """Features of each batch in order, distributed over processes; devices compute while the next batches are read."""
    process_index, num_processes = jax.process_index(), jax.process_count()
    pending: collections.deque[tuple[dict[str, Array], list[int]]] = collections.deque()
    shape = None
    while group := list(itertools.islice(batches, num_processes)):
        pieces, _ = group[min(process_index, len(group) - 1)]  # the last group may have fewer batches than processes
        parts = [extractor.prepare(piece) for piece in pieces if len(piece)]
        shape = shape or parts[0].shape[1:]
        if any(part.shape[1:] != shape for part in parts):
            raise UserError(f"{path}: images of different sizes; {extractor.identity.name} needs one size")
        pending.append((extractor.apply(_concatenate(parts)), [count for _, count in group]))
        if len(pending) > 1:
            yield from _gather(*pending.popleft())
    while pending:
        yield from _gather(*pending.popleft())


def _concatenate(pieces: list[Any]) -> Any:
    """Concatenated on the host, where one-off sizes are not compiled."""
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.asarray(piece) for piece in pieces])


def _gather(features: dict[str, Array], counts: list[int]) -> Iterator[dict[str, np.ndarray]]:
    """Features of each process's batch, without padding."""
    gathered = distributed.all_gather(features)
    for process, count in enumerate(counts):
        yield {name: value[process, :count] for name, value in gathered.items()}
