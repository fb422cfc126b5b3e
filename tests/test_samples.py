"""Samples in files: images as bytes, latents decoded in parts, and the way on to `vamf fid`."""

import json

import numpy as np
import pytest
from PIL import Image

import test_latents
from test_cli import run as vamf
from vamf import autoencoders
from vamf.data import Dataset, encoding
from vamf.metrics.images import open_images
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.report import run as report
from vamf.report import samples
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.run import Run


@pytest.fixture(scope="module")
def images_run(tmp_path_factory):
    """Three in four are of class 3, the others of class 7."""
    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "x.npz", images=test_latents.pixels(40, 8, 8), targets=np.array([3, 7, 3, 3] * 10))
    train(folder / "x.npz", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def latents_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    test_latents.write(folder / "x.npz")
    known = test_latents.autoencoder()._replace(path=folder / "vae.safetensors")
    encoding.encode(folder / "x.npz", known, folder / "latents", test_latents.CONFIG)
    train(folder / "latents", folder / "run")
    return folder / "run"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights that is read as the stand-in."""
    path = tmp_path / "vae.safetensors"
    path.touch()
    found = {path: test_latents.autoencoder(), tmp_path / "other": test_latents.autoencoder(sha256="1" * 64)}
    monkeypatch.setattr(autoencoders, "load", lambda path: found[path])
    return path


def train(data, folder):
    """A run that has hardly begun."""
    network, log = MLPConfig(width=16, depth=2), LogConfig(every=4, variance_every=0)
    run = Run.create(TrainConfig(str(data), steps=4, batch_size=8, network=network, log=log), folder)
    run.train(Progress(show=False))
    return run


def pixels_in(path):
    return np.concatenate([*open_images(path).batches(100)])


@pytest.mark.parametrize("kind", ["s.npz", "s.npy", "folder"])
def test_images_are_bytes_that_can_be_judged(images_run, tmp_path, capsys, kind):
    status, out, _ = vamf("sample", images_run, "--n", 20, "--seed", 3, "--out", tmp_path / kind, capsys=capsys)
    assert (status, out.startswith("20 samples in 1 step")) == (0, True)
    found = pixels_in(tmp_path / kind)
    assert (found.shape, found.dtype) == ((20, 8, 8, 3), np.uint8)
    assert len(np.unique(found)) > 100  # hardly trained, samples are noise of the data's scale
    note = json.loads((tmp_path / ("folder/samples.json" if kind == "folder" else "s.json")).read_text())
    assert (note["nfe"], note["seed"], note["ema"], note["guidance"]) == (1, 3, 0.999, 1)
    receipt = tmp_path / "fid.json"
    command = ["fid", tmp_path / kind, images_run.parent / "x.npz", "--weights", "pixels", "--metadata", receipt]
    assert vamf(*command, capsys=capsys)[0] == 0
    assert json.loads(receipt.read_text())["samples"]["nfe"] == 1


def test_classes_are_called_as_in_the_data(images_run, tmp_path, capsys, monkeypatch):
    run = Run.open(images_run)
    assert (run.dataset.num_classes, run.dataset.classes) == (2, (3, 7))
    state, _ = run.load(Progress(show=False))
    found = {}
    for label in ("7", "each", None):
        options = [] if label is None else ["--label", label]
        status, _, err = vamf("sample", images_run, "--n", 60, *options, "--out", tmp_path / "s.npz", capsys=capsys)
        assert status == 0, err
        with np.load(tmp_path / "s.npz") as written:
            found[label] = written["labels"].tolist()
    assert found["7"] == [7] * 60
    assert found["each"] == [3, 7] * 30
    assert 30 < found[None].count(3) < 60  # drawn as often as the data have it
    numbers = np.searchsorted([3, 7], found[None])
    monkeypatch.setattr(Dataset, "_as_stored", lambda self, values: values)  # before they are rounded
    samples, again, other = (run.ensemble.draw(state, 60, seed=0, label=k)[0][0] for k in (None, numbers, 1 - numbers))
    own = np.abs(again - samples).reshape(60, -1).max(axis=1)
    assert np.all(100 * own < np.abs(other - samples).reshape(60, -1).max(axis=1))  # these labels are the samples' own
    assert vamf("sample", images_run, "--n", 9, "--out", tmp_path / "one.npy", capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "one.json").read_text())["labels"] == run.labels(9, 0).tolist()
    for label in ("0", "1", "cat", "-3"):
        status, _, err = vamf("sample", images_run, "--label", label, "--out", tmp_path / "t.npz", capsys=capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert f"label = {label}: allowed is 3, 7, or each" in err


def test_classes_by_their_names(tmp_path, capsys):
    """On the command line as in the data; a wrong name gets the right ones and the nearest."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "shapes.npz", x=rng.normal(size=(60, 2)), labels=np.array(["circle", "square", "star"] * 20))
    words = ["train", tmp_path / "shapes.npz", "--steps", 2, "--bs", 8, "--network.width", 8, "--out", tmp_path / "run"]
    assert vamf(*words, capsys=capsys)[0] == 0
    for label, names in (("star", ["star"] * 3), ("each", ["circle", "square", "star"]), ("1", ["square"] * 3)):
        out = tmp_path / f"{label}.npz"
        assert vamf("sample", tmp_path / "run", "--n", 3, "--label", label, "-o", out, capsys=capsys)[0] == 0
        with np.load(out) as written:
            assert written["labels"].tolist() == names
    status, _, err = vamf("sample", tmp_path / "run", "--label", "circel", "--out", tmp_path / "x.npy", capsys=capsys)
    assert (status, err) == (
        2,
        "vamf: label = circel: allowed is circle, square, star (did you mean circle?), or each\n",
    )


def test_files_do_not_share_what_is_said_of_them(images_run, tmp_path, capsys):
    """`h.json` tells of one file: another of that name is refused, and a comparison does not take it for its own."""
    assert vamf("sample", images_run, "--n", 9, "--seed", 1, "--out", tmp_path / "h.npz", capsys=capsys)[0] == 0
    status, _, err = vamf("sample", images_run, "--n", 9, "--seed", 9, "--out", tmp_path / "h.npy", capsys=capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "says how h.npz was made" in err
    assert json.loads((tmp_path / "h.json").read_text())["seed"] == 1
    (tmp_path / "k.json").write_text('{"mine": 1}')
    status, _, err = vamf("sample", images_run, "--n", 9, "--out", tmp_path / "k.npy", capsys=capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "says something else" in err
    (tmp_path / "h.npz").rename(tmp_path / "k.npz")
    assert vamf("sample", images_run, "--n", 9, "--seed", 9, "--out", tmp_path / "h.npy", capsys=capsys)[0] == 0


def test_all_files_hold_the_same_images(images_run, tmp_path, capsys):
    for name in ("a.npz", "b.npy", "c", "d.png", "e.csv"):
        assert vamf("sample", images_run, "--n", 12, "--out", tmp_path / name, capsys=capsys)[0] == 0
    first, *others = (pixels_in(tmp_path / name) for name in ("a.npz", "b.npy", "c"))
    for other in others:
        np.testing.assert_array_equal(first, other)
    sheet = np.asarray(Image.open(tmp_path / "d.png"))
    assert sheet.shape == (8 * (2 * 9 + 1), 8 * (10 * 9 + 1), 3)  # ten across, enlarged eight times, lines between
    np.testing.assert_array_equal(sheet[8 : 8 + 64 : 8, 8 : 8 + 64 : 8], first[0])
    numbers = np.loadtxt(tmp_path / "e.csv", delimiter=",")[:, :-1]  # the last column is the class
    np.testing.assert_array_equal(first.reshape(12, -1), np.clip(np.rint(numbers), 0, 255))


def test_many_samples_are_drawn_in_parts(images_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(samples, "MAX_NUMBERS", 8 * 192)
    assert vamf("sample", images_run, "--n", 21, "--steps", 2, "--out", tmp_path / "s.npy", capsys=capsys)[0] == 0
    found = np.load(tmp_path / "s.npy")
    assert len({image.tobytes() for image in found}) == 21
    assert json.loads((tmp_path / "s.json").read_text())["nfe"] == 2
    vamf("sample", images_run, "--n", 7, "--steps", 2, "--out", tmp_path / "t.npy", capsys=capsys)
    np.testing.assert_array_equal(found[:7], np.load(tmp_path / "t.npy"))  # the first of three parts


@pytest.mark.slow
def test_latents_become_images(latents_run, tmp_path, capsys, weights):
    assert vamf("sample", latents_run, "--n", 9, "--out", tmp_path / "z.npy", capsys=capsys)[0] == 0
    latent = np.load(tmp_path / "z.npy")
    assert latent.shape == (9, 2, 2, 4)
    colours = np.stack([latent[..., 0], (latent[..., 1] - 20) / 5, latent[..., 2] * 100], axis=3)
    levels = np.clip(np.rint((colours + 1) * 127.5), 0, 255)
    for name in ("s.npz", "t.npy", "folder"):
        out = tmp_path / name
        assert vamf("sample", latents_run, "--n", 9, "--autoencoder", weights, "--out", out, capsys=capsys)[0] == 0
        found = pixels_in(out)
        assert (found.shape, found.dtype) == ((9, 16, 16, 3), np.uint8)
        np.testing.assert_allclose(found[:, ::8, ::8].astype(float), levels, atol=1)
    out = tmp_path / "s.png"
    assert vamf("sample", latents_run, "--n", 9, "--autoencoder", weights, "--out", out, capsys=capsys)[0] == 0


@pytest.mark.slow
def test_latents_remember_their_autoencoder(latents_run, tmp_path, capsys, monkeypatch):
    evaluation = {"samples": 4, "reference": 4, "projections": 4, "baselines": 2, "distances": {}}
    assert "Distributions of the first 4 channels" in report.write(Run.open(latents_run), evaluation).read_text()
    weights = latents_run.parent / "vae.safetensors"
    weights.touch()
    monkeypatch.setattr(autoencoders, "load", lambda path: {weights: test_latents.autoencoder()}[path])
    assert vamf("sample", latents_run, "--n", 9, "--out", tmp_path / "s.npz", capsys=capsys)[0] == 0
    assert pixels_in(tmp_path / "s.npz").shape == (9, 16, 16, 3)
    assert "one-step samples" in report.write(Run.open(latents_run), evaluation).read_text()
    weights.unlink()


def test_what_cannot_be_written(images_run, latents_run, tmp_path, capsys, weights):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").touch()
    other = ["--autoencoder", tmp_path / "other"]
    for folder, options, said in [
        (latents_run, ["s.png"], "name its weights with --autoencoder FILE"),
        (latents_run, ["s.npz", *other], "encoded by stand-in of sha256 000000000000"),
        (latents_run, ["s.csv", *other], "written as .png, .npz, .npy or a folder"),
        (images_run, ["s.png", *other], "no latents"),
        (images_run, ["full"], "not an empty folder"),
        (images_run, ["s.jpg"], "allowed are .npy"),
        (images_run, ["s.npz", "--n", 0], "n = 0"),
    ]:
        status, _, err = vamf("sample", folder, "--out", tmp_path / options[0], *options[1:], capsys=capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    assert not [*tmp_path.glob("s.*"), *tmp_path.glob(".*")]
    assert [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "precious.txt"]
