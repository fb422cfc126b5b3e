"""The paper's image study (arXiv:2605.09235): what beta does to a guided transformer on pictures.

MeanFlow with classes puts the guided velocity v_g (`vamf.objectives.guidance`) in the place of v_c in both roles. The
paper mixes the tangent once more and keeps the target,

    w = (1 - beta) v_g + beta v_hat,

with v_hat the diagonal of the moving average. At beta = 0 that is MeanFlow with guidance as published, whose kappa
mixes in the network's own velocity; at beta = 1 the tangent has no noise. (The paper's published code blends two
networks in the guidance terms and leaves v_c its full share of the tangent; this follows the text.)

| arm                                | what it is                                                                  |
|------------------------------------|-----------------------------------------------------------------------------|
| beta = 0, 0.25, 0.5, 1             | the sweep, one grid                                                         |
| beta = 1 with p = 0, anchor, both  | the paper's beta = 1 run changes the adaptive weight (p = 1 to 0) and adds  |
|                                    | an anchor (weight 0.1, offsets up to 0.001): each change on its own         |
| beta = 0, class-wise bank          | v_c replaced by its posterior mean over 256 points of the class (`bank.py`) |

Equal seeds see equal batches and start from equal parameters. At equal steps every arm's moving average draws from the
same noise and labels, and a stated judge (`judge.py`) scores the pictures. At these states the network of beta = 0 is
measured too (`image_noise.py`).
"""

import dataclasses
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vamf import __version__
from vamf.data import Dataset, absolute
from vamf.errors import UserError
from vamf.networks import DiTConfig, NetworkConfig
from vamf.options import merged
from vamf.progress import Progress
from vamf.studies import dit_page, dit_results, image_noise, judge, runner
from vamf.studies.image_noise import Instrument
from vamf.studies.judge import Judge
from vamf.studies.runner import Training
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.grid import Grid
from vamf.training.step import State

BETAS = (0.0, 0.25, 0.5, 1.0)
ANCHOR = {"anchor": {"weight": 0.1, "interval": [0.0, 1e-3]}}
BANK = {"rao_blackwell": True, "bank": {"memory": 256}}
"""Stable Velocity's memory (arXiv:2602.05435)."""
NOISE = 2**30
"""Seed of the noise that samples of every arm start from."""
SHOWN = 10
"""Classes whose pictures are shown."""
BANK_TIMES = tuple(round(0.05 * index, 2) for index in range(1, 21))
BANK_ROWS = 64


class Arm(NamedTuple):
    """One way to choose the tangent, weight and noise."""

    name: str
    folder: str
    beta: float
    options: dict[str, Any]
    """Options of the objective that differ from the base's."""


OTHERS = (
    Arm("beta = 1, p = 0", "unweighted", 1.0, {"weighting": {"power": 0.0}}),
    Arm("beta = 1, anchor", "anchored", 1.0, ANCHOR),
    Arm("beta = 1, p = 0, anchor", "unweighted-anchored", 1.0, {"weighting": {"power": 0.0}, **ANCHOR}),
    Arm("beta = 0, class-wise bank", "bank", 0.0, BANK),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the study to run."""

    name: str
    """Name on the command line."""
    steps: int
    """Steps of every training; 0 for STEPS or as many as the configuration has."""
    seeds: tuple[int, ...]
    """Seeds of every arm."""
    betas: tuple[float, ...]
    """The sweep, 0 first."""
    others: tuple[Arm, ...]
    """The arms beside it."""
    network: NetworkConfig | None
    """The network; None for the configuration's."""
    stops: int
    """How often the arms are compared on the way."""
    samples: int
    """Samples that are judged each time."""
    epochs: int
    """Passes over the pictures for a judge that is trained here."""
    rows: int
    """Pairs (x, e) at each time when the noise is measured; the paper takes 512."""


TINY, SMALL = (DiTConfig(depth, width, heads, patch=4) for depth, width, heads in ((2, 64, 2), (3, 96, 3)))
QUICK = Budget("quick", 200, (0,), (0.0, 1.0), (), TINY, 2, 1000, 1, 64)
DEFAULT = Budget("default", 1500, (0, 1), BETAS, OTHERS, SMALL, 5, 5000, 4, 256)
FULL = Budget("paper", 0, (0, 1), BETAS, OTHERS, None, 10, 10_000, 20, 512)
STEPS = {"cifar10_dit": 40_000}
"""Steps of a configuration in a budget that has none, where they are not the configuration's."""
HOLDOUT = 0.1
"""Share of the pictures or latents that no arm sees and the judge does, where the configuration keeps none."""
PRESET = {"quick": "fashion_mnist", "default": "fashion_mnist", "paper": "cifar10_dit"}
"""The configuration of a budget where none is named."""


@dataclasses.dataclass(frozen=True)
class DitStudy:
    """One execution of the study in one folder."""

    folder: Path
    budget: Budget = DEFAULT
    preset: str = ""
    """Name of a guided configuration; empty for the budget's own."""
    data: str = ""
    """Where its images or latents are; empty for where it says."""

    def run(self, progress: Progress) -> Path:
        """Do what is not done yet and write the report; returns its path.

        Raises:
            UserError: the data is missing or has no classes, a judge's weights are missing, the folder holds something
                else, or a file cannot be written.
        """
        chosen = self._appoint(progress)
        members: list[dict[str, Any]] = []
        for training, arms in self.trainings():
            progress.say(f"{training.name}: {training.config.steps:,} steps, {len(training.seeds)} trainings")
            members += self._complete(training, arms, chosen, progress)
        report = dit_page.Report(
            folder=self.folder,
            command=self.command,
            title=self._dataset.name.replace("_", " "),
            plan=self.plan,
            config=self.base,
            classes=self._dataset.num_classes,
            judge=chosen,
            members=members,
            shown=self._pictures(chosen, self._dataset),
        )
        return report.write()

    def prepare(self, progress: Progress) -> list[Training]:
        """Claim the folder and appoint a judge; returns all trainings."""
        self._appoint(progress)
        return [training for training, _ in self.trainings()]

    def complete(self, training: Training, progress: Progress) -> list[dict[str, Any]]:
        """The results of one training, trained now as far as it is not yet."""
        arms = next(arms for other, arms in self.trainings() if other.name == training.name)
        return self._complete(training, arms, self._appoint(progress), progress)

    def _appoint(self, progress: Progress) -> Judge:
        """The judge of the folder, which is this study's from now on."""
        if not self._dataset.num_classes:
            raise UserError(f"{self.base.data}: the study dit needs pictures with classes")
        judge.check(self._dataset)
        runner.claim(self.folder, self.plan, [self.base])
        progress.say(self._dataset.summary)
        return judge.appoint(self.folder / "judge", self._dataset, self.budget.samples, self.budget.epochs, progress)

    @cached_property
    def _dataset(self) -> Dataset:
        return self.base.load_data()

    @property
    def plan(self) -> dict[str, Any]:
        """What was asked, to recognise the folder."""
        plan = {"study": "dit", "version": __version__, "preset": self._preset, "data": self.base.data}
        return plan | {"budget": self.described}

    @property
    def described(self) -> dict[str, Any]:
        """The budget as plain data."""
        names = [arm.name for arm in self.budget.others]
        return dataclasses.asdict(dataclasses.replace(self.budget, others=())) | {"others": names}

    @property
    def command(self) -> str:
        """The command that makes this study, as far as it is one."""
        flags = runner.flags(self.budget.name)
        return f"vamf study dit{flags}" + (f" --preset {self.preset}" if self.preset else "")

    @property
    def _preset(self) -> str:
        return self.preset or PRESET.get(self.budget.name, "fashion_mnist")

    @cached_property
    def base(self) -> TrainConfig:
        """The configuration that all arms share.

        The moving average reaches back a thirtieth of the training, as the paper's 0.9999 does in 300,000 steps. Its
        decay is constant, as there: e^-30 of the initial weights is left in any budget.
        """
        base = presets.for_data(self._preset)
        steps = self.budget.steps or STEPS.get(self._preset, base.steps)
        parts = -(-steps // (self.budget.stops * base.checkpoint_every))  # checkpoints from one stop to the next
        checkpoint_every = -(-steps // (self.budget.stops * parts))
        return dataclasses.replace(
            base,
            data=absolute(self.data or base.data),
            holdout=base.holdout or HOLDOUT,
            network=self.budget.network or base.network,
            steps=steps,
            checkpoint_every=checkpoint_every,
            log=LogConfig(every=min(500, checkpoint_every), variance_every=parts * checkpoint_every),
            objective=merged(base.objective, {"proxy": "ema"}),
            optimiser=dataclasses.replace(
                base.optimiser,
                ema_decay=max(0.0, 1 - 30 / steps),
                ema_warmup=False,
                warmup=min(base.optimiser.warmup, steps // 10),
            ),
        )

    def config(self, beta: float, options: dict[str, Any]) -> TrainConfig:
        """The training of the paper's beta with some of the objective's options changed."""
        objective = merged(self.base.objective, {"beta": beta, **options})
        return dataclasses.replace(self.base, objective=objective)

    def trainings(self) -> list[tuple[Training, list[str]]]:
        """The trainings, each with the arm of every member."""
        seeds = list(self.budget.seeds)
        pairs = [(beta, seed) for beta in self.budget.betas for seed in seeds]
        betas = [beta for beta, _ in pairs]
        # One member after the other: even one transformer fills a device.
        sweep = Training(
            "sweep", self.config(self.budget.betas[0], {}), [seed for _, seed in pairs], {"beta": betas}, "loop"
        )
        found = [(sweep, [dit_results.swept(beta) for beta, _ in pairs])]
        for arm in self.budget.others:
            training = Training(arm.folder, self.config(arm.beta, arm.options), seeds, strategy="loop")
            found.append((training, [arm.name] * len(seeds)))
        return found

    def _complete(self, training: Training, arms: list[str], chosen: Judge, progress: Progress) -> list[dict[str, Any]]:
        """The results of a training's members."""
        unmixed = [index for index, arm in enumerate(arms) if arm == dit_results.swept(0.0)]

        @cache
        def instrument(grid: Grid) -> Instrument:
            return Instrument(grid.dataset, grid.network, grid.trainer.objective, self.budget.rows)

        def watch(grid: Grid, step: int, state: State) -> list[dict] | None:
            if step % self.base.log.variance_every and step < self.base.steps:
                return None
            label = np.arange(self.budget.samples, dtype=np.int32) % grid.dataset.num_classes
            drawn = grid.sample(state, len(label), seed=NOISE, label=label)
            rows: list[dict[str, Any]] = [chosen.scores(samples, label) for samples in drawn]
            for index in unmixed:
                rows[index] |= image_noise.trail(instrument(grid).at_times(*_networks(grid, state, index), plain=True))
            return rows

        def finish(grid: Grid, state: State) -> tuple[np.ndarray, list[dict]]:
            label = shown(grid.dataset.num_classes)
            drawn = grid.sample(state, len(label), seed=NOISE, label=label)
            rows: list[dict[str, Any]] = [{"arm": arm, "finite": bool(np.isfinite(one).all())} for arm, one in
                                          zip(arms, drawn, strict=True)]  # fmt: skip
            for index in unmixed:
                rows[index] |= _noise(instrument(grid), *_networks(grid, state, index))
            if state.memory is not None:
                memory = jax.tree.map(lambda leaf: leaf[0], grid.collect(state.memory))["bank"]
                sizes = image_noise.effective_sizes(grid.dataset, memory, BANK_ROWS, BANK_TIMES)
                rows[0]["effective_sizes"] = {"t": list(BANK_TIMES), **sizes}
            return np.stack([chosen.view(np.nan_to_num(one)) for one in drawn]), rows

        judges = [chosen.distance.identity.features, chosen.classes and chosen.classes.identity.features]
        return runner.once(training, self.folder, [self.budget.samples, *judges], finish, progress, watch)

    def _pictures(self, chosen: Judge, dataset: Dataset) -> dict[str, np.ndarray]:
        """Real pictures of the classes that are shown, and those of every arm, from the first seed."""
        label = shown(dataset.num_classes)
        x, known = dataset.draw(dataset.arrays, jax.random.key(1), 20 * dataset.num_classes)
        places = {c: np.flatnonzero(np.asarray(known) == c).tolist() for c in set(label.tolist())}
        rows = [places[c].pop() if places[c] else 0 for c in label.tolist()]
        found = {"data": chosen.view(dataset.to_original(np.asarray(x)[rows]))}
        for training, arms in self.trainings():
            samples = runner.load_samples(self.folder, training)
            found |= {arm: samples[arms.index(arm)] for arm in dict.fromkeys(arms)}
        return found


def shown(classes: int) -> np.ndarray:
    """The classes of the pictures that are shown, two of each."""
    chosen = np.linspace(0, classes - 1, min(SHOWN, classes)).round()
    return np.repeat(chosen, 2).astype(np.int32)


def _networks(grid: Grid, state: State, index: int) -> tuple[Any, Any]:
    """Parameters and moving average of a member."""
    return jax.tree.map(lambda leaf: leaf[index], grid.collect((state.params, state.average)))


def _noise(instrument: Instrument, params: Any, average: Any) -> dict[str, Any]:
    """What is measured at the end, of the network without mixing."""
    views = {"plain": True, "trained": False}
    return {
        "loss_variance": {name: image_noise.loss_variance(instrument.at_times(params, average, plain))
                          for name, plain in views.items()},
        "predicted_mse": image_noise.predicted_mse(instrument.under_the_law(params, average)),
    }  # fmt: skip
