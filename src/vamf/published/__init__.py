"""Weights of official codes, as networks and runs of vamf.

`read` gives the network and its parameters; `vamf.published.runs.create` makes a run of them, which is sampled,
evaluated, diagnosed and fine-tuned as any other. A further code is one file and one row of `SOURCES`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vamf import networks, tensors
from vamf.data import NO_DATA
from vamf.errors import UserError, unknown_name
from vamf.networks import Network, NetworkConfig
from vamf.networks.bound_network import BoundNetwork
from vamf.published import dmf, files, imeanflow, meanflow, py_meanflow, sit, vamf_toys
from vamf.published.source import Architecture, Options, Shape, Source
from vamf.training.config import TrainConfig
from vamf.training.inputs import Inputs

__all__ = ["SOURCES", "Architecture", "Options", "Published", "Source", "read"]

SOURCES: dict[str, Source] = {
    "meanflow": meanflow.SOURCE,
    "imeanflow": imeanflow.SOURCE,
    "py_meanflow": py_meanflow.SOURCE,
    "dmf": dmf.SOURCE,
    "repa": sit.REPA,
    "sit": sit.SIT,
    "vamf_toys": vamf_toys.SOURCE,
}
"""Sources of weights by name."""


class Published(NamedTuple):
    """Weights from a file, as parameters of a network of vamf."""

    network: NetworkConfig
    params: Any
    """The tree of parameters, float32 on the host."""
    config: TrainConfig
    """The published recipe with this network, without data."""
    inputs: Inputs
    """Units and classes of the data."""
    weights: str
    """Which weights of the file they are."""
    step: int
    """Training step, 0 where the file does not tell."""

    def bind(self) -> BoundNetwork:
        """The network with its parameters: an average velocity u(z, r, t, label), with its heads."""
        return build(self.config, self.inputs).bind(jax.tree.map(jnp.asarray, self.params))


def build(config: TrainConfig, inputs: Inputs) -> Network:
    """The network of a configuration without data."""
    dataset = inputs.dataset()
    heads = config.build_objective().heads
    return networks.build(config.network, dataset.event_shape, dataset.cond_shape, heads)


def read(path: str | Path, source: str, options: Options = Options()) -> Published:
    """The weights in a checkpoint of an official code.

    Args:
        path: file, folder or archive, as in `files.py`.
        source: a name in `SOURCES`.

    Raises:
        UserError: an unknown source, an unreadable file, or tensors of another network: those that are missing,
            misshapen or unexpected are named as in the file.
    """
    if source not in SOURCES:
        raise unknown_name("from", repr(source), SOURCES, "vamf.published.SOURCES")
    row = SOURCES[source]
    weights = prefix = ""

    def choose(names):
        nonlocal weights, prefix
        try:
            weights, prefix = row.choose(names, options.ema)
        except UserError as error:
            raise UserError(f"{path}: no network of {source}: {error}{_hint(names, source)}") from None
        return [name for name in names if name.startswith(prefix) or name in row.steps]

    arrays = files.read(Path(path), choose)
    steps = [int(arrays.pop(name)) for name in row.steps if name in arrays and arrays[name].size == 1]
    shapes = {name.removeprefix(prefix): array.shape for name, array in arrays.items() if name.startswith(prefix)}
    try:
        architecture = row.architecture(shapes, options)
        config = row.recipe(architecture)
        decay = row.decays.get(weights, config.optimizer.ema_decay)
        one_ema = dataclasses.replace(config.optimizer, ema_decay=decay, ema_decays=())
        config = dataclasses.replace(config, data=NO_DATA, optimizer=one_ema)
        inputs = row.inputs(architecture, config)
        ours = _shapes(build(config, inputs))
    except UserError as error:
        raise UserError(f"{path}: no network of {source}: {error}") from None
    params = _convert(row, architecture, ours, arrays, prefix, f"{path}: no network of {source}")
    return Published(config.network, params, config, inputs, weights, max(steps, default=0))


def _hint(names: Collection[str], source: str) -> str:
    """The other sources that the names of tensors suggest, for a message; "" where they suggest this one."""
    likely = [other for other, row in SOURCES.items() if row.found(names)]
    if source in likely:
        return ""
    return f"; it looks like one of {' or '.join(likely)}" if likely else f"; it has {', '.join(sorted(names)[:2])}"


def _shapes(network: Network) -> dict[tuple[str | int, ...], Shape]:
    """Shapes of a network's parameters by their keys."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(network.init, jax.random.key(0)))[0]
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def _convert(
    source: Source,
    architecture: Architecture,
    ours: Mapping[tuple[str | int, ...], Shape],
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
) -> dict[str, Any]:
    """The tree of parameters from official tensors, all of which are checked first."""
    zeros, parameters = source.optional(architecture), source.parameters(architecture)
    assert set(ours) == set(parameters) | set(zeros), "every parameter has its tensors"
    expected = {
        f"{prefix}{name}": shape
        for path, parameter in parameters.items()
        for name, shape in zip(parameter.names, parameter.transform.shapes(ours[path]), strict=True)
    }
    unexpected = [
        name
        for name in arrays
        if name not in expected and name.startswith(prefix) and not source.is_unused(name.removeprefix(prefix))
    ]
    chosen = tensors.select(arrays, expected, where, unexpected)
    tree: dict[str, Any] = {}
    for path, shape in ours.items():
        if path in zeros:
            array = np.zeros(shape, np.float32)
        else:
            names, transform = parameters[path]
            array = transform.convert(*(chosen[f"{prefix}{name}"] for name in names))
        *outer, last = path
        branch: Any = tree
        for key in outer:
            branch = branch.setdefault(key, {})
        branch[last] = np.ascontiguousarray(array, np.float32)
        assert branch[last].shape == shape, path
    return tree
