"""What every source of pictures becomes: pixels or encoded pictures in a fixed order, with labels that are classes.

A picture is made square as ADM does (arXiv:2105.05233, the preparation behind the published ImageNet results): halved
with a box filter while its shorter side is twice the size or more, brought to the size with a bicubic filter, cropped
in the middle. One that has the size already is left as it is.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from vamf.data import classes
from vamf.data.classes import Class
from vamf.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Channels = Literal["stored", "grey", "rgb"]


class Encoded(NamedTuple):
    """A picture that is still to be decoded."""

    name: str
    """For messages."""
    source: Path | bytes
    """The file, or its content."""


class Pictures(NamedTuple):
    """A source of pictures in a fixed order."""

    items: np.ndarray | Sequence[Encoded]
    """Pixels (n, h, w, c), or encoded pictures."""
    label: np.ndarray | None = None
    """Numbers of the classes (n,), where there are any."""
    num_classes: int = 0
    """Number of classes where the format states it; 0 where only the labels tell."""
    classes: tuple[Class, ...] = ()
    """What the classes are called, by their number; () where it is their number."""
    test: "Pictures | None" = None
    """The official test set, where there is one."""
    left_out: str = ""
    """What was found beside them and is not used, in words."""
    reread: str = ""
    """What earlier versions made otherwise of the same files, in words."""
    beside: Mapping[str, np.ndarray] = {}
    """What belongs to each picture, by name (`conditions.py`)."""


class Damaged(Exception):
    """A picture that cannot be decoded; its name and why."""


def pixels(where: Path | str, array: np.ndarray, floats: bool = False) -> Shaped[np.ndarray, "n h w c"]:
    """The pixels of an array that may lack its last axis: bytes, or with `floats` finite numbers too."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{where}: shape {array.shape}; pictures of shape (n, h, w) or (n, h, w, c) are needed")
    if floats and array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{where}: entries that are not finite; finite numbers are needed")
        return array[..., None] if array.ndim == 3 else array
    if array.dtype != np.uint8:
        raise UserError(
            f"{where}: shape {array.shape}, entries of type {array.dtype}; pictures are uint8 from 0 to 255, a table "
            "has shape (n, d)"
        )
    if array.ndim == 3:
        return array[..., None]
    if array.shape[3] not in (1, 3):
        last = "; channels come last" if array.shape[1] in (1, 3) else ""
        raise UserError(f"{where}: shape {array.shape}; 1 (grey) or 3 (RGB) channels are needed{last}")
    return array


def labelled(where: Path | str, items: np.ndarray | Sequence[Encoded], label: Any) -> Pictures:
    """Pictures with labels that are classes, one for each picture: integers from 0 on, with gaps or not, or text."""
    if label is None:
        return Pictures(items)
    label = np.asarray(label)
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.shape != (len(items),):
        raise UserError(f"{where}: labels of shape {label.shape} for {len(items)} pictures; one for each is needed")
    if label.dtype.kind not in "iuUS":
        raise UserError(f"{where}: labels of type {label.dtype}; integers from 0 or text are needed")
    if label.dtype.kind in "iu":
        check_labels(str(where), label)
    numbers, names = classes.numbered(label)
    return Pictures(items, numbers, classes=names, reread=classes.GAPS if label.dtype.kind in "iu" and names else "")


def check_labels(where: str, label: np.ndarray, num_classes: int = 0) -> None:
    """Refuse labels below 0 and, where the number of classes is known, beyond the last one."""
    last = (num_classes or 2**31) - 1
    bad = (label < 0) | (label > last)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(f"{where}: label {label[row]} of picture {row + 1} is out of range; allowed is 0 to {last}")


def one(item: np.ndarray | Encoded, size: int | None, channels: Channels) -> UInt8[np.ndarray, "h w c"]:
    """One picture decoded, converted and brought to its size.

    Raises:
        Damaged: it cannot be decoded.
        UserError: it has neither one nor three channels of eight bits, and no conversion was asked for.
    """
    if isinstance(item, Encoded):
        image, name = _decode(item), item.name
    else:
        from PIL import Image

        image, name = Image.fromarray(item[..., 0] if item.shape[2] == 1 else item), "a picture"
    image = _convert(image, channels, name)
    array = np.asarray(image if size is None else _square(image, size))
    return array[..., None] if array.ndim == 2 else array


def _decode(item: Encoded) -> "Image.Image":
    """The picture upright, as its EXIF entry says, with an alpha channel where a single colour is transparent."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(item.source) if isinstance(item.source, bytes) else item.source) as image:
            stored = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
            image.load()
            return ImageOps.exif_transpose(_with_alpha(image, stored, item.name))
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they meet
        raise Damaged(f"{item.name}: not a readable picture ({line(error)})") from None


def _with_alpha(image: "Image.Image", stored: str, name: str) -> "Image.Image":
    """A picture whose format names one grey level or colour as transparent (tRNS of PNG), as it is with alpha.

    Args:
        stored: how a PNG stores its pixels, in Pillow's words: grey levels of 2 and 4 bits are named in these units.
    """
    from PIL import Image

    if image.mode not in ("1", "L", "RGB") or "transparency" not in image.info:
        return image
    if stored == "RGB;16B":
        raise UserError(f"{name}: 16 bits a channel and a transparent colour; 8 bits a channel are needed")
    plain = image.copy()
    most = {"L;2": 3, "L;4": 15}.get(stored, 255)
    level = (np.asarray(plain.info.pop("transparency")) & most) * (255 // most)  # bits beyond the depth do not count
    plain = plain.convert("L") if plain.mode == "1" else plain
    clear = np.asarray(plain) == level
    if plain.mode == "RGB":
        clear = clear.all(axis=2)
    if clear.any():
        plain.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return plain


def _convert(image: "Image.Image", channels: Channels, name: str) -> "Image.Image":
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: pixels of mode {image.mode}; 8 bits a channel are needed")
    clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info)
    if channels == "stored":
        if clear or image.mode not in ("1", "L", "P", "RGB"):
            raise UserError(
                f"{name}: {len(image.getbands())} channels ({image.mode}); choose channels = rgb or grey to convert it"
            )
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    if clear:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if channels == "grey" else "RGB")


def _square(image: "Image.Image", size: int) -> "Image.Image":
    from PIL import Image

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        factor = size / min(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def line(error: BaseException) -> str:
    """An error of a library in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
