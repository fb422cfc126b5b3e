"""Augmentation that the network is told about, so that its samples are not augmented.

Karras et al. (arXiv:2206.00364), after Karras et al. (arXiv:2006.06676, appendix B): each training image is moved by
random flips, scalings, rotations, stretches and shifts, and the network gets the parameters of the move as a label; at
sampling the label is 0, an image as it is. A move maps a point q of the new image, measured from its centre, to the
point of the old image

    S R A (q - shift),    S = 2^{-spread a} I,    R = rotation by theta,    A = Q diag(2^{-spread b}, 2^{spread b}) Q^T

with a, b standard normal, theta uniform, Q the turn to an axis that is 0 in half of the cases and uniform in the other,
and a shift of `reach` sides times a normal. MeanFlow's recipe for CIFAR-10 leaves out the upside-down
flip and the rotation, which leaves 6 numbers of the label's 9:

    mirror, flip, a, (cos theta - 1, sin theta), (b cos axis, b sin axis), shift / (reach side)

Reading an image between its pixels blurs it, and a network would learn the blur. So it is brought to twice the
resolution by a wavelet's low-pass filter h (`SYM6`), read there by bilinear interpolation, and brought back by the
adjoint filter. As sum_k h_k h_{k+2m} = 1 for m = 0 and 0 otherwise, an image that is not moved returns unchanged.
Outside, the image is its own reflection without end: a periodic image, which needs no margins.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vamf.errors import require
from vamf.field_types import check_field_types

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Low-pass filter of Daubechies' least asymmetric wavelet with 6 vanishing moments."""
DELAY = 5
"""Places by which it delays. For smooth images it is 5.1; as published, a half turn moves one by a tenth of a pixel."""
SPREAD = 0.2
"""Standard deviation of the logarithm, to base 2, of scales and stretches."""
REACH = 0.125
"""Standard deviation of shifts, in units of the image's side."""
NUMBERS = {"mirror": 1, "flip": 1, "scale": 1, "rotate": 2, "stretch": 2, "shift": 2}
"""How many numbers of the label tell of each kind of move."""


class Moves(NamedTuple):
    """What is done to each of n images; 0 is nothing."""

    mirror: Float[Array, " n"]
    """1 where left and right are exchanged."""
    flip: Float[Array, " n"]
    """1 where top and bottom are exchanged."""
    scale: Float[Array, " n"]
    """a: above 0 magnifies."""
    angle: Float[Array, " n"]
    """theta, in radians, counter-clockwise."""
    stretch: Float[Array, " n"]
    """b: above 0 widens along the axis and narrows across it."""
    axis: Float[Array, " n"]
    """Direction of the stretch, in radians from the right, counter-clockwise."""
    shift: Float[Array, "n 2"]
    """(right, down), in units of `REACH` sides."""


@dataclasses.dataclass(frozen=True)
@check_field_types("augment.")
class Augmentation:
    """Random moves of images, and the label that tells of them; the defaults are MeanFlow's for CIFAR-10."""

    probability: float = 0.12
    """Share of the images to which each kind of move is applied, the mirror apart; 0 leaves all as they are."""
    mirror: bool = True
    """Whether half of all images are mirrored."""
    flip: bool = False
    """Whether images are turned upside down (half of those chosen)."""
    scale: bool = True
    """Whether images are magnified and reduced."""
    rotate: bool = False
    """Whether images are rotated by any angle."""
    stretch: bool = True
    """Whether images are stretched in one direction and narrowed in the other."""
    shift: bool = True
    """Whether images are shifted."""

    def __post_init__(self):
        require(0 <= self.probability <= 1, "augment.probability", self.probability, "[0, 1]")

    @property
    def kinds(self) -> list[str]:
        """The moves that there are."""
        return [name for name in NUMBERS if self.probability and getattr(self, name)]

    @property
    def features(self) -> int:
        """Length of the label; 0 where nothing is moved."""
        return sum(NUMBERS[name] for name in self.kinds)

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n height width colours"]
    ) -> tuple[Float[Array, "n height width colours"], Float[Array, "n features"]]:
        """The images moved at random, and the label of each move."""
        moves = self.draw(key, len(images))
        return apply(moves, images), self.label(moves)

    def draw(self, key: Key[Array, ""], n: int) -> Moves:
        """Random moves of n images."""
        keys = iter(jax.random.split(key, 13))

        def half():
            return jax.random.bernoulli(next(keys), shape=(n,)).astype(jnp.float32)

        def angle():
            return jax.random.uniform(next(keys), (n,), minval=-jnp.pi, maxval=jnp.pi)

        def chosen(wanted: bool):
            return jax.random.bernoulli(next(keys), self.probability * wanted, (n,)).astype(jnp.float32)

        return Moves(
            mirror=half() * ("mirror" in self.kinds),
            flip=half() * chosen(self.flip),
            scale=jax.random.normal(next(keys), (n,)) * chosen(self.scale),
            angle=angle() * chosen(self.rotate),
            stretch=jax.random.normal(next(keys), (n,)) * chosen(self.stretch),
            axis=angle() * half(),
            shift=jax.random.normal(next(keys), (n, 2)) * chosen(self.shift)[:, None],
        )

    def label(self, moves: Moves) -> Float[Array, "n features"]:
        """What the network is told."""
        parts = {
            "mirror": [moves.mirror],
            "flip": [moves.flip],
            "scale": [moves.scale],
            "rotate": [jnp.cos(moves.angle) - 1, jnp.sin(moves.angle)],
            "stretch": [moves.stretch * jnp.cos(moves.axis), moves.stretch * jnp.sin(moves.axis)],
            "shift": [moves.shift[:, 0], moves.shift[:, 1]],
        }
        columns = [column for name in self.kinds for column in parts[name]]
        return jnp.stack(columns, axis=1) if columns else jnp.zeros((len(moves.mirror), 0))


def apply(moves: Moves, images: Float[Array, "n height width colours"]) -> Float[Array, "n height width colours"]:
    """The images after their moves."""
    images = _where(moves.mirror, images[:, :, ::-1], images)
    images = _where(moves.flip, images[:, ::-1], images)
    shrink = 2 ** (-SPREAD * moves.scale)
    narrow = 2 ** (-SPREAD * moves.stretch)
    across = _rotation(-moves.axis)
    diagonal = jnp.stack([narrow, 1 / narrow], axis=1)
    stretch = jnp.einsum("nij,nj,nkj->nik", across, diagonal, across)
    matrix = shrink[:, None, None] * _rotation(moves.angle) @ stretch
    sides = jnp.array(images.shape[2:0:-1], images.dtype)  # (width, height)
    return jax.vmap(warp)(images, matrix.astype(images.dtype), moves.shift.astype(images.dtype) * REACH * sides)


def warp(
    image: Float[Array, "height width colours"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "height width colours"]:
    """The image whose point q shows the old image's point matrix @ (q - shift).

    Args:
        matrix, shift: on points (right, down) from the centre, in pixels.
    """
    height, width, _ = image.shape
    rows, columns = (jnp.asarray(_finer(side), image.dtype) for side in (height, width))
    fine = jnp.einsum("hwc,Hh,Ww->HWc", image, rows, columns)
    down, right = (_places(side, image.dtype) for side in (height, width))
    grid = jnp.stack(jnp.broadcast_arrays(right[None, :], down[:, None]), axis=-1)
    place = (grid - shift) @ matrix.T
    at = jnp.moveaxis(2 * place, -1, 0)[::-1] + jnp.array([height - 1, width - 1], image.dtype)[:, None, None]

    def read(channel):
        return jax.scipy.ndimage.map_coordinates(channel, list(at), order=1, mode="wrap")

    moved = jax.vmap(read, in_axes=-1, out_axes=-1)(fine)
    rows, columns = (jnp.asarray(_coarser(side), image.dtype) for side in (height, width))
    return jnp.einsum("HWc,hH,wW->hwc", moved, rows, columns)


def _where(share, moved, images):
    return jnp.where(share[:, None, None, None] > 0, moved, images)


def _rotation(angle: Float[Array, " n"]) -> Float[Array, "n 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], axis=1), jnp.stack([sin, cos], axis=1)], axis=1)


def _places(side: int, dtype) -> Float[Array, " places"]:
    """Where the fine points that a row's way back needs lie, in pixels from the centre."""
    return jnp.arange(-DELAY, 2 * side - 1 + len(SYM6) - 1 - DELAY, dtype=dtype) / 2 - (side - 1) / 2


@functools.cache
def _finer(side: int) -> np.ndarray:
    """The matrix from a row of pixels to one period of its reflections at twice the resolution.

    Pixel m, at fine point 2 m, reaches the fine points 2 m - 5 ... 2 m + 6.
    """
    require(side >= 2, "side of an image", side, "2 pixels or more")
    period = 2 * (side - 1)
    matrix = np.zeros((2 * period, side))
    for pixel in range(period):
        for place, weight in enumerate(SYM6):
            matrix[(2 * pixel + place - DELAY) % (2 * period), min(pixel, period - pixel)] += weight
    return matrix


@functools.cache
def _coarser(side: int) -> np.ndarray:
    """The matrix from the fine points of `_places` back to a row of pixels."""
    matrix = np.zeros((side, 2 * side - 2 + len(SYM6)))
    for pixel in range(side):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = SYM6
    return matrix
