"""Identity of a feature extractor, and the names of scores computed with it.

FID means the 2048 features of the published weights of the 2015 Inception graph, identified by the hash of their file.
Its other features give FID-768 and the like; scores of any other network include the network's name.
"""

import dataclasses

INCEPTION_HASHES = {
    "6726825d": "pt_inception-2015-12-05-6726825d.pth: the name ends as the hash begins",
    "2e687a743fe92419a1144637fb4a1ff9c247e9a664e8f6c46efff6f41187c39f": "the same, folded, up to 1280 features",
}
"""SHA-256, or prefixes of it, of files with the weights of the 2015 graph."""


def is_inception_2015(sha256: str) -> bool:
    """Whether a file has the published weights of the 2015 graph."""
    return any(sha256.startswith(prefix) for prefix in INCEPTION_HASHES)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What two sets of features must share to be comparable."""

    name: str
    """Name of the network."""
    dims: int
    """Length of the features; 0 where it depends on the images' size."""
    resize: str = ""
    """How images are resized; empty without resizing."""
    sha256: str = ""
    """SHA-256 of the weights file; empty without one."""

    @property
    def label(self) -> str:
        """Name, dimension and resizing in a line."""
        return " ".join(str(part) for part in (self.name, self.dims, self.resize) if part)

    @property
    def features(self) -> tuple[str, int, str, str]:
        """Equal for equal features: files with the same weights in another layout count as equal."""
        return self.name, self.dims, self.resize, "" if is_inception_2015(self.sha256) else self.sha256

    def score(self, short: str, words: str) -> str:
        """The name of a score: `FID`, `FID-768`, `clean FID` by its short name, or `Fréchet distance (resnet20 64)`."""
        if not is_inception_2015(self.sha256):
            return f"{words} ({self.label})"
        clean, dims = "clean " * (self.resize == "clean"), f"-{self.dims}" * (self.dims != 2048)
        return f"{clean}{short}{dims}"
