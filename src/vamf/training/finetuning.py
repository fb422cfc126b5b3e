"""Fine-tuning: from a flow-matching model to a one-step model, with the remedies of what is known to fail.

| remedy                                        | without it                                                        |
|-----------------------------------------------|-------------------------------------------------------------------|
| tangent v_hat of the EMA (beta = 1)           | the network's own diagonal follows its own errors                 |
| anchor close to the diagonal                  | nothing but the rows with r = t keeps u(z, t, t) = v              |
| plain squared error (p = 0)                   | long gaps get a small fraction of the weight                      |
| gaps up to 0.1 first, all from half-way on    | long gaps ask for jumps that short ones have not learnt yet       |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vamf.data import Source, source_name
from vamf.errors import UserError, unknown_name
from vamf.objectives import METHODS
from vamf.objectives.weighting import Power
from vamf.options import merged, plain
from vamf.training import presets
from vamf.training.config import TrainConfig
from vamf.training.config_file import CONFIG, read_json

METHOD = "vamf"
"""The method, where no other is named."""
REMEDIES: Mapping[str, Any] = {
    "beta": 1.0,
    "proxy": "ema",
    "anchor": {"weight": 0.5},
    "weighting": {"type": "power", "power": 0.0},
    "times": {"max_gap": "linear:0.1:1:0%:50%"},
}
"""Options of the method, of those that it has."""


def finetune(run: str | Path, data: str | Path | Source | None = None, **changes: Any) -> TrainConfig:
    """The configuration that fine-tunes a run: its network, prediction, data and optimizer, with the remedies.

    Args:
        run: its folder.
        data: a preset's name or data, where they are not the run's.
        changes: as for `presets.for_data`.

    Raises:
        UserError: the folder holds no run, its network predicts noise, or an unknown field.
    """
    path = Path(run) / CONFIG
    if not path.exists():
        raise UserError(f"finetune = {run}: holds no run (no {CONFIG})")
    config = read_json(TrainConfig, path)
    if getattr(config.network, "predicts", "") == "noise":
        raise UserError(f"finetune = {run}: its network predicts noise, and no velocity")
    if data is not None:
        config = dataclasses.replace(config, data=_data(data))
    return with_remedies(config, run, **changes)


def with_remedies(config: TrainConfig, run: str | Path, **changes: Any) -> TrainConfig:
    """The configuration that fine-tunes a run with this one."""
    name = changes.pop("method", METHOD)
    if name not in METHODS:
        raise unknown_name("method", repr(name), METHODS, "vamf.objectives.METHODS")
    method = METHODS[name]
    remedies = {option: value for option, value in REMEDIES.items() if option in method.options}
    if not isinstance(method.options["weighting"].default, Power):  # a learned weight makes up for it
        del remedies["weighting"]
    config = dataclasses.replace(
        config,
        init_from=str(run),
        network=config.network.with_both_times(),
        method=name,
        objective=merged(method.carry_over(config.objective, METHODS[config.method]), remedies),
    )
    return presets.update(config, changes)


def _data(data: Any) -> str:
    known = isinstance(data, str) and data in presets.PRESETS
    return presets.PRESETS[data].data if known else source_name(data)


def describe(config: TrainConfig) -> str:
    """The settings that fine-tune, in one line."""
    values = METHODS[config.method].values(config.steps, config.objective)
    named = {
        "beta": values.get("beta"),
        "proxy": values.get("proxy"),
        "p": getattr(values["weighting"], "power", None),
        "anchor": values["anchor"].weight,
        "max-gap": config.objective.get("times", {}).get("max_gap", values["times"].max_gap),
        "learning rate": f"{config.learning_rate:.3g}",
    }
    settings = ", ".join(f"{name} {plain(value)}" for name, value in named.items() if value is not None)
    return f"fine-tuning {config.init_from}: method {config.method}, {settings}"
