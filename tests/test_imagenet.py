"""The ImageNet configuration as published, on latents of noise: its size, real steps, resumption from a checkpoint."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from test_latents import autoencoder
from vamf.data import encoding
from vamf.data.encoding import LatentConfig
from vamf.progress import Progress
from vamf.training import presets
from vamf.training.run import Run

QUIET = Progress(show=False)


def as_latents(folder):
    """Latents of 36 images of 256x256; the index says 1,000 classes, as it does where each of them has an image."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (36, 256, 256, 3), np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.resize([0, 207, 500, 999], 36))
    encoding.encode(folder / "images.npz", autoencoder(), folder / "latents", LatentConfig(size=256))
    index = json.loads((folder / "latents" / "latents.json").read_text())
    assert index.pop("classes") == [0, 207, 500, 999]
    (folder / "latents" / "latents.json").write_text(json.dumps(index | {"num_classes": 1000}))
    return folder / "latents"


@pytest.mark.slow
def test_two_steps_of_the_published_model_and_resumption(tmp_path):
    preset = presets.for_data("imagenet_dit_b4")
    config = dataclasses.replace(preset, data=str(as_latents(tmp_path)), steps=2, batch_size=8, checkpoint_every=1)
    assert (preset.steps, preset.batch_size, preset.learning_rate) == (300_000, 256, 1e-4)
    run = Run.create(config, tmp_path / "run")
    assert (run.dataset.event_shape, run.dataset.num_classes) == ((32, 32, 4), 1000)
    assert run.ensemble.parameters == 131_165_248
    start = jax.tree.map(lambda leaf: np.asarray(leaf[0]), run.ensemble.init().params)
    expected = leaves(run.train(QUIET).state)
    moved = [np.abs(one - other[0]).max() for one, other in zip(jax.tree.leaves(start), expected, strict=False)]
    assert max(moved) > 1e-4  # Adam's first step has the size of the learning rate
    assert all(np.isfinite(leaf).all() for leaf in expected)

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    del run
    resumed = leaves(Run.open(tmp_path / "run").train(QUIET).state)
    for one, other in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.ema_params, state.step))]
