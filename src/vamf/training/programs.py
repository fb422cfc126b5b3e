"""From a function of one run to a compiled program over all runs of an ensemble, on all devices."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Strategy = Literal["auto", "loop", "vmap"]
"""How the members on one device are computed: one after another, or batched."""


class Programs:
    """Compiled programs by name, each compiled once."""

    def __init__(self, size: int, mesh: Mesh, strategy: Strategy, replicated: NamedSharding):
        """Of `size` runs on a mesh with the axis `member`.

        Args:
            replicated: the sharding of results for which a call names none.
        """
        self._size, self._mesh, self._strategy, self._replicated = size, mesh, strategy, replicated
        self._programs: dict[Hashable, Any] = {}

    def __call__(
        self, name: Hashable, function: Callable[[], Callable], donate: int | None = None, outputs: Any = None
    ):
        """The compiled form of what `function()` returns: (arrays, *trees of one member) -> trees of one member.

        Args:
            donate: number of the donated argument.
            outputs: shardings of the results of a single run.
        """
        if name not in self._programs:
            self._programs[name] = self._compile(function(), donate, outputs or self._replicated)
        return self._programs[name]

    def _compile(self, function, donate: int | None, outputs):
        """`function(arrays, *one member's trees)` as a program over all members on all devices."""

        def single(arrays, *ensemble):
            outputs = function(arrays, *jax.tree.map(lambda leaf: leaf[0], ensemble))
            return jax.tree.map(lambda leaf: leaf[None], outputs)

        def program(arrays, *ensemble):
            if self._strategy == "vmap":
                return jax.vmap(partial(function, arrays))(*ensemble)
            return jax.lax.map(lambda one: function(arrays, *one), ensemble)

        def sharded(arrays, *ensemble):
            if self._mesh.size == 1:
                return program(arrays, *ensemble)
            point = PartitionSpec("member")
            return jax.shard_map(
                program,
                mesh=self._mesh,
                in_specs=(PartitionSpec(), *[point] * len(ensemble)),
                out_specs=point,
                check_vma=False,
            )(arrays, *ensemble)

        donate_argnums = () if donate is None else donate
        if self._size == 1:
            return jax.jit(single, donate_argnums=donate_argnums, out_shardings=outputs)
        return jax.jit(sharded, donate_argnums=donate_argnums)
