"""Networks, and the one place where flax modules become plain functions of their parameters."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from vamf.conditioning import CondShape
from vamf.errors import UserError
from vamf.networks.bound_network import BoundNetwork
from vamf.networks.config import NetworkConfig
from vamf.networks.dit import DiTConfig
from vamf.networks.in_context import InContextConfig
from vamf.networks.mlp import MLPConfig
from vamf.networks.prediction import DataPrediction
from vamf.networks.unet import UNetConfig

__all__ = [
    "KINDS", "DiTConfig", "InContextConfig", "MLPConfig", "Network", "NetworkConfig", "Prediction", "UNetConfig",
    "build", "kind_of", "overlay",
]  # fmt: skip

KINDS: dict[str, type[NetworkConfig]] = {
    "mlp": MLPConfig, "dit": DiTConfig, "in_context": InContextConfig, "unet": UNetConfig
}  # fmt: skip
"""Kinds of networks by name, and their configurations."""

Prediction = Literal["average_velocity", "data"]
"""What a network's outputs are."""
OWN, FAKE = "network", "fake"
"""The parts of two networks in one tree; the second is a head of the first."""


class Network(NamedTuple):
    """A network as two functions."""

    init: Callable[[jax.Array], Any]
    """key -> parameters."""
    bind: Callable[..., Any]
    """parameters -> u(z, r, t, label); with a key as well, the network in training, whose dropout it decides."""


def kind_of(config: NetworkConfig) -> str:
    """The name of a configuration's kind.

    Raises:
        UserError: it has none.
    """
    for name, kind in KINDS.items():
        if type(config) is kind:
            return name
    raise UserError(f"network: {type(config).__name__} has no name in vamf.networks.KINDS")


def check_prediction(config: NetworkConfig, prediction: Prediction) -> None:
    """Refuse a network that predicts something else already."""
    if prediction == "data" and getattr(config, "predicts", "") == "noise":
        raise UserError("prediction = data: network.predicts = noise already says what the network predicts")


def build(
    config: NetworkConfig,
    event_shape: tuple[int, ...],
    cond: CondShape | int = CondShape(),
    heads: tuple[str, ...] = (),
    jvp_dtype: Literal["float32", "network"] = "float32",
    prediction: Prediction = "average_velocity",
) -> Network:
    """The network that a configuration describes, for events of a shape.

    Args:
        cond: the kinds of condition that it takes; a number stands for that many classes.
        heads: outputs beside u: `velocity` (z, t, label), `log_variance` (r, t), and `fake` (z, t, label), which is a
            second network of the same kind.
        jvp_dtype: what Jacobian-vector products of u are computed in; `network`: its own `dtype`. Parameters are in
            single precision in any case.
        prediction: what the network's outputs are; u follows from data (`prediction.py`).

    Raises:
        UserError: the network cannot predict that, or has no such head.
    """
    check_prediction(config, prediction)
    if FAKE in heads:
        own = build(config, event_shape, cond, tuple(name for name in heads if name != FAKE), jvp_dtype, prediction)
        return _beside(own, build(config, event_shape, cond, prediction=prediction))

    augment, scale = getattr(config, "augment_features", 0), config.takes_scale
    shape = CondShape.of(cond)._replace(augment=augment, scale=scale)

    def create(key, config):
        return config.module(event_shape, shape, heads, nnx.Rngs(key))

    def init(key):
        return nnx.to_pure_dict(nnx.state(create(key, config), nnx.Param))

    forms = [config]
    if jvp_dtype == "float32" and getattr(config, "dtype", "float32") != "float32":
        forms.append(dataclasses.replace(config, dtype="float32"))
    abstract = [nnx.eval_shape(partial(create, jax.random.key(0), form)) for form in forms]
    for head in heads:
        if not hasattr(abstract[0], head):
            raise UserError(f"network: {type(abstract[0]).__name__} has no head {head!r}, which the method needs")
    graphs, states = zip(*(nnx.split(network) for network in abstract), strict=True)

    def bind(params, key=None):
        state = jax.tree.map(lambda leaf: leaf, states[0])
        nnx.replace_by_pure_dict(state, params)
        network, *float32_copy = (nnx.merge(graph, state) for graph in graphs)
        bound = BoundNetwork(network, key, *float32_copy, cond_shape=shape)
        return DataPrediction(bound) if prediction == "data" else bound

    return Network(init, bind)


def _beside(own: Network, fake: Network) -> Network:
    """Two networks in one tree of parameters; the second is the head `fake` of the first."""

    class Both:
        def __init__(self, params, key=None):
            self.own = own.bind(params[OWN], key)
            self.second = fake.bind(params[FAKE], key)

        def __call__(self, z, r, t, label=None):
            return self.own(z, r, t, label)

        def __getattr__(self, name):
            return getattr(self.own, name)

        def fake(self, z, t, label=None):
            return self.second.diagonal(z, t, label)

    def init(key):
        first, second = jax.random.split(key)
        return {OWN: own.init(first), FAKE: fake.init(second)}

    return Network(init, Both)


def overlay(params: Any, initial: Any) -> Any:
    """Parameters with those of another training in their place; what the other lacks stays.

    Raises:
        UserError: the other has a parameter that these lack, or one of another shape.
    """
    ours, theirs = (tree.get(OWN, tree) for tree in (params, initial))
    merged = _overlay(ours, theirs, "")
    return {**params, OWN: merged} if OWN in params else merged


def _overlay(params: Any, initial: Any, name: str) -> Any:
    if isinstance(params, dict) and isinstance(initial, dict):
        parts = {key: _overlay(params.get(key), part, f"{name}.{key}") for key, part in initial.items()}
        return {**params, **parts}
    shape, other = getattr(params, "shape", "lacks it"), getattr(initial, "shape", "none")
    if shape != other:
        raise UserError(f"initial: its {name[1:]} has shape {other}, this network's {shape}")
    return initial
