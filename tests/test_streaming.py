"""Training on what stays on disk: every row once an epoch, the same bits however it is cut, and what goes wrong."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

import test_latents
from test_image_files import labels, pixels, save
from test_images import as_set, damage
from vamf import data
from vamf.data import encoding, latents, shards
from vamf.data import stream as streams
from vamf.data.image_dataset import ImageConfig
from vamf.data.stream import Stream
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training import loop, prefetch
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.config_file import identity
from vamf.training.ensemble import Ensemble
from vamf.training.run import Run

pytest.importorskip("grain", reason="grain reads what is streamed")
QUIET = Progress(show=False)


def config(path, images=None, **changes):
    """Thirty steps of six rows, the host busy at every tenth."""
    train_config = TrainConfig(
        data=str(path),
        images=images or ImageConfig(stream=True, flip=True),
        steps=30,
        batch_size=6,
        checkpoint_every=10,
        network=MLPConfig(width=16, depth=2),
        log=LogConfig(every=10, variance_every=10, variance_replicas=2),
    )
    return dataclasses.replace(train_config, **changes)


@pytest.fixture
def folder(tmp_path):
    """Forty images in four classes; thirty-six of them to train on."""
    x, y = pixels(40, 4, 4), labels()
    for k in range(4):
        save(tmp_path / "set" / str(k), x[y == k])
    return tmp_path / "set"


def seen(config, steps):
    """The batches of the first steps as bytes, and their labels, through the windows of training."""
    dataset = config.load_data()
    window = prefetch.Prefetcher(dataset.stream, config, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    result = [
        dataset.batch(window.at(step).arrays, jax.random.key(step), step, config.batch_size) for step in range(steps)
    ]
    x, label = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*result, strict=True))
    return np.rint(dataset.to_original(x)).astype(np.uint8), label


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(ours, theirs):
    for one, other in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("window_bytes", [2**27, 1000])
def test_every_image_once_an_epoch(folder, monkeypatch, window_bytes):
    monkeypatch.setattr(prefetch, "WINDOW_BYTES", window_bytes)
    x, y = pixels(40, 4, 4), labels()
    result, label = seen(config(folder, ImageConfig(stream=True)), 12)
    kind = {image.tobytes(): k for image, k in zip(x, y, strict=True)}
    np.testing.assert_array_equal([kind[image.tobytes()] for image in result], label)
    first, second = result[:36], result[36:]
    assert len(as_set(first)) == 36
    assert as_set(first) == as_set(second)
    assert not np.array_equal(first, second)
    in_memory = config(folder, ImageConfig()).load_data()
    stored = np.asarray(in_memory.arrays["pixels"])
    assert as_set(first) == as_set(stored)  # the same images are held out
    unseen = config(folder, ImageConfig(stream=True)).load_data().reference(100, 0)
    assert as_set(unseen) == as_set(in_memory.reference(100, 0))
    other, _ = seen(config(folder, ImageConfig(stream=True), seed=1), 6)
    assert as_set(other) == as_set(first)
    assert not np.array_equal(other, first)


def test_an_interrupted_training_goes_on(folder, tmp_path, monkeypatch):
    """Windows are of two steps, an epoch is of six, and the interruption after twenty is in the middle of one."""
    monkeypatch.setattr(prefetch, "WINDOW_BYTES", 800)
    options = {"proxy": "bank", "bank.size": 16}
    train_config = config(folder, objective=options, log=LogConfig(every=10, variance_every=0))
    whole, cut = (Run.create(train_config, tmp_path / name) for name in ("whole", "cut"))
    state = loop.train(whole.ensemble, whole.folder, QUIET).state

    class Killed(BaseException):
        pass

    def die(step, _):
        if step == 30:  # before it is saved
            raise Killed

    with pytest.raises(Killed):
        loop.train(cut.ensemble, cut.folder, QUIET, die)
    cut = Run.open(tmp_path / "cut")
    assert cut.load(QUIET)[1] == 20
    assert_same(loop.train(cut.ensemble, cut.folder, QUIET).state, state)
    logs = [(run.folder / "metrics.jsonl").read_text().split('"loss"')[1:] for run in (whole, cut)]
    assert [line.split('"steps_per')[0] for line in logs[0]] == [line.split('"steps_per')[0] for line in logs[1]]


@pytest.mark.slow
def test_chunks_do_not_change_the_result(folder, monkeypatch):
    monkeypatch.setattr(prefetch, "WINDOW_BYTES", 2000)  # six steps
    ensemble = Ensemble(config(folder), config(folder).load_data(), [1, 2])
    state, metrics = ensemble.advance(ensemble.init(), 17)
    cut, reported = ensemble.init(), []
    for length in (10, 7):
        cut, part = ensemble.advance(cut, length)
        reported.append(part.loss)
    assert_same(cut, state)
    np.testing.assert_array_equal(np.concatenate(reported, axis=1), metrics.loss)
    assert metrics.loss.shape == (2, 17)
    np.testing.assert_array_equal(ensemble.gradient_variance(state), ensemble.gradient_variance(cut))


def test_windows_are_read_once_and_ahead(folder, monkeypatch):
    train_config = config(folder)
    monkeypatch.setattr(prefetch, "WINDOW_BYTES", 1600)  # five steps
    dataset, starts = train_config.load_data(), []

    def noted(source, seed, first, count):
        starts.append((first, count))
        return read(source, seed, first, count)

    read = streams.window
    monkeypatch.setattr(streams, "window", noted)
    ensemble = Ensemble(train_config, dataset, [1])
    state, _ = ensemble.advance(ensemble.init(), 10)
    ensemble.advance(state, 20)
    assert starts == [(30 * k, 30) for k in range(6)]


@pytest.mark.parametrize(
    ("count", "size", "periods", "steps", "expected"),
    [
        (10**6, 10**4, (500, 2000, 2000), 10**5, 125),  # a divisor of 500, and memory for 209 batches of 64
        (10**6, 10, (500, 2000, 2000), 10**5, 15500),  # all that the set's 15,625 batches allow
        (10**4, 10, (500, 2000, 0), 10**5, 125),  # an epoch is 156 batches
        (10**6, 10**4, (499, 998, 0), 10**5, 1),
        (10**6, 10**4, (500, 500, 500), 30, 25),
        (100, 10**8, (500, 2000, 2000), 10**5, 1),
    ],
)
def test_length_of_a_window(count, size, periods, steps, expected):
    class Rows(list):
        labels = None

        def __len__(self):
            return count

    source = Rows([{"pixels": np.empty(size, np.uint8)}])
    every, checkpoint, variance = periods
    log = LogConfig(every=every, variance_every=variance)
    train_config = TrainConfig("", steps=steps, batch_size=64, checkpoint_every=checkpoint, log=log)
    assert prefetch.window_steps(Stream(source, lambda *_: None, ""), train_config) == expected


def test_what_is_streamed(folder):
    assert data.load(str(folder)).stream is None
    small = data.load(str(folder), image_config=ImageConfig(memory=1e-7))
    assert "36 images of 4x4x3 in 4 classes to train on, streamed from disk, 4 held out" in small.summary
    assert small.stream is not None
    assert identity(config("x")) != identity(config("x", ImageConfig(flip=True)))  # streamed rows come in another order


def test_labels_of_samples_are_those_of_all(tmp_path, monkeypatch):
    """Few rows stay in memory, and their labels are not all."""
    monkeypatch.setattr(streams, "MAX_ROWS", 32)
    y = np.repeat([0, 1, 2], [10, 30, 60])
    np.savez(tmp_path / "x.npz", images=pixels(100, 2, 2), labels=y)
    dataset = data.load(str(tmp_path / "x.npz"), 0.0, ImageConfig(stream=True))
    assert len(dataset.arrays["pixels"]) == 32
    samples = np.asarray(dataset.draw_labels(dataset.arrays, jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.bincount(samples) / 20_000, [0.1, 0.3, 0.6], atol=0.015)


def test_whitened_streams(folder):
    dataset = config(folder, ImageConfig(stream=True), whitening=0.01).load_data()
    rows = np.arange(20)
    x, _ = dataset.stream.take(dataset.arrays, jax.random.key(0), rows)
    stored = np.asarray(dataset.arrays["pixels"])[:20].reshape(-1, 4, 4, 3)
    np.testing.assert_allclose(dataset.to_original(np.asarray(x)), stored, atol=0.01)


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_damaged_images(folder, tmp_path):
    for name in ("0/0003.png", "2/0005.png"):
        damage(folder / name, "truncated")
    message = []
    progress = Progress(show=False)
    progress.say = message.append
    run = Run.create(config(folder, steps=10), tmp_path / "run")
    loop.train(run.ensemble, run.folder, progress)
    assert message[-1].startswith("2 damaged and left out, the first: ")
    strict = config(folder, ImageConfig(stream=True, strict=True))
    with pytest.raises(UserError, match=r"000[35]\.png: not a readable image"):
        Ensemble(strict, strict.load_data(), [1])._prefetcher.at(0)


def test_another_set_is_refused(folder, tmp_path):
    run = Run.create(config(folder, steps=1, log=LogConfig(variance_every=0)), tmp_path / "run")
    loop.train(run.ensemble, run.folder, QUIET)
    (folder / "0" / "0000.png").rename(folder / "0" / "0100.png")
    with pytest.raises(UserError, match="other data"):
        Run.open(run.folder).train(QUIET)


def test_without_grain(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"pip install 'vamf\[images\]'"):
        data.load(str(folder), image_config=ImageConfig(stream=True))


# -------------------------------------------------------------------------------------------------------------- latents


@pytest.fixture
def encoded(tmp_path):
    """Thirty-six latents with mean and spread, two views, in four shards."""
    test_latents.write(tmp_path / "x.npz")
    settings = dataclasses.replace(test_latents.CONFIG, flip=True)
    encoding.encode(tmp_path / "x.npz", test_latents.autoencoder(certain=False), tmp_path / "latents", settings)
    return tmp_path / "latents"


def test_latents_on_disk_are_those_in_memory(encoded):
    index = latents.read_index(encoded)
    stored, rows = shards.read(encoded, index), np.array([35, 0, 9, 10, 29])
    source = shards.Shards(encoded, index, rows)
    for name, array in stored.items():
        np.testing.assert_array_equal(np.stack([source[k][name] for k in range(5)]), array[rows])
        np.testing.assert_array_equal(source.gather(rows)[name], array[rows])
    np.testing.assert_array_equal(source.labels, stored["label"][rows])
    in_memory, streamed = latents.load(encoded), latents.load(encoded, memory=1e-6)
    assert in_memory.stream is None
    np.testing.assert_array_equal(in_memory.reference(3, 1), streamed.reference(3, 1))
    assert (streamed.num_classes, streamed.event_shape) == (in_memory.num_classes, in_memory.event_shape)


@pytest.mark.slow
def test_training_on_streamed_latents(encoded):
    train_config = config(encoded, batch_size=8, steps=10)
    window = streams.window(train_config.load_data().stream.source, train_config.seed, 0, 32)
    assert len(as_set(window["mean"])) == 32  # all that are trained on, once
    first, second = (Ensemble(train_config, train_config.load_data(), [1]) for _ in range(2))
    assert_same(first.advance(first.init(), 10), second.advance(second.init(), 10))


def test_a_shard_that_goes_bad(encoded):
    path = encoded / "latents-00001.npz"
    content = path.read_bytes()
    dataset = latents.load(encoded, from_disk=True)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"latents-00001\.npz: damaged shard"):
        streams.window(dataset.stream.source, 0, 0, 32)
    with pytest.raises(UserError, match=r"latents-00001\.npz: damaged shard"):
        latents.load(encoded, from_disk=True)
    path.unlink()
    with pytest.raises(UserError, match=r"latents-00001\.npz: this shard is missing"):
        latents.load(encoded, from_disk=True)
