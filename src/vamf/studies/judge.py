"""Who judges the pictures of a study, and what real pictures score.

| pictures                           | Fréchet distance                      | class accuracy      |
|------------------------------------|---------------------------------------|---------------------|
| any                                | features of a classifier trained here | the same classifier |
| CIFAR-10, with VAMF_INCEPTION set  | Inception's features: FID-768         |                     |
| CIFAR-10, with VAMF_CLASSIFIER set |                                       | a CIFAR ResNet      |
| decoded latents                    | Inception's features, the deepest     | none                |

The reference is all held-out pictures. The floor is what real pictures score, as many as there are samples: a Fréchet
distance falls with their number. Where the classifier is trained here, they are pictures that it has not seen.
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
"""More pictures than any test set has."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Feature extractors and the statistics of the held-out pictures."""

    distance: Extractor
    """Of the Fréchet distance."""
    classes: Extractor | None
    """Its logits say which class a picture is; None where there is no judge of classes."""
    view: Viewer
    """Samples in original units to pictures."""
    reference: Statistics
    """Of the held-out pictures."""
    floor: dict[str, Any]
    """The scores of `n` real pictures, and who gave them."""
    notes: tuple[str, ...]
    """What there is to say about it, in sentences."""

    @property
    def name(self) -> str:
        """What the distance may be called."""
        return self.distance.identity.score("FID", "Fréchet distance")

    def scores(self, samples: np.ndarray, label: Int[np.ndarray, " n"]) -> dict[str, float | None]:
        """`frechet`, its bootstrap error `frechet_error`, and `accuracy`, the share taken for the class asked for.

        Args:
            samples: (n, *event) in original units; of samples that are not finite there are no scores.
        """
        if not np.isfinite(samples).all():
            return {"frechet": None, "frechet_error": None, "accuracy": None}
        return _scores(self.view(samples), label, self.distance, self.classes, self.reference)


def check(dataset: Dataset) -> None:
    """Refuse pictures that nobody here can judge.

    Raises:
        UserError: what is needed, in one line.
    """
    if dataset.latents is not None:
        if not os.environ.get(AUTOENCODER) or not os.environ.get(ENVIRONMENT):
            raise UserError(
                f"{dataset.name}: latents are judged as pictures; set {AUTOENCODER} to the weights of the autoencoder "
                f"that made them and {ENVIRONMENT} to Inception's"
            )
    elif not isinstance(dataset.arrays, dict) or not {"pixels", "label"} <= set(dataset.arrays):
        raise UserError(f"{dataset.name}: a judge is trained on pictures with classes that are in memory")


def appoint(folder: Path, dataset: Dataset, count: int, epochs: int, progress: Progress) -> Judge:
    """The judge of pictures that passed `check`; what it takes time to find is kept in the folder.

    Args:
        count: number of samples that will be judged together.
        epochs: passes over the pictures for a classifier that is trained here.

    Raises:
        UserError: weights that cannot be read.
    """
    inception, resnet = os.environ.get(ENVIRONMENT, ""), os.environ.get(CLASSIFIER, "")
    notes: list[str] = []
    real = None
    if dataset.latents is not None:
        view, distance, classes = viewer(dataset, Path(os.environ[AUTOENCODER])), open_extractor(inception), None
        notes.append("Latents, those of the held-out pictures among them, are decoded before they are judged.")
    else:
        view = viewer(dataset)
        cifar = dataset.name == "cifar10"
        distance = open_extractor(inception, CIFAR_FEATURES) if cifar and inception else None
        classes = open_extractor(resnet) if cifar and resnet else None
        if distance is None or classes is None:
            own, real = _own(folder, dataset, epochs, progress, notes)
            distance, classes = distance or own, classes or own
        if classes is not distance:
            notes.append(f"Classes are told by `{classes.identity.label}`.")
    reference = _reference(folder / "reference.npz", dataset, distance, view, progress)
    pictures, label = real or _drawn(dataset, view, count)
    floor = _floor(folder / "floor.json", pictures[:count], label[:count], distance, classes, reference)
    return Judge(distance, classes, view, reference, floor, tuple(notes))


def _own(
    folder: Path, dataset: Dataset, epochs: int, progress: Progress, notes: list[str]
) -> tuple[Extractor, tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]]:
    """The classifier trained on the data set's own pictures, now if it is not yet, and the pictures it has not seen."""
    pixels = np.asarray(dataset.arrays["pixels"]).reshape(-1, *dataset.event_shape)
    label = np.asarray(dataset.arrays["label"])
    path = folder / f"{dataset.name}-classifier.npz"
    if not path.exists():
        with progress.task("the judge", epochs, unit="epochs") as task:
            write_arrays(path, classifier.train(pixels, label, dataset.num_classes, epochs, advance=task.update))
    accuracy = float(tensors.read(path)["accuracy"])
    rows = classifier.split(len(pixels))[1]
    notes.append(
        f"`{path.name}` (two convolutions, a hidden layer of {classifier.DIMENSIONS}, {epochs} epochs) was trained on "
        f"the data's own pictures and tells the classes of {len(rows):,} that it has not seen with an accuracy of "
        f"{100 * accuracy:.1f} %."
    )
    return open_extractor(str(path)), (pixels[rows], label[rows])


def _reference(path: Path, dataset: Dataset, distance: Extractor, view: Viewer, progress: Progress) -> Statistics:
    if path.exists():
        found = Statistics.load(path)
        if found.extractor is not None and found.extractor.features == distance.identity.features:
            return found
    pictures = view(dataset.reference(ALL, 0))
    with progress.task("held-out pictures", len(pictures), unit="pictures") as task:
        features = extract(from_array(pictures), distance, advance=task.update)
    found = features.moments.statistics(features.identity)
    found.save(path)
    return found


def _floor(path: Path, pictures, label, distance, classes, reference) -> dict[str, Any]:
    judges = [extractor.identity.label + extractor.identity.sha256 for extractor in (distance, classes) if extractor]
    if not path.exists() or json.loads(path.read_text())["judges"] != judges:
        found = _scores(pictures, label, distance, classes, reference)
        write_json(path, {"judges": judges, "n": len(pictures), **found})
    return json.loads(path.read_text())


def _drawn(dataset: Dataset, view: Viewer, count: int):
    """Training pictures and their classes."""
    x, label = dataset.draw(dataset.arrays, jax.random.key(2**30), count)
    return view(dataset.to_original(np.asarray(x))), np.asarray(label)


def _scores(
    pictures: UInt8[np.ndarray, "n h w c"],
    label: Int[np.ndarray, " n"],
    distance: Extractor,
    classes: Extractor | None,
    reference: Statistics,
) -> dict[str, float | None]:
    images = from_array(pictures)
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
