"""Arrays (n, h, w, c) of any type: read as images or as fields; samples in the units and the type of the array."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from test_cli import run as vamf
from vamf import data, networks
from vamf.data import ImageConfig
from vamf.errors import UserError
from vamf.networks import InContextConfig, MLPConfig, UNetConfig
from vamf.networks.sizes import patch_for
from vamf.progress import Progress
from vamf.training.config import LogConfig
from vamf.training.presets import for_data
from vamf.training.run import Run
from vamf.training.step import build_network

RNG = np.random.default_rng(0)
UNIT = RNG.random((64, 6, 6, 1))
LATENTS = RNG.normal(size=(64, 8, 8, 4)) * [1, 10, 100, 0] + [0, 5, -300, 7]


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        ((255 * UNIT).astype(np.uint8), 0, 255),
        (np.repeat((255 * UNIT).astype(np.uint8), 4, axis=3), 0, 255),
        (UNIT.astype(np.float32), 0, 1),
        (UNIT.repeat(3, axis=3) * 2 - 1, -1, 1),
        ((UNIT * 255).astype(np.float16), 0, 255),
    ],
)
def test_images_keep_their_units_and_type(x, low, high):
    """Values far outside what training has seen are clipped."""
    dataset = data.load(x)
    assert (dataset.image_shape, dataset.min_value, dataset.max_value) == (x.shape[1:], low, high)
    drawn = dataset.to_original(np.asarray(dataset.draw(dataset.arrays, jax.random.key(0), 300)[0]))
    assert drawn.dtype == x.dtype
    stored = {image.tobytes() for image in np.round(x, 2)}
    assert {image.tobytes() for image in np.round(drawn, 2)} <= stored
    wild = dataset.to_original(100 * np.random.default_rng(0).normal(size=(9, *x.shape[1:])))
    assert (wild.dtype, wild.min(), wild.max()) == (x.dtype, low, high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_latents_are_standardised_and_not_clipped(dtype):
    """By mean and deviation of each channel over the training rows; a constant channel keeps its value."""
    x = LATENTS.astype(dtype)
    dataset = data.load(x, holdout=0.25)
    assert dataset.image_shape is None
    assert dataset.clip_range is None
    assert "48 fields of 8x8x4" in dataset.summary
    assert "each channel standardised" in dataset.summary
    held_out = {row.tobytes() for row in dataset.held_out()}
    train = np.array([row for row in x if row.tobytes() not in held_out], np.float64)
    np.testing.assert_allclose(dataset.shift, train.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.scale[:3], train.std(axis=(0, 1, 2))[:3], rtol=1e-6)
    z = np.asarray(dataset.draw(dataset.arrays, jax.random.key(0), 400)[0])
    np.testing.assert_array_equal(z[..., 3], 0)
    back = dataset.to_original(z)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back[..., 3], 7)
    nearest = np.abs(back[:, None] - x[None].astype(np.float64)).max(axis=(2, 3, 4)).min(axis=1)
    assert nearest.max() < 1e-3
    assert dataset.to_original(np.full((1, 8, 8, 4), 50.0))[0, 0, 0, 2] > 1000


@pytest.mark.parametrize(
    ("x", "values", "is_image"),
    [
        (10 + 20 * UNIT, "auto", False),  # temperatures
        (0.01 * UNIT, "auto", False),
        (UNIT.repeat(2, axis=3), "auto", False),  # two channels
        (1000 * UNIT, "auto", False),
        (UNIT, "field", False),
        (1000 * UNIT, "image", True),
        (0.01 * UNIT, "image", True),
    ],
)
def test_what_is_an_image(x, values, is_image):
    dataset = data.load(x, image_config=ImageConfig(values=values))
    assert (dataset.image_shape is not None) == is_image
    assert ("read as images" if is_image else "read as fields") in dataset.summary


def test_what_is_refused():
    for x, message in (
        (np.zeros((40, 6, 6, 2), np.uint8), "1 .grey., 3 .RGB. or 4 .RGBA. channels"),
        (np.zeros((40, 6, 6, 1), np.int64), "entries of type int64; images are uint8 from 0 to 255 or floats"),
        (np.where(UNIT > 0.99, np.nan, UNIT), "entries that are not finite"),
        (np.full((40, 6, 6, 1), 1e308) * RNG.choice([-1, 1], (40, 6, 6, 1)), "too large to standardise"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(x)
    with pytest.raises(UserError, match=r"images.values = image: 2 channels"):
        data.load(UNIT.repeat(2, axis=3), image_config=ImageConfig(values="image"))


def test_samples_that_are_not_finite_stay_so():
    """A diverged run is no set of black images."""
    dataset = data.load((255 * UNIT).astype(np.uint8))
    assert np.isnan(dataset.to_original(np.full((2, 6, 6, 1), np.nan))).all()


@pytest.mark.parametrize(
    ("side", "patch"),
    [(6, 1), (7, 1), (8, 1), (16, 2), (20, 2), (28, 4), (32, 4), (50, 5), (64, 4), (256, 4), (512, 8)],
)
def test_patches_follow_the_image(side, patch):
    assert patch_for(side, side) == patch


def test_networks_take_any_image_or_say_what_to_do():
    """The preset's, that of Improved MeanFlow and a U-Net of few levels."""
    in_context = InContextConfig(depth=1, width=16, heads=2, head_depth=0)
    unet = UNetConfig(channels=4, multipliers=(1,), blocks=1)
    for shape, others in (((8, 8, 4), (in_context, unet)), ((6, 6, 1), ()), ((50, 50, 1), ()), ((28, 12, 3), ())):
        preset = for_data(np.zeros((40, *shape), np.uint8 if shape[2] < 4 else np.float32)).network
        for network in (dataclasses.replace(preset, depth=1), *others):
            jax.eval_shape(networks.build(network, shape).init, jax.random.key(0))
    for network, message in (
        (UNetConfig(), r"multiples of 4; they are 6 and 6: name fewer levels"),
        (InContextConfig(patch=4), r"network.patch = 4: allowed are divisors of both sides of 6 x 6 images, or 0"),
    ):
        with pytest.raises(UserError, match=message):
            networks.build(network, (6, 6, 1))
    with pytest.raises(UserError, match=r"images of 97 x 97 .* --images.size 96"):
        patch_for(97, 97)


@pytest.mark.parametrize(("x", "is_image"), [(UNIT.astype(np.float32), True), (LATENTS, False)])
def test_a_run_returns_what_it_was_given(tmp_path, capsys, x, is_image):
    """Files of samples are data again: `.npy` in units and type, `.png` for images alone."""
    np.save(tmp_path / "x.npy", x)
    log, network = LogConfig(every=2, variance_every=0), MLPConfig(width=16, depth=1)
    run = Run.create(for_data(tmp_path / "x.npy", steps=2, batch_size=8, log=log, network=network), tmp_path / "run")
    run.train(Progress(show=False))
    assert vamf("sample", tmp_path / "run", "--n", 40, "--out", tmp_path / "s.npy", capsys=capsys)[0] == 0
    samples = np.load(tmp_path / "s.npy")
    assert (samples.shape, samples.dtype) == ((40, *x.shape[1:]), x.dtype)
    assert data.load(tmp_path / "s.npy").event_shape == x.shape[1:]
    if is_image:
        assert (samples.min(), samples.max()) == (0, 1)
    else:
        assert np.ptp(samples, axis=(0, 1, 2))[2] > 300
    status, _, err = vamf("sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "s.png", capsys=capsys)
    if is_image:
        assert Image.open(tmp_path / "s.png").size[0] > 6
    else:
        assert (status, err.count("\n")) == (2, 1)
        assert "fields of shape (8, 8, 4), no images; write .npy or .npz" in err


# ------------------------------------------------------------------------------------------------- vamf data check


def check(path, *options, capsys):
    status, out, err = vamf("data", "check", path, *options, capsys=capsys)
    return status, out, err.splitlines()[-1] if err else ""


def test_a_folder_is_checked(tmp_path, capsys):
    x = RNG.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    x[7] = x[30]
    for row, image in enumerate(x):
        file = tmp_path / "photos" / ("ant" if row < 15 else "bee") / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (tmp_path / "photos" / "bee" / "20.png").write_bytes(b"no image")
    status, out, _ = check(tmp_path / "photos", "--json", capsys=capsys)
    result = json.loads(out)
    assert (status, result["trainable"]) == (0, True)
    assert (result["count"], result["sizes"], result["classes"]) == (40, {"12x12": 39}, {"ant": 15, "bee": 25})
    assert [entry.split(": ")[0] for entry in result["damaged"]] == [str(tmp_path / "photos" / "bee" / "20.png")]
    names = [str(tmp_path / "photos" / name) for name in ("ant/07.png", "bee/30.png")]
    assert (result["duplicates"], result["repeated"]) == ([names], 1)
    config = for_data(tmp_path / "photos")
    params = jax.eval_shape(build_network(config, config.load_data()).init, jax.random.key(0))
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))

    Image.fromarray(x[0][:9]).save(tmp_path / "photos" / "ant" / "99.png")
    status, out, last = check(tmp_path / "photos", capsys=capsys)
    assert status == 2
    assert "12x12 (39), 9x12 (1)" in out
    assert last.startswith("vamf: cannot be trained on as they are: ")
    assert "choose a size" in last
    status, out, _ = check(tmp_path / "photos", "--images.size", 8, capsys=capsys)
    assert status == 0
    assert "--images.size 8: meanflow, dit" in out


def test_arrays_and_tables_are_checked(tmp_path, capsys):
    np.save(tmp_path / "latents.npy", LATENTS)
    np.save(tmp_path / "table.npy", LATENTS[:, 0, 0])
    np.save(tmp_path / "few.npy", UNIT[:9])
    status, out, _ = check(tmp_path / "latents.npy", capsys=capsys)
    assert status == 0
    assert "4 of float64 (64)" in out
    assert "read as fields" in out
    status, out, _ = check(tmp_path / "table.npy", capsys=capsys)
    assert (status, "4 columns" in out, "mlp" in out) == (0, True, True)
    status, out, last = check(tmp_path / "few.npy", capsys=capsys)
    assert (status, "images      9" in out) == (2, True)
    assert "at least 32 are needed" in last
    assert check(tmp_path / "none", capsys=capsys)[0] == 2
