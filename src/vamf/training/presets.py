"""Configurations by name. Any data file is one too: see `for_data`."""

from pathlib import Path

from vamf import data
from vamf.data import arrays, mixtures, toys
from vamf.errors import UserError
from vamf.networks.mlp import MLPConfig
from vamf.training.config import OptimiserConfig, TrainConfig


def toy(name: str) -> TrainConfig:
    """A 2-D toy or a dense mixture with the paper's network, optimiser and time law at a tenth of its 200,000 steps."""
    return TrainConfig(data=name)


def digits() -> TrainConfig:
    """The 8x8 handwritten digits, one generator for the ten classes."""
    return TrainConfig(
        data="digits",
        network=MLPConfig(width=512, depth=4),
        optimiser=OptimiserConfig(clip_norm=10.0),
    )


def table(path: str) -> TrainConfig:
    """A user's table: a wider network than the toys'."""
    return TrainConfig(data=path, network=MLPConfig(width=256), optimiser=OptimiserConfig(clip_norm=10.0))


PRESETS = {name: toy(name) for name in (*toys.NAMES, *mixtures.NAMES)} | {"digits": digits()}


def for_data(name: str) -> TrainConfig:
    """The configuration that a preset's name or a data file starts from.

    Raises:
        UserError: neither a preset nor a file of a known kind.
    """
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).suffix.lower() in arrays.SUFFIXES:
        if not Path(name).exists():
            raise UserError(f"{name}: no such file")
        return table(str(Path(name).resolve()))
    data.load(name)  # raises, naming what is allowed; what remains are dense mixtures of other dimensions
    return toy(name)
