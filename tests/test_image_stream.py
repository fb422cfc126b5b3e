"""Batches from disk: every image once an epoch, the same batches from wherever they start."""

import sys
from itertools import islice

import numpy as np
import pytest

from test_image_files import labels, pixels, save
from test_images import as_set, damage
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_stream import stream
from vamf.errors import UserError


@pytest.fixture
def grain():
    return pytest.importorskip("grain", reason="grain reads the images")


def take(path, count, **options):
    """Batches, the options of the images and those of the stream."""
    config = {name: options.pop(name) for name in list(options) if name in ImageConfig.__dataclass_fields__}
    options = {"batch_size": 8, "threads": 2} | options
    return list(islice(stream(path, ImageConfig(**config), **options), count))


@pytest.mark.parametrize("source", ["folder", "array"])
def test_every_epoch_is_a_new_order_of_all_images(grain, tmp_path, source):
    x, y = pixels(), labels()
    path = tmp_path / "x.npz"
    np.savez(path, images=x, labels=y)
    if source == "folder":
        path = tmp_path / "folder"
        for k in range(4):
            save(path / str(k), x[y == k])
    batches = take(path, 10)
    result = np.concatenate([batch.pixels for batch in batches])
    assert result.dtype == np.uint8
    classes = {image.tobytes(): k for image, k in zip(x, y, strict=True)}
    label = np.concatenate([batch.label for batch in batches])
    assert all(classes[image.tobytes()] == k for image, k in zip(result, label, strict=True))
    first, second = result[:40], result[40:]
    assert as_set(first) == as_set(second) == as_set(x)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("start", [1, 4, 17])
def test_a_stream_goes_on_where_another_stopped(grain, tmp_path, start):
    np.save(tmp_path / "x.npy", pixels())
    whole = take(tmp_path / "x.npy", start + 4, flip=True, batch_size=6)
    rest = take(tmp_path / "x.npy", 4, flip=True, batch_size=6, start=start, threads=1)
    for a, b in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
    assert whole[0].label is None
    other = take(tmp_path / "x.npy", 1, flip=True, batch_size=6, seed=1)
    assert not np.array_equal(whole[0].pixels, other[0].pixels)


def test_flips(grain, tmp_path):
    x = pixels()
    np.save(tmp_path / "x.npy", x)
    result = np.concatenate([batch.pixels for batch in take(tmp_path / "x.npy", 100, flip=True)])
    upright = np.array([image.tobytes() in as_set(x) for image in result])
    assert as_set(result[~upright]) <= as_set(x[:, :, ::-1])
    assert abs(upright.sum() - 400) < 5 * np.sqrt(200)


def test_a_damaged_image_gives_its_place_to_the_next(grain, tmp_path):
    x = pixels()
    save(tmp_path, x)
    for at in (0, 39):
        damage(tmp_path / f"{at:04d}.png", "truncated")
    result = np.concatenate([batch.pixels for batch in take(tmp_path, 5)])
    _, counts = np.unique(result.reshape(40, -1), axis=0, return_counts=True)
    assert as_set(result) == as_set(x[1:39])
    assert sorted(counts)[-1] == 3  # the second image stands in for the first and the last
    with pytest.raises(UserError, match=r"0000\.png"):
        take(tmp_path, 1, strict=True)


def test_mixed_sizes(grain, tmp_path):
    save(tmp_path, pixels())
    save(tmp_path, pixels(1, 9, 9), start=3)
    with pytest.raises(UserError, match="image 4 has shape"):
        take(tmp_path, 5)
    assert take(tmp_path, 1, size=4)[0].pixels.shape == (8, 4, 4, 3)


def test_without_grain(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    np.save(tmp_path / "x.npy", pixels())
    with pytest.raises(UserError, match=r"pip install 'vamf\[images\]'"):
        take(tmp_path / "x.npy", 1)
