"""Sizes of transformers: published ones by name (a size, a slash and the side of a patch, as in `B/4`), and patches."""

from collections.abc import Mapping

from vamf.errors import UserError

USUAL_PATCH, LARGEST_PATCH = 5, 16
"""Largest side of a patch, as long as their number allows it, and for images with too many such patches."""
MIN_PATCHES, MAX_PATCHES = 49, 4096
"""Numbers of patches that are aimed at: those of 28 x 28 and 256 x 256 images in patches of 4."""


def patch_for(height: int, width: int) -> int:
    """Side of a patch for images: the largest common divisor of both sides up to USUAL_PATCH that leaves MIN_PATCHES
    patches, else 1; above it for images with more than MAX_PATCHES such patches.

    Raises:
        UserError: no divisor leaves few enough patches.
    """

    def count(size: int) -> int:
        return (height // size) * (width // size)

    divisors = [size for size in range(1, LARGEST_PATCH + 1) if height % size == width % size == 0]
    usual = max((size for size in divisors if size <= USUAL_PATCH and count(size) >= MIN_PATCHES), default=1)
    chosen = next((size for size in divisors if size >= usual and count(size) <= MAX_PATCHES), None)
    if chosen is None:
        side = 16 * max(1, min(height, width, 1024) // 16)
        raise UserError(
            f"network.patch: images of {height} x {width} cannot be cut into at most {MAX_PATCHES:,} equal squares of "
            f"1 to {LARGEST_PATCH} pixels a side; shrink and crop them, as by --images.size {side}, or pad them"
        )
    return chosen


def size_of(name: str, sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """`depth`, `width`, `heads` and `patch` of a named size.

    Args:
        sizes: depth, width and heads by the name of the size.

    Raises:
        UserError: an unknown size, or no number for the patch.
    """
    size, _, patch = name.partition("/")
    if size not in sizes or not patch.isdecimal() or int(patch) < 1:
        raise UserError(f"{name!r} is no size of this network: {', '.join(sizes)}, a slash and a patch, as B/4")
    return dict(zip(("depth", "width", "heads"), sizes[size], strict=True)) | {"patch": int(patch)}
