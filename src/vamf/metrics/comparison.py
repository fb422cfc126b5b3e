"""All scores between two sets of images, or of statistics, in one pass over the images.

The result is ready for JSON: scores with their errors, and metadata (extractor and its hash, resizing, numbers and
hashes of the images, how the samples were made).
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vamf import distributed
from vamf.errors import UserError
from vamf.metrics import bootstrap, frechet
from vamf.metrics.bootstrap import Estimate
from vamf.metrics.features import Extractor, Features, extract, open_extractor
from vamf.metrics.identity import Identity
from vamf.metrics.images import Images, open_images
from vamf.metrics.inception_score import SPLITS, inception_score
from vamf.metrics.kid import kid
from vamf.metrics.moments import Statistics, holds_statistics
from vamf.metrics.options import Options
from vamf.metrics.precision_recall import K_DENSITY, precision_recall
from vamf.progress import Progress
from vamf.version import __version__

MIN_USUAL_IMAGES = 10_000
"""Smallest usual number of images for a published score."""
MAX_PAIRWISE_IMAGES = 10_000
"""Largest number of images of each side in precision and recall, which compare all pairs."""
PROVENANCE = ("nfe", "guidance", "ema", "seed")
"""How samples were made: keys of `SAMPLES.json` next to the array `SAMPLES.npz`, or of `samples.json` in a folder."""

NEEDS = {
    "KID": "needs images on both sides",
    "precision": f"like recall, density and coverage, needs more than {K_DENSITY} images on both sides",
    "Inception score": f"needs an extractor with classes, and {SPLITS} images A or more",
}


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """One side of a comparison."""

    path: Path
    """Its file or folder."""
    statistics: Statistics
    """Mean and covariance."""
    features: Features | None
    """None for a file of statistics."""
    sha256: str
    """SHA-256 of the images' pixels in order, or of the file of statistics."""
    skipped: list[str]
    """Images that could not be read."""


def compare(a: Path | Images, b: Path | Images, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """All scores of A against the reference B, each a folder of images, a file of images or of statistics, or images.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the two sides are not comparable.
    """
    progress = progress or Progress(show=False)
    sources = [_open(side, options.strict) for side in (a, b)]
    extractor = None
    if any(isinstance(source, Images) for source in sources):
        extractor = open_extractor(options.weights, options.dims, options.resize)
    _common_extractor([_expected_features(source, extractor) for source in sources])  # before the expensive part
    need_features = options.kid or options.precision_recall
    need_sample_features = need_features or options.inception_score or options.bootstrap > 0
    samples = _extract_statistics(sources[0], extractor, options.batch_size, need_sample_features, progress)
    reference = _extract_statistics(sources[1], extractor, options.batch_size, need_features, progress)
    identity = _common_extractor([_expected_features(samples), _expected_features(reference)])
    if options.save is not None and distributed.is_main_process():
        reference.statistics.save(options.save)
    scores, left_out = _scores(samples, reference, identity, options)
    return {
        "scores": scores,
        "extractor": dataclasses.asdict(identity) if identity else None,
        "samples": _describe(samples) | _provenance(samples.path),
        "reference": _describe(reference),
        "left_out": left_out,
        "warnings": [*_warnings(samples), *_warnings(reference)],
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "vamf": __version__,
    }


# ------------------------------------------------------------------------------------------------------- the two sides


def _open(side: Path | Images, strict: bool) -> Images | ImageStatistics:
    """The images of a side, not extracted yet, or a file of statistics."""
    if isinstance(side, Images):
        return side
    if holds_statistics(side):
        return ImageStatistics(side, Statistics.load(side), None, hashlib.sha256(side.read_bytes()).hexdigest(), [])
    return open_images(side, strict)


def _extract_statistics(
    source: Images | ImageStatistics, extractor: Extractor | None, batch_size: int, keep: bool, progress: Progress
) -> ImageStatistics:
    """Statistics of images by the extractor."""
    if isinstance(source, ImageStatistics):
        return source
    assert extractor is not None
    with progress.task(str(source.path), source.count, unit="images") as task:
        features = extract(source, extractor, batch_size, keep, task.update)
    statistics = features.moments.statistics(features.identity)
    return ImageStatistics(source.path, statistics, features, features.sha256, source.skipped)


def _expected_features(
    source: Images | ImageStatistics, extractor: Extractor | None = None
) -> tuple[Path, Identity | None, int]:
    """Path, extractor, and length of the features that it has or will have; 0 where the length is not known yet."""
    if isinstance(source, ImageStatistics):
        return source.path, source.statistics.extractor, len(source.statistics.mean)
    assert extractor is not None
    dims = extractor.identity.dims
    return source.path, extractor.identity if dims else None, dims


def _common_extractor(sides: list[tuple[Path, Identity | None, int]]) -> Identity | None:
    """The extractor of both sides; None where neither states one."""
    identities = [(path, identity) for path, identity, _ in sides if identity]
    if len({identity.features for _, identity in identities}) > 1:
        labels = [f"{path}: {identity.label} {identity.sha256[:8]}" for path, identity in identities]
        raise UserError(f"features of two extractors have no distance ({'; '.join(labels)})")
    dims = [length for _, _, length in sides if length]
    if len(set(dims)) > 1:
        raise UserError(f"features of lengths {dims[0]} and {dims[1]} have no distance; choose --dims to match")
    return identities[0][1] if identities else None


def _describe(side: ImageStatistics) -> dict[str, Any]:
    return {"path": str(side.path), "n": side.statistics.count, "sha256": side.sha256, "skipped": side.skipped}


def _provenance(path: Path) -> dict[str, Any]:
    """How samples were made, from the JSON file next to them; None without one."""
    metadata_path = path / "samples.json" if path.is_dir() else path.with_suffix(".json")
    try:
        metadata = json.loads(metadata_path.read_text())
    except FileNotFoundError:
        metadata = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{metadata_path}: not readable as JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(metadata, dict) or (path.is_file() and metadata.get("file", path.name) != path.name):
        metadata = {}  # of other samples
    return {key: metadata.get(key) for key in PROVENANCE}


def _warnings(side: ImageStatistics) -> list[str]:
    n, dims, lines = side.statistics.count, len(side.statistics.mean), []
    if side.skipped:
        lines.append(f"{side.path}: {len(side.skipped)} images left out as unreadable, first {side.skipped[0]}")
    if side.statistics.extractor is None:
        lines.append(f"{side.path}: does not say which extractor its statistics are of")
    if n is not None and n <= dims:
        lines.append(
            f"{side.path}: {n:,} images for {dims:,} features: their covariance is singular, and the Fréchet distance "
            "much too large; use more images, or fewer --dims of an extractor that has a choice"
        )
    elif n is not None and n < MIN_USUAL_IMAGES:
        lines.append(
            f"{side.path}: {n:,} images: the Fréchet distance is too large by an amount that falls as 1/n; compare it "
            f"with distances from as many images only ({MIN_USUAL_IMAGES:,} or more are usual)"
        )
    return lines


# -------------------------------------------------------------------------------------------------------------- scores


def _scores(
    samples: ImageStatistics, reference: ImageStatistics, identity: Identity | None, options: Options
) -> tuple[dict, list]:
    """All scores by name; and the scores that were left out, and why."""
    rows, logits = (samples.features.rows, samples.features.logits) if samples.features else (None, None)
    reference_rows = reference.features.rows if reference.features else None
    bootstrap_options = {"bootstrap": options.bootstrap, "seed": options.seed}
    entries = {"FID": _entry(_frechet(samples.statistics, reference.statistics, rows, options))}
    if rows is not None and reference_rows is not None:
        if options.kid:
            entries["KID"] = _entry(*kid(rows, reference_rows, **bootstrap_options))
        if options.precision_recall and min(len(rows), len(reference_rows)) > K_DENSITY:
            by_point = precision_recall(_subsample(rows, options.seed), _subsample(reference_rows, options.seed))
            for name, values in by_point._asdict().items():
                entries[name] = _entry(bootstrap.mean(values, options.bootstrap, options.seed))
    if options.inception_score and logits is not None and len(logits) >= SPLITS:
        entries["Inception score"] = _entry(*inception_score(logits, **bootstrap_options))

    requested = {"KID": options.kid, "precision": options.precision_recall, "Inception score": options.inception_score}
    left_out = [f"{name}: {NEEDS[name]}" for name in requested if requested[name] and name not in entries]
    scores = {_name(identity, name): entry for name, entry in entries.items()}
    return scores, left_out


def _frechet(samples: Statistics, reference: Statistics, rows: np.ndarray | None, options: Options) -> Estimate:
    gaussian, reference_gaussian = (samples.mean, samples.covariance), (reference.mean, reference.covariance)
    value = frechet.frechet_distance(*gaussian, *reference_gaussian)
    if rows is None:
        return Estimate(value)
    return Estimate.of(value, frechet.replicates(rows, *reference_gaussian, options.bootstrap, options.seed))


def _name(identity: Identity | None, name: str) -> str:
    """`FID`, `KID-768`, or for other extractors than Inception words with the extractor's name."""
    words = {"FID": "Fréchet distance", "KID": "kernel distance", "Inception score": "class score"}.get(name, name)
    return identity.score(name, words) if identity else f"{words} (extractor not stated)"


def _entry(estimate: Estimate, std: float | None = None) -> dict[str, Any]:
    """An estimate for JSON; `spread` is the standard deviation over subsets or splits, where a score has those."""
    return estimate._asdict() | {"interval": estimate.interval, "spread": std}


def _subsample(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= MAX_PAIRWISE_IMAGES:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), MAX_PAIRWISE_IMAGES, replace=False)]
