"""A program for `test_sharding.py`: short runs on some of 8 simulated devices, and what they came to, as JSON.

python sharding_worker.py NETWORK DATAxMODEL [DATAxMODEL ...]
"""

import atexit
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
from PIL import Image

from vamf.data.image_dataset import ImageConfig
from vamf.networks import DiTConfig, MLPConfig
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.sharding import MeshConfig

STEPS = 6
NETWORKS = {
    "mlp": (MLPConfig(width=128, depth=2), "swiss_roll"),
    "dit": (DiTConfig(patch=4, width=64, depth=1, heads=2), "images.npy"),
    "stream": (MLPConfig(width=64, depth=1), "images"),
}


def config_of(network: str, mesh: MeshConfig, **changes) -> TrainConfig:
    """A run whose every part is used: the EMA as a proxy, clipping, rows with r = t."""
    kind, data = NETWORKS[network]
    if data != "swiss_roll":
        data = str(_images(data))
    config = TrainConfig(
        data=data,
        images=ImageConfig(stream=network == "stream"),
        method="vamf",
        steps=STEPS,
        batch_size=32,
        network=kind,
        mesh=mesh,
        objective={"proxy": "ema"},
        optimizer=OptimizerConfig(clip_norm=1.0, ema_decay=0.5),
        log=LogConfig(variance_replicas=2),
    )
    return dataclasses.replace(config, **changes)


def _images(name: str) -> Path:
    """Sixty-four images, in an array or a folder."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    if name.endswith(".npy"):
        np.save(folder / name, x)
    else:
        (folder / name).mkdir()
        for number, image in enumerate(x):
            Image.fromarray(image[..., 0]).save(folder / name / f"{number:02}.png")
    return folder / name


def train(config: TrainConfig) -> dict:
    ensemble = Ensemble(config, config.load_data(), [config.seed])
    state, metrics = ensemble.advance(ensemble.init(), STEPS)
    held = {
        part: [
            sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
                if shard.device == device)
            for device in ensemble.layout.mesh.devices.flat
        ]
        for part, tree in (("params", state.params), ("average", state.ema_params), ("moments", state.opt_state))
    }  # fmt: skip
    return {
        "loss": metrics.loss[0].tolist(),
        "grad_norm": metrics.grad_norm[0].tolist(),
        "params": np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(ensemble.collect(state.params))]).tolist(),
        "samples": ensemble.sample(state, 24, seed=3)[0].ravel().tolist(),
        "bytes": held,
    }


def main(network: str, *meshes: str) -> None:
    found = {}
    for name in meshes:
        data, model = name.split("x")
        found[name] = train(config_of(network, MeshConfig(int(data), int(model))))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
