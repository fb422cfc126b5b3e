"""An ensemble of runs trained together by one compiled program.

The members differ in seed and, in a sweep, in numbers of the method; they share data, network and everything else.
Whole chunks of steps are one `lax.scan`. The machine decides how the members are laid out:

| strategy | members                                      | where it wins                                        |
|----------|----------------------------------------------|------------------------------------------------------|
| `loop`   | one after another within a chunk             | CPU: one member's state stays in the processor cache |
| `vmap`   | side by side in batched operations           | accelerators: one small network does not fill them   |

With several devices the members are distributed over them and never communicate. An ensemble of one member is a single
run: it has neither layout, and may itself be sharded over many devices (`sharding.py`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from vamf import networks
from vamf.conditioning import Conditioning, label_of
from vamf.data import Dataset, Source, source_name
from vamf.errors import UserError
from vamf.sampling import registry
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig
from vamf.training.config_file import identity
from vamf.training.ema_weights import Ema, resolve
from vamf.training.initial import Initial
from vamf.training.inputs import Inputs
from vamf.training.prefetch import Prefetcher
from vamf.training.programs import Programs, Strategy
from vamf.training.reflow import Teacher, reflow_pairs
from vamf.training.sampling import Sampling, padded
from vamf.training.sharding import MeshConfig, ShardingLayout, on_host
from vamf.training.step import RATE, Metrics, State, SweepPoint, TrainStep, build_network, learning_rate, optimizer
from vamf.training.suitability import check_objective

BLOCK_BYTES = 2**20
"""Memory for the batches of future steps, for each member."""
BLOCK_ROWS = 256
"""Samples that a large network generates in one batch."""
MAX_STEPS_PER_CALL = 25
"""Most steps of a network other than an MLP in one call, between which the host checks progress and signals."""


class Ensemble:
    """Runs that share everything but the seed and numbers of the method."""

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
        init_from: Callable[[], Initial] | None = None,
    ):
        """One member for each seed; `values` has one number for each member, of the learning rate or of options of the
        method by their dotted names.

        Args:
            dataset: as `TrainConfig.load_data` returns it, or data as `vamf.data.load` takes them.
            mesh: the devices, where they differ from the configuration's.
            inputs: the inputs recorded when the run began, if any.
            teacher: the trained model that the method evaluates; an ensemble that only draws samples needs none.
            init_from: returns the parameters to start from, if any.

        Raises:
            UserError: members, devices or velocity proxies that are incompatible.
        """
        if not isinstance(dataset, Dataset):
            config, dataset = dataclasses.replace(config, data=source_name(dataset)), config.load_data(source=dataset)
        self.config = config
        objective = config.build_objective()
        self._sources = dataset, teacher, inputs
        self._init_from = init_from
        if config.reflow.pairs and teacher is not None:
            dataset = reflow_pairs(dataset, teacher.velocity, config.reflow)
        self.dataset = dataset
        self.size = len(seeds)
        self.seeds = tuple(seeds)
        self.values = {name: tuple(column) for name, column in (values or {}).items()}
        self._check_values()
        self.layout = self._layout(mesh or config.mesh)
        self.unsharded_network = build_network(config, dataset)
        self.network = self.layout.network(self.unsharded_network)
        check_objective(dataset, objective)
        velocity = None if teacher is None else self.layout.shard_calls(teacher.velocity)
        parts = config, dataset, self.network, objective, optimizer(config), velocity
        self.train_step = TrainStep(*parts, guarded=self.size == 1, shard_rows=self.layout.shard_rows)
        self.devices = jax.devices()[: self.size]
        self.strategy = ("loop" if self.devices[0].platform == "cpu" else "vmap") if strategy == "auto" else strategy
        self._padding = -self.size % len(self.devices)
        member_mesh = Mesh(np.array(self.devices), ("member",))
        self._member_sharding = NamedSharding(member_mesh, PartitionSpec("member"))
        self._replicated = NamedSharding(member_mesh, PartitionSpec()) if self.size > 1 else self.layout.everywhere
        self._program = Programs(self.size, member_mesh, self.strategy, self._replicated)
        columns = {name: np.asarray(column, np.float32) for name, column in self.values.items()}
        self.points = self._put(SweepPoint(np.asarray(seeds, np.uint32), columns))
        self._arrays = jax.tree.map(lambda leaf: self.layout.put(leaf, self._replicated), dataset.arrays)

    def _layout(self, mesh: MeshConfig) -> ShardingLayout:
        """The devices of a single run; of several runs, each has one device."""
        if self.size == 1:
            return ShardingLayout(mesh)
        if mesh != MeshConfig():
            raise UserError(f"mesh.data = {mesh.data}, mesh.model = {mesh.model}: for one run, not for {self.size}")
        if jax.process_count() > 1:
            raise UserError(f"{self.size} runs at once: only in one process, not in {jax.process_count()}")
        return ShardingLayout(mesh)

    def _check_values(self) -> None:
        """Refuse invalid values before they are traced."""
        for name, value in ((name, float(value)) for name, column in self.values.items() for value in set(column)):
            if name == RATE:
                dataclasses.replace(self.config, learning_rate=value)
            else:
                self.config.build_objective(**{name: value})

    def learning_rate(self, step: int) -> float | list[float]:
        """The learning rate at a step; a list over members where they differ."""
        first = self.values.get(RATE, (None,))
        rates = [float(np.asarray(learning_rate(self.config, rate)(step))) for rate in first]
        return rates if RATE in self.values else rates[0]

    def place(self, state: State) -> State:
        """A state with a leading axis of `size` members, put on the devices that train it."""
        if self.size > 1:
            return self._put(state)
        return jax.tree.map(self.layout.put, state, self.shardings)

    def collect(self, tree):
        """A tree from the devices, of all processes, as host arrays with a leading axis of `size` members."""
        return jax.tree.map(lambda leaf: leaf[: self.size], on_host(tree))

    def to_checkpoint(self, state: State) -> State:
        """A state as a checkpoint takes it: of one run on several devices the device arrays, else host arrays."""
        return state if self.layout.size > 1 else self.collect(state)

    def init(self) -> State:
        """The state of every member before the first step."""

        def init(params, point):
            return self.train_step.init(point, params or None)

        params = () if self._init_from is None else self._init_from().params
        return self._program("init", lambda: init, outputs=self.shardings)(params, self.points)

    @cached_property
    def inputs(self) -> Inputs:
        """The run's inputs: as recorded when it began, else the current ones."""
        dataset, teacher, recorded = self._sources
        if recorded is not None:
            return recorded
        weights = {} if teacher is None else {"teacher": teacher.digest}
        if self._init_from is not None:
            with contextlib.suppress(UserError):  # it no longer exists: its weights have no digest
                weights["init_from"] = self._init_from().digest
        return Inputs.of(self.config.data, dataset, weights)

    @property
    def fingerprint(self) -> str:
        """Identifies its checkpoints."""
        return self.fingerprint_of(self.config)

    def fingerprint_of(self, config: TrainConfig) -> str:
        """What would identify its checkpoints with another configuration."""
        return fingerprint(identity(config), self.inputs.digest, self.collect(self.points))

    def abstract_state(self) -> State:
        """Shapes and types of a state, and shardings where it is sharded: what a checkpoint is restored into."""

        def abstract(leaf, sharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding if self.layout.size > 1 else None)

        return jax.tree.map(abstract, self._shapes, self.shardings)

    @cached_property
    def shardings(self) -> State:
        """The sharding of each array of a state. The objective's state is replicated."""
        if self.size > 1:
            return jax.tree.map(lambda _: self._member_sharding, self._shapes)
        shared = jax.tree.map(partial(self.layout.param_sharding, first=1), self._shapes)
        return shared._replace(
            objective_state=jax.tree.map(lambda _: self.layout.everywhere, self._shapes.objective_state)
        )

    def advance(
        self, state: State, steps: int, should_stop: Callable[[int], bool] = lambda done: False
    ) -> tuple[State, Metrics]:
        """The state `steps` later, and the metrics of each step as host arrays (size, steps). `state` is donated.

        Args:
            should_stop: called between compiled calls with the number of steps done; True ends there.

        Raises:
            UserError: streamed data that are unreadable.
        """
        if self._prefetcher is None:
            return self._advance(self._arrays, state, steps, should_stop)
        start, chunk_metrics = self._step(state), []
        step, end, stopped = start, start + steps, False
        while step < end and not stopped:
            window = self._prefetcher.at(step)
            stop = min(end, window.end)

            def stop_at(done: int, before: int = step - start) -> bool:
                return should_stop(before + done)

            state, metrics = self._advance(window.arrays, state, stop - step, stop_at)
            chunk_metrics.append(metrics)
            step += metrics.loss.shape[1]
            stopped = step < stop
        return state, jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *chunk_metrics)

    def gradient_variance(self, state: State) -> np.ndarray:
        """Total gradient variance (size,) at a frozen state; of streamed data, in the window of its last step."""
        arrays = self._arrays if self._prefetcher is None else self._prefetcher.at(max(0, self._step(state) - 1)).arrays
        program = self._program("variance", lambda: self.train_step.gradient_variance)
        return self.collect(program(arrays, self.points, state))

    def select_ema(self, state: State, ema: Ema) -> State:
        """The state with other weights as its `ema_params`: another EMA by its decay, or the parameters themselves.

        Raises:
            UserError: the run has no such EMA.
        """
        decay = resolve(ema, self.config.all_ema_decays)
        return state._replace(ema_params=state.params if decay is None else self.train_step.ema_params(state, decay))

    def sample(
        self,
        state: State,
        n: int,
        steps: int = 1,
        seed: int | None = None,
        label: np.ndarray | Conditioning | None = None,
    ) -> np.ndarray:
        """n samples (size, n, *event) of every member's EMA by `steps` jumps of the flow map; otherwise as `draw`."""
        return self.draw(state, n, steps, seed, label)[0]

    def draw(
        self,
        state: State,
        n: int,
        steps: int = 1,
        seed: int | None = None,
        label: np.ndarray | Conditioning | None = None,
        sampler: registry.Sampler = "flow_map",
        scale: tuple[float, ...] = (),
        start: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """n samples (size, n, *event) of every member's EMA, in original units, and network calls (size,).

        Args:
            seed: of the noise; by default each member's training seed.
            label: classes (n,) or a `Conditioning` of n rows; by default drawn as in the data.
            scale: (omega, t_min, t_max) of the guidance, for networks conditioned on it.
            start: (n, *event), where data come in pairs; by default drawn with the condition.
        """
        seeds = self.seeds if seed is None else (seed,) * self.size
        conditions = self.dataset.sampling_conditions(n, seeds, label, start)
        rows = self._sampling(n, steps, sampler).rows(conditions[0] is None)
        label, start = self._put(padded(conditions, rows - n))
        program = self._program(
            ("sample", sampler, rows, steps, label is None, scale), lambda: self._sampling(rows, steps, sampler, scale)
        )
        samples, calls = self.collect(
            program(self._arrays, self._put(np.asarray(seeds, np.uint32)), label, start, state)
        )
        return self.dataset.to_original(samples[:, :n]), calls

    def labels(self, n: int, seed: int | None = None) -> np.ndarray:
        """The classes (size, n) that `draw` uses for n samples of a seed by default."""
        seeds = self.seeds if seed is None else (seed,) * self.size
        if self.dataset.conditions is not None:
            return np.stack([label_of(self.dataset.encode(self.dataset.conditions.draw(n, one))[0]) for one in seeds])
        rows = self._sampling(n).rows(True)
        program = self._program(("labels", rows), lambda: self._sampling(rows).labels)
        return self.collect(program(self._arrays, self._put(np.asarray(seeds, np.uint32))))[:, :n]

    def _sampling(self, n: int, *options: Any) -> Sampling:
        block = 0 if isinstance(self.config.network, networks.MLPConfig) else BLOCK_ROWS * self.layout.size
        return Sampling(self.network, self.dataset, self.train_step.objective.path, block, n, *options)

    def velocity(self, state: State, z: ArrayLike, r: ArrayLike, t: ArrayLike) -> np.ndarray:
        """The average velocity (size, n, *event) of every member's EMA, in the network's units.

        Args:
            z: points (n, *event), the same for every member; r, t: times (n,). Without labels.
        """
        points = tuple(np.asarray(part, np.float32) for part in (z, r, t))

        def evaluate(points, state):
            z, r, t = points
            return self.network.bind(state.ema_params)(z, r, t, None)

        program = self._program(("velocity", len(points[0])), lambda: evaluate)
        return self.collect(program(points, state))

    def beta_at(self, index: int, step: int) -> float | None:
        """beta of a member at a training step; None where it is adaptive or there is none."""
        if "beta" in self.values:
            return float(self.values["beta"][index])
        return self.train_step.objective.residual.beta(step)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of one member."""
        shapes = jax.eval_shape(self.network.init, jax.random.key(0))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    @cached_property
    def _prefetcher(self) -> Prefetcher | None:
        """The prefetcher of data that stay on disk; all members see the same rows at the same step."""
        stream = self.dataset.stream
        if stream is None:
            return None
        return Prefetcher(stream, self.config, self.layout.rows if self.size == 1 else self._replicated)

    @cached_property
    def _shapes(self) -> State:
        """The state's shapes and types."""
        point = SweepPoint(np.zeros((), np.uint32), {name: np.zeros((), np.float32) for name in self.values})
        shapes = jax.eval_shape(self.train_step.init, point)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.size, *leaf.shape), leaf.dtype), shapes)

    def _put(self, tree):
        """A tree of host arrays with a leading axis of `size` members, padded and put on the devices."""
        if self.size == 1:
            return jax.tree.map(lambda leaf: self.layout.put(leaf, self.layout.everywhere), tree)

        def pad(leaf):
            leaf = np.asarray(leaf)
            return np.concatenate([leaf, np.repeat(leaf[-1:], self._padding, axis=0)])

        return jax.device_put(jax.tree.map(pad, tree), self._member_sharding)

    def _step(self, state: State) -> int:
        return int(np.asarray(state.step)[0])

    def _advance(self, arrays, state: State, steps: int, should_stop: Callable[[int], bool]) -> tuple[State, Metrics]:
        length = self._steps_per_call(steps)
        outputs = (self.shardings, self._replicated)
        program = self._program(("advance", length), lambda: partial(self._chunk, length), donate=2, outputs=outputs)
        chunk_metrics = []
        for done in range(length, steps + 1, length):
            state, metrics = program(arrays, self.points, state)
            chunk_metrics.append(self.collect(metrics))
            if done < steps and should_stop(done):
                break
        return state, jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *chunk_metrics)

    def _steps_per_call(self, steps: int) -> int:
        """The number of steps in one compiled call, a divisor of `steps`."""
        if isinstance(self.config.network, networks.MLPConfig):
            return steps
        # XLA's CPU backend takes gradients of convolutions tens of times slower inside a loop than outside.
        unrolled = self.devices[0].platform == "cpu" and isinstance(self.config.network, networks.UNetConfig)
        return 1 if unrolled else max(n for n in range(1, min(MAX_STEPS_PER_CALL, steps) + 1) if steps % n == 0)

    def _chunk(self, steps, arrays, point, state):
        """`steps` steps of one member; the batches of a block of steps are drawn in one operation, which is faster."""
        if steps == 1:
            state, metrics = self.train_step.step(self.train_step.batch(arrays, point, state.step), point, state)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def block(length, state, _):
            steps_ahead = state.step + jnp.arange(length)
            batches = jax.vmap(lambda step: self.train_step.batch(arrays, point, step))(steps_ahead)
            return jax.lax.scan(lambda state, batch: self.train_step.step(batch, point, state), state, batches)

        # Whole blocks only: a shorter last one would be a second program to compile.
        length = max(n for n in range(1, min(self._block, steps) + 1) if steps % n == 0)
        state, metrics = jax.lax.scan(partial(block, length), state, length=steps // length)
        return state, jax.tree.map(lambda leaf: leaf.reshape(steps, *leaf.shape[2:]), metrics)

    @cached_property
    def _block(self) -> int:
        """How many batches are drawn in one operation: as many as fit BLOCK_BYTES."""
        batch = jax.eval_shape(lambda: self.train_step.batch(self.dataset.arrays, SweepPoint(jnp.uint32(0)), 0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
        return max(1, min(32, BLOCK_BYTES // size))
