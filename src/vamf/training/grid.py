"""A grid of trainings advanced together by one compiled program.

The members differ in seed and, where asked, in numbers of the method; they share data, network and everything else.
Whole chunks of steps are one `lax.scan`. How the members are laid out is chosen by the machine:

| strategy | members                                      | where it wins                                        |
|----------|----------------------------------------------|------------------------------------------------------|
| `loop`   | one after another within a chunk             | CPU: one member's state stays in the processor cache |
| `vmap`   | side by side in batched operations           | accelerators: small networks do not fill one alone   |

With several devices the members are spread over them and never communicate. A grid of one member is a training like any
other: it has neither, and may be spread over many devices itself (`mesh.py`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from vamf import networks
from vamf.average_velocity import AverageVelocity
from vamf.conditioning import Conditioning, label_of
from vamf.data import Dataset, Source, absolute
from vamf.errors import UserError
from vamf.sampling import named
from vamf.training.averages import Ema, resolve
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig
from vamf.training.config_file import identity
from vamf.training.couplings import couple
from vamf.training.inputs import Inputs
from vamf.training.mesh import Layout, MeshConfig, on_host
from vamf.training.programs import Programs, Strategy
from vamf.training.sampling import Sampling
from vamf.training.step import RATE, Member, Metrics, State, Trainer, build_network, learning_rate, optimiser
from vamf.training.suitability import check_objective
from vamf.training.windows import Windows

BLOCK_BYTES = 2**20
"""Memory for batches drawn ahead, for each member."""
BLOCK_ROWS = 256
"""Samples that a large network draws together."""
PIECE = 25
"""Most steps of a network other than a perceptron between two looks of the host: at progress and at signals."""


class Teacher(NamedTuple):
    """A trained model."""

    velocity: AverageVelocity
    digest: str
    """What tells its weights from others."""


class Grid:
    """Trainings that share all but the seed and numbers of the method."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Source,
        seeds: Sequence[int],
        values: Mapping[str, Sequence[float]] | None = None,
        strategy: Strategy = "auto",
        mesh: MeshConfig | None = None,
        inputs: Inputs | None = None,
        teacher: Teacher | None = None,
        initial: Callable[[], Any] | None = None,
    ):
        """One member for each seed; `values` has one number for each: of the learning rate, or of options of the method
        by their names with dots.

        Args:
            dataset: as `TrainConfig.load_data` returns it, or data as `vamf.data.load` takes them.
            mesh: the devices, where they are others than those that the configuration names.
            inputs: what the training was given when it began, where that is remembered.
            teacher: the trained model that the method asks; a grid that only draws samples needs none.
            initial: gives the parameters to start from, where the configuration names a run.

        Raises:
            UserError: members, devices or proxies that do not go together.
        """
        if not isinstance(dataset, Dataset):
            config, dataset = dataclasses.replace(config, data=absolute(dataset)), config.load_data(source=dataset)
        self.config = config
        objective = config.build_objective()
        self._given = dataset, teacher, inputs
        self._initial = initial
        if config.couplings.pairs and teacher is not None:
            dataset = couple(dataset, teacher.velocity, config.couplings)
        self.dataset = dataset
        self.size = len(seeds)
        self.seeds = tuple(seeds)
        self.values = {name: tuple(given) for name, given in (values or {}).items()}
        self._check_values()
        self.layout = self._layout(mesh or config.mesh)
        self.bare = build_network(config, dataset)
        self.network = self.layout.network(self.bare)
        check_objective(dataset, objective)
        velocity = None if teacher is None else self.layout.spread(teacher.velocity)
        parts = config, dataset, self.network, objective, optimiser(config), velocity
        self.trainer = Trainer(*parts, guarded=self.size == 1, split=self.layout.split)
        self.devices = jax.devices()[: self.size]
        self.strategy = ("loop" if self.devices[0].platform == "cpu" else "vmap") if strategy == "auto" else strategy
        self._padding = -self.size % len(self.devices)
        mesh_of_members = Mesh(np.array(self.devices), ("member",))
        self._over_members = NamedSharding(mesh_of_members, PartitionSpec("member"))
        self._everywhere = NamedSharding(mesh_of_members, PartitionSpec()) if self.size > 1 else self.layout.everywhere
        self._program = Programs(self.size, mesh_of_members, self.strategy, self._everywhere)
        self.members = self._put(
            Member(
                np.asarray(seeds, np.uint32),
                {name: np.asarray(given, np.float32) for name, given in self.values.items()},
            )
        )
        self._arrays = jax.tree.map(lambda leaf: self.layout.put(leaf, self._everywhere), dataset.arrays)

    def _layout(self, mesh: MeshConfig) -> Layout:
        """The devices of a single training; those of several are one for each."""
        if self.size == 1:
            return Layout(mesh)
        if mesh != MeshConfig():
            raise UserError(
                f"mesh.data = {mesh.data}, mesh.model = {mesh.model}: for one training, not for {self.size}"
            )
        if jax.process_count() > 1:
            raise UserError(f"{self.size} trainings at once: only in one process, not in {jax.process_count()}")
        return Layout(mesh)

    def _check_values(self) -> None:
        """Refuse values before they are unknown inside a program."""
        for name, value in ((name, float(value)) for name, given in self.values.items() for value in set(given)):
            if name == RATE:
                dataclasses.replace(self.config, learning_rate=value)
            else:
                self.config.build_objective(**{name: value})

    def learning_rate(self, step: int) -> float | list[float]:
        """The learning rate at a step; of each member where they differ."""
        first = self.values.get(RATE, (None,))
        rates = [float(np.asarray(learning_rate(self.config, one)(step))) for one in first]
        return rates if RATE in self.values else rates[0]

    def place(self, state: State) -> State:
        """A state with a leading axis of `size` members, from the host or elsewhere, where it is trained."""
        if self.size > 1:
            return self._put(state)
        return jax.tree.map(self.layout.put, state, self.shardings)

    def collect(self, tree):
        """A tree from the devices, of all processes, as host arrays with a leading axis of `size` members."""
        return jax.tree.map(lambda leaf: leaf[: self.size], on_host(tree))

    def stored(self, state: State) -> State:
        """A state as a checkpoint takes it: of one training on several devices where it lies, of others on the host."""
        return state if self.layout.size > 1 else self.collect(state)

    def init(self) -> State:
        """The state of every member before the first step."""

        def init(initial, member):
            return self.trainer.init(member, initial or None)

        program = self._program("init", lambda: init, outputs=self.shardings)
        return program(() if self._initial is None else self._initial(), self.members)

    @cached_property
    def inputs(self) -> Inputs:
        """What the training was given: that of its beginning where it is remembered, else what is there now."""
        dataset, teacher, remembered = self._given
        if remembered is not None:
            return remembered
        weights = {} if teacher is None else {"teacher": teacher.digest}
        if self._initial is not None:
            with contextlib.suppress(UserError):  # it is gone: nothing tells these inputs from any others
                weights["initial"] = fingerprint(self._initial())
        return Inputs.of(self.config.data, dataset, weights)

    @property
    def fingerprint(self) -> str:
        """What tells its checkpoints from those of other trainings."""
        return fingerprint(identity(self.config), self.inputs.digest, self.collect(self.members))

    def blank(self) -> State:
        """Shapes and types of a state, and places where those are its own: what a checkpoint is restored into."""

        def described(leaf, place):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place if self.layout.size > 1 else None)

        return jax.tree.map(described, self._shapes, self.shardings)

    @cached_property
    def shardings(self) -> State:
        """Where each array of a state lies. The objective's memory is everywhere."""
        if self.size > 1:
            return jax.tree.map(lambda _: self._over_members, self._shapes)
        shared = jax.tree.map(partial(self.layout.share, first=1), self._shapes)
        return shared._replace(memory=jax.tree.map(lambda _: self.layout.everywhere, self._shapes.memory))

    def advance(
        self, state: State, steps: int, stops: Callable[[int], bool] = lambda done: False
    ) -> tuple[State, Metrics]:
        """The state `steps` later, and host arrays (size, steps) of what each step reported. `state` is used up.

        Args:
            stops: asked now and then with the number of steps that are done; these are then all where it says so.

        Raises:
            UserError: streamed data that cannot be used.
        """
        if self._windows is None:
            return self._advance(self._arrays, state, steps, stops)
        start, reported = self._step(state), []
        step, end, stopped = start, start + steps, False
        while step < end and not stopped:
            window = self._windows.at(step)
            stop = min(end, window.end)
            state, metrics = self._advance(window.arrays, state, stop - step, lambda done: stops(step - start + done))  # noqa: B023
            reported.append(metrics)
            step += metrics.loss.shape[1]
            stopped = step < stop
        return state, jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *reported)

    def gradient_variance(self, state: State) -> np.ndarray:
        """Total gradient variance (size,) at a frozen state; of streamed data, over the window of its last step."""
        arrays = self._arrays if self._windows is None else self._windows.at(max(0, self._step(state) - 1)).arrays
        program = self._program("variance", lambda: self.trainer.gradient_variance)
        return self.collect(program(arrays, self.members, state))

    def chosen(self, state: State, ema: Ema) -> State:
        """The state to sample other weights from than its moving average: another one by its decay, or none.

        Raises:
            UserError: the training keeps no such average.
        """
        decay = resolve(ema, self.config.averages)
        return state._replace(average=state.params if decay is None else self.trainer.average(state, decay))

    def sample(
        self,
        state: State,
        n: int,
        steps: int = 1,
        seed: int | None = None,
        label: np.ndarray | Conditioning | None = None,
    ) -> np.ndarray:
        """n samples (size, n, *event) of every member's moving average, in `steps` jumps; otherwise as `draw`."""
        return self.draw(state, n, steps, seed, label)[0]

    def draw(
        self,
        state: State,
        n: int,
        steps: int = 1,
        seed: int | None = None,
        label: np.ndarray | Conditioning | None = None,
        sampler: named.Sampler = "jumps",
        scale: tuple[float, ...] = (),
        start: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """n samples (size, n, *event) of every member's moving average, in original units, and network calls (size,).

        Args:
            seed: of the noise; each member uses its own training seed where none is given.
            label: classes (n,) or a `Conditioning` of n rows; drawn like the data's where none is given.
            scale: (omega, t_min, t_max) of the guidance, for networks that are told.
            start: (n, *event), where data come in pairs; drawn with the condition where none is given.
        """

        chosen = self.seeds if seed is None else (seed,) * self.size
        label, start = self._put(self.dataset.sampling_conditions(n, chosen, label, start))
        program = self._program(
            ("sample", sampler, n, steps, label is None, scale), lambda: self._sampling(n, steps, sampler, scale)
        )
        drawn, calls = self.collect(
            program(self._arrays, self._put(np.asarray(chosen, np.uint32)), label, start, state)
        )
        return self.dataset.to_original(drawn), calls

    def labels(self, n: int, seed: int | None = None) -> np.ndarray:
        """The classes (size, n) that `draw` draws for as many samples of a seed where none are given."""
        chosen = self.seeds if seed is None else (seed,) * self.size
        if self.dataset.conditions is not None:
            return np.stack([label_of(self.dataset.encode(self.dataset.conditions.draw(n, one))[0]) for one in chosen])
        program = self._program(("labels", n), lambda: self._sampling(n).labels)
        return self.collect(program(self._arrays, self._put(np.asarray(chosen, np.uint32))))

    def _sampling(self, n: int, *options: Any) -> Sampling:
        block = 0 if isinstance(self.config.network, networks.MLPConfig) else BLOCK_ROWS * self.layout.size
        return Sampling(self.network, self.dataset, self.trainer.objective.path, block, n, *options)

    def velocity(self, state: State, z: ArrayLike, r: ArrayLike, t: ArrayLike) -> np.ndarray:
        """The average velocity (size, n, *event) of every member's moving average, in the units the network sees.

        Args:
            z: points (n, *event), the same for every member; r, t: times (n,). Without labels.
        """
        places = tuple(np.asarray(part, np.float32) for part in (z, r, t))

        def evaluate(places, state):
            z, r, t = places
            return self.network.bind(state.average)(z, r, t, None)

        program = self._program(("velocity", len(places[0])), lambda: evaluate)
        return self.collect(program(places, state))

    def beta_at(self, index: int, step: int) -> float | None:
        """beta of a member at a training step; None where it is adaptive or there is none."""
        if "beta" in self.values:
            return float(self.values["beta"][index])
        return self.trainer.objective.residual.beta(step)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of one member."""
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    @cached_property
    def _windows(self) -> Windows | None:
        """Where training data come from if they stay on disk; all members see the same rows at the same step."""
        stream = self.dataset.stream
        if stream is None:
            return None
        return Windows(stream, self.config, self.layout.rows if self.size == 1 else self._everywhere)

    @cached_property
    def _shapes(self) -> State:
        """The state's shapes and types."""
        member = Member(np.zeros((), np.uint32), {name: np.zeros((), np.float32) for name in self.values})
        shapes = jax.eval_shape(self.trainer.init, member)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.size, *leaf.shape), leaf.dtype), shapes)

    def _put(self, tree):
        """A tree of host arrays with a leading axis of `size` members, padded and put on the devices."""
        if self.size == 1:
            return jax.tree.map(lambda leaf: self.layout.put(leaf, self.layout.everywhere), tree)

        def pad(leaf):
            leaf = np.asarray(leaf)
            return np.concatenate([leaf, np.repeat(leaf[-1:], self._padding, axis=0)])

        return jax.device_put(jax.tree.map(pad, tree), self._over_members)

    def _step(self, state: State) -> int:
        return int(np.asarray(state.step)[0])

    def _advance(self, arrays, state: State, steps: int, stops: Callable[[int], bool]) -> tuple[State, Metrics]:
        length = self._piece(steps)
        outputs = (self.shardings, self._everywhere)
        program = self._program(("advance", length), lambda: partial(self._chunk, length), donate=2, outputs=outputs)
        reported = []
        for done in range(length, steps + 1, length):
            state, metrics = program(arrays, self.members, state)
            reported.append(self.collect(metrics))
            if done < steps and stops(done):
                break
        return state, jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *reported)

    def _piece(self, steps: int) -> int:
        """How many of some steps are one call."""
        if isinstance(self.config.network, networks.MLPConfig):
            return steps
        # XLA's CPU backend takes gradients of convolutions tens of times slower inside a loop than outside.
        alone = self.devices[0].platform == "cpu" and isinstance(self.config.network, networks.UNetConfig)
        return 1 if alone else max(n for n in range(1, min(PIECE, steps) + 1) if steps % n == 0)

    def _chunk(self, steps, arrays, member, state):
        """`steps` steps of one member; the batches of a block of steps are drawn at once, which costs far less."""
        if steps == 1:
            state, metrics = self.trainer.step(self.trainer.batch(arrays, member, state.step), member, state)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def block(length, state, _):
            steps_ahead = state.step + jnp.arange(length)
            batches = jax.vmap(lambda step: self.trainer.batch(arrays, member, step))(steps_ahead)
            return jax.lax.scan(lambda state, batch: self.trainer.step(batch, member, state), state, batches)

        # Whole blocks only: a shorter last one would be a second program to compile.
        length = max(n for n in range(1, min(self._block, steps) + 1) if steps % n == 0)
        state, metrics = jax.lax.scan(partial(block, length), state, length=steps // length)
        return state, jax.tree.map(lambda leaf: leaf.reshape(steps, *leaf.shape[2:]), metrics)

    @cached_property
    def _block(self) -> int:
        """How many batches are drawn at once: as many as fit BLOCK_BYTES."""
        batch = jax.eval_shape(lambda: self.trainer.batch(self.dataset.arrays, Member(jnp.uint32(0)), 0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
        return max(1, min(32, BLOCK_BYTES // size))
