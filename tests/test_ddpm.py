"""DDPM as a run: the published preset, and samplers that ask for what a run has trained."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from vamf import cli, networks
from vamf.data import Dataset
from vamf.networks import MLPConfig
from vamf.progress import Progress
from vamf.sampling import registry
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.run import Run

QUIET = Progress(show=False)
FAST = ["--steps", "4", "--batch-size", "8", "--checkpoint-every", "4"]


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SHOWN", "EVALUATED"):
            patch.setattr(f"vamf.training.run.{name}", 64)
        yield


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A file of 40 grey images of 8x8."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels)
    return path


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory):
    """A run of four steps, as good as untrained."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = {"steps": 4, "batch_size": 8, "checkpoint_every": 4, "log": LogConfig(every=2, variance_every=0)}
    run = Run.create(TrainConfig(data=str(image_folder), method="ddpm", network=MLPConfig(8, 1), **options), folder)
    run.train(QUIET)
    return run


@pytest.mark.slow
def test_the_preset_has_the_published_constants():
    config = presets.PRESETS["ddpm_cifar10"]
    assert (config.learning_rate, config.batch_size, config.steps) == (2e-4, 128, 800_000)
    assert (config.optimizer.warmup, config.optimizer.clip_norm, config.optimizer.ema_decay) == (5000, 1.0, 0.9999)
    assert (config.optimizer.name, config.optimizer.b1, config.optimizer.b2) == ("adam", 0.9, 0.999)
    assert config.optimizer.final_learning_rate == 1  # no decay
    assert (config.network.dropout, config.network.predicts, config.images.flip) == (0.1, "noise", True)
    objective = config.build_objective()
    network = networks.build(config.network, (32, 32, 3), 0, objective.heads)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


@pytest.mark.slow
def test_a_run_is_sampled_by_what_it_has_trained(finished):
    state, _ = finished.load(QUIET)
    assert finished.default_sampler() == ("ddim", 50)
    assert finished.default_sampler("ancestral") == ("ancestral", 1000)
    assert finished.default_sampler(steps=7) == ("ddim", 7)
    noise = finished.draw(state, 64)[0]
    kept = np.load(finished.folder / "samples" / "step-00000004.npy")
    np.testing.assert_allclose(noise, kept[:64], rtol=1e-3, atol=0.05)  # the checkpoint's are no jumps either
    method = dataclasses.replace(finished.config, method="flow_matching")
    assert Run(finished.folder, method).default_sampler() == ("heun", 50)


def test_bound_of_images_reaches_the_ancestral_sampler(finished, monkeypatch):
    """The last step returns the estimate of the data itself, clipped to bytes, before samples are."""
    monkeypatch.setattr(Dataset, "_as_stored", lambda self, values: values)
    state, _ = finished.load(QUIET)
    drawn, calls = finished.draw(state, 8, 3, sampler="ancestral")
    free, _ = finished.draw(state, 8, 3, sampler="ddim")
    assert calls == 3
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert free.max() > 256


@pytest.mark.slow
def test_evaluation_and_report_say_how_samples_were_drawn(finished):
    from vamf.report import run as report

    state, step = finished.load(QUIET)
    result = finished.evaluate(state, step)
    assert list(result["distances"]) == ["ddim, 50 steps of u(z, t, t)", "heun, 50 steps of u(z, t, t)", "baseline"]
    assert "samples (ddim, 50 steps of u(z, t, t)) of the EMA" in report.write(finished, result).read_text()


def test_ways_in_words():
    assert [registry.describe("flow_map", k) for k in (1, 4)] == ["1 step", "4 steps"]
    assert registry.describe("restart", 2) == "restart, 2 steps"


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    """Any network learns the velocity, with DDPM's emphasis."""
    folder = tmp_path / "run"
    small = ["--network.width", "8", "--log.every", "2", "--log.variance-every", "0"]
    cli.main(["train", "two_moons", "--method", "ddpm", *FAST, *small, "--out", str(folder)])
    for options, said in (([], "50 steps of ddim"), (["--sampler", "ancestral"], "1000 steps of ancestral")):
        capsys.readouterr()
        cli.main(["sample", str(folder), "--n", "10", *options, "--out", str(tmp_path / "x.npy")])
        assert f"10 samples in {said} (training step 4, EMA 0.999)" in capsys.readouterr().out
        assert np.load(tmp_path / "x.npy").shape == (10, 2)
    cli.main(["evaluate", str(folder), "--json"])
    assert "ddim, 50 steps of u(z, t, t)" in json.loads(capsys.readouterr().out)["distances"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) and record["beta"] is None for record in records)
