"""Export of a trained run: its weights, or its few-step map as a program that runs without vamf.

| format        | holds                                     | read by                        |
|---------------|-------------------------------------------|--------------------------------|
| `safetensors` | the network's weights and configuration   | `vamf.export.load`, safetensors|
| `stablehlo`   | noise and conditions -> samples           | `jax.export`                   |
| `onnx`        | noise and conditions -> samples, float32  | onnxruntime and others         |
"""

import hashlib
from pathlib import Path
from typing import Any

from vamf import distributed
from vamf.errors import UserError, unknown_name
from vamf.export.format import ExportOptions, Format
from vamf.export.names import metadata_path, model_path
from vamf.export.onnx import Onnx
from vamf.export.safetensors import Safetensors, load
from vamf.export.stablehlo import StableHLO
from vamf.files import write_atomic, write_json
from vamf.progress import Progress
from vamf.training import ema_weights
from vamf.training.checkpoints import CheckpointRef
from vamf.training.run import Run
from vamf.version import __version__

__all__ = ["FORMATS", "ExportOptions", "Format", "load", "write"]

FORMATS: dict[str, Format] = {"safetensors": Safetensors(), "stablehlo": StableHLO(), "onnx": Onnx()}
"""Formats by name."""


def write(
    run: Run,
    out: Path | str,
    format: str | None = None,
    options: ExportOptions = ExportOptions(),
    checkpoint: CheckpointRef = "newest",
    progress: Progress = Progress(show=False),
) -> Path:
    """Export a run, with a JSON file of metadata; returns the path of the model's file.

    Args:
        out: a file with a format's suffix, or a folder.
        format: one of FORMATS; by default that of the suffix, in a folder `safetensors`.
        checkpoint: which of the run's checkpoints.

    Raises:
        UserError: an unknown format, existing files, a run or options that the format cannot hold, or a missing
            package. Nothing is written.
    """
    out = Path(out)
    name = format_of(out, format)
    kind = FORMATS[name]
    model = model_path(out, kind.suffix)
    for path in (model, metadata_path(model)):
        if path.exists():
            raise UserError(f"out = {out}: {path} exists already; choose another place, or remove it")
    kind.check(run, options)
    state, step = run.load(progress, checkpoint)
    contents, metadata = kind.contents(run, state, options, _metadata(run, name, step, options))
    metadata["sha256"] = hashlib.sha256(contents).hexdigest()
    distributed.on_main_process(lambda: write_atomic(model, contents))
    distributed.on_main_process(lambda: write_json(metadata_path(model), metadata))
    return model


def format_of(out: Path, format: str | None = None) -> str:
    """The format of a file or folder to write.

    Raises:
        UserError: an unknown format or suffix, or a suffix of another format.
    """
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS, "vamf.export.FORMATS")
    by_suffix = {kind.suffix: name for name, kind in FORMATS.items()}
    if out.suffix and out.suffix not in by_suffix:
        raise UserError(f"out = {out}: allowed are a file {', '.join(by_suffix)}, or a folder without a suffix")
    name = by_suffix.get(out.suffix, format or "safetensors")
    if format not in (None, name):
        raise UserError(f"format = {format}: {out} is a file of {name}; allowed is a file {FORMATS[format].suffix}")
    return name


def _metadata(run: Run, format: str, step: int, options: ExportOptions) -> dict[str, Any]:
    dataset, config = run.dataset_info, run.config
    decay = ema_weights.resolve(options.ema, config.all_ema_decays)
    metadata = {
        "format": format,
        "vamf": __version__,
        "data": dataset.name,
        "method": config.method,
        "training_steps": step,
        "ema": "none" if decay is None else decay,
    }
    return metadata | ({"classes": list(dataset.class_names)} if dataset.num_classes else {})
