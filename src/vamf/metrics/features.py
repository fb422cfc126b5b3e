"""Feature extractors, and images through them.

Any network can stand in for Inception: an `Extractor` is two functions and an identity, which names the scores.
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
from vamf.metrics.identity import Identity, is_genuine
from vamf.metrics.images import Images
from vamf.metrics.moments import Moments
from vamf.metrics.resize import Method, resize

PIXELS = "pixels"
ENVIRONMENT = "VAMF_INCEPTION"
"""Variable that names the weights file where an option does not."""
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
LARGEST_PICTURE = 32 * 32


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features."""

    identity: Identity
    """What it is."""
    prepare: Callable[[UInt8[np.ndarray, "n h w 3"]], Array]
    """Images of any size to the network's input, which has one size."""
    apply: Callable[[Array], dict[str, Array]]
    """Inputs to "features" (n, dims), and "logits" (n, classes) where there are classes."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What is left of images once they went through an extractor."""

    identity: Identity
    """Whose features they are."""
    moments: Moments
    """Count, mean and scatter."""
    rows: Float[np.ndarray, "n d"] | None
    """The features themselves, where they were kept."""
    logits: Float[np.ndarray, "n classes"] | None
    """Where they were kept and the extractor has them."""
    sha256: str
    """Hash of the images, their sizes and order."""


# ---------------------------------------------------------------------------------------------------------- extractors


def open_extractor(weights: str = "", dims: int | None = None, method: Method = "tensorflow") -> Extractor:
    """The extractor whose weights are in a file, recognised by its tensors; or `pixels`, which needs none.

    Args:
        weights: path of Inception's weights (see `vamf.metrics.inception.load`), of a CIFAR-10 ResNet's or of a
            classifier of `vamf.metrics.classifier`; where empty, the variable VAMF_INCEPTION says.
        dims: length of the features; the deepest that the file has where left out.
        method: resizing before Inception.

    Raises:
        UserError: no file, a file of another network, tensors missing or misshapen, or a length it does not have.
    """
    weights = weights or os.environ.get(ENVIRONMENT, "")
    if not weights:
        raise UserError(
            f"weights: no file named. FID needs Inception's, {PUBLISHED} from the releases of pytorch-fid: "
            f"give --weights FILE or set {ENVIRONMENT}; --weights {PIXELS} compares bare pixels"
        )
    if weights == PIXELS:
        return _pixels(dims)
    path = Path(weights)
    found = tensors.read(path)
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    if "weights_conv" in found or "Conv2d_1a_3x3.conv.weight" in found:
        return _inception(found, dims, method, sha256, path)
    if any(name.removeprefix("module.") == "layer1.0.conv1.weight" for name in found):
        return _cifar_resnet(found, dims, sha256, path)
    if classifier.is_one(found):
        return _classifier(found, dims, sha256, path)
    named = ", ".join(list(found)[:3])
    raise UserError(f"{path}: tensors {named}, ...: allowed are Inception's of 2015 and those of CIFAR-10 ResNets")


def _inception(found: dict[str, np.ndarray], dims: int | None, method: Method, sha256: str, path: Path) -> Extractor:
    deepest = 2048 if "Conv2d_1a_3x3.conv.weight" in found else 1280
    dims = dims or deepest
    if dims not in inception.DIMENSIONS:
        raise UserError(f"dims = {dims}: allowed are {', '.join(map(str, inception.DIMENSIONS))}")
    parameters = inception.load(found, dims, path)

    @jax.jit
    def run(parameters, x):
        found = inception.features(parameters, (x - 128) / 128, dims)
        return {"features": found.pop(str(dims)), **{name: found[name] for name in ("logits",) if name in found}}

    return Extractor(
        Identity("inception-2015-12-05" if is_genuine(sha256) else path.name, dims, method, sha256),
        prepare=lambda images: resize(images, inception.SIZE, method),
        apply=lambda x: run(parameters, x),
    )


def _cifar_resnet(found: dict[str, np.ndarray], dims: int | None, sha256: str, path: Path) -> Extractor:
    if dims not in (None, cifar_resnet.DIMENSIONS):
        raise UserError(f"dims = {dims}: a CIFAR ResNet has {cifar_resnet.DIMENSIONS}")
    parameters = cifar_resnet.load(found, path)

    @jax.jit
    def run(parameters, x):
        found = cifar_resnet.features(parameters, x)
        return {"features": found[str(cifar_resnet.DIMENSIONS)], "logits": found["logits"]}

    def prepare(images):
        if images.shape[1:3] != (cifar_resnet.SIZE, cifar_resnet.SIZE):
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]}: a CIFAR ResNet takes 32x32 only")
        return jnp.asarray(images, jnp.float32)

    identity = Identity(path.stem, cifar_resnet.DIMENSIONS, sha256=sha256)
    return Extractor(identity, prepare, lambda x: run(parameters, x))


def _classifier(found: dict[str, np.ndarray], dims: int | None, sha256: str, path: Path) -> Extractor:
    if dims not in (None, classifier.DIMENSIONS):
        raise UserError(f"dims = {dims}: a classifier of vamf has {classifier.DIMENSIONS}")
    parameters, size = classifier.load(found, path)
    run = jax.jit(classifier.features)
    identity = Identity(path.stem, classifier.DIMENSIONS, sha256=sha256)
    return Extractor(identity, lambda images: classifier.prepare(images, size), lambda x: run(parameters, x))


def _pixels(dims: int | None) -> Extractor:
    if dims is not None:
        raise UserError(f"dims = {dims}: of bare pixels there are as many as the images have")

    def prepare(images):
        if images.shape[1] * images.shape[2] > LARGEST_PICTURE:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]}: bare pixels are compared up to 32x32")
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
    """All images through an extractor, in memory for one batch; with `keep` also for the features of all.

    Several processes take the batches in turns and tell each other the features: all return the same, to the last bit
    what one process finds.

    Args:
        advance: called with the number of images that are done.

    Raises:
        UserError: an image does not suit the extractor, or fewer than two can be read.
    """
    digest = hashlib.sha256()
    moments: Moments | None = None
    kept: list[dict[str, np.ndarray]] = []
    done = 0
    for found in _through(_batches(images, batch_size, digest), images.path, extractor):
        part = Moments.of(found["features"])
        moments = part if moments is None else moments + part
        done += len(found["features"])
        advance(done)
        if keep:
            kept.append(found)
    if moments is None or moments.count < 2:
        raise UserError(f"{images.path}: {done} readable images; two or more are needed")
    rows, logits = (
        np.concatenate([found[name] for found in kept]) if kept and name in kept[0] else None
        for name in ("features", "logits")
    )
    identity = dataclasses.replace(extractor.identity, dims=len(moments.mean))
    return Features(identity, moments, rows, logits, digest.hexdigest())


def _batches(images: Images, size: int, digest: Any) -> Iterator[tuple[list[np.ndarray], int]]:
    """Images in batches of exactly `size`, in pieces of one size of image each, the last filled up; how many count."""
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
    if held := sum(map(len, pieces)):
        yield [*pieces, np.repeat(pieces[-1][-1:], size - held, axis=0)], held


def _through(
    batches: Iterator[tuple[list[np.ndarray], int]], path: Path, extractor: Extractor
) -> Iterator[dict[str, np.ndarray]]:
    """Features of each batch in order, each from the process whose turn it is; a device works while others are read."""
    number, processes = jax.process_index(), jax.process_count()
    waiting: collections.deque[tuple[dict[str, Array], list[int]]] = collections.deque()
    shape = None
    while together := list(itertools.islice(batches, processes)):
        mine, _ = together[min(number, len(together) - 1)]  # at the end some do what another does too
        parts = [extractor.prepare(piece) for piece in mine if len(piece)]
        shape = shape or parts[0].shape[1:]
        if any(part.shape[1:] != shape for part in parts):
            raise UserError(f"{path}: images of different sizes; {extractor.identity.name} needs one size")
        waiting.append((extractor.apply(_joined(parts)), [count for _, count in together]))
        if len(waiting) > 1:
            yield from _fetched(*waiting.popleft())
    while waiting:
        yield from _fetched(*waiting.popleft())


def _joined(pieces: list[Any]) -> Any:
    """Together; on the host, where sizes that never come again compile nothing."""
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.asarray(piece) for piece in pieces])


def _fetched(found: dict[str, Array], counts: list[int]) -> Iterator[dict[str, np.ndarray]]:
    """What the processes found of a batch each, and of that the images that count."""
    told = distributed.told_all(found)
    for place, count in enumerate(counts):
        yield {name: value[place, :count] for name, value in told.items()}
