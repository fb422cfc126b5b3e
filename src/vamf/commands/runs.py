"""`vamf sample`, `vamf evaluate` and `vamf diagnose`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vamf.commands.parsing import parse
from vamf.errors import UserError

WIDE = 140
"""Width of tables where they are not for a terminal."""


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
    the run's data have them, a .npy of the only one, a .csv of vectors, or an image or a folder of images. Rows are
    repeated in turn; by default drawn as in the data."""
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
    """Sliced Wasserstein distances of a run's samples to data that the run has not seen; of a table a verdict, and
    scores of its columns and pairs of columns.

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
    conditions: Path | None = None
    """New path of the file of its images' conditions, likewise."""
    condition_images: Path | None = None
    """New path of its condition images, likewise."""
    likelihood: bool = False
    """Also the mean log-likelihood of held-out rows, under the ODE of u(z, t, t) and under the jumps."""
    likelihood_rows: int | None = None
    """Held-out rows whose log-likelihood is taken; by default 1,000, above 64 dimensions 100."""
    probes: int = 8
    """Random probes of each row's divergence, above 64 dimensions."""
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
    conditions: Path | None = None
    """New path of the file of its images' conditions, likewise."""
    condition_images: Path | None = None
    """New path of its condition images, likewise."""
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
    scale = guidance_of(options.guidance, options.guidance_interval)
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


def guidance_of(guidance: float | None, interval: tuple[float, float]) -> tuple[float, ...]:
    """(omega, t_min, t_max) from the options of a command; () without a scale."""
    if guidance is None and interval != (0.0, 1.0):
        raise UserError(
            f"guidance-interval = {interval[0]:g} {interval[1]:g}: only with --guidance, the scale that acts in it"
        )
    return () if guidance is None else (guidance, *interval)


def evaluate(arguments: Sequence[str]) -> None:
    """`vamf evaluate`."""
    from vamf import distributed
    from vamf.commands.scores import show_scores
    from vamf.files import finite
    from vamf.progress import Progress
    from vamf.training.run import Run, write_evaluation

    options = parse(Evaluate, arguments, "evaluate", positional=("run",))
    distributed.start()
    run = Run.open(options.run, **_places(options))
    progress = Progress(show=distributed.is_main_process())
    state, step = run.load(progress, options.checkpoint)
    likelihood = _likelihood(run, state, options, progress)
    result = run.evaluate(state, step, ema=options.ema, progress=progress)
    if likelihood is not None:
        result["likelihood"] = likelihood
    if not distributed.is_main_process():
        return
    write_evaluation(run, result)
    if options.json:
        print(json.dumps(finite(result)))
        return
    print_distances(result)
    show_scores(result)
    if likelihood is not None:
        print_likelihood(likelihood)


def _likelihood(run: Any, state: Any, options: Evaluate, progress: Any) -> dict[str, Any] | None:
    """The mean log-likelihoods, where the options ask for them."""
    if not options.likelihood:
        if options.likelihood_rows is not None:
            raise UserError(f"likelihood-rows = {options.likelihood_rows}: only with --likelihood")
        return None
    from vamf.likelihood import runs

    if options.ema == "all":
        raise UserError("ema = all: not with --likelihood, which is of one set of weights")
    return runs.evaluate(run, state, options.likelihood_rows, options.probes, ema=options.ema, progress=progress)


def diagnose(arguments: Sequence[str]) -> None:
    """`vamf diagnose`."""
    from vamf.diagnosis.run import diagnose_run
    from vamf.files import finite, write_json
    from vamf.progress import Progress
    from vamf.report import diagnosis as report
    from vamf.training.run import Run

    options = parse(Diagnose, arguments, "diagnose", positional=("run",))
    run = Run.open(options.run, **_places(options))
    progress = Progress()
    state, step = run.load(progress, options.checkpoint)
    with progress.phase("measuring the gradients"):
        diagnosis = diagnose_run(run, state, step, options.seed)
    result = diagnosis.as_dict()
    write_json(run.folder / "diagnosis.json", result)
    path = report.write(run, diagnosis)
    if options.json:
        print(json.dumps(finite(result)))
        return
    for finding in (*diagnosis.quality, *diagnosis.advice, *diagnosis.log):
        print(f"{finding.severity:8} {finding.text}" + (f"  [{finding.setting}]" if finding.setting else ""))
    print(f"report: {path}")


def _places(options: Evaluate | Diagnose) -> dict[str, Path | None]:
    """New paths of what a run reads."""
    return {name: getattr(options, name) for name in ("data", "conditions", "condition_images")}


def print_likelihood(result: dict[str, Any]) -> None:
    """The table of mean log-likelihoods, and what was computed."""
    from rich.table import Table

    from vamf.likelihood.runs import describe

    console, sign = _console()
    columns, rows = describe(result, sign)
    kind = "held-out" if result["unseen"] else "training"
    table = Table(*columns, title=f"{result['rows']:,} {kind} rows", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in result["notes"]:
        console.print(line, highlight=False)


def _console() -> tuple[Any, str]:
    """Standard output, and its sign for plus or minus."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=WIDE)  # a file breaks no lines
    return console, "±" if console.encoding.lower().startswith("utf") else "+-"


def print_distances(result: dict) -> None:
    from rich.table import Table

    from vamf.commands.scores import show_verdict

    console, sign = _console()
    show_verdict(result, lambda line: console.print(line, highlight=False, markup=False))
    ema = result["ema"]
    weights = {"none": ", no EMA", "all": ""}[ema] if isinstance(ema, str) else f", EMA {ema:g}"
    title = f"{result['run']}, step {result['step']:,}{weights}"
    keys = {"sw1": "SW1", "sw2": "SW2"}
    if result.get("joint"):
        keys |= {"joint_sw1": "joint SW1", "joint_sw2": "joint SW2"}
    table = Table("samples", *keys.values(), title=title, title_justify="left")
    for name, row in result["distances"].items():
        std = {key: f" {sign} {row[f'{key}_std']:.4f}" for key in keys if f"{key}_std" in row}
        table.add_row(name, *(f"{row[key]:.4f}{std.get(key, '')}" for key in keys))
    console.print(table)
    if result.get("joint"):
        names = " and ".join("class" if name == "label" else name for name in result["joint"])
        console.print(
            f"joint: of x and its {names} together, standardised; the baseline is real pairs", highlight=False
        )
    if not result["unseen"]:
        console.print(
            "to the training data, since none were held out: repeating them would score best, and the baseline does",
            highlight=False,
        )
