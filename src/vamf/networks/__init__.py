"""Networks, and the one place where flax modules become plain functions of their parameters."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from vamf.conditioning import CondShape
from vamf.errors import UserError
from vamf.extensions import Table
from vamf.networks.bound_network import BoundNetwork
from vamf.networks.config import NetworkConfig
from vamf.networks.dit import DiTConfig
from vamf.networks.in_context import InContextConfig
from vamf.networks.mlp import MLPConfig
from vamf.networks.prediction import DataPrediction
from vamf.networks.unet import UNetConfig

__all__ = [
    "KINDS", "DiTConfig", "InContextConfig", "MLPConfig", "Network", "NetworkConfig", "Prediction", "UNetConfig",
    "build", "kind_of", "left_out", "overlay",
]  # fmt: skip

KINDS: dict[str, type[NetworkConfig]] = Table({
    "mlp": MLPConfig, "dit": DiTConfig, "in_context": InContextConfig, "unet": UNetConfig
})  # fmt: skip
"""Kinds of networks by name, and their configurations."""

Prediction = Literal["average_velocity", "data"]
"""What a network's outputs are."""
MAIN, FAKE = "network", "fake"
"""Keys of two networks in one tree of parameters; the second is a head of the first."""


class Network(NamedTuple):
    """A network as two functions."""

    init: Callable[[jax.Array], Any]
    """key -> parameters."""
    bind: Callable[..., Any]
    """parameters -> u(z, r, t, label); with a dropout key, the network in training mode."""


def kind_of(config: NetworkConfig) -> str:
    """The name of a configuration's kind.

    Raises:
        UserError: the kind is not in `KINDS`.
    """
    for name, kind in KINDS.items():
        if type(config) is kind:
            return name
    raise UserError(f"network: {type(config).__name__} has no name in vamf.networks.KINDS")


def check_prediction(config: NetworkConfig, prediction: Prediction) -> None:
    """Refuse data prediction for a network that predicts noise."""
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
        cond: the kinds of conditioning that it takes; a number is a number of classes.
        heads: further outputs: `velocity` (z, t, label), `log_variance` (r, t), and `fake` (z, t, label), which is a
            second network of the same kind.
        jvp_dtype: precision of Jacobian-vector products of u; `network`: its own `dtype`. Parameters are
            always float32.
        prediction: what the network's outputs are; u follows from data (`prediction.py`).

    Raises:
        UserError: the network does not support the prediction or a head.
    """
    check_prediction(config, prediction)
    if FAKE in heads:
        main = build(config, event_shape, cond, tuple(name for name in heads if name != FAKE), jvp_dtype, prediction)
        return _with_fake(main, build(config, event_shape, cond, prediction=prediction))

    augment, scale = getattr(config, "augment_features", 0), config.takes_scale
    shape = CondShape.of(cond)._replace(augment=augment, scale=scale)

    def create(key, config):
        return config.module(event_shape, shape, heads, nnx.Rngs(key))

    def init(key):
        return nnx.to_pure_dict(nnx.state(create(key, config), nnx.Param))

    configs = [config]
    if jvp_dtype == "float32" and getattr(config, "dtype", "float32") != "float32":
        configs.append(dataclasses.replace(config, dtype="float32"))
    abstract = [nnx.eval_shape(partial(create, jax.random.key(0), variant)) for variant in configs]
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


def _with_fake(main: Network, fake: Network) -> Network:
    """Two networks in one tree of parameters; the second is the head `fake` of the first."""

    class TwoNetworks:
        def __init__(self, params, key=None):
            self.main = main.bind(params[MAIN], key)
            self.fake_network = fake.bind(params[FAKE], key)

        def __call__(self, z, r, t, label=None):
            return self.main(z, r, t, label)

        def __getattr__(self, name):
            return getattr(self.main, name)

        def fake(self, z, t, label=None):
            return self.fake_network.diagonal(z, t, label)

    def init(key):
        main_key, fake_key = jax.random.split(key)
        return {MAIN: main.init(main_key), FAKE: fake.init(fake_key)}

    return Network(init, TwoNetworks)


def overlay(params: Any, init_params: Any) -> Any:
    """Parameters overwritten by those of another run; parameters that the other lacks stay.

    Raises:
        UserError: the other has an unknown parameter, or one of another shape.
    """
    ours, theirs = (tree.get(MAIN, tree) for tree in (params, init_params))
    merged = _overlay(ours, theirs, "")
    return {**params, MAIN: merged} if MAIN in params else merged


def left_out(params: Any, init_params: Any) -> tuple[str, ...]:
    """Names of the parameters that `overlay` leaves, those of one layer or embedding under its own name."""
    ours, theirs = (tree.get(MAIN, tree) for tree in (params, init_params))
    names = _left_out(ours, theirs, "")
    return (*names, FAKE) if FAKE in params else names


def _left_out(params: Any, init_params: Any, name: str) -> tuple[str, ...]:
    if not isinstance(params, dict):
        return ()
    missing = [f"{name}.{key}"[1:] for key in params if key not in init_params]
    inner = [_left_out(part, init_params[key], f"{name}.{key}") for key, part in params.items() if key in init_params]
    return (*missing, *(one for names in inner for one in names))


def _overlay(params: Any, init_params: Any, name: str) -> Any:
    if isinstance(params, dict) and isinstance(init_params, dict):
        parts = {key: _overlay(params.get(key), part, f"{name}.{key}") for key, part in init_params.items()}
        return {**params, **parts}
    shape, other = getattr(params, "shape", "lacks it"), getattr(init_params, "shape", "none")
    if shape != other:
        raise UserError(f"init-from: its {name[1:]} has shape {other}, this network's {shape}")
    return init_params
