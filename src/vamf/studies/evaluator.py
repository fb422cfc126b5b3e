"""What scores the images of a study, and what real images score.

| images                             | Fréchet distance                      | class accuracy      |
|------------------------------------|---------------------------------------|---------------------|
| any                                | features of a classifier trained here | the same classifier |
| CIFAR-10, with VAMF_INCEPTION set  | Inception's features: FID-768         |                     |
| CIFAR-10, with VAMF_CLASSIFIER set |                                       | a CIFAR ResNet      |
| decoded latents                    | Inception's features, the deepest     | none                |

The reference is all held-out images. The baseline is what real images score, as many as there are samples: a Fréchet
distance falls with their number. Where the classifier is trained here, they are images that it has not seen.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vamf import tensors
from vamf.data import Dataset
from vamf.data.viewing import Viewer, viewer
from vamf.errors import UserError
from vamf.files import write_arrays, write_json
from vamf.metrics import classifier, frechet
from vamf.metrics.bootstrap import Estimate
from vamf.metrics.features import ENVIRONMENT, Extractor, extract, open_extractor
from vamf.metrics.images import from_array
from vamf.metrics.moments import Statistics
from vamf.progress import Progress

CLASSIFIER = "VAMF_CLASSIFIER"
"""Variable that names a CIFAR ResNet's weights."""
AUTOENCODER = "VAMF_AUTOENCODER"
"""Variable that names the weights of the autoencoder of the latents."""
CIFAR_FEATURES = 768
REPLICATES = 20
"""Resamples for the error of a distance."""
ALL = 10**7
"""More images than any test set has."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Feature extractors and the statistics of the held-out images."""

    distance: Extractor
    """Of the Fréchet distance."""
    classes: Extractor | None
    """Its logits say which class an image is; None where nothing tells classes."""
    view: Viewer
    """Samples in original units to images."""
    reference: Statistics
    """Of the held-out images."""
    baseline: dict[str, Any]
    """The scores of `n` real images, and what gave them."""
    notes: tuple[str, ...]
    """What there is to say about it, in sentences."""

    @property
    def name(self) -> str:
        """What the distance may be called."""
        return self.distance.identity.score("FID", "Fréchet distance")

    def scores(self, samples: np.ndarray, label: Int[np.ndarray, " n"]) -> dict[str, float | None]:
        """`frechet`, its bootstrap error `frechet_error`, and `accuracy`, the fraction taken for the class requested.

        Args:
            samples: (n, *event) in original units; of samples that are not finite there are no scores.
        """
        if not np.isfinite(samples).all():
            return {"frechet": None, "frechet_error": None, "accuracy": None}
        return _scores(self.view(samples), label, self.distance, self.classes, self.reference)


def check(dataset: Dataset) -> None:
    """Refuse images that nothing here can score.

    Raises:
        UserError: what is needed, in one line.
    """
    if dataset.latents is not None:
        if not os.environ.get(AUTOENCODER) or not os.environ.get(ENVIRONMENT):
            raise UserError(
                f"{dataset.name}: latents are scored as images; set {AUTOENCODER} to the weights of the autoencoder "
                f"that made them and {ENVIRONMENT} to Inception's"
            )
    elif not isinstance(dataset.arrays, dict) or not {"pixels", "label"} <= set(dataset.arrays):
        raise UserError(f"{dataset.name}: an evaluator is trained on images with classes that are in memory")


def make_evaluator(folder: Path, dataset: Dataset, count: int, epochs: int, progress: Progress) -> Evaluator:
    """The evaluator of images that passed `check`; what it takes time to find is kept in the folder.

    Args:
        count: number of samples that will be scored together.
        epochs: passes over the images for a classifier that is trained here.

    Raises:
        UserError: weights that cannot be read.
    """
    inception, resnet = os.environ.get(ENVIRONMENT, ""), os.environ.get(CLASSIFIER, "")
    notes: list[str] = []
    real = None
    if dataset.latents is not None:
        view, distance, classes = viewer(dataset, Path(os.environ[AUTOENCODER])), open_extractor(inception), None
        notes.append("Latents, those of the held-out images among them, are decoded before they are scored.")
    else:
        view = viewer(dataset)
        cifar = dataset.name == "cifar10"
        distance = open_extractor(inception, CIFAR_FEATURES) if cifar and inception else None
        classes = open_extractor(resnet) if cifar and resnet else None
        if distance is None or classes is None:
            trained, real = _trained_here(folder, dataset, epochs, progress, notes)
            distance, classes = distance or trained, classes or trained
        if classes is not distance:
            notes.append(f"Classes are told by `{classes.identity.label}`.")
    reference = _reference(folder / "reference.npz", dataset, distance, view, progress)
    images, label = real or _training_images(dataset, view, count)
    baseline = _baseline(folder / "floor.json", images[:count], label[:count], distance, classes, reference)
    return Evaluator(distance, classes, view, reference, baseline, tuple(notes))


def _trained_here(
    folder: Path, dataset: Dataset, epochs: int, progress: Progress, notes: list[str]
) -> tuple[Extractor, tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]]:
    """The classifier trained on the data set's own images, now if it is not yet, and the images it has not seen."""
    pixels = np.asarray(dataset.arrays["pixels"]).reshape(-1, *dataset.event_shape)
    label = np.asarray(dataset.arrays["label"])
    path = folder / f"{dataset.name}-classifier.npz"
    if not path.exists():
        with progress.task("the evaluator", epochs, unit="epochs") as task:
            write_arrays(path, classifier.train(pixels, label, dataset.num_classes, epochs, advance=task.update))
    accuracy = float(tensors.read(path)["accuracy"])
    rows = classifier.split(len(pixels))[1]
    notes.append(
        f"`{path.name}` (two convolutions, a hidden layer of {classifier.DIMENSIONS}, {epochs} epochs) was trained on "
        f"the data's own images and tells the classes of {len(rows):,} that it has not seen with an accuracy of "
        f"{100 * accuracy:.1f} %."
    )
    return open_extractor(str(path)), (pixels[rows], label[rows])


def _reference(path: Path, dataset: Dataset, distance: Extractor, view: Viewer, progress: Progress) -> Statistics:
    if path.exists():
        found = Statistics.load(path)
        if found.extractor is not None and found.extractor.features == distance.identity.features:
            return found
    images = view(dataset.reference(ALL, 0))
    with progress.task("held-out images", len(images), unit="images") as task:
        features = extract(from_array(images), distance, advance=task.update)
    found = features.moments.statistics(features.identity)
    found.save(path)
    return found


def _baseline(path: Path, images, label, distance, classes, reference) -> dict[str, Any]:
    evaluators = [
        extractor.identity.label + extractor.identity.sha256 for extractor in (distance, classes) if extractor
    ]
    if not path.exists() or json.loads(path.read_text())["judges"] != evaluators:
        found = _scores(images, label, distance, classes, reference)
        write_json(path, {"judges": evaluators, "n": len(images), **found})
    return json.loads(path.read_text())


def _training_images(dataset: Dataset, view: Viewer, count: int):
    """Training images and their classes."""
    x, label = dataset.draw(dataset.arrays, jax.random.key(2**30), count)
    return view(dataset.to_original(np.asarray(x))), np.asarray(label)


def _scores(
    pixels: UInt8[np.ndarray, "n h w c"],
    label: Int[np.ndarray, " n"],
    distance: Extractor,
    classes: Extractor | None,
    reference: Statistics,
) -> dict[str, float | None]:
    images = from_array(pixels)
    seen = extract(images, distance, keep=True)
    found, theirs = seen.moments.statistics(), (reference.mean, reference.covariance)
    assert seen.rows is not None
    value = frechet.frechet_distance(found.mean, found.covariance, *theirs)
    error = Estimate.of(value, frechet.replicates(seen.rows, *theirs, REPLICATES)).error
    accuracy = None
    if classes is not None:
        logits = seen.logits if classes is distance else extract(images, classes, keep=True).logits
        assert logits is not None
        accuracy = float(np.mean(logits.argmax(axis=1) == label))
    return {"frechet": value, "frechet_error": error, "accuracy": accuracy}
