"""Kills, signals, full disks, damaged files, numbers that are none: what is lost, what is said, what goes on."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fault_worker
from vamf import data
from vamf.cli import main
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training import loop
from vamf.training.checkpoints import Checkpoints
from vamf.training.checksum import checksum
from vamf.training.config import CheckpointConfig, GuardConfig, LogConfig, TrainConfig
from vamf.training.config_file import identity, to_json
from vamf.training.divergence import HUNG, Diverged, Guard, Watchdog
from vamf.training.ensemble import Ensemble
from vamf.training.logs import NOT_REPEATED, read
from vamf.training.preemption import DEBOUNCE, RESUMABLE
from vamf.training.run import Run
from vamf.training.step import Metrics, NonFiniteRows

QUIET = Progress(show=False)
TINY = MLPConfig(width=16)


def small(**changes) -> TrainConfig:
    log = LogConfig(every=10, variance_every=0)
    given = {"method": "flow_matching", "steps": 40, "batch_size": 32, "checkpoint_every": 10}
    return TrainConfig("swiss_roll", network=TINY, **({"log": log} | given | changes))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(ours, theirs):
    for one, other in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


class Lines(Progress):
    """What would be said."""

    def __init__(self):
        super().__init__(show=False)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


# ------------------------------------------------------------------------------------------------------------- kills


def checkpoints_of(folder: Path) -> list[int]:
    """Steps of the complete checkpoints: those with their final name."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def assert_all_readable(run: Run, beside: Path) -> None:
    """Each checkpoint, alone in a folder, is read and found whole."""
    for step in checkpoints_of(run.folder):
        alone = beside / f"alone-{step}"
        shutil.copytree(run.folder / "checkpoints" / str(step), alone / "checkpoints" / str(step))
        progress = Lines()
        with loop.open_checkpoints(run.ensemble, alone, progress.say) as found:
            assert loop.restore(run.ensemble, found)[1] == step
        assert progress.lines == []
        shutil.rmtree(alone)


def kill_and_resume(tmp_path: Path, kills: int, seed: int) -> int:
    """Trainings killed at random times until there were enough kills; returns how many came in the middle of a save."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(fault_worker.PRELOAD)
    config = small(steps=400, checkpoint_every=20, log=LogConfig(every=10, variance_every=0), batch_size=16)
    whole = Run.create(config, tmp_path / "whole")
    expected = whole.train(QUIET).state
    rng = np.random.default_rng(seed)
    killed = during_save = number = 0
    while killed < kills:
        cut = Run.create(config, tmp_path / f"cut-{number}")
        log = cut.folder / "metrics.jsonl"
        number += 1
        while killed < kills and config.steps not in checkpoints_of(cut.folder):
            before = len(log.read_bytes()) if log.exists() else 0
            process = context.Process(target=fault_worker.vamf, args=("train", "--resume", str(cut.folder)))
            process.start()
            deadline = time.monotonic() + 120
            while process.is_alive() and not (log.exists() and len(log.read_bytes()) > before):  # until it takes steps
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            killed += process.exitcode == -signal.SIGKILL
            during_save += any("tmp" in path.name for path in (cut.folder / "checkpoints").glob("*"))
            assert_all_readable(cut, tmp_path)
        Run.open(cut.folder).train(QUIET)
        state, step = Run.open(cut.folder).load(QUIET)
        assert step == config.steps
        assert_same(state, expected)
        assert log_of(cut) == log_of(whole)
    return during_save


def log_of(run: Run) -> list[dict]:
    """The log, but for what the clock says."""
    lines = read(run.folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in NOT_REPEATED} for line in lines]


@pytest.mark.slow
def test_kill_minus_nine_a_few_times(tmp_path):
    kill_and_resume(tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_kill_minus_nine_fifty_times(tmp_path):
    """At random moments, during steps and during saves: no checkpoint is unreadable, and the end is the same bits."""
    assert kill_and_resume(tmp_path, kills=50, seed=1) >= 5


# ----------------------------------------------------------------------------------------------------------- signals


def start(folder: Path, steps: int = 200_000) -> subprocess.Popen:
    """A long training in a process of its own, which has begun to take steps."""
    config = small(steps=steps, checkpoint_every=steps)
    Run.create(config, folder)
    command = [sys.executable, "-m", "vamf", "train", "--resume", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not read(folder / "metrics.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops(tmp_path, number):
    """What was asked to stop goes on to the bits of the run that was not."""
    process = start(tmp_path / "run")
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == RESUMABLE == 75
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    found = re.fullmatch(r"vamf: interrupted; the state at step ([\d,]+) is saved; continue with: (.*)", last)
    step = int(found[1].replace(",", ""))
    assert found[2] == f"vamf train --resume {tmp_path / 'run'}"
    run = Run.open(tmp_path / "run")
    state, at = run.load(QUIET)
    assert at == step == read(run.folder / "metrics.jsonl")[-1]["step"]
    alone = Ensemble(run.config, run.dataset, [run.config.seed])
    expected = alone.init()
    for _ in range(step // 10):  # in the chunks that it took
        expected, _ = alone.advance(expected, 10)
    assert_same(alone.collect(state), alone.collect(expected))


def test_a_second_signal_stops_at_once(tmp_path):
    """In the middle of minutes of compiled code: the thread that listens does not wait for its end."""
    code = """
import hashlib
from vamf.training.preemption import SignalHandler
with SignalHandler(lambda line: print(line, flush=True)):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("SIGTERM: the state is saved")
    process.send_signal(signal.SIGTERM)  # the first one's echo, as `timeout` sends it to a process and its group
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=DEBOUNCE + 0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_hung_host_is_ended():
    code = """
import time
from vamf.training.divergence import Watchdog
with Watchdog(2) as dog:
    for _ in range(6):
        time.sleep(0.5)
        dog.heartbeat()
    print("alive", flush=True)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == HUNG == 124
    assert done.stdout == "alive\n"
    assert done.stderr == "vamf: hung: no chunk of steps in 2 s; continue with --resume\n"


def test_a_watchdog_without_seconds_sleeps():
    before = threading.active_count()
    with Watchdog(0):
        assert threading.active_count() == before


# --------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(small_disk, tmp_path):
    """One line, which names the newest good checkpoint; from there the run goes on when there is space again."""
    config = small(checkpoints=CheckpointConfig(keep=40))
    run = Run.create(config, small_disk / "run")
    filler = small_disk / "filler"

    def fill(step, _):
        if step == 30:
            with filler.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
                while handle.write(bytes(4096)):
                    pass

    with pytest.raises(UserError, match=r"cannot write .*: No space left on device") as caught:
        loop.train(run.ensemble, run.folder, QUIET, fill)
    newest = checkpoints_of(run.folder)[-1]
    assert newest in (10, 20)  # which may have been in the making
    assert "checkpoint" not in str(caught.value) or str(caught.value).endswith(
        f"; the newest good one is step {newest}"
    )
    filler.unlink()
    state = Run.open(run.folder).train(QUIET).state
    assert_same(state, Run.create(dataclasses.replace(config), tmp_path / "whole").train(QUIET).state)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX resource limits")
def test_a_save_that_fails_in_the_background_is_told_at_the_next(tmp_path):
    """A file may not grow beyond 500 bytes: the arrays do not fit, and the run that wrote them is far on."""
    state = {"w": np.random.default_rng(0).normal(size=10_000)}
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, "mark") as checkpoints:
        checkpoints.save(10, state)
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
            checkpoints.save(20, state)
            with pytest.raises(UserError, match=r"cannot write .*20: File too large; the newest good one is step 10"):
                checkpoints.save(30, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert checkpoints.latest == 10


# ----------------------------------------------------------------------------------------------------- damaged files


def damage(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            os.truncate(path, path.stat().st_size // 2)


def test_what_does_not_read_back_is_told_removed_and_not_counted(tmp_path, monkeypatch):
    """Damage between the writing and the reading back."""
    run = Run.create(small(), tmp_path / "run")
    finish = Checkpoints._finish

    def damaged_at_20(self, step, *given):
        self._manager.wait_until_finished()
        if step == 20:
            damage(self.folder / "20")
        return finish(self, step, *given)

    monkeypatch.setattr(Checkpoints, "_finish", damaged_at_20)
    progress = Lines()
    loop.train(run.ensemble, run.folder, progress)
    said = [line for line in progress.lines if "checkpoint" in line]
    assert len(said) == 1
    assert "20 does not read back (" in said[0]
    assert said[0].endswith(") and is removed; the newest good one is step 10")
    assert checkpoints_of(run.folder) == [10, 30, 40]


def test_without_reading_back_damage_waits_for_the_reader(tmp_path, monkeypatch):
    run = Run.create(small(checkpoints=CheckpointConfig(verify=False)), tmp_path / "run")
    monkeypatch.setattr("vamf.training.checkpoints.Checkpoints._reader", None)  # nobody reads
    loop.train(run.ensemble, run.folder, QUIET)
    damage(run.folder / "checkpoints" / "40")
    assert run.load(QUIET)[1] == 30


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_the_checksum_sees_every_bit(dtype):
    """Each flipped bit, signs that flip in pairs, numbers that change places, other shapes and orders."""
    values = np.asarray(jnp.arange(1, 16).reshape(3, 5), dtype)
    other = np.arange(4.0, dtype=np.float32)

    def sum_of(raw, shape=(3, 5)):
        return checksum({"0": np.frombuffer(bytes(raw), values.dtype).reshape(shape), "1": other})

    raw = np.frombuffer(values.tobytes(), np.uint8)
    ones = [1 << bit % 8 & (0xFF * (np.arange(raw.size) == bit // 8)) for bit in range(0, 8 * raw.size, 3)]
    last = values.dtype.itemsize - 1
    pair = 0x80 * np.isin(np.arange(raw.size), [last, last + values.dtype.itemsize])
    sums = [sum_of(raw), *(sum_of((raw ^ flip).astype(np.uint8)) for flip in [*ones, pair])]
    sums += [sum_of(np.ascontiguousarray(values[::-1]).tobytes()), sum_of(raw, (5, 3)), sum_of(raw, (15,))]
    sums.append(checksum({"0": other, "1": values}))
    assert len(set(sums)) == len(sums)


def test_the_checksum_is_the_same_wherever_the_arrays_are():
    arrays = {"0": np.array([True, False]), "1": np.zeros((0, 3), np.float32), "2": np.float32(1)}
    assert checksum(arrays) == checksum(jax.device_put(arrays)) != checksum(arrays | {"0": np.array([True, True])})


def test_the_checksum_in_whole_numbers():
    """Against Python's own integers."""

    def mix(x):
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        return x ^ x >> 16

    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    salt = zlib.crc32(b"0 (2, 3, 4) float32")
    first = second = salt
    for index, word in enumerate(values.view(np.uint32).ravel().tolist()):
        hashed = mix(index ^ salt)
        first += mix(word ^ hashed)
        second += mix(word ^ mix((hashed + 0x9E3779B9) % 2**32))
    assert checksum({"a": values}) == f"{first % 2**32:08x}{second % 2**32:08x}"


def test_restored_on_another_number_of_devices(tmp_path):
    """Written from arrays over eight devices, read over two, four and eight otherwise, and on the host."""
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vamf.training.checkpoints import Checkpoints
from vamf.training.checksum import checksum
jax.config.update("jax_num_cpu_devices", 8)
folder = Path({str(tmp_path)!r})
host = {{"w": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32), "b": np.arange(8, dtype=np.int32)}}
def put(devices, shape, specs):
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(shape), ("data", "model"))
    return {{name: jax.device_put(host[name], NamedSharding(mesh, specs[name])) for name in host}}
layouts = [
    put(8, (4, 2), {{"w": P("data", "model"), "b": P("model")}}),
    put(2, (2, 1), {{"w": P(None, "data"), "b": P()}}),
    put(4, (2, 2), {{"w": P("model"), "b": P(("data", "model"))}}),
    put(8, (8, 1), {{"w": P("data"), "b": P("data")}}),
]
assert len({{checksum(layout) for layout in [*layouts, host]}}) == 1
with Checkpoints(folder, "mark", say=print) as checkpoints:
    checkpoints.save(5, layouts[0], {{"loss": 2.5}})
    checkpoints.wait()
    assert checkpoints.latest == 5
    for layout in layouts:
        like = {{name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in layout.items()}}
        found = checkpoints.restore(like)
        assert found.step == 5 and found.metrics == {{"loss": 2.5}}
        for name in host:
            assert found.state[name].sharding == layout[name].sharding
            np.testing.assert_array_equal(np.asarray(found.state[name]), host[name])
    plain = checkpoints.restore({{name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in host.items()}}).state
    assert all(isinstance(x, np.ndarray) for x in plain.values())
    np.testing.assert_array_equal(plain["w"], host["w"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("flip", [0, 1])
def test_checkpoints_of_earlier_versions_are_read(tmp_path, flip):
    """They have SHA-256 of their arrays and no line of the log."""
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with Checkpoints(tmp_path, "mark") as checkpoints:
        checkpoints.save(3, state)
    digest = hashlib.sha256(b"00000(2, 3)float32" + (state["w"] + flip).tobytes()).hexdigest()
    (tmp_path / "3" / "facts" / "metadata").write_text(json.dumps({"digest": digest, "fingerprint": "mark"}))
    progress = Lines()
    with Checkpoints(tmp_path, "mark", say=progress.say) as checkpoints:
        if flip:
            with pytest.raises(UserError, match="no checkpoint can be read"):
                checkpoints.restore(state)
            assert "do not match" in progress.lines[0]
        else:
            assert_same(checkpoints.restore(state).state, state)
            for rows in (1, 3):  # as where the data have other classes now
                with pytest.raises(UserError, match="network of other shapes"):
                    checkpoints.restore({"w": np.zeros((rows, 3), np.float32)})


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = {"w": np.ones(3, np.float32)}
    config = CheckpointConfig(keep=2, best="residual")
    losses = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0}
    with Checkpoints(tmp_path, "mark", config) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state, {"residual": loss})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 3, 4]
    with Checkpoints(tmp_path, "mark", config) as checkpoints:  # who knows only what is on the disk
        checkpoints.save(5, state, {"residual": 2.0})
        checkpoints.save(6, state, {"residual": 0.5})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [5, 6]


def test_a_checkpoint_is_chosen(tmp_path):
    """By its step, as the best, or as the newest."""
    config = CheckpointConfig(keep=2, best="residual")
    blank = {"w": np.zeros(3, np.float32)}
    with Checkpoints(tmp_path, "mark", config) as checkpoints:
        for step, loss in {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0}.items():
            checkpoints.save(step, {"w": np.full(3, step, np.float32)}, {"residual": loss})
        checkpoints.wait()
        for which, step in {"newest": 4, "best": 2, 3: 3}.items():
            found = checkpoints.restore(blank, which)
            assert (found.step, *found.state["w"]) == (step, step, step, step)
        with pytest.raises(UserError, match="checkpoint = 1: allowed are 2, 3, 4, newest and best"):
            checkpoints.restore(blank, 1)
    with Checkpoints(tmp_path, "mark") as checkpoints, pytest.raises(UserError, match="checkpoint = best: the run's"):
        checkpoints.restore(blank, "best")


def test_samples_of_an_earlier_checkpoint(tmp_path, capsys):
    """Those that the run kept at that step."""
    run = Run.create(small(), tmp_path / "run")
    run.train(QUIET)
    out = tmp_path / "samples.npy"
    earlier = Run.open(run.folder)
    state, step = earlier.load(QUIET, 20)
    assert step == 20
    kept = np.load(run.folder / "samples" / "step-00000020.npy")
    np.testing.assert_array_equal(earlier.draw(state, len(kept))[0], kept)
    main(["sample", str(run.folder), "--checkpoint", "20", "--n", "5", "--out", str(out)])
    assert "training step 20" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["sample", str(run.folder), "--checkpoint", "25", "--out", str(out)])
    assert "checkpoint = 25: allowed are 20, 30, 40, newest and best" in capsys.readouterr().err


def test_a_checkpoint_has_the_last_line_of_the_log(tmp_path):
    run = Run.create(small(), tmp_path / "run")
    run.train(QUIET)
    with loop.open_checkpoints(run.ensemble, run.folder) as checkpoints:
        found = checkpoints.restore(run.ensemble.abstract_state())
    assert found.metrics == read(run.folder / "metrics.jsonl")[-1]


def test_who_trains_may_be_watched_over_otherwise(tmp_path):
    """Which checkpoints are kept and what stops a run tells no training from another."""
    config = small()
    other = dataclasses.replace(config, checkpoints=CheckpointConfig(keep=7), guard=GuardConfig(patience=0))
    assert identity(config) == identity(other)
    run = Run.create(dataclasses.replace(config, steps=40), tmp_path / "run")
    run.train(QUIET)
    (run.folder / "config.json").write_text(to_json(other))
    assert Run.open(run.folder).load(QUIET)[1] == 40


# ------------------------------------------------------------------------------------------------------ numbers


def poisoned(ensemble: Ensemble, steps, value=np.nan, where=lambda r, t: t > 0.5) -> Ensemble:
    """A grid whose losses are not finite at certain steps, in certain rows."""

    class Poisoned(type(ensemble.train_step.objective)):
        def loss(self, u, x, sample, label, step, *given):
            loss, aux = super().loss(u, x, sample, label, step, *given)
            struck = jnp.isin(step, jnp.asarray(steps)) & where(sample.r, sample.t)
            return loss * jnp.where(struck, value, 1.0), aux

    own = ensemble.train_step.objective
    objective = Poisoned(**{field.name: getattr(own, field.name) for field in dataclasses.fields(own)})
    ensemble.train_step = dataclasses.replace(ensemble.train_step, objective=objective)
    return ensemble


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_left_out(tmp_path, value):
    """Nothing but the count of steps goes on, and the next step is taken from where the last good one led."""
    run = Run.create(small(), tmp_path / "run")
    ensemble = poisoned(Ensemble(run.config, run.dataset, [run.config.seed]), [4, 5], value)
    four, _ = ensemble.advance(ensemble.init(), 4)
    before = leaves(ensemble.collect(four)._replace(step=0))
    six, metrics = ensemble.advance(four, 2)
    assert_same(ensemble.collect(six)._replace(step=0), before)
    assert int(six.step[0]) == 6
    assert not np.isfinite(metrics.loss).any()
    progress = Lines()
    outcome = loop.train(ensemble, run.folder, progress)
    assert all(np.isfinite(leaf).all() for leaf in leaves(outcome.state))
    first, *others = read(run.folder / "metrics.jsonl")
    assert first["skipped"] == 2
    assert np.isfinite(first["loss"])
    assert not any("skipped" in other for other in others)


@pytest.mark.slow
def test_a_training_stops_after_a_row_of_such_steps_and_says_where_they_come_from(tmp_path):
    config = small(method="vamf", guard=GuardConfig(patience=4))
    run = Run.create(config, tmp_path / "run")
    ensemble = poisoned(
        Ensemble(config, run.dataset, [3]), [2, 18, 19, 20, 21, 22], where=lambda r, t: (t > 0.6) & (r < 0.4)
    )
    with pytest.raises(Diverged) as caught:
        loop.train(ensemble, run.folder, QUIET)
    said = str(caught.value)
    assert said.startswith("loss or gradient not finite at step 19 and the 3 after it, in rows with r in [")
    assert said.endswith(f"; last good checkpoint: {run.folder.absolute() / 'checkpoints' / '10'}")
    batch = jax.device_get(
        ensemble.train_step.batch((), jax.tree.map(lambda leaf: leaf[0], ensemble.points), 18)
    ).sample
    struck = (batch.t > 0.6) & (batch.r < 0.4)
    expected = [f(x[struck]) for x in (batch.r, batch.t) for f in (np.min, np.max)]
    found = [float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?(?=[,\]])", said.split("rows with")[1])]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # A state in the middle of the row is no checkpoint: step 20's would have followed from what went wrong.
    assert checkpoints_of(run.folder) == [10]
    with pytest.raises(Diverged, match="at step 19 and the 3 after it"):  # and again
        loop.train(ensemble, run.folder, QUIET)


def test_a_row_goes_on_where_a_process_ended(tmp_path):
    """Two steps of the row before the log's last line, two after it."""
    guard = Guard(GuardConfig(patience=4), [{"step": 10, "grad_norm": 1.0, "skipped_in_a_row": 2}], lambda: "none")
    with pytest.raises(Diverged, match="at step 9 and the 3 after it, in the gradient alone"):
        guard.check_metrics(measured([np.inf, np.nan]), 10)


def measured(norms) -> Metrics:
    norms = np.asarray(norms, float)[None]
    one, empty = np.ones_like(norms), np.full_like(norms, np.inf)
    return Metrics(
        one,
        one,
        one,
        norms,
        one,
        one,
        None,
        NonFiniteRows(empty, -empty, empty, -empty),
        np.zeros((*norms.shape, 2, 1)),
    )


def test_gradients_that_grow_without_end():
    """Four lines far above are a spike, five are an end; the median is of the lines before."""
    config = GuardConfig(gradient_factor=100, gradient_lines=5)
    calm = [{"step": step, "grad_norm": 1.0 + step / 100} for step in range(20)]
    guard = Guard(config, calm, lambda: "last good checkpoint: 7")
    for norm in [200.0] * 4 + [2.0, None, float("nan")] + [300.0] * 4:
        guard.read({"step": 30, "grad_norm": norm})
    with pytest.raises(Diverged, match=r"gradient norm 500 at step 31: over 100 times its median .* 5 lines .*: 7"):
        guard.read({"step": 31, "grad_norm": 500.0})
    off = Guard(dataclasses.replace(config, gradient_factor=0), calm, lambda: "")
    for _ in range(20):
        off.read({"step": 30, "grad_norm": 1e30})


@pytest.mark.slow
def test_members_of_a_grid_are_not_guarded(tmp_path):
    ensemble = poisoned(Ensemble(small(), data.load("swiss_roll"), [1, 2]), [5])
    outcome = loop.train(ensemble, tmp_path, QUIET)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(outcome.state.params))
    assert "skipped" not in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.bits
def test_guards_change_no_bit_of_a_healthy_training():
    ensembles = [Ensemble(small(method="vamf"), data.load("swiss_roll"), [1]) for _ in range(2)]
    ensembles[1].train_step = dataclasses.replace(ensembles[1].train_step, guarded=False)
    guarded, bare = (ensemble.collect(ensemble.advance(ensemble.init(), 40)[0]) for ensemble in ensembles)
    assert_same(guarded, bare)
