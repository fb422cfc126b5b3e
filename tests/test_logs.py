"""What a run writes down, and where it goes."""

import dataclasses
import gzip
import importlib
import json
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vamf import data
from vamf.cli import main
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.training import loop
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.config_file import identity, read_json, to_json
from vamf.training.ensemble import Ensemble
from vamf.training.logs import read, scalars
from vamf.training.run import Run
from vamf.training.step import binned_residuals

QUIET = Progress(show=False)


def small(**changes) -> TrainConfig:
    log = LogConfig(every=10, variance_every=0, **changes)
    return TrainConfig(data="swiss_roll", steps=40, batch_size=32, checkpoint_every=20, log=log)


def resumed(folder: Path, config: TrainConfig) -> Run:
    """A run that was interrupted at step 40, before its checkpoint, and trained again from step 20 on."""
    run = Run.create(config, folder)

    def kill(step, _):
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(run.ensemble, run.folder, QUIET, kill)
    run = Run.open(folder)
    run.train(QUIET)
    return run


def test_cells_are_those_of_a_histogram():
    """Against numpy's histogram, at times that lie on no edge but 0 and 1."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.001, 0.999, (2, 500)).astype(np.float32)
    r, t = ends.min(axis=0), ends.max(axis=0)
    r[:100] = t[:100]
    t[-1], r[-1] = 1, 0
    residual = rng.exponential(size=500).astype(np.float32)
    total, count = np.asarray(binned_residuals(*map(jnp.asarray, (residual, r, t)))).reshape(2, 4, 5)
    edges = [np.linspace(0, 1, 5), [-1e-9, 1e-9, 0.25, 0.5, 0.75, 1]]
    np.testing.assert_array_equal(count, np.histogram2d(t, t - r, edges)[0])
    np.testing.assert_allclose(total, np.histogram2d(t, t - r, edges, weights=residual)[0], rtol=1e-5)


def test_one_bad_row_spoils_its_own_cell_only():
    total = np.asarray(binned_residuals(jnp.array([1.0, jnp.nan]), jnp.array([0.1, 0.2]), jnp.array([0.1, 0.9])))[0]
    assert np.isnan(total).sum() == 1
    assert np.nansum(total) == 1


def test_table_keeps_the_mean_residual():
    """Weighted by their numbers of rows, the cells' means are the residual itself, step by step, member by member."""
    ensemble = Ensemble(small(), data.load("swiss_roll"), [1, 2])
    _, metrics = ensemble.advance(ensemble.init(), 10)
    total, count = metrics.binned_residuals[:, :, 0], metrics.binned_residuals[:, :, 1]
    np.testing.assert_array_equal(count.sum(axis=-1), 32)
    np.testing.assert_allclose(total.sum(axis=-1) / 32, metrics.residual, rtol=1e-5)


def test_line_of_the_log(tmp_path):
    run = Run.create(small(), tmp_path / "run")
    run.train(QUIET)
    for record in read(run.folder / "metrics.jsonl"):
        table = record["residuals"]
        assert list(table) == ["diagonal", "gap_0.25", "gap_0.5", "gap_0.75", "gap_1"]
        assert [len(times) for times in table.values()] == [4, 4, 3, 2, 1]
        known = [value for times in table.values() for value in times.values() if value is not None]
        assert len(known) >= 6
        assert min(known) < record["residual"] < max(known)
        assert record["samples_per_second"] == pytest.approx(32 * record["steps_per_second"], rel=0.05)
        (memory,) = (record[name] for name in ("device_memory", "process_memory") if name in record)
        assert 10e6 < memory < 1e12


def test_images_are_kept_as_images(tmp_path):
    config = dataclasses.replace(small(), data="digits", network=MLPConfig(), steps=20)
    run = Run.create(config, tmp_path / "run")
    run.train(QUIET)
    (samples,), (path,) = ((run.folder / "samples").glob(f"*.{kind}") for kind in ("npy", "png"))
    drawn = np.load(samples)[0].reshape(8, 8)
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("L"), float)
    scale = (sheet.shape[1]) // (10 * 9 + 1)
    first = sheet[scale : 9 * scale : scale, scale : 9 * scale : scale]
    np.testing.assert_allclose(first, np.clip(drawn * 255 / run.dataset.max_value, 0, 255), atol=1)


def test_where_the_log_goes_is_not_what_the_training_is(tmp_path):
    """Checkpoints fit whatever `log.to` says, and runs of before it are read."""
    assert identity(small()) == identity(small(to=("tensorboard", "wandb")))
    assert identity(small()) != identity(dataclasses.replace(small(), seed=3))
    values = json.loads(to_json(small(to=("wandb",))))
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_json(TrainConfig, tmp_path / "config.json") == small(to=("wandb",))
    del values["log"]["to"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_json(TrainConfig, tmp_path / "config.json") == small()


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_missing_package_is_one_line(sink, module, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "swiss_roll", "--steps", "10", "--log.to", sink, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"log.to = {sink}: needs the package {module}; pip install 'vamf[{sink}]'" in said
    assert not (tmp_path / "run").exists()


def test_unknown_sink_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "swiss_roll", "--log.to", "csv"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert all(word in said for word in ("'csv'", "--log.to", "'tensorboard', 'wandb'"))


def test_scalars_are_named_by_their_place():
    record = {"step": 3, "time": 5.0, "loss": [1.0, None], "residuals": {"gap_1": {"t_1": 2.0}}, "beta": float("nan")}
    assert dict(scalars(record)) == {"loss/0": 1.0, "residuals/gap_1/t_1": 2.0}


def events(folder: Path) -> list:
    """All events of TensorBoard's files, in the order in which it reads them."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):  # length, its checksum, the record, its checksum
            size = int.from_bytes(content[place : place + 8], "little")
            found.append(vars(event_pb2)["Event"].FromString(content[place + 12 : place + 12 + size]))
            place += 16 + size
    return found


def test_tensorboard_after_resumption(tmp_path):
    """TensorBoard drops what comes before a start at a later or equal step: what is left are the file's own lines."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: pip install 'vamf[tensorboard]'")
    run = resumed(tmp_path / "run", small(to=("tensorboard",)))
    shown: dict[int, float] = {}
    for event in events(run.folder / "tensorboard"):
        if event.HasField("session_log") and event.session_log.status == 1:
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "loss":
                assert event.step not in shown
                shown[event.step] = value.simple_value
    expected = {record["step"]: record["loss"] for record in read(run.folder / "metrics.jsonl")}
    assert shown == pytest.approx(expected)


def test_tensorboard_reads_the_files_itself(tmp_path):
    """The reader of TensorBoard finds every point once, and the image."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: pip install 'vamf[tensorboard]'")
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name, reason="tensorboard, which reads the files, is not installed")
    run = resumed(tmp_path / "run", dataclasses.replace(small(to=("tensorboard",)), data="digits", network=MLPConfig()))
    found = reader.EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("residuals/diagonal/t_0.5")] == [10, 20, 30, 40]
    assert [event.step for event in found.Images("samples")] == [40]


class StandIn(types.ModuleType):
    """What of Weights & Biases is used, with its memory: runs by id."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, list] = {}
        self.finished = 0
        self.Image = lambda path: Image.open(path).size

    def init(self, *, id, **options):
        self.options = options
        history = self.runs.setdefault(id, [])
        finish = lambda: setattr(self, "finished", self.finished + 1)  # noqa: E731
        return types.SimpleNamespace(log=lambda values, step: history.append((step, values)), finish=finish)


def test_weights_and_biases_after_resumption(tmp_path, monkeypatch):
    """One run there, in which every step is once."""
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = resumed(tmp_path / "run", dataclasses.replace(small(to=("wandb",)), data="digits", network=MLPConfig()))
    (history,) = wandb.runs.values()
    records = read(run.folder / "metrics.jsonl")
    assert [(step, values["loss"]) for step, values in history if "loss" in values] == [
        (record["step"], record["loss"]) for record in records
    ]
    assert [step for step, values in history if "samples" in values] == [40]
    assert wandb.finished == 2
    assert wandb.options["resume"] == "allow"
    assert wandb.options["config"]["batch_size"] == 32


def test_weights_and_biases_without_account_is_one_line(tmp_path, monkeypatch):
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.Error("no API key\nconfigured")))
    with pytest.raises(UserError, match=r"wandb: no API key configured \(WANDB_MODE=offline needs no account\)"):
        Run.create(small(to=("wandb",)), tmp_path / "run").train(QUIET)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'vamf[wandb]'")
    importlib.import_module("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = resumed(tmp_path / "run", small(to=("wandb",)))
    written = list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 0 for path in written)
    assert len({path.stem for path in written}) == 1  # one identity, which the service merges


@pytest.mark.slow
def test_profile_is_a_trace_and_leaves_the_training_as_it_is(tmp_path, capsys):
    command = ["train", "swiss_roll", "--steps", "10", "--batch-size", "16", "--log.variance-every", "0", "--out"]
    for name, options in {"plain": [], "traced": ["--profile", "3"]}.items():
        main([*command, str(tmp_path / name), *options])
    assert f"profile of 3 steps: load {tmp_path}/traced/profile/plugins" in capsys.readouterr().err
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.trace.json.gz")
    with gzip.open(trace, "rt") as handle:
        assert len(json.load(handle)["traceEvents"]) > 10
    plain, traced = (read(tmp_path / name / "metrics.jsonl")[-1]["loss"] for name in ("plain", "traced"))
    assert plain == traced
