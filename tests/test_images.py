"""Images as data sets: preparation, drawing, holding out, and everything that is refused or left out."""

import dataclasses
import hashlib
import io
import json
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from test_image_files import SHARED, labels, pixels, save, write_mnist
from vamf.data import image_dataset, image_files, images
from vamf.data.classes import class_index
from vamf.data.image_dataset import ImageConfig
from vamf.data.image_decoding import CorruptImage, EncodedImage, prepare_image
from vamf.data.image_stream import ImageSource
from vamf.errors import UserError
from vamf.metrics.images import open_images
from vamf.training.presets import PRESETS


def refusal(path, **options):
    """The one line that a source is refused with."""
    with pytest.raises(UserError) as raised:
        images.load(path, ImageConfig(**options))
    message = str(raised.value)
    assert "\n" not in message
    return message


def encoded(array, form="PNG", mode=None, **options):
    """An image as a file's content."""
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze(), mode).save(buffer, form, **options)
    return EncodedImage("an image", buffer.getvalue())


def as_set(images):
    return {image.tobytes() for image in np.asarray(images)}


def drawn(dataset, n=3000, seed=0):
    """Images as bytes, and their labels."""
    x, label = jax.jit(dataset.draw, static_argnums=2)(dataset.arrays, jax.random.key(seed), n)
    assert x.dtype == np.float32
    original = dataset.to_original(np.asarray(x))
    np.testing.assert_allclose(original, np.rint(original), atol=1e-4)
    return np.rint(original).astype(np.uint8), label


# -------------------------------------------------------------------------------------------------------- preparation


def test_a_image_of_the_right_size_stays_what_it_is():
    x = pixels(1, 32, 32)[0]
    np.testing.assert_array_equal(prepare_image(x, 32, "stored"), x)
    np.testing.assert_array_equal(prepare_image(encoded(x), 32, "stored"), x)


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (8, 8), (9, 8)])
def test_the_middle_is_kept(height, width):
    x = pixels(1, height, width)[0]
    top, left = (height - 8) // 2, (width - 8) // 2
    np.testing.assert_array_equal(prepare_image(x, 8, "stored"), x[top : top + 8, left : left + 8])


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_halving_averages(halvings):
    """Blocks of 2 x 2 are averaged, across and then down, and rounded each time."""
    x = pixels(1, 8 * 2**halvings, 8 * 2**halvings)[0]
    expected = x.astype(float)
    for _ in range(halvings):
        across = np.floor((expected[:, ::2] + expected[:, 1::2]) / 2 + 0.5)
        expected = np.floor((across[::2] + across[1::2]) / 2 + 0.5)
    np.testing.assert_array_equal(prepare_image(x, 8, "stored"), expected)


@pytest.mark.parametrize(("stored", "size"), [(24, 16), (37, 20), (12, 30)])
def test_resizing_keeps_constants_and_slopes(stored, size):
    assert np.unique(prepare_image(np.full((stored, stored, 3), 77, np.uint8), size, "stored")) == [77]
    across = np.linspace(20, 220, stored).round().astype(np.uint8)
    ramp = prepare_image(np.tile(across[None, :, None], (stored, 1, 1)), size, "stored")[:, :, 0]
    assert (ramp == ramp[0]).all()
    # Pixel centres: place (j + 1/2) stored / size - 1/2 in the old image; away from the borders of the kernel.
    places = (np.arange(size) + 0.5) * stored / size - 0.5
    inside = slice(size // 6, -(size // 6))
    expected = np.interp(places, np.arange(stored), across)
    np.testing.assert_allclose(ramp[0, inside].astype(float), expected[inside], atol=1.5)


def test_grey_and_rgb():
    colour, grey = pixels(1)[0], pixels(1, channels=1)[0]
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(prepare_image(colour, None, "grey")[..., 0].astype(float), colour @ weights, atol=0.51)
    np.testing.assert_array_equal(prepare_image(grey, None, "rgb"), np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(prepare_image(grey, None, "grey"), grey)
    np.testing.assert_array_equal(prepare_image(colour, None, "rgb"), colour)


def test_transparency_is_laid_on_white():
    x = pixels(1, channels=4)[0]
    x[:3, :, 3], x[3:, :, 3] = 0, 255
    result = prepare_image(encoded(x), None, "rgb")
    assert (result[:3] == 255).all()
    np.testing.assert_array_equal(result[3:], x[3:, :, :3])


def png(rows, depth, kind, *chunks):
    """A PNG, byte by byte as its specification says, from samples (h, w, channels) of `depth` bits each."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = rows.shape[:2]
    bits = (rows.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    lines = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    parts = [chunk(b"IHDR", head), *(chunk(*part) for part in chunks), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GREY, COLOUR, PALETTE = 0, 2, 3
"""Kinds of PNG that may name a transparent level, colour or entries of their palette (chunk tRNS)."""


def transparent(kind, depth):
    """A PNG whose hidden parts are far from white, and what it shows on white: (content, pixels (h, w, 3))."""
    random = np.random.default_rng(depth)
    rows = random.integers(0, 2**depth, (6, 5, 3 if kind == COLOUR else 1))
    if kind == PALETTE:
        colours = random.integers(0, 256, (2**depth, 3), np.uint8)
        alpha = random.integers(0, 256, 2**depth, np.uint8)
        expected = np.rint(255 + (colours - 255.0) * (alpha[:, None] / 255))[rows[..., 0]]
        return png(rows, depth, kind, (b"PLTE", colours.tobytes()), (b"tRNS", alpha.tobytes())), expected
    rows[2:4, 1:] = hidden = rows[2, 1]
    shown = rows * 255 // (2**depth - 1)
    clear = (rows == hidden).all(axis=2, keepdims=True)
    above = 2**depth * (1 < depth < 8)  # bits beyond the depth, which do not count
    return png(rows, depth, kind, (b"tRNS", (hidden + above).astype(">u2").tobytes())), np.where(clear, 255, shown)


SHALLOW = [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (COLOUR, 8)]
SHALLOW += [(PALETTE, depth) for depth in (1, 2, 4, 8)]


@pytest.mark.parametrize(("kind", "depth"), SHALLOW)
def test_whatever_a_png_declares_transparent_is_laid_on_white(tmp_path, kind, depth):
    """By training's reader, that of streams and that of `vamf fid`; like the same image with an alpha channel."""
    content, expected = transparent(kind, depth)
    assert (expected == 255).all(axis=2).any() or kind == PALETTE
    (tmp_path / "a.png").write_bytes(content)
    source = image_files.read(tmp_path)
    rgb = ImageConfig(channels="rgb")
    result = [images.decode(source, rgb, "a").pixels[0], ImageSource(source, rgb)[0]["pixels"].reshape(6, 5, 3)]
    result += [batch[0] for batch in open_images(tmp_path).batches(1)]
    for one_of in result:
        np.testing.assert_allclose(one_of.astype(float), np.broadcast_to(expected, (6, 5, 3)), atol=1)  # half a level
        np.testing.assert_array_equal(one_of, result[0])
    assert "channels" in refusal_of(source)


def refusal_of(source):
    with pytest.raises(UserError, match="choose channels = rgb or grey") as raised:
        images.decode(source, ImageConfig(), "a")
    return str(raised.value)


def test_a_transparent_colour_that_no_pixel_has_and_one_of_16_bits(tmp_path):
    content = png(np.full((6, 5, 3), 7), 8, COLOUR, (b"tRNS", bytes([0, 7, 0, 7, 0, 8])))
    assert (prepare_image(EncodedImage("p", content), None, "stored") == 7).all()
    for kind, channels in ((GREY, 1), (COLOUR, 3)):
        content = png(np.full((6, 5, channels), 300), 16, kind, (b"tRNS", bytes(2 * channels)))
        with pytest.raises(UserError, match=r"p: .*8 bits a channel are needed"):
            prepare_image(EncodedImage("p", content), None, "rgb")


def test_palettes_and_bits():
    x = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 40, 5, axis=1)
    paletted = io.BytesIO()
    Image.fromarray(np.stack([x, x, 255 - x], axis=2)).quantize(4).save(paletted, "PNG")
    result = prepare_image(EncodedImage("p", paletted.getvalue()), None, "stored")
    np.testing.assert_array_equal(result, np.stack([x, x, 255 - x], axis=2))
    bits = io.BytesIO()
    Image.fromarray(x > 60).save(bits, "PNG")
    np.testing.assert_array_equal(
        prepare_image(EncodedImage("b", bits.getvalue()), None, "stored")[..., 0], 255 * (x > 60)
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (encoded(pixels(1, channels=4)[0]), "4 channels (RGBA)"),
        (encoded(pixels(1, channels=2)[0], mode="LA"), "2 channels (LA)"),
        (encoded(pixels(1, channels=4)[0], "JPEG", mode="CMYK"), "4 channels (CMYK)"),
        (encoded(np.zeros((5, 5), np.uint16)), "8 bits a channel"),
    ],
)
def test_other_kinds_of_images_are_refused(item, message):
    with pytest.raises(UserError, match="an image: ") as raised:
        prepare_image(item, None, "stored")
    assert message in str(raised.value)


# ------------------------------------------------------------------------------------------------------------ drawing


def test_draws_are_the_stored_images_with_their_labels(tmp_path):
    x, y = pixels(), labels()
    np.savez(tmp_path / "things.npz", images=x, labels=y)
    dataset = images.load(tmp_path / "things.npz", holdout=0.0)
    assert (dataset.name, dataset.event_shape, dataset.image_shape) == ("things", (6, 5, 3), (6, 5, 3))
    assert dataset.num_classes == 4
    assert dataset.arrays["pixels"].dtype == np.uint8
    result, label = drawn(dataset)
    # 3,000 draws of 40 images miss a given one with probability e^-75.
    assert as_set(result) == as_set(x)
    classes = {image.tobytes(): k for image, k in zip(x, y, strict=True)}
    assert all(classes[image.tobytes()] == k for image, k in zip(result, np.asarray(label), strict=True))
    assert "40 images of 6x5x3 in 4 classes" in dataset.summary


def test_the_network_sees_minus_one_to_one():
    x = np.full((32, 4, 4, 1), 255, np.uint8)
    x[:16] = 0
    dataset = images.from_pixels("two", x)
    assert set(np.unique(dataset.draw(dataset.arrays, jax.random.key(0), 200)[0])) == {-1.0, 1.0}


def test_draws_follow_the_key():
    dataset = images.from_pixels("x", pixels(), flip=True)
    (first, _), (again, _), (other, _) = (drawn(dataset, 64, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_flips():
    x, y = pixels(50), labels(50)
    plain, flipped = (images.from_pixels("x", x, label=y, holdout=0.0, flip=flip) for flip in (False, True))
    result, label = drawn(flipped, 4000)
    upright = np.array([image.tobytes() in as_set(x) for image in result])
    assert as_set(result[upright]) == as_set(x)
    assert as_set(result[~upright]) == as_set(x[:, :, ::-1])
    assert abs(upright.sum() - 2000) < 5 * np.sqrt(1000)
    # Without them the same key draws the same images.
    straight, same = drawn(plain, 4000)
    np.testing.assert_array_equal(np.where(upright[:, None, None, None], result, result[:, :, ::-1]), straight)
    np.testing.assert_array_equal(label, same)


def test_held_out_images_are_never_drawn():
    x = pixels()
    dataset = images.from_pixels("x", x, holdout=0.25)
    held_out = dataset.reference(1000, 0)
    assert held_out.shape == (10, 6, 5, 3)
    expected = as_set(drawn(dataset)[0])
    assert len(expected) == 30
    assert not expected & as_set(held_out.astype(np.uint8))
    assert expected | as_set(held_out.astype(np.uint8)) == as_set(x)
    np.testing.assert_array_equal(held_out, images.from_pixels("x", x, holdout=0.25).reference(1000, 0))
    assert len(dataset.reference(3, 1)) == 3


def test_the_official_test_set_is_the_reference(tmp_path):
    x = pixels(80, 28, 28, 1)
    write_mnist(tmp_path, x[:40], labels(40, 10), end=".gz")
    write_mnist(tmp_path, x[40:], labels(40, 10), prefix="t10k", end=".gz")
    dataset = images.load(tmp_path, ImageConfig(expect="fashion_mnist"))
    assert dataset.unseen
    assert (dataset.event_shape, dataset.num_classes) == ((28, 28, 1), 10)
    assert as_set(drawn(dataset)[0]) == as_set(x[:40])
    assert as_set(dataset.reference(1000, 3).astype(np.uint8)) == as_set(x[40:])
    assert "40 in the official test set" in dataset.summary


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("channels", ["stored", "grey", "rgb"])
def test_folders_and_arrays_are_prepared_alike(tmp_path, size, channels):
    x = pixels(40, 12, 12)
    save(tmp_path / "folder", x)
    np.save(tmp_path / "array.npy", x)
    config = ImageConfig(size=size, channels=channels)
    folder, array = (images.load(tmp_path / name, config) for name in ("folder", "array.npy"))
    assert folder.event_shape == (size or 12, size or 12, 1 if channels == "grey" else 3)
    np.testing.assert_array_equal(folder.arrays["pixels"], array.arrays["pixels"])


# ---------------------------------------------------------------------------------------------------- damaged and bad


def damage(file, kind):
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"<html></html>"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_are_left_out_and_counted(tmp_path, suffix, kind):
    for at, animal in enumerate(["ant", "cat"]):
        save(tmp_path / animal, pixels(20, 24, 24, seed=at), suffix)
    bad = [tmp_path / "ant" / f"0003.{suffix}", tmp_path / "cat" / f"0000.{suffix}"]
    for file in bad:
        damage(file, kind)
    dataset = images.load(tmp_path, holdout=0.0)
    assert "38 images" in dataset.summary
    assert f"2 damaged and left out, the first: {bad[0]}" in dataset.summary
    np.testing.assert_array_equal(np.bincount(dataset.arrays["label"]), [19, 19])
    assert str(bad[0]) in refusal(tmp_path, strict=True)


def test_a_folder_of_damaged_images(tmp_path):
    save(tmp_path, pixels(33))
    for file in tmp_path.iterdir():
        damage(file, "empty")
    assert "none of 33 images can be read" in refusal(tmp_path)


def test_too_few_are_left(tmp_path):
    save(tmp_path, pixels(image_dataset.MIN_IMAGES))
    images.load(tmp_path)
    damage(tmp_path / "0004.png", "empty")
    message = refusal(tmp_path)
    assert "31 images; at least 32" in message
    assert "0004.png" in message


def test_mixed_sizes_and_kinds(tmp_path):
    save(tmp_path, pixels(40, 24, 24))
    save(tmp_path, pixels(1, 24, 20), start=17)
    message = refusal(tmp_path)
    assert "0017.png has shape (24, 20, 3)" in message
    assert "choose a size" in message
    assert images.load(tmp_path, ImageConfig(size=16)).event_shape == (16, 16, 3)
    save(tmp_path, pixels(1, 24, 24, 1), start=17)
    assert "choose channels = rgb or grey" in refusal(tmp_path)
    assert images.load(tmp_path, ImageConfig(channels="grey")).event_shape == (24, 24, 1)
    save(tmp_path, pixels(1, 24, 24, 4), start=17)
    assert "0017.png: 4 channels (RGBA)" in refusal(tmp_path)


def test_a_test_set_of_another_shape(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=pixels(), x_test=pixels(10, 8, 8))
    assert "(8, 8, 3)" in refusal(tmp_path / "x.npz")


def test_labels_and_the_number_of_classes(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=pixels(), labels=labels())
    assert images.load(path, ImageConfig(num_classes=7)).num_classes == 7
    assert "label 3 of image 4 is out of range; allowed is 0 to 2" in refusal(path, num_classes=3)
    np.savez(path, images=pixels(), labels=np.where(np.arange(40) == 5, 1000, labels()))
    assert images.load(path).classes == (0, 1, 2, 3, 1000)
    wide = images.load(path, ImageConfig(num_classes=1001), holdout=0.0)
    assert (wide.num_classes, wide.classes, int(wide.arrays["label"].max())) == (1001, (), 1000)
    assert "label 1000 of image 6 is out of range; allowed is 0 to 4" in refusal(path, num_classes=5)
    np.savez(path, images=pixels(), labels=2 * np.arange(40))
    assert "40 different labels among 40 images; if they are classes, number them from 0" in refusal(path)


GIVEN = {
    "from one": (1 + np.arange(40) % 3, (1, 2, 3), ["1", "3"], ["0", "4"]),
    "two of many": (np.array([3, 7])[np.arange(40) % 2], (3, 7), ["3", "7"], ["0", "1"]),
    "words": (np.array(["dog", "cat"])[np.arange(40) % 2], ("cat", "dog"), ["cat", "dog", "0", "1"], ["2", "cow"]),
    "from zero": (np.arange(40) % 3, (), ["0", "2"], ["3", "-1"]),
}


@pytest.mark.parametrize(("raw_labels", "classes", "valid_names", "invalid_names"), GIVEN.values(), ids=GIVEN)
def test_classes_keep_their_names(tmp_path, raw_labels, classes, valid_names, invalid_names):
    """The same in an archive and as folders, in memory and in its labels' numbers."""
    x, path = pixels(), tmp_path / "x.npz"
    np.savez(path, images=x, targets=raw_labels, notes=np.zeros(2))
    class_names = [str(name) for name in np.unique(raw_labels)]
    for name in class_names:
        save(tmp_path / "folder" / name, x[raw_labels.astype(str) == name])
    by_pixels = {image.tobytes(): str(name) for image, name in zip(x, raw_labels, strict=True)}
    for source in (path, tmp_path / "folder"):
        dataset = images.load(source, holdout=0.0)
        assert dataset.num_classes == len(class_names)
        assert tuple(map(str, dataset.classes)) == tuple(map(str, classes))
        result, label = drawn(dataset)
        names = [str(name) for name in dataset.class_names]
        assert all(by_pixels[image.tobytes()] == names[k] for image, k in zip(result, label.tolist(), strict=True))
        assert (f" in {len(class_names)} classes ({', '.join(class_names)})" in dataset.summary) == bool(classes)
        assert [class_index(name, dataset.class_names) for name in class_names] == [*range(len(class_names))]
        assert {class_index(name, dataset.class_names) for name in valid_names} <= {*range(len(class_names))}
        for name in invalid_names:
            with pytest.raises(UserError, match=f"label = {name}: allowed is .*, or each"):
                class_index(name, dataset.class_names)
    assert images.load(path).summary.endswith("; notes beside them not used")


def test_more_than_the_memory_allowed(tmp_path):
    np.save(tmp_path / "x.npy", pixels(64, 64, 64))
    save(tmp_path / "folder", pixels(64, 64, 64))
    less, more = (ImageConfig(memory=64**3 * 3 / 2**30 * factor) for factor in (0.99, 1.01))
    for path in (tmp_path / "x.npy", tmp_path / "folder"):
        assert images.load(path, more).stream is None
        with pytest.raises(UserError, match=r"64 images of 64x64x3 are 0\.0 GiB.*vamf data latents"):
            images.decode(image_files.read(path), less, str(path))
        pytest.importorskip("grain", reason="grain reads what is streamed")
        assert images.load(path, less).stream is not None


def test_expected_sets_are_checked(tmp_path):
    fashion = {"expect": "fashion_mnist"}
    assert "train-images-idx3-ubyte.gz" in refusal(tmp_path / "nowhere", **fashion)
    write_mnist(tmp_path, pixels(40, 20, 20, 1), labels(40, 10))
    assert "shape (20, 20, 1); fashion_mnist is (28, 28, 1)" in refusal(tmp_path, **fashion)
    write_mnist(tmp_path, pixels(40, 28, 28, 1), labels(40, 3))
    dataset = images.load(tmp_path, ImageConfig(size=14, **fashion))
    assert (dataset.num_classes, dataset.event_shape) == (3, (14, 14, 1))
    assert "cifar10 is (32, 32, 3)" in refusal(tmp_path, expect="cifar10")
    assert "--images.size 32 --images.channels rgb" in refusal(tmp_path, expect="cifar10")


def test_other_images_than_a_configuration_is_made_for_keep_their_name_and_classes(tmp_path, monkeypatch):
    folder = tmp_path / "pets"
    save(folder / "cat", pixels(40, 32, 32))
    for preset in ("ddpm_cifar10", "cifar10_unet", "cifar10_dit"):
        dataset = dataclasses.replace(PRESETS[preset], data=str(folder)).load_data()
        assert (dataset.name, dataset.num_classes) == ("pets", int(PRESETS[preset].conditional))
        assert dataset.summary.startswith("pets: 36 images of 32x32x3 in 1 class (cat) to train on")
        assert dataset.summary.endswith("; classes are not used") != PRESETS[preset].conditional
    save(folder / "dog", pixels(4, 32, 32))
    assert images.load(folder, ImageConfig(expect="cifar10")).num_classes == 2
    # CIFAR-10 is what has its labels, in their order.
    labelled = labels(40, 10)
    known_dataset = images.KNOWN_DATASETS["cifar10"]._replace(
        labels=hashlib.sha256(bytes(labelled.tolist())).hexdigest()
    )
    monkeypatch.setitem(images.KNOWN_DATASETS, "cifar10", known_dataset)
    np.savez(tmp_path / "x.npz", images=pixels(40, 32, 32), labels=labelled)
    dataset = images.load(tmp_path / "x.npz", ImageConfig(expect="cifar10"))
    assert (dataset.name, dataset.num_classes) == ("cifar10", 10)
    np.savez(tmp_path / "x.npz", images=pixels(40, 32, 32), labels=labelled[::-1])
    assert images.load(tmp_path / "x.npz", ImageConfig(expect="cifar10")).name == "x"


def test_the_official_sets_are_known_by_their_labels():
    folder = SHARED / "fashion-mnist"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    dataset = images.load(folder, ImageConfig(expect="fashion_mnist"))
    assert (dataset.name, dataset.num_classes, dataset.unseen) == ("fashion_mnist", 10, True)
    text = (SHARED / "cifar10" / "cifar10_labels.js").read_text()
    label = np.array(json.loads(text[text.index("[") : text.index("]") + 1]))[:50_000]
    assert images._matches_known(images.KNOWN_DATASETS["cifar10"], label)


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("num_classes", -1), ("memory", 0.0)])
def test_options_out_of_range(field, value):
    with pytest.raises(UserError, match=field.replace("_", "-")):
        ImageConfig(**{field: value})


@pytest.mark.parametrize("holdout", [-0.1, 0.6, float("nan")])
def test_holdout_is_a_share(holdout):
    with pytest.raises(UserError, match="holdout"):
        images.from_pixels("x", pixels(), holdout=holdout)


def test_damage_is_told_from_refusal():
    with pytest.raises(CorruptImage, match="an image: not a readable image"):
        prepare_image(encoded(pixels(1)[0])._replace(source=b"no image"), None, "rgb")
