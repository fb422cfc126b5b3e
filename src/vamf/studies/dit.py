"""The paper's image study (arXiv:2605.09235): the effect of beta on a guided transformer on images.

MeanFlow with classes puts the guided velocity v_g (`vamf.objectives.guidance`) in the place of v_c in both roles. The
paper mixes the tangent once more and keeps the target,

    w = (1 - beta) v_g + beta v_hat,

with v_hat the diagonal of the EMA. At beta = 0 that is MeanFlow with guidance as published, whose kappa mixes in the
network's velocity; at beta = 1 the tangent has no noise. (The paper's published code blends two networks in the
guidance terms and leaves v_c its full weight in the tangent; this follows the text.)

The paper's beta = 1 run changes the adaptive weight (p = 1 to 0) and adds an anchor: `OTHERS` has each change
separately, and the class-wise bank at beta = 0, which replaces v_c by its posterior mean over 256 points of the class.

Equal seeds have equal batches and initial parameters. At equal steps every variant's EMA samples from the same noise
and labels, and an evaluator (`evaluator.py`) scores the images. The network of beta = 0 is measured at these states too
(`image_noise.py`).
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vamf.data import Dataset, source_name
from vamf.errors import UserError
from vamf.networks import DiTConfig, NetworkConfig
from vamf.options import merged
from vamf.studies import dit_page, dit_results, evaluator, image_noise, summary, variants
from vamf.studies.dit_results import variant_name
from vamf.studies.engine import Execution, Study
from vamf.studies.evaluator import Evaluator
from vamf.studies.image_noise import NoiseProbe
from vamf.studies.measures import Measures, member_networks
from vamf.studies.results import Results, findings_table
from vamf.studies.runner import Measurement, RunSpec
from vamf.studies.variants import Variant, over
from vamf.training import presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.step import State
from vamf.version import __version__

BETAS = (0.0, 0.25, 0.5, 1.0)
POWER = {"weighting": {"power": 0.0}}
ANCHOR = {"anchor": {"weight": 0.1, "interval": [0.0, 1e-3]}}
BANK = {"rao_blackwell": True, "bank": {"memory": 256}}
"""Stable Velocity's memory (arXiv:2602.05435)."""
NOISE = 2**30
"""Seed of the noise that samples of every variant start from."""
GALLERY_CLASSES = 10
"""Number of classes in the gallery."""
BANK_TIMES = tuple(round(0.05 * index, 2) for index in range(1, 21))
BANK_ROWS = 64
OTHERS = tuple(
    Variant(name, options, folder=folder, strategy="loop")
    for name, folder, options in (
        ("beta = 1, p = 0", "unweighted", {"beta": 1.0, **POWER}),
        ("beta = 1, anchor", "anchored", {"beta": 1.0, **ANCHOR}),
        ("beta = 1, p = 0, anchor", "unweighted-anchored", {"beta": 1.0, **POWER, **ANCHOR}),
        (dit_results.BANK, "bank", {"beta": 0.0, **BANK}),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    datasets: tuple[str, ...] = ("",)
    """One, that of the configuration."""
    steps: int = 0
    """Steps of every run; 0 for STEPS or as many as the configuration has."""
    variance_every: int = 0
    """As often as variants are compared."""
    betas: tuple[float, ...] = BETAS
    """The sweep, 0 first."""
    others: tuple[Variant, ...] = OTHERS
    """The variants beside it."""
    network: NetworkConfig | None = None
    """The network; None for the configuration's."""
    stops: int
    """How often the variants are compared during training."""
    samples: int
    """Samples that are scored each time."""
    epochs: int
    """Passes over the images for an evaluator that is trained here."""
    rows: int
    """Pairs (x, e) at each time when the noise is measured; the paper takes 512."""
    NOT_IN_IDENTITY = ("datasets", "variance_every", "learning_rate")

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"others": [variant.name for variant in self.others]}


TINY, SMALL = (DiTConfig(depth, width, heads, patch=4) for depth, width, heads in ((2, 64, 2), (3, 96, 3)))
QUICK = Budget(
    name="quick", steps=200, seeds=(0,), betas=(0.0, 1.0), others=(), network=TINY, stops=2, samples=1000, epochs=1,
    rows=64,
)  # fmt: skip
DEFAULT = Budget(name="default", steps=1500, seeds=(0, 1), network=SMALL, stops=5, samples=5000, epochs=4, rows=256)
PAPER = Budget(name="paper", seeds=(0, 1), stops=10, samples=10_000, epochs=20, rows=512)
STEPS = {"cifar10_dit": 40_000}
"""Steps of a configuration in a budget that has none, where they are not the configuration's."""
HOLDOUT = 0.1
"""Fraction of the images or latents held out for the evaluator, where the configuration holds out none."""


@dataclasses.dataclass(frozen=True)
class Options(variants.Options):
    """Options of this study."""

    preset: str = ""
    """Images and network to study, fashion_mnist, cifar10_dit or imagenet_dit_b4; left out, fashion_mnist, with --paper
    cifar10_dit."""
    data: Path | None = None
    """Where those images or latents are; left out, where the preset says."""


def preset(execution: Execution) -> str:
    """The name of the configuration that is studied."""
    return execution.options.preset or ("cifar10_dit" if execution.budget.name == "paper" else "fashion_mnist")


def base(execution: Execution, name: str) -> TrainConfig:
    """The configuration that all variants share.

    The EMA reaches back a thirtieth of the run, as the paper's 0.9999 does in 300,000 steps. Its decay is
    constant, as there: e^-30 of the initial weights is left in any budget.
    """
    budget, config = execution.budget, presets.for_data(preset(execution))
    steps = budget.steps or STEPS.get(preset(execution), config.steps)
    parts = -(-steps // (budget.stops * config.checkpoint_every))  # checkpoints from one stop to the next
    checkpoint_every = -(-steps // (budget.stops * parts))
    return dataclasses.replace(
        config,
        data=source_name(str(execution.options.data or config.data)),
        holdout=config.holdout or HOLDOUT,
        network=budget.network or config.network,
        steps=steps,
        checkpoint_every=checkpoint_every,
        log=LogConfig(every=min(500, checkpoint_every), variance_every=parts * checkpoint_every),
        objective=merged(config.objective, {"proxy": "ema"}),
        optimizer=dataclasses.replace(
            config.optimizer,
            ema_decay=max(0.0, 1 - 30 / steps),
            ema_warmup=False,
            warmup=min(config.optimizer.warmup, steps // 10),
        ),
    )


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """The sweep and the others, members in sequence: one transformer fills a device."""
    betas = execution.budget.betas
    sweep = Variant("sweep", {"beta": betas[0]}, points=over(beta=betas), label="beta = {beta:g}", strategy="loop")
    return [sweep, *execution.budget.others]


def plan(execution: Execution) -> dict[str, Any]:
    """The key to continuing a folder."""
    fields = {"study": "dit", "version": __version__, "preset": preset(execution), "data": execution.base("").data}
    return fields | {"budget": execution.budget.as_dict()}


def check(execution: Execution) -> None:
    """Refuse data without classes, and images that no evaluator can score."""
    if not execution.dataset("").num_classes:
        raise UserError(f"{execution.base('').data}: the study dit needs images with classes")
    evaluator.check(execution.dataset(""))


def make_evaluator(execution: Execution) -> Evaluator:
    """The evaluator of a folder."""
    dataset, budget = execution.dataset(""), execution.budget
    execution.progress.say(dataset.summary)
    place = execution.folder / "judge"
    return evaluator.make_evaluator(place, dataset, budget.samples, budget.epochs, execution.progress)


@dataclasses.dataclass(frozen=True)
class ImageMeasures(Measures):
    """Scores of images at stops during training, and the noise of the network without mixing."""

    def baseline(self, dataset: Dataset) -> dict[str, float]:
        """Empty: the evaluator has the scores of real images."""
        return {}

    def measurement(self, execution: Execution, spec: RunSpec) -> Measurement:
        """The measurement of a run."""
        scorer, budget, config = execution.prepared, execution.budget, spec.config
        unmixed = [index for index, label in enumerate(spec.labels) if label["variant"] == variant_name(0.0)]

        @cache
        def probe(ensemble: Ensemble) -> NoiseProbe:
            return NoiseProbe(ensemble.dataset, ensemble.network, ensemble.train_step.objective, budget.rows)

        def draw(ensemble: Ensemble, state: State, label: np.ndarray) -> np.ndarray:
            return ensemble.sample(state, len(label), seed=NOISE, label=label)

        def on_checkpoint(ensemble: Ensemble, step: int, state: State) -> list[dict] | None:
            if step % config.log.variance_every and step < config.steps:
                return None
            label = np.arange(budget.samples, dtype=np.int32) % ensemble.dataset.num_classes
            rows: list[dict[str, Any]] = [scorer.scores(one, label) for one in draw(ensemble, state, label)]
            for index in unmixed:
                terms = probe(ensemble).at_times(*member_networks(ensemble, state, index), plain=True)
                rows[index] |= image_noise.bias_history(terms)
            return rows

        def finish(ensemble: Ensemble, state: State) -> tuple[np.ndarray, list[dict]]:
            samples = draw(ensemble, state, gallery_labels(ensemble.dataset.num_classes))
            rows: list[dict[str, Any]] = [{"finite": bool(np.isfinite(one).all())} for one in samples]
            for index in unmixed:
                rows[index] |= _noise(probe(ensemble), *member_networks(ensemble, state, index))
            if state.objective_state is not None:
                memory = jax.tree.map(lambda leaf: leaf[0], ensemble.collect(state.objective_state))["bank"]
                sizes = image_noise.effective_sizes(ensemble.dataset, memory, BANK_ROWS, BANK_TIMES)
                rows[0]["effective_sizes"] = {"t": list(BANK_TIMES), **sizes}
            return np.stack([scorer.to_images(np.nan_to_num(one)) for one in samples]), rows

        features = [scorer.distance.identity.features, scorer.classes and scorer.classes.identity.features]
        return Measurement([budget.samples, *features], finish, on_checkpoint)


def _noise(probe: NoiseProbe, params: Any, ema_params: Any) -> dict[str, Any]:
    """Measurements at the end of training, of the network without mixing."""
    plain, trained = (image_noise.loss_variance(probe.at_times(params, ema_params, plain)) for plain in (True, False))
    predicted = image_noise.predicted_mse(probe.at_training_times(params, ema_params))
    return {"loss_variance": {"plain": plain, "trained": trained}, "predicted_mse": predicted}


def gallery_labels(classes: int) -> np.ndarray:
    """The classes of the gallery, two images of each."""
    chosen = np.linspace(0, classes - 1, min(GALLERY_CLASSES, classes)).round()
    return np.repeat(chosen, 2).astype(np.int32)


def real_images(execution: Execution, scorer: Evaluator) -> np.ndarray:
    """Real images of the gallery's classes."""
    dataset = execution.dataset("")
    label = gallery_labels(dataset.num_classes)
    x, labels = dataset.draw(dataset.arrays, jax.random.key(1), 20 * dataset.num_classes)
    places = {c: np.flatnonzero(np.asarray(labels) == c).tolist() for c in set(label.tolist())}
    rows = [places[c].pop() if places[c] else 0 for c in label.tolist()]
    return scorer.to_images(dataset.to_original(np.asarray(x)[rows]))


def images(results: Results) -> dict[str, np.ndarray]:
    """Real images of the gallery's classes, and samples of every variant, from the first seed."""
    real, samples = real_images(results.execution, results.execution.prepared), results.samples("")
    return {"data": real} | {variant: samples[variant] for variant in summary.variants(results.members)}


def summarise(results: Results) -> dict[str, Any]:
    """Rows for every stop, the bias over training, and sentences."""
    scorer, members = results.execution.prepared, results.members
    return {
        **plan(results.execution),
        "evaluator": {"score": scorer.name, "notes": scorer.notes, "baseline": scorer.baseline},
        "matched": dit_results.table(members),
        "bias_history": dit_results.bias_history(members),
        "sentences": dit_results.sentences(members),
    }


def scores(results: Results) -> list[dict[str, Any]]:
    """A row for each run and stop."""
    return [
        {"variant": member["variant"], "tangent_mix": member["beta"], "seed": member["seed"],
         **{key: entry[key] for key in ("step", "frechet", "frechet_error", "accuracy")},
         "gradient_variance": member["gradient_variance"]}
        for member in results.members for entry in member["history"]
    ]  # fmt: skip


STUDY = Study(
    "dit",
    {"quick": QUICK, "default": DEFAULT, "paper": PAPER},
    variants_of,
    dit_results.PAGE,
    lambda results: dit_page.content(results, images(results)),
    base,
    measures=ImageMeasures(),
    summary=summarise,
    files={"members.csv": scores, "matched.csv": findings_table("matched")},
    options=Options,
    plan=plan,
    check=check,
    prepare=make_evaluator,
)
