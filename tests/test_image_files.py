"""Every format of images: written here byte by byte, read back pixel for pixel."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pytorch_files import Raw, call, name, opcodes
from vamf.data import image_files, images
from vamf.data.image_dataset import ImageConfig
from vamf.errors import UserError
from vamf.metrics.images import open_images

SHARED = Path(os.environ.get("VAMF_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
COUNT = 40


def pixels(n=COUNT, height=6, width=5, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


def labels(n=COUNT, classes=4):
    return np.arange(n) % classes


def read(path, **options):
    """Pixels and labels, decoded."""
    return images.decode(image_files.read(path), ImageConfig(**options), str(path))


def refusal(path, **options):
    """The one line that a source is refused with."""
    with pytest.raises(UserError) as raised:
        read(path, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def save(folder, x, suffix="png", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for at, image in enumerate(x, start):
        Image.fromarray(image.squeeze()).save(folder / f"{at:04d}.{suffix}")


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, x, y, prefix="train", end=""):
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", x[..., 0])
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", y.astype(np.uint8))


def channel_rows(x):
    """Images as CIFAR-10 stores them: all red bytes, all green ones, all blue ones."""
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def binary_batch(x, y):
    return np.concatenate([y[:, None].astype(np.uint8), channel_rows(x)], axis=1).tobytes()


def bytestring(text):
    """A `str` of Python 2."""
    return Raw(b"U" + bytes([len(text)]) + text.encode())


def old_array(rows, kind="u1", content=None):
    """A numpy array as Python 2 pickled it, opcode by opcode."""
    content = rows.tobytes() if content is None else content
    empty = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), bytestring("b"))
    dtype = call(name("numpy", "dtype"), bytestring(kind), 0, 1)
    dtype = Raw(dtype + opcodes((3, bytestring("|"), None, None, None, -1, -1, 0)) + b"b")
    long = Raw(b"T" + struct.pack("<I", len(content)) + content)
    return Raw(empty + opcodes((1, rows.shape, dtype, False, long)) + b"b")


def old_batch(x, y):
    """The official Python version."""
    entries = {
        "batch_label": bytestring("training batch 1 of 5"), "labels": y.tolist(), "data": old_array(channel_rows(x)),
        "filenames": [bytestring(f"{at}.png") for at in range(len(x))],
    }  # fmt: skip
    return b"\x80\x02}(" + b"".join(bytestring(key) + opcodes(value) for key, value in entries.items()) + b"u."


def new_batch(protocol):
    """The same, pickled by this Python."""
    return lambda x, y: pickle.dumps({"data": channel_rows(x).copy(), "labels": y.tolist()}, protocol=protocol)


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "PNG"])
def test_class_folders(tmp_path, suffix):
    x = pixels()
    for at, animal in enumerate(["zebra", "ant", "cat"]):
        save(tmp_path / "pets" / animal, x[10 * at : 10 * at + 10], suffix)
    (tmp_path / "pets" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".cache").mkdir()
    result = image_files.read(tmp_path / "pets")
    assert (result.num_classes, result.classes, result.test) == (3, ("ant", "cat", "zebra"), None)
    decoded = read(tmp_path / "pets")
    # Classes in the order of their names: ant, cat, zebra.
    np.testing.assert_array_equal(decoded.pixels, np.concatenate([x[10:20], x[20:30], x[:10]]))
    np.testing.assert_array_equal(decoded.label, np.repeat([0, 1, 2], 10))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_without_classes(tmp_path, channels):
    x = pixels(channels=channels)
    save(tmp_path / "flat", x)
    (tmp_path / "flat" / "empty").mkdir()
    decoded = read(tmp_path / "flat")
    np.testing.assert_array_equal(decoded.pixels, x)
    assert decoded.label is None


def test_jpeg_is_what_its_decoder_says(tmp_path):
    save(tmp_path / "photos", pixels(5, 32, 24), "jpg")
    expected = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "photos").iterdir())]
    np.testing.assert_array_equal(read(tmp_path / "photos").pixels, expected)


@pytest.mark.parametrize("test_folder", ["test", "val", "validation"])
def test_an_official_test_set_beside_the_training_set(tmp_path, test_folder):
    x = pixels()
    for at, animal in enumerate(["ant", "cat"]):
        save(tmp_path / "train" / animal, x[10 * at : 10 * at + 10])
        save(tmp_path / test_folder / animal, x[20 + 10 * at : 30 + 10 * at])
    result = image_files.read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path).pixels, x[:20])
    np.testing.assert_array_equal(images.decode(result.test, ImageConfig(), "test").pixels, x[20:])


def test_a_photograph_is_turned_upright(tmp_path):
    x = pixels(1, 6, 4)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(x).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path).pixels[0], np.rot90(x, -1))


def test_hidden_folders_and_links(tmp_path):
    """What is hidden is read nowhere, what a link leads to is, by training as by `vamf fid`; a circle ends."""
    x = pixels()
    cat, elsewhere = tmp_path / "pets" / "cat", tmp_path / "elsewhere"
    save(cat, x[:2])
    for hidden in (".ipynb_checkpoints", "deeper/.cache", "__MACOSX", "@eaDir", "deeper/.cache/deeper"):
        save(cat / hidden, x[10:12])
    save(tmp_path / "pets" / ".thumbnails", x[12:14])
    (cat / "._0000.png").write_bytes(b"not an image")
    save(cat / "deeper", x[2:4])
    save(elsewhere / "more", x[4:6])
    (cat / "linked").symlink_to(elsewhere)
    (elsewhere / "more" / "back").symlink_to(elsewhere)  # a circle
    (cat / "up").symlink_to(tmp_path / "pets")  # and one from a class
    (tmp_path / "pets" / "dog").symlink_to(elsewhere / "more")
    save(cat / "zoo", x[6:8])
    (cat / "zoo" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    decoded = read(tmp_path / "pets")
    np.testing.assert_array_equal(decoded.pixels, x[[0, 1, 2, 3, 4, 5, 6, 7, 4, 5]])
    np.testing.assert_array_equal(decoded.label, [0] * 8 + [1] * 2)
    assert [damage.split(":")[0] for damage in decoded.corrupt] == [str(cat / "zoo" / "gone.png")]
    opened_images = open_images(tmp_path / "pets")
    np.testing.assert_array_equal(np.concatenate(list(opened_images.batches(4))), decoded.pixels)
    assert opened_images.skipped == decoded.corrupt
    (tmp_path / "pets" / "cow").symlink_to(tmp_path / "nowhere")
    assert "cow: a link that leads nowhere" in refusal(tmp_path / "pets")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cat").symlink_to(tmp_path / "self")
    assert "no images in this folder" in refusal(tmp_path / "self")


def test_hidden_files_beside_other_formats(tmp_path):
    """Such as macOS leaves on foreign disks: `._NAME` beside every NAME."""
    save(tmp_path, pixels())
    (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"not an IDX file")
    (tmp_path / "._train.parquet").write_bytes(b"not a table")
    np.testing.assert_array_equal(read(tmp_path).pixels, pixels())


def test_refusals_of_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("")
    assert ".png" in refusal(tmp_path / "empty")
    save(tmp_path / "pets" / "cat", pixels(3))
    (tmp_path / "pets" / "dog").mkdir()
    assert "dog: no images in this class's folder" in refusal(tmp_path / "pets")
    save(tmp_path / "mixed", pixels(2))
    save(tmp_path / "mixed" / "cat", pixels(3))
    assert "2 images lie beside folders" in refusal(tmp_path / "mixed")
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "film.mp4").write_bytes(b"film")
    assert ".npz" in refusal(tmp_path / "film.mp4")


# ------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("images_name", "labels_name"),
    [("images", "labels"), ("images", None), ("x", "y"), ("data", "label"), ("arr_0", "arr_1"), ("anything", None)],
)
def test_npz(tmp_path, images_name, labels_name):
    path = tmp_path / "x.npz"
    np.savez(path, **{images_name: pixels()}, **({labels_name: labels()} if labels_name else {}))
    decoded = read(path)
    np.testing.assert_array_equal(decoded.pixels, pixels())
    assert decoded.label is None if labels_name is None else np.array_equal(decoded.label, labels())


def test_npz_with_its_test_set_and_npy(tmp_path):
    x = pixels(channels=1)
    np.savez(tmp_path / "m.npz", x_train=x[:30, ..., 0], y_train=labels(30)[:, None], x_test=x[30:, ..., 0])
    result = image_files.read(tmp_path / "m.npz")
    np.testing.assert_array_equal(result.items, x[:30])
    np.testing.assert_array_equal(result.label, labels(30))
    np.testing.assert_array_equal(result.test.items, x[30:])
    np.save(tmp_path / "m.npy", x)
    np.testing.assert_array_equal(read(tmp_path / "m.npy").pixels, x)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((40, 6, 5), np.float32), "uint8"),
        (np.zeros((40, 6), np.uint8), "(40, 6)"),
        (np.zeros((40, 6, 5, 4), np.uint8), "1 (grey) or 3 (RGB)"),
        (np.zeros((40, 3, 6, 5), np.uint8), "channels come last"),
        (np.zeros((0, 6, 5, 3), np.uint8), "(0, 6, 5, 3)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    np.savez(tmp_path / "x.npz", images=array)
    assert message in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (labels(39), "(39,) for 40"),
        (labels() - 1, "label -1 of image 1"),
        (labels() / 2, "integers"),
        (np.where(np.arange(COUNT) == 7, 2**31, labels()), "label 2147483648 of image 8"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, label, message):
    np.savez(tmp_path / "x.npz", images=pixels(), labels=label)
    assert message in refusal(tmp_path / "x.npz")


def test_damaged_archives_of_arrays(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, first=pixels(), second=labels())
    assert "first, second" in refusal(path)
    np.savez(path, images=pixels())
    path.write_bytes(path.read_bytes()[:-200])
    refusal(path)
    np.savez(path, images=np.array([{"a": 1}] * COUNT, object), allow_pickle=True)
    refusal(path)


# ---------------------------------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder(tmp_path, end):
    x = pixels(channels=1)
    write_mnist(tmp_path / "m", x[:30], labels(30), end=end)
    decoded = read(tmp_path / "m")
    np.testing.assert_array_equal(decoded.pixels, x[:30])
    np.testing.assert_array_equal(decoded.label, labels(30))
    assert image_files.read(tmp_path / "m").test is None
    write_mnist(tmp_path / "m", x[30:], labels(10), prefix="t10k", end=end)
    np.testing.assert_array_equal(image_files.read(tmp_path / "m").test.items, x[30:])


def test_one_idx_file_and_the_labels_beside_it(tmp_path):
    x = pixels(channels=1)
    path = tmp_path / "digits-images-idx3-ubyte.gz"
    write_idx(path, x[..., 0])
    assert read(path).label is None
    write_idx(tmp_path / "digits-labels-idx1-ubyte.gz", labels().astype(np.uint8))
    np.testing.assert_array_equal(read(path).label, labels())
    np.testing.assert_array_equal(read(path).pixels, x)


def test_refusals_of_idx_files(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    x = pixels(channels=1)[..., 0]
    write_idx(path, x)
    assert "labels are missing" in refusal(tmp_path)
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], "truncated"), (whole + b"\0", "longer"), (b"", "nothing"), (b"PNG" + whole, "not an IDX"),
        (whole[:9], "header"), (whole[:2] + b"\x0d" + whole[3:], "not an IDX"),
        (whole[:4] + b"\xff" * 12 + whole[16:], "truncated"),
    ]:  # fmt: skip
        path.write_bytes(content)
        assert message in refusal(path)
    zipped = tmp_path / "other-images-idx3-ubyte.gz"
    write_idx(zipped, x)
    zipped.write_bytes(zipped.read_bytes()[:-30])
    refusal(zipped)
    write_mnist(tmp_path, x[..., None], labels(39))
    assert "(39,) for 40" in refusal(tmp_path)
    (tmp_path / "t").mkdir()
    write_idx(tmp_path / "t" / "t10k-images-idx3-ubyte", x)
    assert "train-images" in refusal(tmp_path / "t")


# ----------------------------------------------------------------------------------------------------------- CIFAR-10

BATCHES = {
    "binary": (binary_batch, ".bin"), "Python 2": (old_batch, ""), "protocol 2": (new_batch(2), ""),
    "protocol 4": (new_batch(4), ""),
}  # fmt: skip


def cifar(write, end):
    """The batches of a small CIFAR-10 by file name."""
    x, y = pixels(60, 32, 32), labels(60, 10)
    files = {f"data_batch_{at + 1}{end}": write(x[10 * at : 10 * at + 10], y[:10]) for at in range(5)}
    return x, y, files | {f"test_batch{end}": write(x[50:], y[50:])}


@pytest.mark.parametrize("version", BATCHES)
@pytest.mark.parametrize("kind", ["archive", "folder", "its parent"])
def test_cifar10(tmp_path, version, kind):
    write, end = BATCHES[version]
    x, y, files = cifar(write, end)
    inner = "cifar-10-batches-bin" if end else "cifar-10-batches-py"
    files |= {"batches.meta.txt" if end else "batches.meta": b"not read", "readme.html": b"not read"}
    if kind == "archive":
        path = tmp_path / "cifar-10.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file, content in files.items():
                entry = tarfile.TarInfo(f"{inner}/{file}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        (tmp_path / inner).mkdir()
        for file, content in files.items():
            (tmp_path / inner / file).write_bytes(content)
        path = tmp_path / inner if kind == "folder" else tmp_path
    result = image_files.read(path)
    assert result.num_classes == 10
    np.testing.assert_array_equal(result.items, x[:50])
    np.testing.assert_array_equal(result.label, np.tile(y[:10], 5))
    np.testing.assert_array_equal(result.test.items, x[50:])


@pytest.mark.parametrize("file", ["data_batch_2.bin", "test_batch.bin"])
def test_one_batch(tmp_path, file):
    x, _, files = cifar(binary_batch, ".bin")
    (tmp_path / file).write_bytes(files[file])
    result = image_files.read(tmp_path / file)
    np.testing.assert_array_equal(result.items, x[10:20] if "data" in file else x[50:])
    assert result.test is None


def test_the_old_pickle_is_one(tmp_path):
    """What Python makes of it, trusting it: the file that these tests write is a faithful one."""
    x, y = pixels(10, 32, 32), labels(10, 10)
    result = pickle.loads(old_batch(x, y), encoding="bytes")
    np.testing.assert_array_equal(result[b"data"], channel_rows(x))
    assert result[b"labels"] == y.tolist()


def test_damaged_batches(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    x, y = pixels(10, 32, 32), labels(10, 10)
    whole = binary_batch(x, y)
    for content, message in [(whole[:-1], "truncated"), (b"", "0 bytes"), (b"\x0a" + whole[1:], "label 10 of image 1")]:
        path.write_bytes(content)
        assert message in refusal(path)
    path = tmp_path / "data_batch_1"
    rows = channel_rows(x)
    numbers = y.tolist()
    for content in [
        old_batch(x, y)[:-500], b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"labels": numbers}),
        pickle.dumps({"data": rows.tolist(), "labels": numbers}, 2), new_batch(2)(x[:, :16], y),
        new_batch(2)(x, y[:5]), new_batch(2)(x.astype(np.float32), y), new_batch(2)(x, y + 0.5),
        b"\x80\x02" + opcodes({"labels": numbers, "data": old_array(rows, content=rows.tobytes()[:-1])}) + b".",
        b"\x80\x02" + opcodes({"labels": numbers, "data": old_array(rows, kind="u2")}) + b".",
        b"\x80\x02" + opcodes({"labels": numbers, "data": name("numpy", "ndarray")}) + b".",
    ]:  # fmt: skip
        path.write_bytes(content)
        refusal(path)
    (tmp_path / "a.tar.gz").write_bytes(b"not an archive")
    assert "archive" in refusal(tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    assert "no CIFAR-10 batches" in refusal(tmp_path / "b.tar.gz")


@pytest.mark.parametrize(
    "attack",
    [("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "scalar"),
     ("builtins", "getattr"), ("vamf.files", "write_atomic")],
)  # fmt: skip
def test_foreign_objects_are_refused_and_not_executed(tmp_path, attack):
    flag = tmp_path / "flag"
    argument = f"touch {flag}" if attack == ("os", "system") else f"open({str(flag)!r}, 'w')"
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02" + opcodes({"data": call(name(*attack), argument), "labels": [1]}) + b".")
    assert ".".join(attack) in refusal(path)
    assert not flag.exists()


def test_the_attack_is_real(tmp_path):
    flag = tmp_path / "flag"
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02" + opcodes({"data": call(name("os", "system"), f"touch {flag}")}) + b".")
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"], check=True)
    assert flag.exists()


# ------------------------------------------------------------------------------------------------------------ parquet


def write_parquet(path, x, y=None, column="image", nested=True):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow writes and reads this file")
    from pyarrow import parquet

    encoded = []
    for image in x:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None} if nested else buffer.getvalue())
    columns = {column: encoded} | ({} if y is None else {"label": y})
    parquet.write_table(arrow.table(columns), path)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet(tmp_path, nested, column):
    x = pixels()
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", x[:20], labels(20).tolist(), column, nested)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", x[20:30], labels(10).tolist(), column, nested)
    decoded = read(tmp_path / "data" / "train-00000-of-00002.parquet")
    np.testing.assert_array_equal(decoded.pixels, x[:20])
    np.testing.assert_array_equal(decoded.label, labels(20))
    np.testing.assert_array_equal(read(tmp_path).pixels, x[:30])
    assert image_files.read(tmp_path).test is None
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", x[30:], labels(10).tolist(), column, nested)
    result = image_files.read(tmp_path)
    np.testing.assert_array_equal(result.label, np.concatenate([labels(20), labels(10)]))
    np.testing.assert_array_equal(images.decode(result.test, ImageConfig(), "test").pixels, x[30:])


def test_refusals_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, pixels(5), [0, 1, None, 2, 1])
    assert "row 3 has no label" in refusal(path)
    write_parquet(path, pixels(5), [0, 1, -3, 2, 1])
    assert "label -3 of image 3" in refusal(path)
    write_parquet(path, pixels(5), column="photo")
    assert "photo" in refusal(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refusal(path)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": ["https://example.org/a.png"]}), path)
    assert "row 1 holds no encoded image" in refusal(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "pip install pyarrow" in refusal(tmp_path / "a.parquet")


# -------------------------------------------------------------------------------------------------------- recognition


def test_what_is_a_source_of_images(tmp_path):
    np.savez(tmp_path / "images.npz", x=pixels())
    np.savez(tmp_path / "table.npz", x=np.zeros((40, 3)))
    np.save(tmp_path / "images.npy", pixels(channels=1)[..., 0])
    np.save(tmp_path / "table.npy", np.zeros((40, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    names = {
        "images.npz": True, "images.npy": True, "table.npz": False, "table.npy": False, "damaged.npz": False,
        "table.csv": False, "a.parquet": True, "train-images-idx3-ubyte.gz": True, "data_batch_1.bin": True,
        "cifar-10-python.tar.gz": True, "nowhere.npz": False, ".": True, "swiss_roll": False,
    }  # fmt: skip
    assert {file: image_files.is_source(tmp_path / file) for file in names} == names


# --------------------------------------------------------------------------------------------------------- real files


def test_real_fashion_mnist():
    folder = SHARED / "fashion-mnist"
    if not folder.exists():
        pytest.skip(f"no fashion-mnist under {SHARED}")
    result = image_files.read(folder)
    assert result.items.shape == (60_000, 28, 28, 1)
    assert result.test.items.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(result.label), np.full(10, 6000))
    np.testing.assert_array_equal(result.label[:8], [9, 0, 0, 3, 0, 2, 7, 2])


@pytest.mark.slow
def test_real_cifar10(tmp_path):
    if not (SHARED / "cifar10").exists():
        pytest.skip(f"no cifar10 under {SHARED}")
    subprocess.run([sys.executable, SHARED / "unpack.py", tmp_path, "--folder", "2000"], check=True)
    result = image_files.read(tmp_path)
    assert result.items.shape == (50_000, 32, 32, 3)
    assert result.test.items.shape == (1000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(result.label), np.full(10, 5000))
    sheet = np.asarray(Image.open(SHARED / "cifar10" / "cifar10_batch_3.png").convert("RGB"))
    np.testing.assert_array_equal(result.items[3000:4000], sheet.reshape(-1, 32, 32, 3))
    # The same images as a folder of classes, in the order of class and number.
    decoded = read(tmp_path / "cifar10-folder")
    order = np.argsort(result.label[:2000], kind="stable")
    np.testing.assert_array_equal(decoded.pixels, result.items[:2000][order])
    np.testing.assert_array_equal(decoded.label, result.label[:2000][order])
