"""A program for `test_mesh.py`: short trainings on some of 8 simulated devices, and what they came to, as JSON.

python mesh_worker.py NETWORK DATAxMODEL [DATAxMODEL ...]
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
from vamf.training.config import LogConfig, OptimiserConfig, TrainConfig
from vamf.training.grid import Grid
from vamf.training.mesh import MeshConfig

STEPS = 6
NETWORKS = {
    "mlp": (MLPConfig(width=128, depth=2), "swiss_roll"),
    "dit": (DiTConfig(patch=4, width=64, depth=1, heads=2), "pictures.npy"),
    "stream": (MLPConfig(width=64, depth=1), "pictures"),
}


def config_of(network: str, mesh: MeshConfig, **changes) -> TrainConfig:
    """A training whose every part is used: the moving average as a proxy, clipping, rows with r = t."""
    kind, data = NETWORKS[network]
    if data != "swiss_roll":
        data = str(_pictures(data))
    config = TrainConfig(
        data=data,
        images=ImageConfig(stream=network == "stream"),
        method="vamf",
        steps=STEPS,
        batch_size=32,
        network=kind,
        mesh=mesh,
        objective={"proxy": "ema"},
        optimiser=OptimiserConfig(clip_norm=1.0, ema_decay=0.5),
        log=LogConfig(variance_replicas=2),
    )
    return dataclasses.replace(config, **changes)


def _pictures(name: str) -> Path:
    """Sixty-four pictures, in an array or a folder."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    if name.endswith(".npy"):
        np.save(folder / name, x)
    else:
        (folder / name).mkdir()
        for number, picture in enumerate(x):
            Image.fromarray(picture[..., 0]).save(folder / name / f"{number:02}.png")
    return folder / name


def train(config: TrainConfig) -> dict:
    grid = Grid(config, config.load_data(), [config.seed])
    state, metrics = grid.advance(grid.init(), STEPS)
    held = {
        part: [
            sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
                if shard.device == device)
            for device in grid.layout.mesh.devices.flat
        ]
        for part, tree in (("params", state.params), ("average", state.average), ("moments", state.opt_state))
    }  # fmt: skip
    return {
        "loss": metrics.loss[0].tolist(),
        "grad_norm": metrics.grad_norm[0].tolist(),
        "params": np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grid.collect(state.params))]).tolist(),
        "samples": grid.sample(state, 24, seed=3)[0].ravel().tolist(),
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
