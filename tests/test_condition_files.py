"""Conditions in files beside images: rows find their images, and everything that does not fit is one line."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from test_cli import run as vamf
from vamf import data
from vamf.data import ConditionFiles, ImageConfig
from vamf.data.condition_files import read
from vamf.errors import UserError
from vamf.training.run import Run

N = 40
NAMES = [f"{'ant' if row < 15 else 'bee'}/{row:02d}.png" for row in range(N)]
LEVEL = np.random.default_rng(0).permutation(N) * 6
"""Grey level of each image, by which its condition is known."""


def write(folder, levels=LEVEL, size=(8, 8), suffix=".png", flat=False):
    """A folder of images, each of one grey level."""
    for name, level in zip(NAMES, levels, strict=True):
        file = (folder / (name.replace("/", "-") if flat else name)).with_suffix(suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`photos`, their opposites in `masks`, and each of the files of vectors: the level, and its square."""
    folder = tmp_path_factory.mktemp("conditions")
    write(folder / "photos")
    write(folder / "masks", 255 - LEVEL, suffix=".bmp")
    vector = np.stack([LEVEL, LEVEL**2], axis=1).astype(float)
    order = np.random.default_rng(1).permutation(N)
    np.save(folder / "v.npy", vector)
    np.savez(folder / "v.npz", vector=vector[order], files=np.array(NAMES)[order])
    rows = [f"{a},{b}" for a, b in vector.astype(int)]
    (folder / "v.csv").write_text("\n".join(["level,square", *rows]))
    named = [f"{NAMES[row]},{rows[row]}" for row in order] + ["ant/other.png,1,2"]
    (folder / "named.csv").write_text("\n".join(["file,level,square", *named]))
    return folder


def load(folder, vectors="", masks="", **options):
    beside = ConditionFiles(str(folder / vectors) if vectors else "", str(folder / masks) if masks else "")
    return data.load(folder / "photos", 0.25, ImageConfig(**options), beside=beside)


@pytest.mark.parametrize("file", ["v.npy", "v.npz", "v.csv", "named.csv"])
def test_vectors_belong_to_their_images(folder, file):
    dataset = load(folder, file)
    assert dataset.cond_shape[:3] == (2, 2, 0)
    x, cond = dataset.draw(dataset.arrays, jax.random.key(0), 100)
    level = dataset.to_original(np.asarray(x))[:, 0, 0, 0].astype(float)
    units = dataset.conditions.units["vector"]
    vector = np.asarray(cond.vector, np.float64) * units.scale + units.shift
    np.testing.assert_allclose(vector, np.stack([level, level**2], axis=1), rtol=1e-4, atol=1e-2)
    rows = dataset.reference_rows(10, 3)
    np.testing.assert_array_equal(rows["vector"][:, 0], dataset.reference(10, 3)[:, 0, 0, 0])


@pytest.mark.parametrize(("size", "channels"), [(None, "stored"), (4, "grey")])
def test_condition_images_are_prepared_as_the_images_are(folder, size, channels):
    dataset = load(folder, "v.npy", "masks", size=size, channels=channels)
    side, depth = size or 8, 1 if channels == "grey" else 3
    assert dataset.event_shape == (side, side, depth)
    assert dataset.cond_shape[:3] == (2, 2, depth)
    x, cond = dataset.draw(dataset.arrays, jax.random.key(0), 100)
    np.testing.assert_allclose(cond.image, -x, atol=1e-6)


def test_a_damaged_image_takes_its_condition_with_it(folder, tmp_path):
    """So does a damaged condition; rows of the others stay where they belong."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "photos" / "ant" / "03.png").write_bytes(b"no image")
    (copy / "masks" / "bee" / "20.bmp").write_bytes(b"no image")
    dataset = load(copy, "v.npy", "masks")
    assert "2 damaged and left out" in dataset.summary
    x, cond = dataset.draw(dataset.arrays, jax.random.key(0), 300)
    units = dataset.conditions.units["vector"]
    level = np.asarray(cond.vector)[:, 0] * units.scale[0] + units.shift[0]
    np.testing.assert_allclose(level, dataset.to_original(np.asarray(x))[:, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(cond.image, -x, atol=1e-6)
    assert not {LEVEL[3], LEVEL[20]} & set(np.rint(level).astype(int))


def test_what_does_not_fit_is_one_line(folder, tmp_path):
    np.save(tmp_path / "short.npy", np.ones((N - 1, 2)))
    np.save(tmp_path / "cube.npy", np.ones((N, 2, 2)))
    values = np.ones((N, 2))
    values[4, 1] = np.inf
    np.save(tmp_path / "inf.npy", values)
    np.savez(tmp_path / "several.npz", a=values, b=values)
    (tmp_path / "text.csv").write_text("file,level\nant/00.png,dark\n")
    (tmp_path / "few.csv").write_text("file,level\n" + "".join(f"{name},1\n" for name in NAMES[2:]))
    (tmp_path / "twice.csv").write_text("file,level\n" + "".join(f"{name},1\n" for name in [*NAMES, NAMES[5]]))
    write(tmp_path / "flat", flat=True)
    write(tmp_path / "wide", size=(8, 10))
    for vectors, masks, message in (
        ("short.npy", "", f"short.npy: 39 rows for the 40 images of {folder / 'photos'}"),
        ("cube.npy", "", r"shape (40, 2, 2)"),
        ("inf.npy", "", "inf.npy: row 5, column 2 is inf"),
        ("several.npz", "", "one named vector is needed"),
        ("text.csv", "", "row 1 (ant/00.png), column level is 'dark'"),
        ("few.csv", "", "nothing for 2 of 40 images: ant/00.png, ant/01.png"),
        ("twice.csv", "", "ant/05.png is there 2 times"),
        ("none.npy", "", "no such file"),
        ("v.txt", "", "allowed are .npy, .npz, .csv"),
        ("", "flat", "nothing for 40 of 40 images: ant/00.png, ant/01.png, ant/02.png, ..."),
        ("", "wide", "of 8x10, the images of"),
        ("", "nothing", "no such file or folder"),
    ):
        files = ConditionFiles(*(str(tmp_path / name) if name else "" for name in (vectors, masks)))
        with pytest.raises(UserError) as raised:
            data.load(folder / "photos", beside=files)
        assert message in str(raised.value), str(raised.value)
        assert "\n" not in str(raised.value)
    np.save(tmp_path / "table.npy", values[:, :1])
    beside = ConditionFiles(str(folder / "v.npy"))
    for source, options, message in (
        (tmp_path / "table.npy", {}, "goes with files of images"),
        (folder / "photos", {"stream": True}, "not for images beside vector, which stay in memory"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(source, 0.1, ImageConfig(**options), beside=beside)


def test_from_the_command_line(folder, tmp_path, capsys, monkeypatch):
    """Trained with both, resumed where they have moved, refused where they are others, and sampled."""
    monkeypatch.chdir(folder)
    options = ["--conditions", "named.csv", "--condition-images", "masks", "--method", "flow_matching", "--steps", 2]
    options += ["--network", "mlp", "--network.width", 8, "--network.depth", 1, "--log.variance-every", 0]
    status, _, err = vamf("train", "photos", *options, "--batch-size", 8, "--out", tmp_path / "run", capsys=capsys)
    assert status == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["conditions"] == str(folder / "named.csv")
    assert config["condition_images"] == str(folder / "masks")

    resume = ["train", "--resume", tmp_path / "run", "--conditions"]
    np.save(tmp_path / "moved.npy", np.load(folder / "v.npy"))
    assert Run.open(tmp_path / "run", conditions=tmp_path / "moved.npy").dataset.cond_shape.vector == 2
    np.save(tmp_path / "moved.npy", np.load(folder / "v.npy")[::-1])
    for name, message in (("moved.npy", "other data than those of the run"), ("none", "name its place with --cond")):
        status, _, err = vamf(*resume, tmp_path / name, capsys=capsys)
        assert status == 2
        assert message in err.splitlines()[-1]

    np.savez(tmp_path / "both.npz", vector=np.load(folder / "v.npy"), image=np.full((N, 8, 8, 3), 255))
    sample = ["sample", tmp_path / "run", "--label", "ant", "--steps", 2, "--out", tmp_path / "s.npz", "--condition"]
    assert vamf(*sample, tmp_path / "both.npz", capsys=capsys)[0] == 0
    with np.load(tmp_path / "s.npz") as samples:
        assert samples["images"].shape == (N, 8, 8, 3)
    status, _, err = vamf(*sample, folder / "v.csv", capsys=capsys)
    assert (status, "image is missing" in err) == (2, True)


@pytest.mark.parametrize(("name", "files"), [("vector", {"vectors": "v.npy"}), ("image", {"masks": "masks"})])
def test_what_a_sample_is_conditioned_on(folder, tmp_path, name, files):
    """A `.csv` of vectors; a folder of images, or one of another size."""
    conditions = load(folder, **files).conditions
    if name == "vector":
        np.testing.assert_array_equal(read(folder / "v.csv", conditions)["vector"], np.load(folder / "v.npy"))
        assert read(folder / "named.csv", conditions)["vector"].shape == (N + 1, 2)
        with pytest.raises(UserError, match="images, but the condition of this run is vector"):
            read(folder / "masks", conditions)
        return
    np.testing.assert_array_equal(read(folder / "masks", conditions)["image"][:, 0, 0, 0], 255 - LEVEL)
    Image.fromarray(np.full((16, 20), 77, np.uint8)).save(tmp_path / "one.png")
    one = read(tmp_path / "one.png", conditions)["image"]
    assert (one.shape, set(one.ravel().tolist())) == ((1, 8, 8, 3), {77})
    for file, message in (("none.png", "no such file"), ("x.txt", "allowed are .npy, .npz, .csv")):
        with pytest.raises(UserError, match=message):
            read(tmp_path / file, conditions)


def test_images_stand_for_floats_of_a_usual_range(tmp_path):
    """Where the condition was floats in [-1, 1], an image's bytes are brought there."""
    x = np.random.default_rng(0).random((64, 8, 8, 1))
    Image.fromarray(np.array([[0, 255], [51, 204]], np.uint8).repeat(4, 0).repeat(4, 1)).save(tmp_path / "one.png")
    for scale, shift, expected in ((2, -1, [-1, -0.6, 0.6, 1]), (1, 0, [0, 0.2, 0.8, 1])):
        conditions = data.load({"x": x, "image": x * scale + shift}).conditions
        values = read(tmp_path / "one.png", conditions)["image"]
        np.testing.assert_allclose(np.unique(values), expected)
    conditions = data.load({"x": x, "image": x * 1000}).conditions
    with pytest.raises(UserError, match=r"numbers from .* in 1 channels; give it in a .npy"):
        read(tmp_path / "one.png", conditions)
