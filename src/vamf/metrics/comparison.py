"""Two sets of images, or of statistics, and every score between them in one pass over the images.

What comes out is a receipt: scores with their errors, and all that they depend on (extractor and its hash, resizing,
numbers and hashes of the images, how the samples were made), ready for JSON.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vamf import __version__, distributed
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

ENOUGH = 10_000
"""Images from which on scores are usually published."""
NEIGHBOURHOOD = 10_000
"""At most so many images of each side are compared pair by pair, for precision and recall."""
PROVENANCE = ("nfe", "guidance", "ema", "seed")
"""How samples were made: keys of `SAMPLES.json` beside the array `SAMPLES.npz`, or of `samples.json` in a folder."""

NEEDS = {
    "KID": "needs images on both sides",
    "precision": f"like recall, density and coverage, needs more than {K_DENSITY} images on both sides",
    "Inception score": f"needs {SPLITS} images A or more, and an extractor with classes",
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    path: Path
    """Where it is."""
    statistics: Statistics
    """Mean and covariance."""
    features: Features | None
    """None of a file of statistics."""
    sha256: str
    """Of the images' pixels in order, or of the file of statistics."""
    skipped: list[str]
    """Images that could not be read."""


def compare(a: Path | Images, b: Path | Images, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """All scores of A against the reference B, each a folder of images, a file of images or of statistics, or images.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the two sides do not belong together.
    """
    progress = progress or Progress(show=False)
    sources = [_opened(side, options.strict) for side in (a, b)]
    extractor = None
    if any(isinstance(source, Images) for source in sources):
        extractor = open_extractor(options.weights, options.dims, options.resize)
    _common([_foreseen(source, extractor) for source in sources])  # before hours of work
    pairs = options.kid or options.precision_recall
    keep = pairs or options.inception_score or options.bootstrap > 0
    samples = _seen(sources[0], extractor, options.batch_size, keep, progress)
    reference = _seen(sources[1], extractor, options.batch_size, pairs, progress)
    identity = _common([_foreseen(samples), _foreseen(reference)])
    if options.save is not None and distributed.is_first():
        reference.statistics.save(options.save)
    scores, left_out = _scores(samples, reference, identity, options)
    return {
        "scores": scores,
        "extractor": dataclasses.asdict(identity) if identity else None,
        "samples": _described(samples) | _provenance(samples.path),
        "reference": _described(reference),
        "left_out": left_out,
        "warnings": [*_warnings(samples), *_warnings(reference)],
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "vamf": __version__,
    }


# ------------------------------------------------------------------------------------------------------- the two sides


def _opened(side: Path | Images, strict: bool) -> Images | Side:
    """Images still to be looked at; of a file of statistics all there is."""
    if isinstance(side, Images):
        return side
    if holds_statistics(side):
        return Side(side, Statistics.load(side), None, hashlib.sha256(side.read_bytes()).hexdigest(), [])
    return open_images(side, strict)


def _seen(source: Images | Side, extractor: Extractor | None, batch_size: int, keep: bool, progress: Progress) -> Side:
    """Images through the extractor."""
    if isinstance(source, Side):
        return source
    assert extractor is not None
    with progress.task(str(source.path), source.count, unit="images") as task:
        features = extract(source, extractor, batch_size, keep, task.update)
    statistics = features.moments.statistics(features.identity)
    return Side(source.path, statistics, features, features.sha256, source.skipped)


def _foreseen(source: Images | Side, extractor: Extractor | None = None) -> tuple[Path, Identity | None, int]:
    """Where it is, whose features it has or will have, and their length, 0 where that is not known yet."""
    if isinstance(source, Side):
        return source.path, source.statistics.extractor, len(source.statistics.mean)
    assert extractor is not None
    known = extractor.identity.dims
    return source.path, extractor.identity if known else None, known


def _common(sides: list[tuple[Path, Identity | None, int]]) -> Identity | None:
    """The extractor of both sides; None where neither says."""
    named = [(path, identity) for path, identity, _ in sides if identity]
    if len({identity.features for _, identity in named}) > 1:
        lines = [f"{path}: {identity.label} {identity.sha256[:8]}" for path, identity in named]
        raise UserError(f"features of two extractors have no distance ({'; '.join(lines)})")
    lengths = [dims for _, _, dims in sides if dims]
    if len(set(lengths)) > 1:
        raise UserError(f"features of lengths {lengths[0]} and {lengths[1]} have no distance; choose --dims to match")
    return named[0][1] if named else None


def _described(side: Side) -> dict[str, Any]:
    return {"path": str(side.path), "n": side.statistics.count, "sha256": side.sha256, "skipped": side.skipped}


def _provenance(path: Path) -> dict[str, Any]:
    """How samples were made as far as a file beside them says; null otherwise."""
    note = path / "samples.json" if path.is_dir() else path.with_suffix(".json")
    try:
        known = json.loads(note.read_text())
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{note}: not readable as JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(known, dict) or (path.is_file() and known.get("file", path.name) != path.name):
        known = {}  # of other samples
    return {key: known.get(key) for key in PROVENANCE}


def _warnings(side: Side) -> list[str]:
    n, dims, lines = side.statistics.count, len(side.statistics.mean), []
    if side.skipped:
        lines.append(f"{side.path}: {len(side.skipped)} images left out as unreadable, first {side.skipped[0]}")
    if side.statistics.extractor is None:
        lines.append(f"{side.path}: does not say which extractor its statistics are of")
    if n is not None and n <= dims:
        lines.append(
            f"{side.path}: {n:,} images for {dims:,} features: their covariance is singular, and the Fréchet distance "
            "much too large; use more images or fewer --dims"
        )
    elif n is not None and n < ENOUGH:
        lines.append(
            f"{side.path}: {n:,} images: the Fréchet distance is too large by an amount that falls as 1/n; compare it "
            f"with distances from as many images only ({ENOUGH:,} or more are usual)"
        )
    return lines


# -------------------------------------------------------------------------------------------------------------- scores


def _scores(samples: Side, reference: Side, identity: Identity | None, options: Options) -> tuple[dict, list]:
    """Every score by its name; and what was left out, and why."""
    rows, logits = (samples.features.rows, samples.features.logits) if samples.features else (None, None)
    others = reference.features.rows if reference.features else None
    again = {"bootstrap": options.bootstrap, "seed": options.seed}
    found = {"FID": _entry(_frechet(samples.statistics, reference.statistics, rows, options))}
    if rows is not None and others is not None:
        if options.kid:
            found["KID"] = _entry(*kid(rows, others, **again))
        if options.precision_recall and min(len(rows), len(others)) > K_DENSITY:
            points = precision_recall(_some(rows, options.seed), _some(others, options.seed))
            for name, values in points._asdict().items():
                found[name] = _entry(bootstrap.mean(values, options.bootstrap, options.seed))
    if options.inception_score and logits is not None and len(logits) >= SPLITS:
        found["Inception score"] = _entry(*inception_score(logits, **again))

    wanted = {"KID": options.kid, "precision": options.precision_recall, "Inception score": options.inception_score}
    left_out = [f"{name}: {NEEDS[name]}" for name in wanted if wanted[name] and name not in found]
    scores = {_name(identity, name): entry for name, entry in found.items()}
    return scores, left_out


def _frechet(samples: Statistics, reference: Statistics, rows: np.ndarray | None, options: Options) -> Estimate:
    ours, theirs = (samples.mean, samples.covariance), (reference.mean, reference.covariance)
    value = frechet.frechet_distance(*ours, *theirs)
    if rows is None:
        return Estimate(value)
    return Estimate.of(value, frechet.replicates(rows, *theirs, options.bootstrap, options.seed))


def _name(identity: Identity | None, name: str) -> str:
    """`FID`, `KID-768`, or in words with the extractor's name where it is not Inception."""
    words = {"FID": "Fréchet distance", "KID": "kernel distance", "Inception score": "class score"}.get(name, name)
    return identity.score(name, words) if identity else f"{words} (extractor not stated)"


def _entry(estimate: Estimate, spread: float | None = None) -> dict[str, Any]:
    """As JSON; `spread` is the standard deviation over subsets or splits, where a score has those."""
    return estimate._asdict() | {"interval": estimate.interval, "spread": spread}


def _some(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= NEIGHBOURHOOD:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), NEIGHBOURHOOD, replace=False)]
