"""One run over many devices: the sharding of batches and states.

The devices form a mesh with two axes; every batch is sharded by rows over both:

| axis    | parameters, EMA, optimizer state | communication                                           |
|---------|----------------------------------|---------------------------------------------------------|
| `data`  | replicated                       | all-reduce of gradients                                 |
| `model` | sharded                          | all-gather of parameters; reduce-scatter of gradients   |

Shapes and random numbers are those of one device: XLA partitions one program (GSPMD), so that the number of devices
changes the rounding and nothing else. The sharding is set in three places: where a batch is drawn, where parameters
enter the network, and where rows do. The last keeps every network call evenly sharded, however
an objective splits its batch.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vamf.average_velocity import AverageVelocity
from vamf.errors import UserError, require
from vamf.field_types import check_field_types
from vamf.networks import Network

DATA, MODEL = "data", "model"
MIN_SHARDED_SIZE = 2**12
"""Size of the smallest array that is sharded."""


@dataclasses.dataclass(frozen=True)
@check_field_types("mesh.")
class MeshConfig:
    """The device mesh of a run; each device takes an equal part of every batch."""

    data: int = 1
    """Copies of the parameters, each on `model` devices; 0: as many as there are devices for."""
    model: int = 1
    """Devices that share one copy of parameters, EMA and optimizer state."""

    def __post_init__(self):
        require(self.data >= 0, "mesh.data", self.data, "1 or more, or 0 for all devices")
        require(self.model >= 1, "mesh.model", self.model, "1 or more")

    def shape(self, devices: int, processes: int = 1) -> tuple[int, int]:
        """Sizes of the axes `data` and `model` on a number of devices.

        Raises:
            UserError: there are not as many devices, or some of those that several processes have would be idle.
        """
        data = self.data or devices // self.model
        here = f"{devices} device{'s' * (devices > 1)}"
        if not 0 < data * self.model <= devices or (self.data == 0 and devices % self.model):
            raise UserError(f"mesh.data = {self.data}, mesh.model = {self.model}: cannot be laid out on {here}")
        if processes > 1 and data * self.model != devices:
            raise UserError(
                f"mesh.data = {self.data}, mesh.model = {self.model}: {processes} processes have {here} and use all of "
                "them; mesh.data 0 does"
            )
        return data, self.model

    def fitted(self, devices: int, processes: int = 1) -> "MeshConfig":
        """The same where that is possible; elsewhere all devices, of which at most `model` share a copy."""
        try:
            self.shape(devices, processes)
        except UserError:
            return MeshConfig(data=0, model=math.gcd(self.model, devices))
        return self


class ShardingLayout:
    """The devices of one run and the shardings on them."""

    def __init__(self, config: MeshConfig):
        """
        Raises:
            UserError: the devices do not fit the configuration.
        """
        devices = jax.devices()
        shape = config.shape(len(devices), jax.process_count())
        kinds = (AxisType.Auto, AxisType.Auto)
        self.mesh = jax.make_mesh(shape, (DATA, MODEL), kinds, devices=devices[: math.prod(shape)])
        self.size = math.prod(shape)
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.rows = NamedSharding(self.mesh, PartitionSpec((DATA, MODEL)))

    def param_sharding(self, leaf: Any, first: int = 0) -> NamedSharding:
        """The sharding of an array of parameters or moments: along the longest of its divisible axes.

        Args:
            leaf: anything with a shape.
            first: axes before it are never sharded.
        """
        devices, shape = self.mesh.shape[MODEL], leaf.shape
        divisible = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
        if devices == 1 or not divisible or math.prod(shape) < MIN_SHARDED_SIZE:
            return self.everywhere
        axis = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, MODEL))

    def shard_rows(self, rows: Any) -> Any:
        """A tree of arrays (batch, ...) with their rows sharded over all devices. Traceable."""
        return rows if self.size == 1 else jax.lax.with_sharding_constraint(rows, self.rows)

    def shard_calls(self, u: AverageVelocity) -> AverageVelocity:
        """An average velocity with its rows sharded at every call."""
        return u if self.size == 1 else ShardedVelocity(u, self)

    def network(self, network: Network) -> Network:
        """The network with its parameters gathered and its rows sharded at every call."""
        if self.size == 1:
            return network
        return Network(network.init, lambda params, key=None: self.shard_calls(network.bind(self._gather(params), key)))

    def put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        """An array with a sharding; one on the host has to be the same in all processes."""
        if isinstance(leaf, jax.Array) and (sharding.is_fully_addressable or not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    def _gather(self, params: Any) -> Any:
        """Gathered parameters; their gradient has the sharding of the parameters, so that it is reduce-scattered."""
        shardings = jax.tree.map(self.param_sharding, params)

        @jax.custom_vjp
        def gather(params):
            return jax.lax.with_sharding_constraint(params, self.everywhere)

        def backward(_, gradient):
            return (jax.lax.with_sharding_constraint(gradient, shardings),)

        gather.defvjp(lambda params: (gather(params), None), backward)
        return gather(params)


@dataclasses.dataclass(frozen=True)
class ShardedVelocity:
    """An average velocity, with its heads, whose rows are sharded over the devices at every call."""

    u: AverageVelocity
    layout: ShardingLayout

    def __call__(self, z, r, t, label=None):
        return self._call(self.u, z, r, t, label)

    @property
    def precise(self) -> "ShardedVelocity":
        """The network in float32."""
        return ShardedVelocity(getattr(self.u, "precise", self.u), self.layout)

    def __getattr__(self, name: str) -> Any:
        if name == "diagonal":  # computed as u at equal times, which shards the rows
            raise AttributeError(name)
        head = getattr(self.u, name)
        return lambda *rows: self._call(head, *rows)

    def _call(self, head, *rows):
        return self.layout.shard_rows(head(*self.layout.shard_rows(rows)))


def on_host(tree: Any) -> Any:
    """A tree from the devices, of all processes, as host arrays."""
    from jax.experimental import multihost_utils

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
