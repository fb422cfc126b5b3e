"""Mean and covariance of features, accumulated batch by batch in float64, and their files.

For two parts with counts n, m, means a, b and scatters S, T (sums of outer products of deviations), the union has

    mean = a + (b - a) m / (n + m)        scatter = S + T + (b - a)(b - a)^T n m / (n + m)

(Chan, Golub and LeVeque, 1979). Parts can be added in any order and from any process, without cancellation far from 0.
"""

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vamf.errors import UserError
from vamf.files import write_atomic
from vamf.metrics.identity import Identity


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a covariance; `+` merges the moments of two parts."""

    count: int
    """Number of samples."""
    mean: Float[np.ndarray, " d"]
    """Their mean."""
    scatter: Float[np.ndarray, "d d"]
    """Sum over samples of the outer products of their deviations from the mean."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """The moments of one batch."""
        mean = features.mean(axis=0, dtype=np.float64)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def __add__(self, other: "Moments") -> "Moments":
        total = self.count + other.count
        shift, fraction = other.mean - self.mean, other.count / total
        between = np.outer(shift, shift) * (self.count * fraction)
        return Moments(total, self.mean + shift * fraction, self.scatter + other.scatter + between)

    def statistics(self, extractor: Identity | None = None) -> "Statistics":
        """Mean and covariance (divided by n - 1).

        Raises:
            UserError: fewer than two samples.
        """
        if self.count < 2:
            raise UserError(f"{self.count} sample: a covariance needs two or more")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count, extractor)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, with their count and extractor if known."""

    mean: Float[np.ndarray, " d"]
    """Mean; `mu` in files."""
    covariance: Float[np.ndarray, "d d"]
    """Unbiased covariance; `sigma` in files."""
    count: int | None = None
    """Number of samples; None where a file does not state it."""
    extractor: Identity | None = None
    """The extractor; None where a file does not state it."""

    def moments(self) -> Moments:
        """The moments, which can be merged with others.

        Raises:
            UserError: the number of samples is not known.
        """
        if self.count is None:
            raise UserError("statistics without a count of samples cannot be merged with others")
        return Moments(self.count, self.mean, self.covariance * (self.count - 1))

    def save(self, path: Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, which other tools read; if known also `n` and `extractor`."""
        extra: dict[str, Any] = {}
        if self.count is not None:
            extra["n"] = self.count
        if self.extractor is not None:
            extra["extractor"] = json.dumps(dataclasses.asdict(self.extractor))
        buffer = io.BytesIO()
        np.savez(buffer, mu=self.mean, sigma=self.covariance, **extra)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read a file of `save` or of another tool: `mu`, `sigma`, also as `ref_mu`, `ref_sigma`.

        Raises:
            UserError: arrays are missing or misshapen, or hold numbers that are not finite.
        """
        arrays = _read(path)
        mean, covariance = (arrays.get(name, arrays.get(f"ref_{name}")) for name in ("mu", "sigma"))
        if mean is None or covariance is None:
            raise UserError(f"{path}: statistics are two arrays, mu (d,) and sigma (d, d)")
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"{path}: mu {mean.shape} and sigma {covariance.shape}: shapes (d,) and (d, d) are needed")
        if not all(array.dtype.kind in "iuf" and np.isfinite(array).all() for array in (mean, covariance)):
            raise UserError(f"{path}: mu and sigma hold something else than finite numbers")
        count = int(arrays["n"]) if "n" in arrays else None
        extractor = _identity(path, str(arrays["extractor"])) if "extractor" in arrays else None
        return cls(mean.astype(np.float64), covariance.astype(np.float64), count, extractor)


def holds_statistics(path: Path) -> bool:
    """Whether a file is an archive with `mu` or `ref_mu` in it."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool({"mu.npy", "ref_mu.npy"} & set(archive.namelist()))


def _identity(path: Path, text: str) -> Identity:
    try:
        return Identity(**json.loads(text))
    except (ValueError, TypeError):
        raise UserError(f"{path}: extractor = {text[:80]!r}: what vamf writes there is needed, or nothing") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of statistics; others, such as images in some files, are not read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = ("mu", "sigma", "ref_mu", "ref_sigma", "n", "extractor")
            return {name: archive[name] for name in names if name in archive.files}
    except Exception as error:  # zip and array readers fail in many ways
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: truncated, or no file of statistics ({reason})") from None
