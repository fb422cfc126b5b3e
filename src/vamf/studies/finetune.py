"""From a flow model to a one-step model on images, with and without the remedies, beside training from scratch.

A flow-matching model is trained for T steps, then made a one-step model in N more. The same network is trained from
scratch with MeanFlow as `vamf train` does by default, for N steps and for T + N. A seed has its own flow model, the
same noise and labels score all, and no variant has guidance.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from vamf import figures
from vamf.data import Dataset
from vamf.errors import UserError
from vamf.files import write_json
from vamf.networks import NetworkConfig
from vamf.objectives.methods import IMAGES
from vamf.options import plain
from vamf.studies import dit, evaluator, summary, variants
from vamf.studies.dit import NOISE, gallery_labels
from vamf.studies.engine import Execution, Study
from vamf.studies.evaluator import Evaluator
from vamf.studies.measures import Measures
from vamf.studies.page import Table, mean_std, read
from vamf.studies.results import Results, findings_table, member_table
from vamf.studies.runner import Measurement, RunSpec
from vamf.studies.variants import Variant
from vamf.training import finetuning, presets
from vamf.training.config import LogConfig, TrainConfig
from vamf.training.ensemble import Ensemble
from vamf.training.run import Run
from vamf.training.step import State

FLOW, FINETUNED, NAIVE = "flow model", "fine-tuned with the remedies", "fine-tuned, online tangent, p = 1"
SLOWER = "fine-tuned with the remedies, a third of the learning rate"
CALLS = {"one": ("flow_map", 1), "two": ("flow_map", 2)}
FLOW_CALLS = {"one": ("euler", 1), "two": ("euler", 2), "fifty": ("heun", 25)}
"""Samplers and their steps; Heun's method takes two calls a step."""
ADAPTIVE = {"weighting": {"power": 1.0, "constant": 1e-2}}
NAIVE_OPTIONS = {
    "proxy": "online",
    "anchor": {"weight": 0.0},
    "times": {"max_gap": 1.0},
    **ADAPTIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(variants.Budget):
    """How much of the study to run."""

    datasets: tuple[str, ...] = ("",)
    """One, that of the configuration."""
    flow_steps: int
    """Steps T of the flow model; `steps` are those of the fine-tuning."""
    network: NetworkConfig | None = None
    """The network; None for the configuration's."""
    variance_every: int = 0
    samples: int
    """Samples that are scored."""
    epochs: int
    """Passes over the images for the evaluator."""
    NOT_IN_IDENTITY = ("datasets", "variance_every", "learning_rate")


QUICK = Budget(name="quick", flow_steps=200, steps=100, seeds=(0,), network=dit.TINY, samples=1000, epochs=1)
DEFAULT = Budget(name="default", flow_steps=3000, steps=1500, seeds=(0, 1), network=dit.TINY, samples=5000, epochs=4)


@dataclasses.dataclass(frozen=True)
class Options(variants.Options):
    """Options of this study."""

    data: Path | None = None
    """Where Fashion-MNIST is; left out, where the preset says."""


def base(execution: Execution, name: str) -> TrainConfig:
    """MeanFlow with the data, network and optimizer of the preset fashion_mnist."""
    config = presets.for_data("fashion_mnist")
    return _of_length(
        dataclasses.replace(
            config,
            data=str(execution.options.data.resolve()) if execution.options.data else config.data,
            holdout=config.holdout or dit.HOLDOUT,
            network=execution.budget.network or config.network,
            method="meanflow",
            objective={"times": plain(IMAGES)},
        ),
        execution.budget.steps,
    )


def _of_length(config: TrainConfig, steps: int) -> TrainConfig:
    """The configuration for a run of so many steps."""
    warmup = min(config.optimizer.warmup, steps // 10)
    optimizer = dataclasses.replace(config.optimizer, warmup=warmup, ema_decay=max(0.0, 1 - 30 / steps))
    log = LogConfig(every=max(steps // 20, 1), variance_every=0)
    return dataclasses.replace(config, steps=steps, checkpoint_every=steps, optimizer=optimizer, log=log)


def flow_config(execution: Execution, seed: int) -> TrainConfig:
    """The flow model of a seed."""
    config = dataclasses.replace(base(execution, ""), method="flow_matching", seed=seed)
    return _of_length(config, execution.budget.flow_steps)


def variants_of(execution: Execution, name: str) -> list[Variant]:
    """Fine-tuning with and without the remedies, for each seed from its own flow model, and training from scratch."""
    budget, found = execution.budget, []
    rate = base(execution, name).learning_rate
    ways = (
        (FINETUNED, "remedies", {}),
        (SLOWER, "remedies-slower", {"learning_rate": rate / 3}),
        (NAIVE, "naive", {"objective": NAIVE_OPTIONS}),
    )
    for variant, slug, changes in ways:
        for seed in budget.seeds:
            config = finetuning.with_remedies(flow_config(execution, seed), _flow_folder(execution, seed), **changes)
            config = _of_length(config, budget.steps)
            found.append(Variant(variant, config.objective, _changes(config), folder=f"{slug}-{seed}", seeds=(seed,)))
    for steps in (budget.steps, budget.flow_steps + budget.steps):
        config = _of_length(base(execution, name), steps)
        found.append(Variant(_scratch(steps), ADAPTIVE, _changes(config), folder=f"scratch-{steps}", strategy="loop"))
    return found


def _changes(config: TrainConfig) -> dict[str, Any]:
    """The fields of a variant's configuration that differ from those of others."""
    names = ("method", "learning_rate", "init_from", "steps", "checkpoint_every", "optimizer", "log")
    return {name: getattr(config, name) for name in names}


def _scratch(steps: int) -> str:
    return f"from scratch, {steps:,} steps"


def _flow_folder(execution: Execution, seed: int) -> Path:
    return execution.folder.resolve() / "flows" / str(seed)


def check(execution: Execution) -> None:
    """Refuse data without classes, and images that no evaluator can score."""
    if not execution.dataset("").num_classes:
        raise UserError(f"{execution.base('').data}: the study finetune needs images with classes")
    evaluator.check(execution.dataset(""))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What all runs need."""

    scorer: Evaluator
    flows: dict[int, dict[str, Any]]
    """Scores of each seed's flow model, by its number of calls."""


def prepare(execution: Execution) -> Prepared:
    """The evaluator, and the flow model of each seed with its scores."""
    scorer = dit.make_evaluator(execution)
    return Prepared(scorer, {seed: _flow(execution, seed, scorer) for seed in execution.budget.seeds})


def _flow(execution: Execution, seed: int, scorer: Evaluator) -> dict[str, Any]:
    """The scores of a seed's flow model, which is trained if it is not finished."""
    folder = _flow_folder(execution, seed)
    path = folder / "scores.json"
    if path.exists():
        return json.loads(path.read_text())
    started = (folder / "config.json").exists()
    run = Run.open(folder) if started else Run.create(flow_config(execution, seed), folder)
    if not run.finished:  # parallel jobs may get here at once
        execution.progress.say(f"flow model of seed {seed}: {run.config.steps:,} steps")
        run.train(execution.progress)
    state, _ = run.load(execution.progress)
    rows, _ = _scores(run.ensemble, state, scorer, FLOW_CALLS, execution.budget.samples)
    write_json(path, rows[0])
    return rows[0]


def _scores(
    ensemble: Ensemble, state: State, scorer: Evaluator, calls: dict[str, tuple[Any, int]], count: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """For each member its scores by number of calls; and its one-step samples of the gallery's classes, as images."""
    label = np.arange(count, dtype=np.int32) % ensemble.dataset.num_classes
    rows: list[dict[str, Any]] = [{"finite": True} for _ in ensemble.seeds]
    for name, (sampler, steps) in calls.items():
        samples, _ = ensemble.draw(state, count, steps, NOISE, label, sampler)
        for row, one in zip(rows, samples, strict=True):
            scores = scorer.scores(one, label)
            row |= {"finite": row["finite"] and scores["frechet"] is not None}
            row |= {f"{score}_{name}": value for score, value in scores.items()}
    first = next(iter(calls.values()))
    chosen = gallery_labels(ensemble.dataset.num_classes)
    shown, _ = ensemble.draw(state, len(chosen), first[1], NOISE, chosen, first[0])
    return rows, [scorer.to_images(np.nan_to_num(one)) for one in shown]


@dataclasses.dataclass(frozen=True)
class ImageMeasures(Measures):
    """Scores of samples in one and two calls."""

    def baseline(self, dataset: Dataset) -> dict[str, float]:
        """Empty: the evaluator has the scores of real images."""
        return {}

    def measurement(self, execution: Execution, spec: RunSpec) -> Measurement:
        """The measurement of a run."""
        scorer, count = execution.prepared.scorer, execution.budget.samples

        def finish(ensemble: Ensemble, state: State) -> tuple[np.ndarray, list[dict]]:
            rows, shown = _scores(ensemble, state, scorer, CALLS, count)
            return np.stack(shown), rows

        features = [scorer.distance.identity.features, scorer.classes and scorer.classes.identity.features]
        return Measurement([count, *features], finish)


KEYS = {f"{score}_{name}": f"{score}_{name}" for score in ("frechet", "accuracy") for name in FLOW_CALLS}


def summarise(results: Results) -> dict[str, Any]:
    """A row for each variant and the flow model: means and standard deviations over seeds; sentences."""
    prepared = results.execution.prepared
    groups = {FLOW: list(prepared.flows.values())}
    groups |= {name: results.of(variant=name) for name in summary.variants(results.members)}
    rows = [
        {"variant": name, "seeds": len(members), "diverged": sum(not member["finite"] for member in members),
         **summary.moments(members, **KEYS)}
        for name, members in groups.items()
    ]  # fmt: skip
    return {"variants": rows, "real": prepared.scorer.baseline}


def _number(key: str) -> Any:
    shown = mean_std(key)

    def cell(row: dict[str, Any]) -> str:
        text = shown(row)
        return f"{text} ({row['diverged']} diverged)" if row["diverged"] else text

    return cell


def content(results: Results) -> dict[str, Any]:
    """The content of the page."""
    execution, rows = results.execution, results.findings["variants"]
    scorer, config = execution.prepared.scorer, execution.base("")
    calls = {"one": "1 call", "two": "2 calls", "fifty": "50 calls"}

    def cells(score: str) -> dict[str, Any]:
        return {"variant": str} | {text: _number(f"{score}_{name}") for name, text in calls.items()}

    lowest = {text: f"frechet_{name}" for name, text in calls.items() if name != "fifty"}
    return {
        "config": config,
        "size": ", ".join(f"{name} {getattr(config.network, name)}" for name in ("depth", "width", "patch")),
        "evaluator": scorer,
        "real": scorer.baseline,
        "remedies": finetuning.describe(finetuning.with_remedies(config, "RUN")).partition(": ")[2],
        "frechet": Table.of(rows, {**cells("frechet"), "variant": "variant"}, lowest=lowest),
        "accuracy": Table.of(rows, {**cells("accuracy"), "variant": "variant"}),
        "samples": figures.image_rows(_images(results)),
    }


def _images(results: Results) -> dict[str, np.ndarray]:
    """Real images and one-step samples of every variant, from the first seed."""
    return {"data": dit.real_images(results.execution, results.execution.prepared.scorer)} | results.samples("")


STUDY = Study(
    "finetune",
    {"quick": QUICK, "default": DEFAULT},
    variants_of,
    read("finetune"),
    content,
    base,
    measures=ImageMeasures(),
    summary=summarise,
    files={"members.csv": member_table(), "variants.csv": findings_table("variants")},
    options=Options,
    check=check,
    allow_divergence=True,
    prepare=prepare,
)
