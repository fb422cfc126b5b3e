"""Networks, and the one place where flax modules become plain functions of their parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from vamf.average_velocity import AverageVelocity
from vamf.networks.mlp import MLP, MLPConfig

__all__ = ["MLPConfig", "Network", "build"]


class Network(NamedTuple):
    """A network as two functions."""

    init: Callable[[jax.Array], Any]
    """key -> parameters."""
    bind: Callable[[Any], AverageVelocity]
    """parameters -> u(z, r, t, label)."""


def build(
    config: MLPConfig, event_shape: tuple[int, ...], num_classes: int = 0, heads: tuple[str, ...] = ()
) -> Network:
    """The network that a configuration describes, for events of a shape and a number of classes (0: none).

    Args:
        heads: outputs beside u: `velocity` (z, t, label) and `log_variance` (r, t).
    """

    def create(key):
        return MLP(config, event_shape, num_classes, heads, rngs=nnx.Rngs(key))

    def init(key):
        return nnx.to_pure_dict(nnx.state(create(key), nnx.Param))

    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(jax.random.key(0))))

    def bind(params):
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return Network(init, bind)
