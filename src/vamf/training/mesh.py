"""One training over many devices: which part of what lies where.

The devices form a grid with two axes, in all of which every batch is split by rows:

| axis    | parameters, moving average, optimiser state | what devices tell each other                              |
|---------|---------------------------------------------|-----------------------------------------------------------|
| `data`  | a copy on each                              | gradients, added up                                       |
| `model` | a share on each                             | parameters, gathered for each use; gradients, scattered   |

Shapes and random numbers are those of one device: XLA splits one program (GSPMD), so that the number of devices changes
the rounding and nothing else. The layout is stated in three places: where a batch is drawn, where parameters enter the
network, and where rows do. The last keeps every network call evenly split, however an objective cuts its batch up.
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
LEAST = 2**12
"""Numbers in the smallest array that is worth splitting."""


@dataclasses.dataclass(frozen=True)
@check_field_types("mesh.")
class MeshConfig:
    """Over how many devices a training is spread; each takes an equal share of every batch."""

    data: int = 1
    """Copies of the parameters, each on `model` devices; 0: as many as there are devices for."""
    model: int = 1
    """Devices that share one copy of parameters, moving average and optimiser state."""

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


class Layout:
    """The devices of one training and what lies on them."""

    def __init__(self, config: MeshConfig):
        """
        Raises:
            UserError: these are not the devices for it.
        """
        devices = jax.devices()
        shape = config.shape(len(devices), jax.process_count())
        kinds = (AxisType.Auto, AxisType.Auto)
        self.mesh = jax.make_mesh(shape, (DATA, MODEL), kinds, devices=devices[: math.prod(shape)])
        self.size = math.prod(shape)
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.rows = NamedSharding(self.mesh, PartitionSpec((DATA, MODEL)))

    def share(self, leaf: Any, first: int = 0) -> NamedSharding:
        """Where an array of parameters or moments lies: split along the longest of its axes that can be.

        Args:
            leaf: anything with a shape.
            first: axes before that are never split.
        """
        devices, shape = self.mesh.shape[MODEL], leaf.shape
        able = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
        if devices == 1 or not able or math.prod(shape) < LEAST:
            return self.everywhere
        axis = max(able, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, MODEL))

    def split(self, rows: Any) -> Any:
        """A tree of arrays (batch, ...) with their rows split over all devices. Traceable."""
        return rows if self.size == 1 else jax.lax.with_sharding_constraint(rows, self.rows)

    def spread(self, u: AverageVelocity) -> AverageVelocity:
        """An average velocity with its rows split at every call."""
        return u if self.size == 1 else Spread(u, self)

    def network(self, network: Network) -> Network:
        """The network with its parameters gathered and its rows split at every call."""
        if self.size == 1:
            return network
        return Network(network.init, lambda params, key=None: self.spread(network.bind(self._gather(params), key)))

    def put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        """An array where it belongs; one on the host has to be the same in all processes."""
        if isinstance(leaf, jax.Array) and (sharding.is_fully_addressable or not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    def _gather(self, params: Any) -> Any:
        """Parameters in full; their gradient is split as they were, so that it is added up where it is kept."""
        shares = jax.tree.map(self.share, params)

        @jax.custom_vjp
        def gather(params):
            return jax.lax.with_sharding_constraint(params, self.everywhere)

        def backward(_, gradient):
            return (jax.lax.with_sharding_constraint(gradient, shares),)

        gather.defvjp(lambda params: (gather(params), None), backward)
        return gather(params)


@dataclasses.dataclass(frozen=True)
class Spread:
    """An average velocity, with its heads, whose rows are split over the devices at every call."""

    u: AverageVelocity
    layout: Layout

    def __call__(self, z, r, t, label=None):
        return self._ask(self.u, z, r, t, label)

    @property
    def precise(self) -> "Spread":
        """The network as it is asked for derivatives."""
        return Spread(getattr(self.u, "precise", self.u), self.layout)

    def __getattr__(self, name: str) -> Any:
        if name == "diagonal":  # asked as u at equal times: rows are split there as elsewhere
            raise AttributeError(name)
        head = getattr(self.u, name)
        return lambda *rows: self._ask(head, *rows)

    def _ask(self, head, *rows):
        return self.layout.split(head(*self.layout.split(rows)))


def on_host(tree: Any) -> Any:
    """A tree from the devices, of all processes, as host arrays."""
    from jax.experimental import multihost_utils

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
