"""Published sizes of transformers by name: a size, a slash and the side of a patch, as in `B/4`."""

from collections.abc import Mapping

from vamf.errors import UserError


def size_of(name: str, sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """`depth`, `width`, `heads` and `patch` of a named size.

    Args:
        sizes: depth, width and heads by the name of the size.

    Raises:
        UserError: an unknown size, or no number for the patch.
    """
    size, _, patch = name.partition("/")
    if size not in sizes or not patch.isdecimal():
        raise UserError(f"{name!r} is no size of this network: {', '.join(sizes)}, a slash and a patch, as B/4")
    return dict(zip(("depth", "width", "heads"), sizes[size], strict=True)) | {"patch": int(patch)}
