"""Names of the files of an export: in a folder, or a file with its metadata beside it.

| `--out`           | model              | metadata            |
|-------------------|--------------------|---------------------|
| `moons.onnx`      | `moons.onnx`       | `moons.onnx.json`   |
| a folder `moons`  | `moons/model.onnx` | `moons/config.json` |
"""

from pathlib import Path

MODEL, METADATA = "model", "config.json"


def model_path(out: Path, suffix: str) -> Path:
    """The model's file."""
    return out if out.suffix == suffix else out / f"{MODEL}{suffix}"


def metadata_path(model: Path) -> Path:
    """The file of metadata of a model's file."""
    return model.with_name(METADATA) if model.stem == MODEL else model.with_name(f"{model.name}.json")
