"""Running the trainings of a study: each once, resumable, its numbers kept."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vamf import locks
from vamf.data import is_name
from vamf.errors import UserError
from vamf.files import write_array, write_atomic, write_json
from vamf.path import interpolate
from vamf.progress import Progress
from vamf.sampling import named
from vamf.studies.launcher import LOGS
from vamf.theory import GaussianMixture
from vamf.training import loop
from vamf.training.checksum import fingerprint
from vamf.training.config import TrainConfig, identity, to_json
from vamf.training.grid import Grid
from vamf.training.inputs import Inputs
from vamf.training.logs import read
from vamf.training.programs import Strategy
from vamf.training.step import State
from vamf.training.stored import open_grid

Measure = Callable[[np.ndarray], dict[str, float]]
Inspect = Callable[[Grid, State], list[dict[str, float]]]


PREPARED = ("holdout", "images", "latents", "conditional")
"""Fields of a configuration that say how files become data."""


class Training(NamedTuple):
    """Trainings that differ in seed and beta only, compiled together."""

    name: str
    config: TrainConfig
    seeds: Sequence[int]
    """One entry for each member."""
    values: Mapping[str, Sequence[float]] = MappingProxyType({})
    """Options that are swept, by name: one entry for each member."""
    strategy: Strategy = "auto"
    """How the members are laid out."""


def claim(folder: Path, plan: dict[str, Any], configs: Sequence[TrainConfig] = ()) -> None:
    """Make a folder this study's; a later call with the same plan continues it.

    Args:
        configs: of the data in the plan; contents stand there for the paths of files, which may move.

    Raises:
        UserError: the folder belongs to another study or holds something else.
    """
    text = json.dumps(plan, indent=2) + "\n"
    for config in configs:
        for digest in contents(config):
            text = text.replace(json.dumps(config.data), json.dumps(f"{Path(config.data).name}, sha256 {digest}"))
    path = folder / "study.json"
    if path.exists():
        if path.read_text() != text:
            raise UserError(f"{folder}: holds a study with other settings or other data; choose another --out")
    elif folder.exists() and (
        not folder.is_dir() or any(path.name not in (LOGS, locks.LOCK) for path in folder.iterdir())
    ):
        raise UserError(f"{folder}: exists and is not a study; choose another --out")
    else:
        write_atomic(path, text)


def flags(budget: str) -> str:
    """What a budget of that name adds to the command line."""
    return {"quick": " --quick", "paper": " --paper"}.get(budget, "")


def averaged(config: TrainConfig, budget: str) -> TrainConfig:
    """The training with the moving average of a budget: the paper's constant decay where the training is as long as the
    paper's, and warm-up below, where a constant decay would keep the initial weights."""
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, ema_warmup=budget != "paper"))


def write_figures(folder: Path, drawings: Mapping[str, bytes]) -> None:
    """Figures by name beside the report, as SVG or PNG."""
    for name, image in drawings.items():
        suffix = "png" if image.startswith(b"\x89PNG") else "svg"
        write_atomic(folder / "figures" / f"{name}.{suffix}", image)


def complete(
    training: Training,
    folder: Path,
    measure: Measure,
    samples: int,
    progress: Progress,
    inspect: Inspect | None = None,
    own_sampler: bool = False,
) -> list[dict]:
    """The results of `once`, each with what `measure` says of the member's samples, kept with the noise of its seed.

    Args:
        measure: distances of one member's samples (samples, *event), in original units.
        inspect: more numbers for each member, from the trained grid itself.
        own_sampler: with the sampler that asks for what the method trains, instead of one jump.
    """

    def finish(grid: Grid, state: State) -> tuple[np.ndarray, list[dict]]:
        sampler = grid.trainer.objective.sampler if own_sampler else "jumps"
        drawn = grid.draw(state, samples, named.USUAL[sampler], sampler=sampler)[0]
        inspected = [{}] * grid.size if inspect is None else inspect(grid, state)
        finite = [bool(np.isfinite(points).all()) for points in drawn]
        rows = [
            {"finite": known, **(measure(points) if known else {}), **more}
            for known, points, more in zip(finite, drawn, inspected, strict=True)
        ]
        return drawn.astype(np.float32), rows

    return once(training, folder, samples, finish, progress)


def once(
    training: Training,
    folder: Path,
    asked: Any,
    finish: Callable[[Grid, State], tuple[np.ndarray, list[dict]]],
    progress: Progress,
    watch: Callable[[Grid, int, State], list[dict] | None] | None = None,
) -> list[dict]:
    """The finished training's results, one dict for each member; trained now as far as it is not yet.

    A result holds `beta`, `seed`, `gradient_variance` (mean over the second half of training), its history and what
    `finish` finds. Samples (members, n, *event) are kept in `samples.npy`.

    Args:
        asked: what the results depend on beside the training, to recognise them.
        finish: the trained grid to samples (members, n, *event) and more numbers for each member.
        watch: (grid, step, state) at every checkpoint -> numbers for each member, which become the result's `history`
            with their `step`; None leaves the checkpoint out.
    """
    place = folder / "trainings" / training.name
    path = place / "result.json"
    members = repr((list(training.seeds), dict(training.values), asked))
    mark = fingerprint(identity(training.config), members, *contents(training.config))
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["fingerprint"] != mark:
            raise UserError(f"{place}: a result of other settings or other data; choose another --out")
        return stored["members"]

    with locks.folder_lock(place, "trained"):
        return _train(training, place, mark, finish, progress, watch)


def contents(config: TrainConfig) -> list[str]:
    """What tells the data of a configuration from others, where they are files."""
    if is_name(config.data):
        return []
    return [_digest(config.data, *(getattr(config, name) for name in PREPARED))]


@functools.cache
def _digest(data: str, *prepared: Any) -> str:
    config = TrainConfig(data, **dict(zip(PREPARED, prepared, strict=True)))
    return Inputs.of(data, config.load_data()).digest


def _train(training: Training, place: Path, mark: str, finish, progress: Progress, watch) -> list[dict]:
    """As `once`, of a training that is not finished, in its folder."""
    path = place / "result.json"
    grid = open_grid(training.config, training.config.load_data(), training.seeds, training.values, training.strategy)
    write_atomic(place / "config.json", to_json(training.config))
    if watch is None:
        outcome = loop.train(grid, place, progress)
    else:
        outcome = loop.train(grid, place, progress, lambda step, state: _keep(place, step, watch(grid, step, state)))
    drawn, found = finish(grid, outcome.state)
    variance = _variance_history(place, grid.size)
    members = []
    for index in range(grid.size):
        steps, values = variance[index]
        tail = [value for step, value in zip(steps, values, strict=True) if step > training.config.steps / 2]
        members.append(
            {
                "data": training.config.data,
                "method": training.config.method,
                "beta": grid.beta_at(index, training.config.steps),
                "seed": grid.seeds[index],
                "gradient_variance": float(np.mean(tail)) if tail else None,
                "variance_history": {"step": steps, "value": values},
                **found[index],
                **({} if watch is None else {"history": _watched(place, index)}),
            }
        )
    write_array(place / "samples.npy", drawn)
    write_json(path, {"fingerprint": mark, "members": members, "seconds_per_step": outcome.seconds_per_step})
    return json.loads(path.read_text())["members"]  # what a second call returns


def _keep(place: Path, step: int, rows: list[dict] | None) -> None:
    if rows is not None:
        write_json(place / "history" / f"step-{step:08d}.json", [{"step": step, **row} for row in rows])


def _watched(place: Path, index: int) -> list[dict]:
    """What was found of a member, in the order of steps."""
    return [json.loads(path.read_text())[index] for path in sorted((place / "history").glob("step-*.json"))]


def step_costs(configs: dict[str, TrainConfig], progress: Progress, steps: int = 250, rounds: int = 3) -> dict:
    """Milliseconds a step of single trainings, taken in turn so that a busy machine slows all alike; the best round."""
    progress.say("timing single trainings")
    running, best = {}, {}
    for label, config in configs.items():
        grid = open_grid(config, config.load_data(), [0])
        running[label] = (grid, grid.advance(grid.init(), steps)[0])
    for _ in range(rounds):
        for label, (grid, state) in running.items():
            start = time.perf_counter()
            running[label] = (grid, grid.advance(state, steps)[0])
            best[label] = min(best.get(label, np.inf), (time.perf_counter() - start) / steps * 1e3)
    return {label: float(value) for label, value in best.items()}


def step_memory(config: TrainConfig) -> int:
    """Bytes that the compiled step of one training needs beside its inputs and outputs."""
    grid = open_grid(config, config.load_data(), [0])
    trainer = grid.trainer

    def step(arrays, member, state):
        return trainer.step(trainer.batch(arrays, member, state.step), member, state)

    member = jax.tree.map(lambda leaf: leaf[0], grid.members)
    state = jax.eval_shape(trainer.init, member)
    analysis = jax.jit(step).lower(grid.dataset.arrays, member, state).compile().memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)


def exact_error(mixture: GaussianMixture, n: int = 2048, seed: int = 0) -> Inspect:
    """Distance of every member's average velocity to the exact one of a mixture: a root mean square per dimension.

    `u_error` is over the uniform law of (r, t) with z_t from the data; `jump_error` at r = 0, t = 1, z from the noise:
    the one jump that one-step sampling takes.
    """
    data_key, noise_key, time_key, jump_key = jax.random.split(jax.random.key(2**31 + seed), 4)
    e, pair = jax.random.normal(noise_key, (n, mixture.dim)), jax.random.uniform(time_key, (2, n))
    r, t = pair.min(axis=0), pair.max(axis=0)
    zero, one = jnp.zeros(n), jnp.ones(n)
    places = {
        "u_error": (interpolate(mixture.sample(data_key, n), e, t), r, t),
        "jump_error": (jax.random.normal(jump_key, (n, mixture.dim)), zero, one),
    }
    exact = {name: np.asarray(mixture.average_velocity(*place)) for name, place in places.items()}

    def inspect(grid: Grid, state: State) -> list[dict[str, float]]:
        errors = {
            name: np.sqrt(np.mean((grid.velocity(state, *place) - exact[name]) ** 2, axis=(1, 2)))
            for name, place in places.items()
        }
        return [{name: float(values[index]) for name, values in errors.items()} for index in range(grid.size)]

    return inspect


def has_samples(folder: Path, training: Training) -> bool:
    """Whether a training is completed."""
    return (folder / "trainings" / training.name / "samples.npy").exists()


def load_samples(folder: Path, training: Training) -> np.ndarray:
    """The samples (members, n, *event) of a completed training."""
    return np.load(folder / "trainings" / training.name / "samples.npy", allow_pickle=False)


def _variance_history(place: Path, size: int) -> list[tuple[list[int], list[float]]]:
    """For each member the steps and values of the measured gradient variance."""
    records = [record for record in read(place / "metrics.jsonl") if "gradient_variance" in record]
    steps = [record["step"] for record in records]
    values = [np.atleast_1d(np.array(record["gradient_variance"], float)) for record in records]
    return [(steps, [float(value[index]) for value in values]) for index in range(size)]
