"""A grid of trainings advanced together by one compiled program.

The members differ in seed and, where asked, beta; they share data, network and everything else. Whole chunks of steps
are one `lax.scan`. How the members are laid out is chosen by the machine:

| strategy | members                                      | where it wins                                        |
|----------|----------------------------------------------|------------------------------------------------------|
| `loop`   | one after another within a chunk             | CPU: one member's state stays in the processor cache |
| `vmap`   | side by side in batched operations           | accelerators: small networks do not fill one alone   |

With several devices the members are spread over them and never communicate.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vamf import networks, sampling
from vamf.data import Dataset
from vamf.training.config import TrainConfig
from vamf.training.step import Member, Metrics, State, Trainer, learning_rate, optimiser, streams

Strategy = Literal["auto", "loop", "vmap"]


def spread_over_cores(count: int) -> None:
    """Give every core of this machine its own device, so that a grid of `count` members can use all of them.

    One small network cannot keep several cores busy; several networks, one on each, can. Call before anything else
    has started JAX's backend; later calls change nothing.
    """
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", max(1, min(cores, count)))
    except RuntimeError:
        pass


class Grid:
    """Trainings that share all but seed and beta."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        seeds: Sequence[int],
        betas: Sequence[float] | None = None,
        strategy: Strategy = "auto",
    ):
        """One member for each seed; `betas`, where given, has one entry for each of them."""
        self.config = config
        self.dataset = dataset
        self.size = len(seeds)
        self.seeds = tuple(seeds)
        self.betas = None if betas is None else tuple(betas)
        self.learning_rate = learning_rate(config)
        self.network = networks.build(config.network, dataset.event_shape, dataset.num_classes)
        self.trainer = Trainer(config, dataset, self.network, config.build_objective(), optimiser(config))
        self.devices = jax.devices()[: self.size]
        self.strategy = ("loop" if self.devices[0].platform == "cpu" else "vmap") if strategy == "auto" else strategy
        self._padding = -self.size % len(self.devices)
        self._mesh = Mesh(np.array(self.devices), ("member",))
        self._over_members = NamedSharding(self._mesh, PartitionSpec("member"))
        self.members = self.place(
            Member(np.asarray(seeds, np.uint32), None if betas is None else np.asarray(betas, np.float32))
        )
        self._arrays = jax.device_put(dataset.arrays, NamedSharding(self._mesh, PartitionSpec()))
        self._programs = {}

    def place(self, tree):
        """A tree with a leading axis of `size` members, padded and put on the devices."""

        def pad(leaf):
            leaf = np.asarray(leaf)
            return np.concatenate([leaf, np.repeat(leaf[-1:], self._padding, axis=0)])

        return jax.device_put(jax.tree.map(pad, tree), self._over_members)

    def collect(self, tree):
        """A tree from the devices as host arrays with a leading axis of `size` members."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.size], tree)

    def init(self) -> State:
        """The state of every member before the first step."""
        return self._compile(lambda _, member: self.trainer.init(member))((), self.members)

    def advance(self, state: State, steps: int) -> tuple[State, Metrics]:
        """The state `steps` later, and host arrays (size, steps) of what each step reported. `state` is used up."""
        if steps not in self._programs:
            self._programs[steps] = self._compile(partial(self._chunk, steps), donate=2)
        state, metrics = self._programs[steps](self._arrays, self.members, state)
        return state, self.collect(metrics)

    def gradient_variance(self, state: State) -> np.ndarray:
        """Total gradient variance (size,) at a frozen state."""
        if "variance" not in self._programs:
            self._programs["variance"] = self._compile(self.trainer.gradient_variance)
        return self.collect(self._programs["variance"](self._arrays, self.members, state))

    def sample(
        self, state: State, n: int, steps: int = 1, seed: int | None = None, label: np.ndarray | None = None
    ) -> np.ndarray:
        """n samples (size, n, *event) of every member's moving average, in original units.

        Args:
            seed: of the noise; each member uses its own training seed where none is given.
            label: classes (n,); drawn from the data where it has classes and none are given.
        """

        def draw(arrays, member, state):
            noise_key, label_key = jax.random.split(
                streams(member.seed).sample if seed is None else jax.random.key(seed)
            )
            noise = jax.random.normal(noise_key, (n, *self.dataset.event_shape))
            classes = self._classes(arrays, label_key, n) if label is None else jnp.asarray(label, jnp.int32)
            return sampling.sample(self.network.bind(state.average), noise, steps, classes)

        return self.dataset.to_original(self.collect(self._compile(draw)(self._arrays, self.members, state)))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of one member."""
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    def _classes(self, arrays, key, n):
        return self.dataset.draw(arrays, key, n)[1] if self.dataset.num_classes else None

    def _chunk(self, steps, arrays, member, state):
        return jax.lax.scan(lambda state, _: self.trainer.step(arrays, member, state), state, length=steps)

    def _compile(self, function, donate: int | None = None):
        """`function(arrays, *one member's trees)` as a program over all members on all devices."""

        def program(arrays, *grid):
            if self.strategy == "vmap":
                return jax.vmap(partial(function, arrays))(*grid)
            return jax.lax.map(lambda one: function(arrays, *one), grid)

        def spread(arrays, *grid):
            if len(self.devices) == 1:
                return program(arrays, *grid)
            member = PartitionSpec("member")
            return jax.shard_map(
                program,
                mesh=self._mesh,
                in_specs=(PartitionSpec(), *[member] * len(grid)),
                out_specs=member,
                check_vma=False,
            )(arrays, *grid)

        return jax.jit(spread, donate_argnums=() if donate is None else donate)
