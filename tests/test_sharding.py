"""One run over many devices, simulated on the CPU: it is the run of one device, and each holds its share."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vamf import distributed
from vamf.errors import UserError
from vamf.networks import MLPConfig
from vamf.training.config import OptimizerConfig, TrainConfig
from vamf.training.config_file import identity
from vamf.training.ensemble import Ensemble
from vamf.training.sharding import MeshConfig

WORKER = Path(__file__).with_name("sharding_worker.py")
TOLERANCE = 2e-4
"""Relative: what sums in another order come to over a few steps."""


def runs(network: str, *meshes: str) -> dict[str, dict]:
    """What short runs on meshes of simulated devices come to: in a process of its own, which has 8."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(WORKER), network, *meshes]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def check_agreement(found: dict[str, dict]) -> None:
    """All meshes have the curves, the parameters and the samples of one device."""
    alone = found["1x1"]
    start = np.linalg.norm(alone["params"])
    for mesh, other in found.items():
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(other[name], alone[name], rtol=TOLERANCE, err_msg=f"{mesh}: {name}")
        apart = np.linalg.norm(np.subtract(other["params"], alone["params"]))
        assert apart < TOLERANCE * start, mesh
        np.testing.assert_allclose(other["samples"], alone["samples"], rtol=0, atol=20 * TOLERANCE, err_msg=mesh)


def check_shares(found: dict[str, dict], whole: float) -> None:
    """Bytes on each device: a full copy along `data`, an equal share along `model` of all but small arrays.

    Args:
        whole: largest part of the parameters that is in arrays too small to be split.
    """
    alone = {part: sum(held) for part, held in found["1x1"]["bytes"].items()}
    for mesh, other in found.items():
        model = int(mesh.split("x")[1])
        for part, held in other["bytes"].items():
            assert max(held) == min(held), f"{mesh}: {part}"
            assert alone[part] / model <= held[0] <= alone[part] * (1 / model + whole), f"{mesh}: {part}"


def test_a_mixed_mesh_trains_as_one_device():
    found = runs("mlp", "1x1", "2x2")
    check_agreement(found)
    check_shares(found, whole=0.15)


@pytest.mark.slow
def test_streamed_images_reach_every_device():
    """Each device gets its rows of the same batches."""
    pytest.importorskip("grain", reason="grain reads what is streamed")
    check_agreement(runs("stream", "1x1", "4x1", "2x4"))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "dit"])
def test_every_mesh_trains_as_one_device(network):
    found = runs(network, "1x1", "2x1", "4x1", "8x1", "1x8", "4x2")
    check_agreement(found)
    check_shares(found, whole=0.15)


def tiny(**changes) -> TrainConfig:
    config = TrainConfig(data="swiss_roll", steps=4, batch_size=32, network=MLPConfig(width=16, depth=1))
    return dataclasses.replace(config, **changes)


def test_a_batch_in_parts_is_the_whole_batch():
    """Losses, every reported mean and the parameters: rows with r = t and the others are dealt out evenly."""
    found = {}
    for parts in (1, 4):
        config = tiny(grad_accumulation=parts, objective={"proxy": "ema", "anchor_weight": 0.1})
        ensemble = Ensemble(config, config.load_data(), [1])
        found[parts] = ensemble.advance(ensemble.init(), 4)
    (state, metrics), (other, reported) = found[1], found[4]
    for name, values in metrics._asdict().items():
        if values is not None:
            np.testing.assert_allclose(getattr(reported, name), values, rtol=1e-4, err_msg=name)
    apart = [np.linalg.norm(np.subtract(*pair)) for pair in zip(_flat(state.params), _flat(other.params), strict=True)]
    assert max(apart) < 1e-3 * max(np.linalg.norm(leaf) for leaf in _flat(state.params))


def _flat(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"grad_accumulation": 5}, "batch-size"),
        ({"grad_accumulation": 16}, "r = t"),
        ({"grad_accumulation": 2, "method": "rao_blackwell"}, "bank"),
        ({"grad_accumulation": 2, "objective": {"beta": "binned"}}, "learns"),
        ({"grad_accumulation": 2, "objective": {"anchor": {"weight": 0.1, "every": 2}}}, "anchor.every"),
        ({"grad_accumulation": 0}, "grad-accumulation"),
    ],
)
def test_what_cannot_be_taken_in_parts_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        tiny(**changes)


def test_how_the_work_is_divided_is_no_part_of_a_training():
    assert identity(tiny(mesh=MeshConfig(0, 4), grad_accumulation=4)) == identity(tiny())
    assert identity(tiny(optimizer=OptimizerConfig(b1=0.5))) != identity(tiny())


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [((1, 1), 8, (1, 1)), ((0, 1), 8, (8, 1)), ((0, 4), 8, (2, 4)), ((3, 2), 8, (3, 2)), ((0, 1), 1, (1, 1))],
)
def test_shapes_of_meshes(mesh, devices, shape):
    assert MeshConfig(*mesh).shape(devices) == shape


@pytest.mark.parametrize(
    ("mesh", "devices", "processes"), [((8, 1), 4, 1), ((0, 3), 8, 1), ((0, 8), 4, 1), ((2, 1), 4, 2)]
)
def test_meshes_that_the_devices_cannot_form(mesh, devices, processes):
    """They are refused in a new training; a run from another machine takes all devices there are."""
    with pytest.raises(UserError, match="mesh"):
        MeshConfig(*mesh).shape(devices, processes)
    data, model = MeshConfig(*mesh).fitted(devices, processes).shape(devices, processes)
    assert data * model == devices
    assert mesh[1] % model == 0


@pytest.mark.parametrize("changes", [{"data": -1}, {"model": 0}])
def test_sizes_of_meshes_are_checked(changes):
    with pytest.raises(UserError, match=r"mesh\."):
        MeshConfig(**changes)


def test_several_trainings_have_a_device_each():
    config = tiny(mesh=MeshConfig(0, 1))
    with pytest.raises(UserError, match="one run, not for 2"):
        Ensemble(config, config.load_data(), [1, 2])


PLAIN = {"JAX_COORDINATOR_ADDRESS": "here:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def test_plain_variables_name_the_processes():
    found = distributed.from_env(PLAIN)
    assert found == {"coordinator_address": "here:1234", "num_processes": 2, "process_id": 1}
    assert distributed.from_env({}) is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("JAX_PROCESS_ID", "", "not JAX_PROCESS_ID"),
        ("JAX_PROCESS_ID", "2", "JAX_PROCESS_ID = 2"),
        ("JAX_NUM_PROCESSES", "two", "two"),
        ("JAX_COORDINATOR_ADDRESS", "here", "host:port"),
    ],
)
def test_plain_variables_that_are_wrong(name, value, told):
    with pytest.raises(UserError, match=told):
        distributed.from_env(PLAIN | {name: value})


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),  # a shell on a cluster, before srun
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_launchers_that_start_several_processes(environment, several):
    assert distributed.under_launcher({"JAX_PLATFORMS": "cpu", **environment}) == several
