"""Decoding, converting and cropping images; `ImageSet`, the common form of all image sources.

Images are resized and cropped as in ADM (arXiv:2105.05233, the preprocessing of the published ImageNet results): halved
with a box filter while the shorter side is at least twice the size, resized with a bicubic filter, cropped in the
centre. An image of the right size is unchanged.
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


class EncodedImage(NamedTuple):
    """An image that is not decoded yet."""

    name: str
    """Name for messages."""
    source: Path | bytes
    """A file, or its content."""


class ImageSet(NamedTuple):
    """A source of images in a fixed order."""

    items: np.ndarray | Sequence[EncodedImage]
    """Pixels (n, h, w, c), or encoded images."""
    label: np.ndarray | None = None
    """Class indices (n,), where there are classes."""
    num_classes: int = 0
    """Number of classes where the format defines it; 0 where it follows from the labels."""
    classes: tuple[Class, ...] = ()
    """Class names in the order of their indices; () where they are 0, 1, 2 and so on."""
    test: "ImageSet | None" = None
    """The official test set, where there is one."""
    unused_note: str = ""
    """Arrays of the source that are not used, in words."""
    legacy_note: str = ""
    """How earlier versions read the same files differently, in words."""
    extra_arrays: Mapping[str, np.ndarray] = {}
    """Conditions of each image, by name (`conditions.py`)."""
    condition: np.ndarray | Sequence[EncodedImage] | None = None
    """An image for each as its condition, in the same order, to be prepared in the same way."""


class CorruptImage(Exception):
    """An image that cannot be decoded: its name and the reason."""


def as_pixels(where: Path | str, array: np.ndarray, floats: bool = False) -> Shaped[np.ndarray, "n h w c"]:
    """An array as pixels (n, h, w, c), adding a missing channel axis: bytes.

    With `floats`, as for training, also finite floats of any number of channels, and bytes with transparency.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{where}: shape {array.shape}; images of shape (n, h, w) or (n, h, w, c) are needed")
    if floats and array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{where}: entries that are not finite; finite numbers are needed")
        return array[..., None] if array.ndim == 3 else array
    if array.dtype != np.uint8:
        raise UserError(
            f"{where}: shape {array.shape}, entries of type {array.dtype}; images are uint8 from 0 to 255"
            f"{' or floats' * floats}, a table has shape (n, d)"
        )
    if array.ndim == 3:
        return array[..., None]
    allowed = (1, 3, 4) if floats else (1, 3)
    if array.shape[3] not in allowed:
        hint = "; channels come last" if array.shape[1] in allowed else ""
        kinds = "1 (grey), 3 (RGB) or 4 (RGBA)" if floats else "1 (grey) or 3 (RGB)"
        raise UserError(f"{where}: shape {array.shape}; {kinds} channels are needed{hint}")
    return array


def make_image_set(where: Path | str, items: np.ndarray | Sequence[EncodedImage], label: Any) -> ImageSet:
    """Images with one label each: integers from 0 on, with or without gaps, or text."""
    if label is None:
        return ImageSet(items)
    label = np.asarray(label)
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.shape != (len(items),):
        raise UserError(f"{where}: labels of shape {label.shape} for {len(items)} images; one for each is needed")
    if label.dtype.kind not in "iuUS":
        raise UserError(f"{where}: labels of type {label.dtype}; integers from 0 or text are needed")
    if label.dtype.kind in "iu":
        check_labels(str(where), label)
    indices, names = classes.encode_labels(label)
    return ImageSet(
        items, indices, classes=names, legacy_note=classes.LEGACY_GAPS if label.dtype.kind in "iu" and names else ""
    )


def check_labels(where: str, label: np.ndarray, num_classes: int = 0) -> None:
    """Refuse labels below 0, or above the last class where the number of classes is known."""
    largest = (num_classes or 2**31) - 1
    out_of_range = (label < 0) | (label > largest)
    if out_of_range.any():
        row = int(np.argmax(out_of_range))
        raise UserError(f"{where}: label {label[row]} of image {row + 1} is out of range; allowed is 0 to {largest}")


def prepare_image(item: np.ndarray | EncodedImage, size: int | None, channels: Channels) -> UInt8[np.ndarray, "h w c"]:
    """One image, decoded, converted and resized.

    Raises:
        CorruptImage: it cannot be decoded.
        UserError: it has neither one nor three channels of eight bits, and no conversion is configured.
    """
    if isinstance(item, EncodedImage):
        image, name = decode_image(item), item.name
    else:
        from PIL import Image

        image, name = Image.fromarray(item[..., 0] if item.shape[2] == 1 else item), "an image"
    image = _convert(image, channels, name)
    array = np.asarray(image if size is None else _square(image, size))
    return array[..., None] if array.ndim == 2 else array


def decode_image(item: EncodedImage) -> "Image.Image":
    """The image, rotated by its EXIF orientation, with an alpha channel where a single colour is transparent.

    Raises:
        CorruptImage: it cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(item.source) if isinstance(item.source, bytes) else item.source) as image:
            png_mode = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
            image.load()
            return ImageOps.exif_transpose(_with_alpha(image, png_mode, item.name))
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise CorruptImage(f"{item.name}: not a readable image ({error_line(error)})") from None


def _with_alpha(image: "Image.Image", png_mode: str, name: str) -> "Image.Image":
    """An image with a transparent grey level or colour (tRNS chunk of PNG), converted to an alpha channel.

    Args:
        png_mode: Pillow's raw mode of a PNG: transparent grey levels of 2 and 4 bits are in these units.
    """
    from PIL import Image

    if image.mode not in ("1", "L", "RGB") or "transparency" not in image.info:
        return image
    if png_mode == "RGB;16B":
        raise UserError(f"{name}: 16 bits a channel and a transparent colour; 8 bits a channel are needed")
    converted = image.copy()
    max_level = {"L;2": 3, "L;4": 15}.get(png_mode, 255)
    level = (np.asarray(converted.info.pop("transparency")) & max_level) * (
        255 // max_level
    )  # bits beyond the depth do not count
    converted = converted.convert("L") if converted.mode == "1" else converted
    transparent = np.asarray(converted) == level
    if converted.mode == "RGB":
        transparent = transparent.all(axis=2)
    if transparent.any():
        converted.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return converted


def _convert(image: "Image.Image", channels: Channels, name: str) -> "Image.Image":
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: pixels of mode {image.mode}; 8 bits a channel are needed")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        image.mode == "P" and "transparency" in image.info
    )
    if channels == "stored":
        if transparent or image.mode not in ("1", "L", "P", "RGB"):
            raise UserError(
                f"{name}: {len(image.getbands())} channels ({image.mode}); choose channels = rgb or grey to convert it"
            )
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    if transparent:
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


def error_line(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
