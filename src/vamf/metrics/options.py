"""How images are compared with images: the options of `vamf fid` and of the comparison behind it."""

import dataclasses
from pathlib import Path
from typing import Literal

from vamf.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """How two sets of images are compared."""

    weights: str = ""
    """Weights of the feature extractor, or pixels; default the file that the variable VAMF_INCEPTION names."""
    dims: Literal[64, 192, 768, 1280, 2048] | None = None
    """Length of the features; the deepest that the weights have if left out. Only 2048 is called FID."""
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
    """End at a corrupt image instead of leaving it out."""
    save: Path | None = None
    """Write the statistics of B here, an .npz to be given as B next time."""

    def __post_init__(self):
        require(self.batch_size >= 1, "batch-size", self.batch_size, "1 or more")
        require(self.bootstrap == 0 or self.bootstrap >= 2, "bootstrap", self.bootstrap, "0, or 2 and more")
        require(self.resize in ("tensorflow", "clean"), "resize", self.resize, "tensorflow or clean")
        suffix = self.save is None or self.save.suffix == ".npz"
        require(suffix, "save", self.save, "a file that ends in .npz")
