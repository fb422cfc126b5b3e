"""Latents: encoding that survives being killed, statistics, drawing, damaged shards. A stand-in averages blocks."""

import dataclasses
import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from test_image_files import labels, pixels, save
from test_images import damage
from vamf import autoencoders, data
from vamf.autoencoders import Autoencoder
from vamf.autoencoders.images import from_bytes, psnr
from vamf.commands.runs import print_distances
from vamf.data import LatentScale, cli, encoding, image_reading, latents
from vamf.data.encoding import LatentConfig
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training.config import TrainConfig
from vamf.training.config_file import identity
from vamf.training.presets import PRESETS
from vamf.training.run import Run

SHARED = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
CONFIG = LatentConfig(size=16, shard=10, batch_size=4)


class Killed(BaseException):
    """The end of the process."""


def averages(x):
    """(n, h, w, 3) -> (n, h / 8, w / 8, 3), the means of blocks."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 8, 8, w // 8, 8, c).mean(axis=(2, 4))


def channels(x):
    """Four channels of very different scales, one of them constant."""
    mean = averages(x)
    return jnp.stack(
        [mean[..., 0], 20 + 5 * mean[..., 1], mean[..., 2] / 100, jnp.full_like(mean[..., 0], 0.5)], axis=3
    )


def spread(x):
    return channels(x), 0.1 + averages(x)[..., :1] ** 2 * jnp.array([1.0, 0.5, 0.01, 0.0])


def plain(latent):
    """The mean colour of every block, from its latents."""
    colour = jnp.stack([latent[..., 0], (latent[..., 1] - 20) / 5, latent[..., 2] * 100], axis=3)
    return jnp.repeat(jnp.repeat(colour, 8, axis=1), 8, axis=2)


def autoencoder(certain=True, sha256="0" * 64):
    return Autoencoder("stand-in", 4, 8, sha256, channels, plain, None if certain else spread)


def write(path, n=36, classes=3):
    x, y = pixels(n, 16, 16), labels(n, classes)
    np.savez(path, images=x, labels=y)
    return x, y


def expected(x, function=channels, dtype=np.float16):
    result = function(jnp.asarray(from_bytes(x)))
    return jax.tree.map(lambda part: np.asarray(part).astype(dtype), result)


def contents(folder):
    """Everything in a folder, as bytes."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def refusal(action, *arguments, **options):
    with pytest.raises(UserError) as raised:
        action(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def drawn(dataset, n=2000, seed=0):
    x, label = jax.jit(dataset.draw, static_argnums=2)(dataset.arrays, jax.random.key(seed), n)
    return dataset.to_original(np.asarray(x)), label


# ----------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path, dtype):
    x, y = write(tmp_path / "x.npz")
    config = dataclasses.replace(CONFIG, dtype=dtype)
    index = encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", config)
    assert sorted(contents(tmp_path / "out")) == [*(f"latents-0000{k}.npz" for k in range(4)), "latents.json"]
    assert (index["count"], index["shape"], index["num_classes"]) == (36, [2, 2, 4], 3)
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    assert (dataset.event_shape, dataset.num_classes) == ((2, 2, 4), 3)
    assert dataset.arrays["mean"].dtype == dtype
    options = expected(x, dtype=dtype)
    stored = np.asarray(dataset.arrays["mean"]).reshape(options.shape)
    np.testing.assert_allclose(stored, options, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.arrays["label"], y)
    result, label = drawn(dataset)
    nearest = np.abs(result[:, None] - options[None].astype(np.float32)).max(axis=(2, 3, 4))
    assert nearest.min(axis=1).max() < 1e-3
    np.testing.assert_array_equal(y[nearest.argmin(axis=1)], label)
    assert len(np.unique(nearest.argmin(axis=1))) == 36


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_statistics(tmp_path, certain, flip):
    x, _ = write(tmp_path / "x.npz")
    config = dataclasses.replace(CONFIG, flip=flip)
    index = encoding.encode(tmp_path / "x.npz", autoencoder(certain), tmp_path / "out", config)
    views = np.concatenate([x, x[:, :, ::-1]]) if flip else x
    mean, std = expected(views, spread)
    rng = np.random.default_rng(0)
    samples = mean.astype(float)[None] + (0 if certain else std * rng.standard_normal((400, *mean.shape)))
    np.testing.assert_allclose(index["mean"], mean.astype(float).mean(axis=(0, 1, 2)), rtol=1e-6)
    scale = samples.std(axis=(0, 1, 2, 3))
    constant = scale < 1e-9
    assert constant.sum() == certain
    np.testing.assert_allclose(np.array(index["std"])[~constant], scale[~constant], rtol=1e-6 if certain else 0.01)
    np.testing.assert_array_equal(np.array(index["std"])[constant], 1)
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    values = np.asarray(dataset.draw(dataset.arrays, jax.random.key(0), 20_000)[0])
    np.testing.assert_allclose(values.mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(values.std(axis=(0, 1, 2))[~constant], 1, atol=0.03)


def test_latents_keep_the_names_of_classes(tmp_path):
    x, y = write(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", images=x, labels=np.array([7, 3, 1000])[y])
    index = encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    assert (index["num_classes"], dataset.num_classes, dataset.classes) == (3, 3, (3, 7, 1000))
    np.testing.assert_array_equal(dataset.arrays["label"], np.array([1, 0, 2])[y])
    assert "in 3 classes (3, 7, 1000)" in dataset.summary


def test_random_latents_are_drawn_anew(tmp_path):
    x, _ = write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(certain=False), tmp_path / "out", CONFIG)
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    one = dataclasses.replace(dataset, arrays={name: array[:1] for name, array in dataset.arrays.items()})
    result, _ = drawn(one, 4000)
    mean, std = expected(x[:1], spread)
    np.testing.assert_allclose(result.mean(axis=0), mean[0], atol=0.03)
    np.testing.assert_allclose(result.std(axis=0), std[0], rtol=0.1)
    held_out = dataset.reference(36, 0)
    assert held_out.shape == (36, 2, 2, 4)
    assert not np.array_equal(held_out, dataset.reference(36, 1)[np.argsort(np.random.default_rng(1).permutation(36))])


def test_mirror_images(tmp_path):
    x, _ = write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", dataclasses.replace(CONFIG, flip=True))
    dataset = latents.load(tmp_path / "out", holdout=0.25)
    assert dataset.arrays["mean"].shape == (27, 2, 16)
    result, _ = drawn(dataset, 3000)
    both = np.stack([expected(x), expected(x[:, :, ::-1])], axis=1).astype(np.float32)
    distance = np.abs(result[:, None, None] - both[None]).max(axis=(3, 4, 5)).reshape(3000, -1)
    assert distance.min(axis=1).max() < 1e-3
    row, view = np.divmod(distance.argmin(axis=1), 2)
    assert abs(view.sum() - 1500) < 5 * np.sqrt(750)
    # What is held out is held out with its mirror image.
    held_out = dataset.reference(100, 0)
    stored = np.abs(held_out[:, None] - both[None, :, 0]).max(axis=(2, 3, 4)).argmin(axis=1)
    assert set(row) | set(stored) == set(range(36))
    assert not set(row) & set(stored)


RAW = np.array([1.0, -2.0, 3.0, 0.5])
"""A latent of Stable Diffusion's autoencoder, as it leaves the network."""
PUBLISHED = {
    # MeanFlow's and VaMF's code: 0.18215 w
    LatentScale("factor"): [0.18215, -0.3643, 0.54645, 0.091075],
    # improved MeanFlow's and TVM's: (w - [.86488, -.27787343, .21616915, .3738409]) / [4.85503674, 5.31922414, ...]
    LatentScale("fixed"): [0.0278309, -0.3237552, 0.7070488, 0.0316426],
    LatentScale("own", (1.0,), (2.0,)): [0.0, -1.5, 1.0, -0.25],
    LatentScale("own", std=(1.0, 2.0, 3.0, 4.0)): [1.0, -1.0, 1.0, 0.125],
}
"""What the network sees of it."""


@pytest.mark.parametrize("streamed", [False, True])
def test_published_units_of_the_network(tmp_path, streamed):
    """Of AutoencoderKL, whose latents are stored times 0.18215, and which undoes that itself when it decodes."""
    if streamed:
        pytest.importorskip("grain", reason="grain reads what is streamed")
    write(tmp_path / "x.npz")
    stable = autoencoder()._replace(name="kl", encode=lambda x: jnp.tile(0.18215 * RAW, (len(x), 2, 2, 1)))
    encoding.encode(tmp_path / "x.npz", stable, tmp_path / "out", dataclasses.replace(CONFIG, dtype="float32"))
    for units, values in PUBLISHED.items():
        dataset = latents.load(tmp_path / "out", units=units, from_disk=streamed)
        x = np.asarray(dataset.batch(dataset.arrays, jax.random.key(0), 0, 8)[0])
        np.testing.assert_allclose(x, np.broadcast_to(values, (8, 2, 2, 4)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dataset.to_original(x)[0, 0, 0] / 0.18215, RAW, rtol=1e-5)  # what is decoded
        np.testing.assert_allclose(dataset.reference(3, 0)[0, 0, 0] / 0.18215, RAW, rtol=1e-5)
    assert {name: preset.latents for name, preset in PRESETS.items() if name.startswith("imagenet")} == {
        **{f"imagenet_dit_{size}": LatentScale("factor") for size in ("b4", "b2", "m2", "l2", "xl2")},
        "imagenet_in_context_b2": LatentScale("fixed"),
    }


def test_units_that_do_not_fit(tmp_path):
    for bad, message in [
        ({"scale": "own"}, "latents.std"),
        ({"scale": "own", "std": (1.0, 0.0)}, "above 0"),
        ({"scale": "own", "std": (math.inf,)}, "finite"),
        ({"mean": (1.0,)}, "latents.mean = (1.0,): allowed is none, unless latents.scale = own"),
    ]:
        assert message in refusal(LatentScale, **bad)
    write(tmp_path / "x.npz")
    wide = autoencoder()._replace(channels=8, encode=lambda x: jnp.concatenate([channels(x)] * 2, axis=3))
    encoding.encode(tmp_path / "x.npz", wide, tmp_path / "out", CONFIG)
    message = refusal(latents.load, tmp_path / "out", units=LatentScale("fixed"))
    assert "latents of 8 channels (stand-in); latents.scale = fixed has 4 for mean" in message
    assert latents.load(tmp_path / "out", units=LatentScale("factor")).scale.shape == (8,)
    custom_scale = LatentScale("own", std=(1.0,) * 3)
    assert "has 3 for std" in refusal(latents.load, tmp_path / "out", units=custom_scale)
    message = refusal(
        TrainConfig(str(tmp_path / "x.npz"), latents=dataclasses.replace(custom_scale, std=(2.0,))).load_data
    )
    assert message == "latents.scale = own: x holds no latents"


def test_runs_keep_their_units(tmp_path):
    """Those that name none standardise; nobody is taught or started in other units in silence."""
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    old = TrainConfig(str(tmp_path / "out"), steps=1, batch_size=4, network=MLPConfig(8, 1))
    Run.create(old, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "latents"})
    )
    run = Run.open(tmp_path / "run")
    assert run.config.latents.scale == "standardise"
    x = np.asarray(run.dataset.draw(run.dataset.arrays, jax.random.key(0), 500)[0])
    assert np.abs(x[..., 1].mean()) < 0.5
    np.testing.assert_allclose(run.dataset.to_original(x)[..., 1].mean(), 20, atol=0.5)
    other = dataclasses.replace(old, latents=LatentScale("factor"), init_from=str(tmp_path / "run"))
    assert identity(other) != identity(dataclasses.replace(other, latents=LatentScale()))
    message = refusal(Run.create, other, tmp_path / "other")
    assert "latents.scale = standardise, this run's with factor" in message


@pytest.mark.parametrize("kind", ["latents", "images", "table"])
def test_whether_the_reference_is_unseen(tmp_path, kind):
    """Nothing is held out of a preset's ImageNet, as published; what is measured then is said."""
    x, _ = write(tmp_path / "x.npz")
    if kind == "latents":
        encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "data", CONFIG)
    path = {"latents": tmp_path / "data", "images": tmp_path / "x.npz", "table": tmp_path / "t.npy"}[kind]
    np.save(tmp_path / "t.npy", x.reshape(len(x), -1)[:, :3].astype(float))
    for holdout in (0.0, 0.1):
        config = TrainConfig(str(path), holdout=holdout, steps=1, batch_size=4, network=MLPConfig(8, 1))
        dataset = config.load_data()
        values = {point.tobytes() for point in dataset.reference(100, 0)}
        assert len(values) == (36 if holdout == 0 else 4)
        assert dataset.unseen == (holdout > 0)
    np.savez(tmp_path / "both.npz", x_train=x[:32], x_test=x[32:])
    assert data.load(str(tmp_path / "both.npz"), 0.0).unseen
    assert all(preset.holdout == 0 for name, preset in PRESETS.items() if name.startswith("imagenet"))


def test_what_an_evaluation_without_held_out_data_says(capsys):
    result = {"run": "r", "step": 1, "ema": 0.999, "distances": {"baseline": {"sw1": 1.0, "sw2": 2.0}}}
    for unseen in (True, False):
        print_distances(result | {"unseen": unseen})
        assert ("to the training data, since none were held out" in capsys.readouterr().out) != unseen


# ----------------------------------------------------------------------------------------------- killed and continued


def kill_at(monkeypatch, name, call):
    """The process ends in a call of one of the encoding's functions, before or after its work."""
    original, calls = getattr(encoding, name), []

    def dying(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(encoding, name, dying)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("write_json", 1),
        ("write_arrays", 1),
        ("write_json", 2),
        ("write_arrays", 3),
        ("write_json", 4),
        ("write_json", 6),
    ],
)
def test_an_encoding_that_was_killed_goes_on(tmp_path, monkeypatch, function, call):
    """The index is first written empty, then after each of four shards, then complete."""
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        kill_at(patch, function, call)
        with pytest.raises(Killed):
            encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    if function == "write_arrays":
        assert "not finished" in refusal(latents.load, tmp_path / "out")
        (tmp_path / "out" / ".latents-00002.npz.123.tmp").write_bytes(b"half")
    finished = [file.stat().st_mtime_ns for file in sorted((tmp_path / "out").glob("*.npz"))]
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    again = [file.stat().st_mtime_ns for file in sorted((tmp_path / "out").glob("*.npz"))]
    known = len(finished) - (function == "write_json" and 1 < call < 6)  # a shard that no index knew is made again
    assert finished[: max(known, 0)] == again[: max(known, 0)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_deleted_shard_is_made_again_and_nothing_else(tmp_path):
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "latents-00002.npz").unlink()
    assert "latents-00002.npz: this shard is missing" in refusal(latents.load, tmp_path / "out")
    values = []
    counting = autoencoder()._replace(encode=lambda x: values.append(len(x)) or channels(x))
    encoding.encode(tmp_path / "x.npz", counting, tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == before
    assert values == [4] * (3 + 4)  # ten images of the shard, then sixteen for the reconstruction
    encoding.encode(tmp_path / "x.npz", counting, tmp_path / "out", CONFIG)
    assert len(values) == 7


def test_the_rate_and_the_time_left_are_said(tmp_path, capsys):
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG, Progress(every_seconds=0.0))
    message = capsys.readouterr().err
    assert "encoding x.npz: 4/36 images" in message
    assert "36/36 images" in message
    assert "s left" in message


# ---------------------------------------------------------------------------------------------------- damaged and bad


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_shard_is_named(tmp_path, kind):
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    shard = tmp_path / "out" / "latents-00001.npz"
    whole = shard.read_bytes()
    middle = len(whole) // 3
    shard.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "other": (tmp_path / "out" / "latents-00003.npz").read_bytes(),
        }[kind]
    )
    assert "latents-00001.npz: damaged shard" in refusal(latents.load, tmp_path / "out")


def test_damaged_images_are_left_out_and_counted(tmp_path):
    save(tmp_path / "photos", pixels(40, 24, 20))
    for at in (0, 13):
        damage(tmp_path / "photos" / f"{at:04d}.png", "truncated")
    index = encoding.encode(tmp_path / "photos", autoencoder(), tmp_path / "out", CONFIG)
    assert index["count"] == 38
    damaged = [name for shard in index["shards"].values() for name in shard["damaged"]]
    assert [Path(name.split(":")[0]).name for name in damaged] == ["0000.png", "0013.png"]
    assert latents.load(tmp_path / "out").num_classes == 0
    strict = dataclasses.replace(CONFIG, strict=True)
    assert "0000.png" in refusal(encoding.encode, tmp_path / "photos", autoencoder(), tmp_path / "strict", strict)


def test_other_settings_are_refused(tmp_path):
    path, out = tmp_path / "x.npz", tmp_path / "out"
    write(path)
    encoding.encode(path, autoencoder(), out, CONFIG)
    other = dataclasses.replace(CONFIG, shard=12)
    assert "holds latents with shard = 10, requested is 12" in refusal(encoding.encode, path, autoencoder(), out, other)
    assert "autoencoder_sha256" in refusal(encoding.encode, path, autoencoder(sha256="1" * 64), out, CONFIG)
    write(path, 37)
    assert "images = 36, requested is 37" in refusal(encoding.encode, path, autoencoder(), out, CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "is not empty" in refusal(encoding.encode, path, autoencoder(), tmp_path / "full", CONFIG)
    uneven = dataclasses.replace(CONFIG, size=20)
    assert "a multiple of 8" in refusal(encoding.encode, path, autoencoder(), tmp_path / "new", uneven)
    assert not (tmp_path / "new").exists()


def test_latents_that_are_not_finite(tmp_path):
    write(tmp_path / "x.npz")
    broken = autoencoder()._replace(encode=lambda x: 1e6 * channels(x))
    message = refusal(encoding.encode, tmp_path / "x.npz", broken, tmp_path / "out", CONFIG)
    assert "not finite in float16" in message


def test_folders_that_cannot_be_loaded(tmp_path):
    assert "no latents here" in refusal(latents.load, tmp_path)
    (tmp_path / latents.INDEX).write_text("{}")
    assert "not a readable index" in refusal(latents.load, tmp_path)
    whole = {"settings": {"format": 1}, "num_classes": 0, "shards": {}, "complete": False}
    for index, message in [
        (whole | {"settings": {"format": 99}}, "format 99"),
        (whole | {"complete": True}, "without count, mean, shape, std"),
        (whole, "not finished"),
    ]:
        (tmp_path / latents.INDEX).write_text(json.dumps(index))
        assert message in refusal(latents.load, tmp_path)
    write(tmp_path / "x.npz", 31)
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "few", CONFIG)
    assert "31 images; at least 32" in refusal(latents.load, tmp_path / "few")
    write(tmp_path / "x.npz")
    encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", CONFIG)
    assert "holdout" in refusal(latents.load, tmp_path / "out", holdout=0.7)
    latents.check_autoencoder(latents.load(tmp_path / "out"), autoencoder())
    wrong = refusal(latents.check_autoencoder, latents.load(tmp_path / "out"), autoencoder(sha256="1" * 64))
    assert "encoded by stand-in of sha256 000000000000" in wrong


# ------------------------------------------------------------------------------------------------ images and command


def test_images_come_back(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (36, 2, 2, 3), np.uint8)
    blocks = blocks.repeat(8, axis=1).repeat(8, axis=2)
    np.savez(tmp_path / "x.npz", images=blocks)
    config = dataclasses.replace(CONFIG, dtype="float32")
    index = encoding.encode(tmp_path / "x.npz", autoencoder(), tmp_path / "out", config)
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    result = latents.decode(autoencoder(), drawn(dataset, 50)[0])
    assert {image.tobytes() for image in result} <= {image.tobytes() for image in blocks}
    assert index["psnr"] is None  # infinite: nothing is lost


def test_the_command(tmp_path, monkeypatch, capsys):
    save(tmp_path / "photos" / "a", pixels(20, 24, 20))
    save(tmp_path / "photos" / "b", pixels(20, 24, 20))
    damage(tmp_path / "photos" / "b" / "0003.png", "empty")
    monkeypatch.setattr(autoencoders, "load", lambda path, kind: autoencoder())
    options = cli.Latents(tmp_path / "photos", tmp_path / "vae.safetensors", tmp_path / "out", CONFIG)
    cli.encode(options, Progress(every_seconds=0.0))
    message = capsys.readouterr()
    assert "39 latents of 2x2x4" in message.out
    assert "1 damaged and left out" in message.err
    assert "dB PSNR" in message.out
    assert latents.load(tmp_path / "out").num_classes == 2


def test_real_latents(tmp_path):
    if not (SHARED / "taef2").exists() or not (SHARED / "imagenet_sample").exists():
        pytest.skip(f"no taef2 or imagenet_sample under {SHARED}")
    model = autoencoders.load(SHARED / "taef2")
    config = LatentConfig(size=64, shard=32, batch_size=7)
    index = encoding.encode(SHARED / "imagenet_sample", model, tmp_path / "out", config)
    assert (index["count"], index["shape"]) == (49, [8, 8, 32])
    assert 0.3 < np.mean(index["std"]) < 3
    dataset = latents.load(tmp_path / "out", holdout=0.0)
    stored = np.asarray(dataset.arrays["mean"]).reshape(49, 8, 8, 32)
    config = encoding.ImageConfig(size=64, channels="rgb")
    x = image_reading.decode(encoding.image_files.read(SHARED / "imagenet_sample"), config, "photographs").pixels
    result = psnr(latents.decode(model, stored.astype(np.float32), 7), x)
    np.testing.assert_allclose(result[:16].mean(), index["psnr"], atol=0.05)


def test_images_as_training_sees_them(tmp_path, capsys):
    save(tmp_path / "photos" / "a", pixels(3, 24, 20))
    save(tmp_path / "photos" / "b", pixels(2, 30, 40))
    damage(tmp_path / "photos" / "b" / "0001.png", "empty")
    options = cli.Images(tmp_path / "photos", tmp_path / "x.npz", size=20)
    cli.prepare(options, Progress())
    message = capsys.readouterr()
    assert "4 images of 20x20x3" in message.out
    assert "1 damaged and left out" in message.err
    written = np.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(written["images"][:3], pixels(3, 24, 20)[:, 2:22])
    np.testing.assert_array_equal(written["labels"], ["a", "a", "a", "b"])
    with pytest.raises(UserError, match=r"ends in \.npz"):
        dataclasses.replace(options, out=tmp_path / "x.png")
