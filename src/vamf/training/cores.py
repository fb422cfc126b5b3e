"""How many cores of the machine a run uses. To be called before anything has started JAX's backend."""

import contextlib
import os

import jax
from jax.extend.backend import clear_backends

from vamf.networks import MLPConfig
from vamf.training.config import TrainConfig
from vamf.training.sharding import MeshConfig

SMALL = 2**15
"""Largest width times batch size of a run that is faster on one core."""


def spread_over_cores() -> None:
    """Give every core of this machine a device of its own, so that an ensemble can use all of them.

    One small network cannot keep several cores busy; several networks, one on each, can. Call before anything has
    started JAX's backend; later calls change nothing. Accelerators are not affected.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


def keep_on_one_core(config: TrainConfig) -> None:
    """Let the run of a small network use one core: its matrix products end before a second core could help.

    Measured on two cores: width 128 and batch 256 train 1.2 times faster on one, width 256 and batch 256 0.8 times.
    Call before anything has started JAX's backend; an NPROC that is already set stays.
    """
    network = config.network
    small = isinstance(network, MLPConfig) and network.width * config.batch_size <= SMALL
    if small and config.mesh == MeshConfig():
        os.environ.setdefault("NPROC", "1")


def release() -> None:
    """Give the processor back, so that `keep_on_one_core` holds for a configuration that the data decided.

    No array of before may be used afterwards. Nothing happens where NPROC is set, on accelerators and in several
    processes.
    """
    if "NPROC" not in os.environ and jax.default_backend() == "cpu" and jax.process_count() == 1:
        clear_backends()
