"""What a feature extractor is, and what a score made with it may be called.

FID is one thing only: 2048 features of the published weights of the 2015 Inception graph, known here by the hash of
their file. Its other features give FID-768 and the like; any other network's scores carry that network's name.
"""

import dataclasses

GENUINE = {
    "6726825d": "pt_inception-2015-12-05-6726825d.pth: the name ends as the hash begins",
    "2e687a743fe92419a1144637fb4a1ff9c247e9a664e8f6c46efff6f41187c39f": "the same, folded, up to 1280 features",
}
"""Hashes (sha256), or their beginnings, of files with the weights of the 2015 graph."""


def is_genuine(sha256: str) -> bool:
    """Whether a file has the published weights of the 2015 graph."""
    return any(sha256.startswith(known) for known in GENUINE)


@dataclasses.dataclass(frozen=True)
class Identity:
    """All that two sets of features must share to be compared."""

    name: str
    """Which network."""
    dims: int
    """Length of the features; 0 where it follows from the images' size."""
    resize: str = ""
    """How images are resized before it; empty where they are not."""
    sha256: str = ""
    """Hash of the file of weights; empty without one."""

    @property
    def label(self) -> str:
        """Name, dimension and resizing in a line."""
        return " ".join(str(part) for part in (self.name, self.dims, self.resize) if part)

    @property
    def features(self) -> tuple[str, int, str, str]:
        """Equal for equal features: files with the same weights in another layout have them too."""
        return self.name, self.dims, self.resize, "" if is_genuine(self.sha256) else self.sha256

    def score(self, short: str, words: str) -> str:
        """The name of a score: `FID`, `FID-768`, `clean FID` by its short name, or `Fréchet distance (resnet20 64)`."""
        if not is_genuine(self.sha256):
            return f"{words} ({self.label})"
        clean, dims = "clean " * (self.resize == "clean"), f"-{self.dims}" * (self.dims != 2048)
        return f"{clean}{short}{dims}"
