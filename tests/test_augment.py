import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vamf.data import augment
from vamf.data.augment import SYM6, Augmentation, AugmentParams, apply, warp
from vamf.errors import UserError

ALL = Augmentation(1.0, flip=True, rotate=True)


def still(n, **moves):
    """Moves of n images that do nothing but what is given."""
    nothing = {name: np.zeros((n, 2) if name == "shift" else n) for name in AugmentParams._fields}
    return AugmentParams(**{name: jnp.asarray(value, jnp.float32) for name, value in {**nothing, **moves}.items()})


def noise(shape=(3, 16, 20, 3)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def smooth(height=24, width=32):
    """An image without detail finer than a few pixels, flat at its edges: any good interpolation gives the same."""
    rng = np.random.default_rng(1)
    window = np.outer(np.hanning(height), np.hanning(width))[..., None]
    return window * np.stack(
        [scipy.ndimage.gaussian_filter(rng.normal(size=(height, width)), 3) * 10 for _ in range(3)], axis=-1
    )


def by_scipy(image, matrix, shift):
    """Quintic splines on the reflected image, coordinates in scipy's order (down, right).

    The wavelet's filter delays a smooth image by a little more than the 5 places that are made up for.
    """
    late = (np.arange(12) @ np.array(SYM6) / np.sum(SYM6) - augment.DELAY) / 2
    inverse = np.asarray(matrix)[::-1, ::-1]
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre - late - inverse @ (centre - late + np.asarray(shift)[::-1])
    parts = [
        scipy.ndimage.affine_transform(c, inverse, offset, order=5, mode="mirror") for c in np.moveaxis(image, -1, 0)
    ]
    return np.stack(parts, axis=-1)


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_filter_is_an_orthonormal_wavelets_with_six_vanishing_moments():
    h = np.array(SYM6)
    for lag in range(6):
        np.testing.assert_allclose(h[: 12 - 2 * lag] @ h[2 * lag :], float(lag == 0), atol=1e-9)
    k = np.arange(12.0)
    for power in range(6):
        np.testing.assert_allclose(np.sum((-1) ** k * k**power * h), 0, atol=1e-6 * 12**power)
    np.testing.assert_allclose(h.sum(), np.sqrt(2), rtol=1e-9)


def test_images_that_are_not_moved_return_unchanged():
    images = noise()
    np.testing.assert_allclose(apply(still(3), images), images, atol=1e-5)
    off = Augmentation(0.0, flip=True, rotate=True)
    transformed, label = off(jax.random.key(0), images)
    np.testing.assert_allclose(transformed, images, atol=1e-5)
    assert label.shape == (3, off.features) == (3, 0)
    rare = Augmentation(1e-9, mirror=False, flip=True, rotate=True)
    transformed, label = rare(jax.random.key(0), images)
    np.testing.assert_allclose(transformed, images, atol=1e-5)
    np.testing.assert_array_equal(label, np.zeros((3, 8)))


def test_flips_are_exact():
    images = noise()
    np.testing.assert_allclose(apply(still(3, mirror=np.ones(3)), images), images[:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(apply(still(3, flip=np.ones(3)), images), images[:, ::-1], atol=1e-5)
    one = apply(still(3, mirror=np.array([0, 1, 0])), images)
    np.testing.assert_allclose(one, images.at[1].set(images[1, :, ::-1]), atol=1e-5)


@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (4, 5), (-40, 33)])
def test_whole_shifts_are_exact_and_what_comes_in_is_reflected(shift):
    image = noise()[0]
    transformed = warp(image, jnp.eye(2), jnp.asarray(shift, jnp.float32))
    rows = np.pad(np.arange(16), 60, mode="reflect")[60 - shift[1] :][:16]
    columns = np.pad(np.arange(20), 60, mode="reflect")[60 - shift[0] :][:20]
    np.testing.assert_allclose(transformed, image[rows][:, columns], atol=1e-4)
    sides = np.array([20, 16])
    label = np.asarray(shift) / (augment.SHIFT_STD * sides)
    again = apply(still(1, shift=label[None]), image[None])[0]
    np.testing.assert_allclose(again, transformed, atol=1e-4)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns(quarter):
    """Counter-clockwise, as numpy's, but for the tenth of a pixel that the filter's delay moves the centre."""
    image = smooth(32, 32)
    transformed = apply(still(1, angle=np.array([quarter * np.pi / 2])), jnp.asarray(image[None], jnp.float32))[0]
    differences = [np.abs(transformed - np.rot90(image, k)).max() / np.abs(image).max() for k in range(4)]
    assert differences[quarter] < 0.06
    assert sorted(differences)[1] > 0.5


MOVES = {
    "scale up": ({"scale": 1.5}, 2**-0.3 * np.eye(2)),
    "scale down": ({"scale": -1.5}, 2**0.3 * np.eye(2)),
    "rotate": ({"angle": 0.4}, turn(0.4)),
    "stretch": ({"stretch": 1.5}, np.diag([2**-0.3, 2**0.3])),
    "stretch down": ({"stretch": 1.5, "axis": np.pi / 2}, np.diag([2**0.3, 2**-0.3])),
    "stretch askew": ({"stretch": 1.5, "axis": 0.6}, turn(-0.6) @ np.diag([2**-0.3, 2**0.3]) @ turn(0.6)),
    "scale, rotate, stretch": (
        {"scale": -1.0, "angle": -1.1, "stretch": -1.0},
        2**0.2 * turn(-1.1) @ np.diag([2**0.2, 2**-0.2]),
    ),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.8, -0.5)])
def test_moves_are_scipys(name, shift):
    moves, matrix = MOVES[name]
    image = smooth()
    moves = still(1, shift=np.array([shift]), **{key: np.array([value]) for key, value in moves.items()})
    transformed = apply(moves, jnp.asarray(image[None], jnp.float32))[0]
    expected = by_scipy(image, matrix, np.array(shift) * augment.SHIFT_STD * np.array([32, 24]))
    np.testing.assert_allclose(transformed, expected, atol=0.015 * np.abs(image).max())
    assert np.max(np.abs(expected - image)) > 0.2 * np.abs(image).max()


def test_label_tells_of_every_move():
    moves = still(2, mirror=[1, 0], flip=[0, 1], scale=[0.5, 0], angle=[0.3, 0], stretch=[2, 0], axis=[0.1, 3.0])
    moves = moves._replace(shift=jnp.array([[0.7, -0.6], [0, 0]]))
    full = [1, 0, 0.5, np.cos(0.3) - 1, np.sin(0.3), 2 * np.cos(0.1), 2 * np.sin(0.1), 0.7, -0.6]
    assert ALL.features == 9
    np.testing.assert_allclose(ALL.label(moves), [full, [0, 1, *[0] * 7]], atol=1e-6)
    usual = Augmentation()
    assert usual.features == 6
    np.testing.assert_allclose(usual.label(moves)[0], [full[i] for i in (0, 2, 5, 6, 7, 8)], atol=1e-6)
    assert Augmentation(mirror=False, scale=False, stretch=False, shift=False).label(moves).shape == (2, 0)


def test_laws_of_the_moves():
    n = 40_000
    moves = Augmentation(0.3, flip=True, rotate=True).draw(jax.random.key(0), n)
    result = {name: np.asarray(value) for name, value in moves._asdict().items()}
    error = 4 * 0.5 / np.sqrt(n)
    probabilities = {"mirror": 0.5, "flip": 0.15, "scale": 0.3, "angle": 0.3, "stretch": 0.3, "axis": 0.5}
    for name, expected in probabilities.items():
        np.testing.assert_allclose(np.mean(result[name] != 0), expected, atol=error)
    both = result["shift"] != 0
    np.testing.assert_array_equal(both[:, 0], both[:, 1])
    np.testing.assert_allclose(np.mean(both), 0.3, atol=error)
    for name in ("scale", "stretch", "shift"):
        np.testing.assert_allclose(np.var(result[name][result[name] != 0]), 1, atol=0.1)
    for name in ("angle", "axis"):
        values = result[name][result[name] != 0]
        assert np.max(np.abs(values)) <= np.pi
        np.testing.assert_allclose(np.var(values), np.pi**2 / 3, rtol=0.05)
    pairs = np.corrcoef([result[name] != 0 for name in probabilities])
    np.testing.assert_allclose(pairs, np.eye(6), atol=4 / np.sqrt(n))


def test_keys_decide_and_it_compiles():
    images = noise((8, 12, 12, 1))
    call = jax.jit(ALL)
    first, again, other = (
        call(jax.random.key(0), images),
        call(jax.random.key(0), images),
        call(jax.random.key(1), images),
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.allclose(first[0], other[0])
    assert first[0].dtype == jnp.float32
    np.testing.assert_allclose(apply(ALL.draw(jax.random.key(0), 8), images), first[0], atol=1e-4)


def test_refusals():
    with pytest.raises(UserError, match="probability"):
        Augmentation(1.5)
    with pytest.raises(UserError, match="2 pixels"):
        apply(still(1), jnp.ones((1, 1, 4, 3)))
