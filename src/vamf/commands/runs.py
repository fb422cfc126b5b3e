"""`vamf sample`, `vamf evaluate` and `vamf diagnose`: what is asked of a run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vamf.commands.parsing import parse


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples of a run, in the data's own units."""

    run: Path
    """Folder of the run."""
    out: Path
    """File to write: .npy, .npz (with classes), .csv for tables; for images also .png (a sheet) or a folder without
    suffix."""
    n: int | None = None
    """Number of samples; 64, or as many as --condition has rows."""
    steps: int | None = None
    """Steps from noise to data, the network calls for each sample, but for heun (twice as many) and fast_flow; left
    out, 1 jump, 2 restarts, 1000 of ancestral and 50 of the others."""
    sampler: Literal["jumps", "restart", "heun", "euler", "fast_flow", "ancestral", "ddim"] | None = None
    """Jumps of the average velocity, jumps to the data and back, the ODE of u(z, t, t) (fast_flow skips calls), or the
    steps of a diffusion; left out, jumps, but heun for flow_matching and ddim for ddpm."""
    seed: int = 0
    """Seed of the noise."""
    label: str | None = None
    """Class by its name or number, where the data has classes, or `each` of them in turn; drawn like the data's if left
    out."""
    condition: Path | None = None
    """What each sample is made for, in the data's units: a .npz with the arrays that the run's data have of label,
    vector, image and start, or a .npy of the only one. Rows are taken in turn; drawn like the data's if left out."""
    guidance: float | None = None
    """Scale of guidance, for networks that are told it; others have learnt the one of their training. 1 is none."""
    guidance_range: tuple[float, float] = (0.0, 1.0)
    """Times at which it acts."""
    autoencoder: Path | None = None
    """Weights that turn latents into images; the file that made the latents if left out."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    ema: float | Literal["none"] | None = None
    """Which of the run's moving averages, by its decay, or none for the weights themselves; that of ema-decay if left
    out."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Sliced Wasserstein distances of a run's samples to data that training has not seen.

    Where nothing was held out they are distances to the training data, and the output says so.
    """

    run: Path
    """Folder of the run."""
    ema: float | Literal["none", "all"] | None = None
    """Which of the run's moving averages, by its decay, or none for the weights themselves, or all of these; that of
    ema-decay if left out."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Where a run's noise comes from, what beta should be and what its log says: diagnosis.html and diagnosis.json."""

    run: Path
    """Folder of the run."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by what the run's checkpoints.best says."""
    data: Path | None = None
    """Where the run's data are now, if they are no longer where they were."""
    json: bool = False
    """Print JSON instead of sentences."""
    seed: int = 0
    """Seed of the measurements."""


def sample(arguments: Sequence[str]) -> None:
    """`vamf sample`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.report import samples
    from vamf.training import averages
    from vamf.training.run import Run

    wanted = parse(Sample, arguments, "sample", positional=("run",))
    distributed.start()
    run, progress = Run.open(wanted.run, data=wanted.data), Progress(show=distributed.is_first())
    sampler, steps = run.usual(wanted.sampler, wanted.steps)
    state, step = run.load(progress, wanted.checkpoint)
    scale = () if wanted.guidance is None else (wanted.guidance, *wanted.guidance_range)
    n = samples.count(run, wanted.n, wanted.condition)
    drawn = samples.Wanted(n, steps, sampler, wanted.seed, wanted.label, scale, wanted.ema, wanted.condition)
    cost = samples.write(run, state, drawn, wanted.out, progress, wanted.autoencoder)
    if not distributed.is_first():
        return
    how = f"{steps} step{'s' * (steps > 1)}"
    if sampler != "jumps":
        how += f" of {sampler}"
    if sampler == "fast_flow":
        how += f", {cost.calls:,} network calls for {cost.batches} batch{'es' * (cost.batches > 1)} of "
        how += f"{cost.batch_size}, {cost.each:.1f} each"
    weights = averages.describe(wanted.ema, run.config.averages)
    print(f"{n} samples in {how} (training step {step:,}, {weights}): {wanted.out}")


def evaluate(arguments: Sequence[str]) -> None:
    """`vamf evaluate`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.training.run import Run, write_evaluation

    wanted = parse(Evaluate, arguments, "evaluate", positional=("run",))
    distributed.start()
    run = Run.open(wanted.run, data=wanted.data)
    state, step = run.load(Progress(show=distributed.is_first()), wanted.checkpoint)
    result = run.evaluate(state, step, ema=wanted.ema)
    if not distributed.is_first():
        return
    write_evaluation(run, result)
    if wanted.json:
        print(json.dumps(result))
    else:
        print_distances(result)


def diagnose(arguments: Sequence[str]) -> None:
    """`vamf diagnose`."""
    from vamf.diagnosis.run import visit
    from vamf.files import finite, write_json
    from vamf.progress import Progress
    from vamf.report import diagnosis as report
    from vamf.training.run import Run

    wanted = parse(Diagnose, arguments, "diagnose", positional=("run",))
    run = Run.open(wanted.run, data=wanted.data)
    found = visit(run, *run.load(Progress(), wanted.checkpoint), wanted.seed)
    result = found.as_dict()
    write_json(run.folder / "diagnosis.json", result)
    path = report.write(run, found)
    if wanted.json:
        print(json.dumps(finite(result)))
        return
    for finding in (*found.advice, *found.log):
        print(f"{finding.severity:8} {finding.text}" + (f"  [{finding.setting}]" if finding.setting else ""))
    print(f"report: {path}")


def print_distances(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    sign = "±" if console.encoding.lower().startswith("utf") else "+-"
    ema = result["ema"]
    weights = {"none": ", no EMA", "all": ""}[ema] if isinstance(ema, str) else f", EMA {ema:g}"
    title = f"{result['run']}, step {result['step']:,}{weights}"
    table = Table("samples", "SW1", "SW2", title=title, title_justify="left")
    for name, row in result["distances"].items():
        spread = {key: f" {sign} {row[f'{key}_std']:.4f}" for key in ("sw1", "sw2") if f"{key}_std" in row}
        table.add_row(name, *(f"{row[key]:.4f}{spread.get(key, '')}" for key in ("sw1", "sw2")))
    console.print(table)
    if not result["unseen"]:
        console.print(
            "to the training data, since none were held out: repeating them would score best, and the floor does",
            highlight=False,
        )
