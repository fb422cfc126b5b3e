"""Options of a comparison of two sets of images, and of `vamf fid`."""

import dataclasses
from pathlib import Path
from typing import Literal

from vamf.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """How two sets of images are compared."""

    weights: str = ""
    """Weights of the feature extractor, or pixels; by default the file in the variable VAMF_INCEPTION."""
    dims: Literal[64, 192, 768, 1280, 2048] | None = None
    """Length of the features; by default the deepest of the weights. Only 2048 is called FID."""
    resize: Literal["tensorflow", "clean"] = "tensorflow"
    """Resizing to 299x299: as the original FID's TensorFlow, or antialiased as clean-fid."""
    batch_size: int = 64
    """Images at a time through the extractor."""
    kid: bool = True
    """Kernel distance, over 100 subsets of 1000."""
    inception_score: bool = True
    """Inception score over 10 splits, where the extractor has classes."""
    precision_recall: bool = True
    """Precision, recall, density and coverage, of up to 10,000 images on each side."""
    bootstrap: int = 20
    """Resamples of A for the intervals; 0 for none."""
    seed: int = 0
    """Seed of subsets and resamples."""
    strict: bool = False
    """Stop at a corrupt image instead of leaving it out."""
    save: Path | None = None
    """File for the statistics of B, an .npz that can be B in later calls."""

    def __post_init__(self):
        require(self.batch_size >= 1, "batch-size", self.batch_size, "1 or more")
        require(self.bootstrap == 0 or self.bootstrap >= 2, "bootstrap", self.bootstrap, "0, or 2 and more")
        require(self.resize in ("tensorflow", "clean"), "resize", self.resize, "tensorflow or clean")
        valid_suffix = self.save is None or self.save.suffix == ".npz"
        require(valid_suffix, "save", self.save, "a file that ends in .npz")
