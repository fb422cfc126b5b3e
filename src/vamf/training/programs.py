"""From a function of one training to a compiled program over all trainings of a grid, on all devices."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Strategy = Literal["auto", "loop", "vmap"]
"""How members lie on one device: one after another, or side by side in batched operations."""


class Programs:
    """Compiled programs by name, each made once."""

    def __init__(self, size: int, mesh: Mesh, strategy: Strategy, everywhere: NamedSharding):
        """Of `size` trainings on a mesh with the axis `member`.

        Args:
            everywhere: where results lie that a call does not place.
        """
        self._size, self._mesh, self._strategy, self._everywhere = size, mesh, strategy, everywhere
        self._programs: dict[Hashable, Any] = {}

    def __call__(
        self, name: Hashable, function: Callable[[], Callable], donate: int | None = None, outputs: Any = None
    ):
        """The compiled form of what `function()` returns: (arrays, *trees of one member) -> trees of one member.

        Args:
            donate: the argument whose memory the results may take.
            outputs: where the results of a single training lie.
        """
        if name not in self._programs:
            self._programs[name] = self._compile(function(), donate, outputs or self._everywhere)
        return self._programs[name]

    def _compile(self, function, donate: int | None, outputs):
        """`function(arrays, *one member's trees)` as a program over all members on all devices."""

        def alone(arrays, *grid):
            found = function(arrays, *jax.tree.map(lambda leaf: leaf[0], grid))
            return jax.tree.map(lambda leaf: leaf[None], found)

        def program(arrays, *grid):
            if self._strategy == "vmap":
                return jax.vmap(partial(function, arrays))(*grid)
            return jax.lax.map(lambda one: function(arrays, *one), grid)

        def spread(arrays, *grid):
            if self._mesh.size == 1:
                return program(arrays, *grid)
            member = PartitionSpec("member")
            return jax.shard_map(
                program,
                mesh=self._mesh,
                in_specs=(PartitionSpec(), *[member] * len(grid)),
                out_specs=member,
                check_vma=False,
            )(arrays, *grid)

        donated = () if donate is None else donate
        if self._size == 1:
            return jax.jit(alone, donate_argnums=donated, out_shardings=outputs)
        return jax.jit(spread, donate_argnums=donated)
