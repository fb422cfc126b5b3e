"""Non-leaking augmentation: the network is conditioned on it, so that its samples are not augmented.

Karras et al. (arXiv:2206.00364), after Karras et al. (arXiv:2006.06676, appendix B): each training image is transformed
by random flips, scalings, rotations, stretches and shifts, and the network gets the parameters as a label; at sampling
the label is 0, an image without augmentation. A transform maps a point q of the new image, measured from its centre, to
the point of the old image

    S R A (q - shift),    S = 2^{-s a} I,    R = rotation by theta,    A = Q diag(2^{-s b}, 2^{s b}) Q^T

with a, b standard normal, s = LOG_SCALE_STD, theta uniform, Q the rotation to an axis that is 0 with probability 1/2
and uniform otherwise, and a normal shift of standard deviation SHIFT_STD sides. MeanFlow's recipe for CIFAR-10 has no
vertical flip and no rotation, which leaves 6 of the label's 9 numbers:

    mirror, flip, a, (cos theta - 1, sin theta), (b cos axis, b sin axis), shift / (SHIFT_STD side)

Interpolation between pixels blurs an image, and a network would learn the blur. So the image is upsampled to twice the
resolution by a wavelet's low-pass filter h (`SYM6`), interpolated there bilinearly, and downsampled by the adjoint
filter. As sum_k h_k h_{k+2m} = 1 for m = 0 and 0 otherwise, the identity transform leaves an image unchanged. The
image is extended by reflection, hence periodically, without margins.
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
"""Delay of the filter, in taps. For smooth images it is 5.1: as published, a half turn shifts one by 0.1 pixel."""
LOG_SCALE_STD = 0.2
"""Standard deviation of the logarithm, to base 2, of scales and stretches."""
SHIFT_STD = 0.125
"""Standard deviation of shifts, in units of the image's side."""
LABEL_SIZES = {"mirror": 1, "flip": 1, "scale": 1, "rotate": 2, "stretch": 2, "shift": 2}
"""Number of label entries of each kind of transform."""


class AugmentParams(NamedTuple):
    """Parameters of the transforms of n images; 0 is the identity."""

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
    """(right, down), in units of `SHIFT_STD` sides."""


@dataclasses.dataclass(frozen=True)
@check_field_types("augment.")
class Augmentation:
    """Random transforms of images, with their label; the defaults are MeanFlow's for CIFAR-10."""

    probability: float = 0.12
    """Probability of each kind of transform except the mirror; 0 disables augmentation."""
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
        """Kinds of transforms in use."""
        return [name for name in LABEL_SIZES if self.probability and getattr(self, name)]

    @property
    def features(self) -> int:
        """Length of the label; 0 without augmentation."""
        return sum(LABEL_SIZES[name] for name in self.kinds)

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n height width colours"]
    ) -> tuple[Float[Array, "n height width colours"], Float[Array, "n features"]]:
        """Randomly transformed images, and the label of each transform."""
        params = self.draw(key, len(images))
        return apply(params, images), self.label(params)

    def draw(self, key: Key[Array, ""], n: int) -> AugmentParams:
        """Parameters of random transforms of n images."""
        keys = iter(jax.random.split(key, 13))

        def coin():
            return jax.random.bernoulli(next(keys), shape=(n,)).astype(jnp.float32)

        def angle():
            return jax.random.uniform(next(keys), (n,), minval=-jnp.pi, maxval=jnp.pi)

        def mask(enabled: bool):
            return jax.random.bernoulli(next(keys), self.probability * enabled, (n,)).astype(jnp.float32)

        return AugmentParams(
            mirror=coin() * ("mirror" in self.kinds),
            flip=coin() * mask(self.flip),
            scale=jax.random.normal(next(keys), (n,)) * mask(self.scale),
            angle=angle() * mask(self.rotate),
            stretch=jax.random.normal(next(keys), (n,)) * mask(self.stretch),
            axis=angle() * coin(),
            shift=jax.random.normal(next(keys), (n, 2)) * mask(self.shift)[:, None],
        )

    def label(self, params: AugmentParams) -> Float[Array, "n features"]:
        """Augmentation labels, the input of the network."""
        parts = {
            "mirror": [params.mirror],
            "flip": [params.flip],
            "scale": [params.scale],
            "rotate": [jnp.cos(params.angle) - 1, jnp.sin(params.angle)],
            "stretch": [params.stretch * jnp.cos(params.axis), params.stretch * jnp.sin(params.axis)],
            "shift": [params.shift[:, 0], params.shift[:, 1]],
        }
        columns = [column for name in self.kinds for column in parts[name]]
        return jnp.stack(columns, axis=1) if columns else jnp.zeros((len(params.mirror), 0))


def apply(
    params: AugmentParams, images: Float[Array, "n height width colours"]
) -> Float[Array, "n height width colours"]:
    """The transformed images."""
    images = _where(params.mirror, images[:, :, ::-1], images)
    images = _where(params.flip, images[:, ::-1], images)
    zoom = 2 ** (-LOG_SCALE_STD * params.scale)
    squeeze = 2 ** (-LOG_SCALE_STD * params.stretch)
    rotation = _rotation(-params.axis)
    diagonal = jnp.stack([squeeze, 1 / squeeze], axis=1)
    stretch = jnp.einsum("nij,nj,nkj->nik", rotation, diagonal, rotation)
    matrix = zoom[:, None, None] * _rotation(params.angle) @ stretch
    sides = jnp.array(images.shape[2:0:-1], images.dtype)  # (width, height)
    return jax.vmap(warp)(images, matrix.astype(images.dtype), params.shift.astype(images.dtype) * SHIFT_STD * sides)


def warp(
    image: Float[Array, "height width colours"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "height width colours"]:
    """The image whose point q has the value of the old image at matrix @ (q - shift).

    Args:
        matrix, shift: on points (right, down) from the centre, in pixels.
    """
    height, width, _ = image.shape
    rows, columns = (jnp.asarray(_upsample_matrix(side), image.dtype) for side in (height, width))
    upsampled = jnp.einsum("hwc,Hh,Ww->HWc", image, rows, columns)
    y, x = (_fine_positions(side, image.dtype) for side in (height, width))
    grid = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    position = (grid - shift) @ matrix.T
    coords = jnp.moveaxis(2 * position, -1, 0)[::-1] + jnp.array([height - 1, width - 1], image.dtype)[:, None, None]

    def interpolate(channel):
        return jax.scipy.ndimage.map_coordinates(channel, list(coords), order=1, mode="wrap")

    warped = jax.vmap(interpolate, in_axes=-1, out_axes=-1)(upsampled)
    rows, columns = (jnp.asarray(_downsample_matrix(side), image.dtype) for side in (height, width))
    return jnp.einsum("HWc,hH,wW->hwc", warped, rows, columns)


def _where(mask, transformed, images):
    return jnp.where(mask[:, None, None, None] > 0, transformed, images)


def _rotation(angle: Float[Array, " n"]) -> Float[Array, "n 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], axis=1), jnp.stack([sin, cos], axis=1)], axis=1)


def _fine_positions(side: int, dtype) -> Float[Array, " places"]:
    """Positions of the fine points that `_downsample_matrix` reads, in pixels from the centre."""
    return jnp.arange(-DELAY, 2 * side - 1 + len(SYM6) - 1 - DELAY, dtype=dtype) / 2 - (side - 1) / 2


@functools.cache
def _upsample_matrix(side: int) -> np.ndarray:
    """The matrix from a row of pixels to one period of its reflections at twice the resolution.

    Pixel m, at fine point 2 m, reaches the fine points 2 m - 5 ... 2 m + 6.
    """
    require(side >= 2, "side of an image", side, "2 pixels or more")
    period = 2 * (side - 1)
    matrix = np.zeros((2 * period, side))
    for pixel in range(period):
        for position, weight in enumerate(SYM6):
            matrix[(2 * pixel + position - DELAY) % (2 * period), min(pixel, period - pixel)] += weight
    return matrix


@functools.cache
def _downsample_matrix(side: int) -> np.ndarray:
    """The matrix from the fine points of `_fine_positions` back to a row of pixels."""
    matrix = np.zeros((side, 2 * side - 2 + len(SYM6)))
    for pixel in range(side):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = SYM6
    return matrix
