"""The estimated cost of a run, as text or JSON."""

import dataclasses
import json
from typing import Any, Literal

from vamf.errors import require
from vamf.files import finite
from vamf.training import cost
from vamf.training.config import TrainConfig
from vamf.training.cost import CHIPS, Chip, CostEstimate

ChipName = Literal["", "h100", "h200", "a100", "l40s", "rtx4090", "tpu_v4", "tpu_v5e", "tpu_v5p", "this"]


@dataclasses.dataclass(frozen=True)
class CostOptions:
    """Options of a cost estimate."""

    devices: int = 1
    """Devices that share each batch."""
    sharded: bool = False
    """Shard parameters, EMA, gradients and the optimizer's state over the devices too."""
    chip: ChipName = ""
    """The chip; `this` is this machine's device, its peak measured. By default all known chips."""
    share: float = 0.4
    """Fraction of the chip's peak that is reached."""
    precision: Literal["", "float32", "tf32", "bfloat16"] = ""
    """Precision of matrix products; by default JAX's for the network's types."""
    shape: tuple[int, ...] = ()
    """Shape of a sample, where the data do not exist and the preset's shape does not apply."""
    classes: int | None = None
    """Number of classes of such data."""
    measure: bool = False
    """Compile the step for one device of this machine and measure a few steps, to compare."""
    json: bool = False
    """Print JSON instead of lines."""


def show(config: TrainConfig, options: CostOptions) -> None:
    """Print the estimated cost of a run.

    Raises:
        UserError: data of unknown shape, or a batch that is not divisible by the number of devices.
    """
    require(0 < options.share <= 1, "share", options.share, "(0, 1]")
    dataset = cost.synthetic_dataset(config, options.shape, options.classes)
    estimate = cost.estimate(config, dataset, options.devices, options.sharded)
    precision = options.precision or cost.precision_of(config)
    chips = CHIPS if not options.chip else {options.chip: CHIPS.get(options.chip) or cost.this_machine()}
    days = {name: _days(estimate, config, options, chip, precision) for name, chip in chips.items()}
    measured = cost.measure(config, dataset) if options.measure else {}
    if options.json:
        result = dataclasses.asdict(estimate) | {"total": estimate.total, "precision": precision, "days": days}
        print(json.dumps(finite(result | {"measured": measured})))
        return
    print(f"{config.describe()}")
    print(f"parameters    {estimate.parameters:,}")
    print(f"operations    {_scaled(estimate.flops)} a step, {_scaled(estimate.flops * config.steps)} in all")
    each = " on each device" if options.devices > 1 else ""
    print(f"memory        {_gib(estimate.total)}{each}")
    for name, size in estimate.memory.items():
        print(f"  {name:<24}{_gib(size)}")
    print(f"time of {config.steps:,} steps on {_devices(options)} at {options.share:.0%} of the peak in {precision}")
    for name, chip in chips.items():
        warning = "" if estimate.total <= chip.memory else f", does not fit into {_gib(chip.memory)}"
        print(f"  {name:<10}{_time(days[name]):>14}{warning}  ({chip.source})")
    if measured:
        single_device = estimate if options.devices == 1 else cost.estimate(config, dataset)
        print("estimated and measured, one device of this machine")
        print(f"  operations  {_scaled(single_device.flops)}  {_scaled(measured['flops'])}")
        print(f"  memory      {_gib(single_device.total)}  {_gib(measured['memory'])}")
        total_time = _time(measured["seconds"] * config.steps / 86_400)
        print(f"  a step takes {measured['seconds']:.3g} s here, all of them {total_time}")


def _days(estimate: CostEstimate, config: TrainConfig, options: CostOptions, chip: Chip, precision: str) -> float:
    peak = getattr(chip, precision) * 1e12
    return estimate.days(config.steps, options.devices, peak, options.share)


def _devices(options: CostOptions) -> str:
    return f"{options.devices} device{'s' * (options.devices > 1)}{', sharded' * options.sharded}"


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
