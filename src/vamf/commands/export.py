"""`vamf export`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vamf.commands.parsing import parse
from vamf.commands.runs import guidance_of


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's weights, or its map from noise to samples as a program that runs without vamf."""

    run: Path
    """Folder of the run."""
    out: Path
    """File to write, .safetensors, .stablehlo or .onnx, or a folder without suffix; JSON metadata are written with
    it."""
    format: str | None = None
    """safetensors (weights), stablehlo (for JAX alone) or onnx (for onnxruntime and others); by default that of the
    suffix, in a folder safetensors."""
    steps: int | None = None
    """Jumps from noise to data, each one network call, written out one after another; by default 1. Not for
    safetensors."""
    guidance: float | None = None
    """Guidance scale that the map is fixed to, for networks conditioned on it; by default it is an input. Not for
    safetensors."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Interval of times in which that guidance acts."""
    checkpoint: int | Literal["newest", "best"] = "newest"
    """Which of the run's checkpoints: by its step, the newest, or the best by the run's metric checkpoints.best."""
    ema: float | Literal["none"] | None = None
    """Which of the run's EMAs, by its decay, or none for the parameters themselves; by default that of
    ema-decay."""
    data: Path | None = None
    """New path of the run's data, if they have moved."""


def export(arguments: Sequence[str]) -> None:
    """`vamf export`."""
    from vamf import distributed
    from vamf.export import ExportOptions, write
    from vamf.export.names import metadata_path
    from vamf.progress import Progress
    from vamf.training.run import Run

    options = parse(Export, arguments, "export", positional=("run",))
    distributed.start()
    scale = guidance_of(options.guidance, options.guidance_interval)
    run = Run.open(options.run, data=options.data)
    chosen = ExportOptions(options.steps, options.ema, scale)
    progress = Progress(show=distributed.is_main_process())
    path = write(run, options.out, options.format, chosen, options.checkpoint, progress)
    if distributed.is_main_process():
        print(f"{path}, {path.stat().st_size:,} bytes; metadata: {metadata_path(path)}")
