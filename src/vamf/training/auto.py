"""Defaults from the shape of the data and a time budget: what `vamf train` takes for data of one's own.

| data                             | method                                    | network                             |
|----------------------------------|-------------------------------------------|-------------------------------------|
| table, toy, mixture              | `rao_blackwell`                           | MLP, wider for more columns         |
| table with vectors as conditions | `meanflow`: a bank cannot compare rows    | MLP                                 |
| images with classes              | `vamf` with guidance, as `fashion_mnist`  | transformer, deeper in longer runs  |
| other images                     | `meanflow` with the weights for images    | the same                            |

The number of steps is what the time budget allows, by a measurement of the program's own steps, and at most what the
number of rows allows. docs/auto.md has the measurements behind the choices.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

from vamf.data import Dataset
from vamf.errors import require
from vamf.networks import DiTConfig, MLPConfig
from vamf.objectives.methods import IMAGES
from vamf.objectives.weighting import Power
from vamf.path import Pairs
from vamf.training import presets
from vamf.training.config import LogConfig, OptimizerConfig, TrainConfig
from vamf.training.ensemble import Ensemble

MINUTES = 5.0
"""The budget where none is given."""
TRAINING = 0.9
"""Fraction of the budget for the steps themselves; the rest is for checkpoints and the evaluation."""
MEASURED_STEPS = 8
"""Steps of a measurement."""
MIN_STEPS = 200
"""Fewest steps of a run, whatever the budget: fewer give nothing to look at."""
WIDE = 48
"""Coordinates from which on a table has the wider network."""
MOST_STEPS = 100_000
"""Most steps of a run."""
LEAST_STEPS, PASSES = 4000, 16
"""Most steps for the smallest tables, and for each row of somewhat larger ones, which could be learnt by heart."""
LONG = 60
"""Minutes from which on images have the larger network on a processor."""
LINES = 20
"""Least number of lines in the log of a short run."""
MAX_TOKENS = 64
"""Patches of an image above which a transformer's patches are larger."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices depend on."""

    event_shape: tuple[int, ...]
    """Shape of one sample, in the network's coordinates."""
    rows: int | None = None
    """Rows to train on; None where they are drawn afresh or are on disk."""
    num_classes: int = 0
    has_conditions: bool = False
    """Whether each row has a vector or an image as condition."""
    has_start: bool = False
    """Whether each row has a start."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Facts":
        """Of a data set, as the run uses it."""
        arrays: Mapping[str, Any] = dataset.arrays if isinstance(dataset.arrays, Mapping) else {}
        stored = next((arrays[name] for name in ("points", "pixels") if name in arrays), None)
        rows = None if stored is None or dataset.stream is not None else len(stored)
        shape = dataset.cond_shape
        conditions = bool(shape.vector or shape.image)
        return cls(dataset.event_shape, rows, dataset.num_classes, conditions, dataset.has_start)

    @property
    def is_image(self) -> bool:
        """Whether samples are images or latents."""
        return len(self.event_shape) == 3


class Choice(NamedTuple):
    """A configuration, and why it is this one."""

    config: TrainConfig
    reasons: tuple[str, ...]
    """A few lines for people."""


def recipe(base: TrainConfig, facts: Facts, minutes: float = MINUTES) -> Choice:
    """Everything but the number of steps, which is the most that the recipe ever takes.

    Args:
        base: says where and how data are read.

    Raises:
        UserError: a budget that is not above 0.
    """
    require(0 < minutes < math.inf, "minutes", minutes, "any number above 0")
    base = dataclasses.replace(base, augment=dataclasses.replace(base.augment, probability=0.0))
    return _images(base, facts, minutes) if facts.is_image else _table(base, facts)


def with_steps(
    choice: Choice, minutes: float, seconds: float, spent: float = 0.0, fixed: Collection[str] = ()
) -> Choice:
    """The choice with as many steps as a budget allows, at most those that it has.

    Args:
        seconds: of one step.
        spent: seconds that compiling takes.
        fixed: options that keep their values, of `log.every`, `checkpoint-every` and `optimizer.warmup`, which follow
            the number of steps otherwise.
    """
    require(0 < minutes < math.inf, "minutes", minutes, "any number above 0")
    affordable = (60 * TRAINING * minutes - spent) / seconds
    most = choice.config.steps
    steps = min(most, max(MIN_STEPS, affordable))
    config = choice.config
    every = config.log.every if "log.every" in fixed else min(config.log.every, max(1, int(steps) // LINES))
    steps = max(1, int(steps) // every) * every  # chunks of one length: one compilation
    config = dataclasses.replace(config, steps=steps, log=dataclasses.replace(config.log, every=every))
    if "checkpoint-every" not in fixed:
        each = max(every, min(config.checkpoint_every, steps // 4) // every * every)
        config = dataclasses.replace(config, checkpoint_every=each)
    if "optimizer.warmup" not in fixed:
        warmup = min(config.optimizer.warmup, steps // 10)
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup=warmup))
    pace = f"{steps:,} steps at {_duration(seconds)} each, measured here"
    if affordable < MIN_STEPS:
        reason = f"{pace}: the fewest; {minutes:g} minutes are too short for it, more give better samples"
    elif affordable < most:
        reason = f"{pace}: what {minutes:g} minutes allow (--minutes)"
    else:
        reason = f"{pace}: the most for these data, {steps * seconds / 60:.2g} of the {minutes:g} minutes"
    return Choice(config, (*choice.reasons, reason))


def measure(
    config: TrainConfig, dataset: Dataset, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Seconds of one step of a run, and those that compiling took."""
    start = clock()
    ensemble = Ensemble(config, dataset, [config.seed])
    count = MEASURED_STEPS if isinstance(config.network, MLPConfig) else 1
    state, _ = ensemble.advance(ensemble.init(), count)
    compiled = clock()
    ensemble.advance(state, count)
    return (clock() - compiled) / count, compiled - start


def for_data(base: TrainConfig, dataset: Dataset, minutes: float = MINUTES, changes: Mapping[str, Any] = {}) -> Choice:
    """The whole choice for a data set, with a measurement of a few seconds unless the number of steps is given.

    Args:
        base: says where and how data are read.
        changes: fields that are not chosen, as `presets.update` takes them.

    Raises:
        UserError: as `recipe`, or an unknown field.
    """
    chosen = recipe(base, Facts.of(dataset), minutes)
    chosen = chosen._replace(config=presets.update(chosen.config, changes))
    if "steps" in changes:
        return chosen
    log, optimizer = ({**changes.get(part, {})} for part in ("log", "optimizer"))
    given = {"log.every": "every" in log, "optimizer.warmup": "warmup" in optimizer,
             "checkpoint-every": "checkpoint_every" in changes}  # fmt: skip
    seconds, spent = measure(chosen.config, dataset)
    return with_steps(chosen, minutes, seconds, 2 * spent, {name for name, is_given in given.items() if is_given})


def _table(base: TrainConfig, facts: Facts) -> Choice:
    """Rows of numbers."""
    columns, rows = math.prod(facts.event_shape), facts.rows
    network = MLPConfig(width=256 if columns < WIDE else 512)
    batch = 256
    if facts.has_start:
        method, objective = "meanflow", {"path": Pairs()}
        why = "meanflow from the start of each row, along the path pairs"
    elif facts.has_conditions:
        method, objective = "meanflow", {}
        why = "meanflow: each row has conditions of its own, which no bank can compare"
    else:
        method, objective = "rao_blackwell", {}
        why = "rao_blackwell: the mean velocity over the batch takes most of MeanFlow's noise away"
    steps = MOST_STEPS if rows is None else min(MOST_STEPS, max(LEAST_STEPS, PASSES * rows))
    config = dataclasses.replace(
        base,
        method=method,
        objective=objective,
        network=network,
        steps=steps,
        batch_size=batch,
        learning_rate=3e-3,
        optimizer=OptimizerConfig(clip_norm=10.0),
        log=LogConfig(variance_every=0),
    )
    size = f"{network.depth} layers of {network.width} for {columns:,} coordinates"
    return Choice(config, (why, size))


def _images(base: TrainConfig, facts: Facts, minutes: float) -> Choice:
    """Images and latents: the sizes that docs/images.md has measured."""
    powerful = jax.default_backend() != "cpu"
    long = powerful or minutes >= LONG
    width, depth = (256, 6) if long else (128, 4)
    network = DiTConfig(depth=depth, width=width, heads=4, patch=patch_of(facts.event_shape))
    guided = facts.num_classes > 0 and not facts.has_start
    options = presets.guided(0.5, 2.0) if guided else _unguided(facts)
    config = dataclasses.replace(
        base,
        **options,
        network=network,
        steps=MOST_STEPS,
        batch_size=64,
        learning_rate=3e-4 if long else 1e-3,
        optimizer=OptimizerConfig(b2=0.95, final_learning_rate=0.1, warmup=200),
        log=LogConfig(every=100, variance_every=0),
    )
    why = "vamf with guidance of 2 by class, as fashion_mnist" if guided else "meanflow with the weights for images"
    size = f"a transformer of {depth} layers of {width} on patches of {network.patch}"
    return Choice(config, (why, f"{size} for {' x '.join(map(str, facts.event_shape))}"))


def _unguided(facts: Facts) -> dict[str, Any]:
    path = {"path": Pairs()} if facts.has_start else {}
    return {"method": "meanflow", "objective": {"weighting": Power(1.0, 1e-2), "times": IMAGES, **path}}


def patch_of(event_shape: tuple[int, ...]) -> int:
    """The smallest side of a patch, of 2 pixels or more, that leaves few enough of them; a pixel if there is none."""
    height, width, _ = event_shape
    sides = [side for side in range(2, min(height, width)) if height % side == 0 and width % side == 0]
    return next((side for side in sides if height * width // side**2 <= MAX_TOKENS), 1)


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
