"""What a training will cost, as lines for people or JSON."""

import dataclasses
import json
from typing import Any, Literal

from vamf.errors import require
from vamf.files import finite
from vamf.training import estimate
from vamf.training.config import TrainConfig
from vamf.training.estimate import CHIPS, Chip, Estimate

Named = Literal["", "h100", "h200", "a100", "l40s", "rtx4090", "tpu_v4", "tpu_v5e", "tpu_v5p", "this"]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to estimate a training for."""

    devices: int = 1
    """Devices that share each batch."""
    sharded: bool = False
    """Parameters, moving average, gradients and the optimiser's state are divided over the devices too."""
    chip: Named = ""
    """The chip; `this` is this machine's device, its peak measured. Left out, all that are known."""
    share: float = 0.4
    """What is reached of the chip's peak."""
    precision: Literal["", "float32", "tf32", "bfloat16"] = ""
    """What products are computed in; left out, JAX's default for the network's types."""
    shape: tuple[int, ...] = ()
    """Shape of a sample, where the data is not there and the preset's shape is not meant."""
    classes: int | None = None
    """Number of classes of such data."""
    measure: bool = False
    """Compile the step for one device of this machine and take a few, to compare."""
    json: bool = False
    """Print JSON instead of lines."""


def show(config: TrainConfig, wanted: Wanted) -> None:
    """Print what a training will cost.

    Raises:
        UserError: data whose shape is not known, or a batch that cannot be divided over the devices.
    """
    require(0 < wanted.share <= 1, "share", wanted.share, "(0, 1]")
    dataset = estimate.stand_in(config, wanted.shape, wanted.classes)
    found = estimate.estimate(config, dataset, wanted.devices, wanted.sharded)
    precision = wanted.precision or estimate.precision_of(config)
    chips = CHIPS if not wanted.chip else {wanted.chip: CHIPS.get(wanted.chip) or estimate.this_machine()}
    days = {name: _days(found, config, wanted, chip, precision) for name, chip in chips.items()}
    measured = estimate.measure(config, dataset) if wanted.measure else {}
    if wanted.json:
        result = dataclasses.asdict(found) | {"total": found.total, "precision": precision, "days": days}
        print(json.dumps(finite(result | {"measured": measured})))
        return
    print(f"{config.describe()}")
    print(f"parameters    {found.parameters:,}")
    print(f"operations    {_scaled(found.flops)} a step, {_scaled(found.flops * config.steps)} in all")
    each = " on each device" if wanted.devices > 1 else ""
    print(f"memory        {_gib(found.total)}{each}")
    for name, size in found.memory.items():
        print(f"  {name:<24}{_gib(size)}")
    print(f"time of {config.steps:,} steps on {_devices(wanted)} at {wanted.share:.0%} of the peak in {precision}")
    for name, chip in chips.items():
        room = "" if found.total <= chip.memory else f", does not fit into {_gib(chip.memory)}"
        print(f"  {name:<10}{_time(days[name]):>14}{room}  ({chip.source})")
    if measured:
        alone = found if wanted.devices == 1 else estimate.estimate(config, dataset)
        print("estimated and measured, one device of this machine")
        print(f"  operations  {_scaled(alone.flops)}  {_scaled(measured['flops'])}")
        print(f"  memory      {_gib(alone.total)}  {_gib(measured['memory'])}")
        whole = _time(measured["seconds"] * config.steps / 86_400)
        print(f"  a step takes {measured['seconds']:.3g} s here, all of them {whole}")


def _days(found: Estimate, config: TrainConfig, wanted: Wanted, chip: Chip, precision: str) -> float:
    peak = getattr(chip, precision) * 1e12
    return found.days(config.steps, wanted.devices, peak, wanted.share)


def _devices(wanted: Wanted) -> str:
    return f"{wanted.devices} device{'s' * (wanted.devices > 1)}{', sharded' * wanted.sharded}"


def _scaled(operations: Any) -> str:
    for unit, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if operations >= unit:
            return f"{operations / unit:.3g} {name}"
    return f"{operations / 1e6:.3g} MFLOP"


def _time(days: float) -> str:
    for unit, name in ((1, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= unit:
            return f"{days / unit:,.3g} {name}" if days < 1000 else f"{days:,.0f} days"
    return f"{days * 86_400:.3g} seconds"


def _gib(size: Any) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
