"""`vamf data check`: what is in data, how training would prepare them, and with what it would start."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from vamf import networks
from vamf.data import ImageConfig, image_files, is_name, latents
from vamf.data.image_check import ImageFacts, inspect
from vamf.errors import UserError
from vamf.files import finite
from vamf.progress import Progress
from vamf.report import repeat
from vamf.training import presets
from vamf.training.step import build_network

MAX_SHOWN = 10
"""Entries that a line shows."""


def show(path: Path, images: ImageConfig, holdout: float, as_json: bool, progress: Progress) -> None:
    """Print a report on data.

    Raises:
        UserError: they cannot be trained on; after the report.
    """
    if not path.exists() and not is_name(str(path)):
        raise UserError(f"{path}: no such file or folder")
    facts = None
    if image_files.is_source(path) and not latents.is_folder(path):
        facts = inspect(image_files.read(path, floats=True), progress, str(path))
    problem, plan = "", {}
    try:
        plan = _plan(path, images, holdout)
    except UserError as error:
        problem = str(error)
    if as_json:
        content = {} if facts is None else {**dataclasses.asdict(facts), "repeated": facts.num_repeated}
        result = {"data": str(path), **content, **plan, "trainable": not problem, "problem": problem}
        print(json.dumps(finite(result)))
    else:
        for name, text in (*_facts(facts), *_training(plan)):
            print(f"{name:<12}{text}")
    if problem:
        raise UserError(f"cannot be trained on as they are: {problem}")


def _plan(path: Path, images: ImageConfig, holdout: float) -> dict[str, Any]:
    """What `vamf train PATH` would do.

    Raises:
        UserError: the data cannot be used.
    """
    config = dataclasses.replace(presets.for_data(str(path)), images=images, holdout=holdout)
    dataset = config.load_data()
    params = jax.eval_shape(build_network(config, dataset).init, jax.random.key(0))
    network = config.network
    return {
        "prepared": dataset.summary,
        "shape": list(dataset.event_shape),
        "conditions": dataset.cond_shape.describe(),
        "command": repeat.command(config),
        "method": config.method,
        "network": networks.kind_of(network),
        "network_options": {
            name: getattr(network, name) for name in ("depth", "width", "heads") if hasattr(network, name)
        },
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "steps": config.steps,
        "batch_size": config.batch_size,
    }


def _facts(facts: ImageFacts | None) -> list[tuple[str, str]]:
    if facts is None:
        return []
    test = f", and {facts.test_count:,} in the official test set" if facts.test_count else ""
    lines = [("images", f"{facts.count:,}{test}"), ("sizes", _counted(facts.sizes))]
    lines.append(("channels", _counted(facts.channels)))
    if facts.values is not None:
        lines.append(("values", "{:.6g} to {:.6g}".format(*facts.values)))
    lines.append(("classes", _counted(facts.classes) if facts.classes else "none"))
    lines.append(("damaged", _listed(facts.damaged) if facts.damaged else "none"))
    groups = [" = ".join(group[:MAX_SHOWN]) + " = ..." * (len(group) > MAX_SHOWN) for group in facts.duplicates]
    repeated = f"{facts.num_repeated:,} images repeat another: {_listed(groups, count=False)}"
    return [*lines, ("duplicates", repeated if groups else "none")]


def _training(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not plan:
        return []
    options = ", ".join(f"{name} {value}" for name, value in plan["network_options"].items())
    network = f"{plan['network']}{f' ({options})' * bool(options)} of {plan['parameters']:,} parameters"
    steps = f"{plan['steps']:,} steps of {plan['batch_size']}"
    return [("prepared", plan["prepared"]), ("training", f"{plan['command']}: {plan['method']}, {network}, {steps}")]


def _counted(counts: Mapping[str, int]) -> str:
    """Names and their counts; of many, the first."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:MAX_SHOWN])
    return f"{shown}, ... {len(counts):,} in all" if len(counts) > MAX_SHOWN else shown or "none"


def _listed(entries: Iterable[str], count: bool = True) -> str:
    """Entries in a line; of many, the first."""
    entries = list(entries)
    shown = "; ".join(entries[:MAX_SHOWN]) + "; ..." * (len(entries) > MAX_SHOWN)
    return f"{len(entries):,}: {shown}" if count else shown
