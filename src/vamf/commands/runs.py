"""`vamf sample`, `vamf evaluate` and `vamf diagnose`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vamf.commands.parsing import parse
from vamf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples of a run, in the data's units."""

    run: Path
    """Folder of the run."""
    out: Path
    """File to write: .npy, .npz (with classes), .csv for tables; for images also .png (a grid) or a folder without
    suffix."""
    n: int | None = None
    """Number of samples; 64, or as many as --condition has rows."""
    steps: int | None = None
    """Steps from noise to data, each one network call for each sample, except heun (two) and fast_flow (fewer); by
    default 1 for flow_map, 2 for restart, 1000 for ancestral and 50 for the others."""
    sampler: Literal["flow_map", "restart", "heun", "euler", "fast_flow", "ancestral", "ddim"] | None = None
    """Jumps of the flow map, jumps to the data and back, the ODE of u(z, t, t) (fast_flow skips calls), or the steps of
    a diffusion; by default flow_map, but heun for flow_matching and ddim for ddpm."""
    seed: int = 0
    """Seed of the noise."""
    label: str | None = None
    """Class by its name or number, where the data has classes, or `each` of them in turn; by default drawn as in the
    data."""
    condition: Path | None = None
    """Condition of each sample, in the data's units: a .npz with the arrays label, vector, image and start, as far as
    the run's data have them, or a .npy of the only one. Rows are repeated in turn; by default drawn as in the data."""
    guidance: float | None = None
    """Guidance scale, for networks conditioned on it; others have the fixed scale of their training. 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Interval of times in which guidance acts."""
    autoencoder: Path | None = None
    """Weights that decode latents into images; by default the file that encoded the latents."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by the run's metric checkpoints.best."""
    ema: float | Literal["none"] | None = None
    """Which of the run's EMAs, by its decay, or none for the parameters themselves; by default that of
    ema-decay."""
    data: Path | None = None
    """New path of the run's data, if they have moved."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Sliced Wasserstein distances of a run's samples to data that the run has not seen.

    Without held-out data they are distances to the training data, and the output says so.
    """

    run: Path
    """Folder of the run."""
    ema: float | Literal["none", "all"] | None = None
    """Which of the run's EMAs, by its decay, or none for the parameters themselves, or all of these; by
    default that of ema-decay."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by the run's metric checkpoints.best."""
    data: Path | None = None
    """New path of the run's data, if they have moved."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Sources of a run's gradient noise, the best beta, and checks of its log: diagnosis.html and diagnosis.json."""

    run: Path
    """Folder of the run."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by the run's metric checkpoints.best."""
    data: Path | None = None
    """New path of the run's data, if they have moved."""
    json: bool = False
    """Print JSON instead of sentences."""
    seed: int = 0
    """Seed of the measurements."""


def sample(arguments: Sequence[str]) -> None:
    """`vamf sample`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.report import samples
    from vamf.training import ema_weights
    from vamf.training.run import Run

    options = parse(Sample, arguments, "sample", positional=("run",))
    distributed.start()
    run, progress = Run.open(options.run, data=options.data), Progress(show=distributed.is_main_process())
    sampler, steps = run.default_sampler(options.sampler, options.steps)
    state, step = run.load(progress, options.checkpoint)
    if options.guidance is None and options.guidance_interval != (0.0, 1.0):
        raise UserError(
            f"guidance-interval = {options.guidance_interval[0]:g} {options.guidance_interval[1]:g}: "
            "only with --guidance, the scale that acts in it"
        )
    scale = () if options.guidance is None else (options.guidance, *options.guidance_interval)
    n = samples.count(run, options.n, options.condition)
    sample_options = samples.SampleOptions(
        n, steps, sampler, options.seed, options.label, scale, options.ema, options.condition
    )
    cost = samples.write(run, state, sample_options, options.out, progress, options.autoencoder)
    if not distributed.is_main_process():
        return
    method = f"{steps} step{'s' * (steps > 1)}"
    if sampler != "flow_map":
        method += f" of {sampler}"
    if sampler == "fast_flow":
        method += f", {cost.calls:,} network calls for {cost.batches} batch{'es' * (cost.batches > 1)} of "
        method += f"{cost.batch_size}, {cost.per_sample:.1f} each"
    weights = ema_weights.describe(options.ema, run.config.all_ema_decays)
    print(f"{n} samples in {method} (training step {step:,}, {weights}): {options.out}")


def evaluate(arguments: Sequence[str]) -> None:
    """`vamf evaluate`."""
    from vamf import distributed
    from vamf.progress import Progress
    from vamf.training.run import Run, write_evaluation

    options = parse(Evaluate, arguments, "evaluate", positional=("run",))
    distributed.start()
    run = Run.open(options.run, data=options.data)
    state, step = run.load(Progress(show=distributed.is_main_process()), options.checkpoint)
    result = run.evaluate(state, step, ema=options.ema)
    if not distributed.is_main_process():
        return
    write_evaluation(run, result)
    if options.json:
        print(json.dumps(result))
    else:
        print_distances(result)


def diagnose(arguments: Sequence[str]) -> None:
    """`vamf diagnose`."""
    from vamf.diagnosis.run import diagnose_run
    from vamf.files import finite, write_json
    from vamf.progress import Progress
    from vamf.report import diagnosis as report
    from vamf.training.run import Run

    options = parse(Diagnose, arguments, "diagnose", positional=("run",))
    run = Run.open(options.run, data=options.data)
    diagnosis = diagnose_run(run, *run.load(Progress(), options.checkpoint), options.seed)
    result = diagnosis.as_dict()
    write_json(run.folder / "diagnosis.json", result)
    path = report.write(run, diagnosis)
    if options.json:
        print(json.dumps(finite(result)))
        return
    for finding in (*diagnosis.advice, *diagnosis.log):
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
        std = {key: f" {sign} {row[f'{key}_std']:.4f}" for key in ("sw1", "sw2") if f"{key}_std" in row}
        table.add_row(name, *(f"{row[key]:.4f}{std.get(key, '')}" for key in ("sw1", "sw2")))
    console.print(table)
    if not result["unseen"]:
        console.print(
            "to the training data, since none were held out: repeating them would score best, and the baseline does",
            highlight=False,
        )
