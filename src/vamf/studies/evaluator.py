"""Evaluators: they score the images of a study, and real images as a baseline.

| images                             | Fréchet distance                      | class accuracy      |
|------------------------------------|---------------------------------------|---------------------|
| any                                | features of a classifier trained here | the same classifier |
| CIFAR-10, with VAMF_INCEPTION set  | Inception's features: FID-768         |                     |
| CIFAR-10, with VAMF_CLASSIFIER set |                                       | a CIFAR ResNet      |
| decoded latents                    | Inception's features, the deepest     | none                |

The reference is all held-out images. The baseline is what real images score, as many as there are samples: a Fréchet
distance falls with their number. Where the classifier is trained here, they are images held out from its training.
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
from vamf.data.to_images import ToImages, make_to_images
from vamf.errors import UserError
from vamf.files import write_arrays, write_json
from vamf.metrics import classifier, frechet
from vamf.metrics.bootstrap import Estimate
from vamf.metrics.features import ENV_VARIABLE, Extractor, extract, open_extractor
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
    """A classifier; None where there is none."""
    to_images: ToImages
    """Samples in original units to images."""
    reference: Statistics
    """Of the held-out images."""
    baseline: dict[str, Any]
    """The scores of `n` real images, and the identities of the extractors."""
    notes: tuple[str, ...]
    """Sentences that describe it."""

    @property
    def name(self) -> str:
        """Name of the distance: FID only with Inception's features."""
        return self.distance.identity.score("FID", "Fréchet distance")

    def scores(self, samples: np.ndarray, label: Int[np.ndarray, " n"]) -> dict[str, float | None]:
        """`frechet`, its bootstrap error `frechet_error`, and `accuracy`, the fraction taken for the class requested.

        Args:
            samples: (n, *event) in original units; of samples that are not finite there are no scores.
        """
        if not np.isfinite(samples).all():
            return {"frechet": None, "frechet_error": None, "accuracy": None}
        return _scores(self.to_images(samples), label, self.distance, self.classes, self.reference)


def check(dataset: Dataset) -> None:
    """Refuse images that no evaluator can score.

    Raises:
        UserError: what is needed, in one line.
    """
    if dataset.latents is not None:
        if not os.environ.get(AUTOENCODER) or not os.environ.get(ENV_VARIABLE):
            raise UserError(
                f"{dataset.name}: latents are scored as images; set {AUTOENCODER} to the weights of the autoencoder "
                f"that made them and {ENV_VARIABLE} to Inception's"
            )
    elif not isinstance(dataset.arrays, dict) or not {"pixels", "label"} <= set(dataset.arrays):
        raise UserError(f"{dataset.name}: an evaluator is trained on images with classes that are in memory")


def make_evaluator(folder: Path, dataset: Dataset, count: int, epochs: int, progress: Progress) -> Evaluator:
    """The evaluator of images that passed `check`; expensive results are cached in the folder.

    Args:
        count: number of samples that will be scored together.
        epochs: passes over the images for a classifier that is trained here.

    Raises:
        UserError: weights that cannot be read.
    """
    inception, resnet = os.environ.get(ENV_VARIABLE, ""), os.environ.get(CLASSIFIER, "")
    notes: list[str] = []
    real = None
    if dataset.latents is not None:
        to_images, distance, classes = (
            make_to_images(dataset, Path(os.environ[AUTOENCODER])),
            open_extractor(inception),
            None,
        )
        notes.append("Latents, those of the held-out images among them, are decoded before they are scored.")
    else:
        to_images = make_to_images(dataset)
        cifar = dataset.name == "cifar10"
        distance = open_extractor(inception, CIFAR_FEATURES) if cifar and inception else None
        classes = open_extractor(resnet) if cifar and resnet else None
        if distance is None or classes is None:
            trained, real = _train_classifier(folder, dataset, epochs, progress, notes)
            distance, classes = distance or trained, classes or trained
        if classes is not distance:
            notes.append(f"Classes are predicted by `{classes.identity.label}`.")
    reference = _reference(folder / "reference.npz", dataset, distance, to_images, progress)
    images, label = real or _training_images(dataset, to_images, count)
    baseline = _baseline(folder / "baseline.json", images[:count], label[:count], distance, classes, reference)
    return Evaluator(distance, classes, to_images, reference, baseline, tuple(notes))


def _train_classifier(
    folder: Path, dataset: Dataset, epochs: int, progress: Progress, notes: list[str]
) -> tuple[Extractor, tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]]:
    """The classifier of the data set, trained if there is none yet, and the images held out from its training."""
    pixels = np.asarray(dataset.arrays["pixels"]).reshape(-1, *dataset.event_shape)
    label = np.asarray(dataset.arrays["label"])
    path = folder / f"{dataset.name}-classifier.npz"
    if not path.exists():
        with progress.task("the evaluator", epochs, unit="epochs") as task:
            write_arrays(path, classifier.train(pixels, label, dataset.num_classes, epochs, advance=task.update))
    accuracy = float(tensors.read(path)["accuracy"])
    rows = classifier.train_test_split(len(pixels))[1]
    notes.append(
        f"`{path.name}` (two convolutions, a hidden layer of {classifier.DIMENSIONS}, {epochs} epochs) was trained on "
        f"the data set's images; its accuracy on {len(rows):,} held-out images is {100 * accuracy:.1f} %."
    )
    return open_extractor(str(path)), (pixels[rows], label[rows])


def _reference(
    path: Path, dataset: Dataset, distance: Extractor, to_images: ToImages, progress: Progress
) -> Statistics:
    if path.exists():
        statistics = Statistics.load(path)
        if statistics.extractor is not None and statistics.extractor.features == distance.identity.features:
            return statistics
    images = to_images(dataset.reference(ALL, 0))
    with progress.task("held-out images", len(images), unit="images") as task:
        features = extract(from_array(images), distance, advance=task.update)
    statistics = features.moments.statistics(features.identity)
    statistics.save(path)
    return statistics


def _baseline(path: Path, images, label, distance, classes, reference) -> dict[str, Any]:
    evaluators = [
        extractor.identity.label + extractor.identity.sha256 for extractor in (distance, classes) if extractor
    ]
    if not path.exists() or json.loads(path.read_text())["evaluators"] != evaluators:
        scores = _scores(images, label, distance, classes, reference)
        write_json(path, {"evaluators": evaluators, "n": len(images), **scores})
    return json.loads(path.read_text())


def _training_images(dataset: Dataset, to_images: ToImages, count: int):
    """Training images and their classes."""
    x, label = dataset.draw(dataset.arrays, jax.random.key(2**30), count)
    return to_images(dataset.to_original(np.asarray(x))), np.asarray(label)


def _scores(
    pixels: UInt8[np.ndarray, "n h w c"],
    label: Int[np.ndarray, " n"],
    distance: Extractor,
    classes: Extractor | None,
    reference: Statistics,
) -> dict[str, float | None]:
    images = from_array(pixels)
    features = extract(images, distance, keep=True)
    sampled, real = features.moments.statistics(), (reference.mean, reference.covariance)
    assert features.rows is not None
    value = frechet.frechet_distance(sampled.mean, sampled.covariance, *real)
    error = Estimate.of(value, frechet.replicates(features.rows, *real, REPLICATES)).error
    accuracy = None
    if classes is not None:
        logits = features.logits if classes is distance else extract(images, classes, keep=True).logits
        assert logits is not None
        accuracy = float(np.mean(logits.argmax(axis=1) == label))
    return {"frechet": value, "frechet_error": error, "accuracy": accuracy}
