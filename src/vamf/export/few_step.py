"""The few-step map of a run as a plain function of arrays, which StableHLO and ONNX files hold.

    samples = map(noise, label, vector, image, guidance)         inputs as far as the run has them

`noise` is standard normal, conditions and samples are in the data's units.
"""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vamf.average_velocity import AverageVelocity, flow_map, precise
from vamf.conditioning import Conditioning, GuidanceScale
from vamf.data.conditions import IMAGE, LABEL, NO_CONDITIONS, VECTOR
from vamf.errors import UserError, require
from vamf.export import units
from vamf.path import Path
from vamf.sampling.time_grid import times_of
from vamf.training.run import Run

NOISE, GUIDANCE, SAMPLES = "noise", "guidance", "samples"
"""Names of inputs and output."""
BATCH = "n"
"""Name of the free axis."""


class Input(NamedTuple):
    """An input of the map."""

    name: str
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str
    meaning: str

    @property
    def facts(self) -> dict[str, Any]:
        """The input in metadata."""
        return {"name": self.name, "shape": [BATCH, *self.shape], "dtype": self.dtype, "meaning": self.meaning}


@dataclasses.dataclass(frozen=True)
class FewStepMap:
    """The map of a run."""

    inputs: tuple[Input, ...]
    """In the order of its arguments, the noise first."""
    function: Callable[..., jax.Array]
    """Arrays (n, ...) -> samples (n, ...)."""
    metadata: dict[str, Any]

    def abstract_inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of the inputs, with one free number of rows."""
        (n,) = jax.export.symbolic_shape(BATCH)
        return [jax.ShapeDtypeStruct((n, *one.shape), np.dtype(one.dtype)) for one in self.inputs]


def check(run: Run, steps: int, scale: tuple[float, ...] = ()) -> None:
    """Refuse a run that has no few-step map from noise, before it is loaded.

    Raises:
        UserError: says why, and what can be done.
    """
    require(steps >= 1, "steps", steps, "1 or more")
    sampler, path = run.default_sampler()[0], run.config.build_objective().path
    instead = "its weights can be exported with --format safetensors"
    if sampler != "flow_map":
        raise UserError(
            f"{run.folder}: {run.config.method} learns no map from noise to data, its sampler is {sampler}; {instead}, "
            f"or distil it: vamf train CONFIG --proxy teacher --teacher {run.folder}"
        )
    if run.dataset_info.has_start or type(path).prior is not Path.prior:
        raise UserError(f"{run.folder}: its samples do not begin at standard normal noise; {instead}")
    if scale:
        run.check_scale(scale)


def few_step_map(
    run: Run, u: AverageVelocity, steps: int = 1, scale: tuple[float, ...] = (), float32: bool = False
) -> FewStepMap:
    """The map of a run in `steps` jumps of equal length, written out one after another.

    Args:
        u: the run's average velocity.
        scale: (omega, t_min, t_max) of the guidance; without it a network conditioned on guidance has an input for it.
        float32: compute in float32 where the network computes in lower precision.
    """
    dataset, objective = run.dataset_info, run.config.build_objective()
    u = precise(u) if float32 else u
    inputs = _inputs(run, fixed_guidance=bool(scale))
    grid = np.asarray(times_of("steps", steps, np.float32))
    back = units.to_original(dataset)

    def function(noise, *conditions):
        cond = _conditioning(run, dict(zip([one.name for one in inputs[1:]], conditions, strict=True)), scale, noise)
        z = noise
        for t, r in pairwise(grid):
            t, r = (jnp.full(noise.shape[:1], time, noise.dtype) for time in (t, r))
            z = flow_map(u, z, t, r, cond, objective.path)
        return z if back is None else back(z)

    shape = dataset.event_shape if back is None else dataset.sample_shape
    output = {"name": SAMPLES, "shape": [BATCH, *shape], "dtype": "float32"}
    metadata = {
        "steps": steps,
        "inputs": [one.facts for one in inputs],
        "output": output | units.describe_output(dataset, back is not None),
        "prior": f"standard normal: draw {NOISE} from it",
    }
    if scale:
        metadata[GUIDANCE] = dict(zip(("scale", "t_min", "t_max"), scale, strict=True))
    return FewStepMap(inputs, function, metadata)


def _inputs(run: Run, fixed_guidance: bool) -> tuple[Input, ...]:
    dataset, objective = run.dataset_info, run.config.build_objective()
    conditions = dataset.conditions or NO_CONDITIONS
    inputs = [Input(NOISE, dataset.event_shape, "float32", "standard normal")]
    if dataset.num_classes:
        drops = objective.guidance.dropout > 0
        meaning = f"index of a class, 0 to {dataset.num_classes - 1}" + ", or -1 for none" * drops
        inputs.append(Input(LABEL, (), "int32", meaning))
    for name in (VECTOR, IMAGE):
        if name in conditions.units:
            inputs.append(Input(name, conditions.rows[name].shape[1:], "float32", "condition in the data's units"))
    if objective.guidance.scale_power is not None and not fixed_guidance:
        inputs.append(Input(GUIDANCE, (), "float32", "scale of the guidance, 1 (none) or more"))
    return tuple(inputs)


def _conditioning(run: Run, values: dict[str, Any], scale: tuple[float, ...], noise: jax.Array) -> Any:
    """The network's conditioning from the map's inputs."""
    conditions = run.dataset_info.conditions or NO_CONDITIONS
    inner = {
        name: units.from_original(conditions.units[name])(values[name]) for name in (VECTOR, IMAGE) if name in values
    }
    guidance = None
    if scale or GUIDANCE in values:
        ones = jnp.ones(noise.shape[:1], noise.dtype)
        omega, low, high = scale or (values[GUIDANCE], 0.0, 1.0)
        guidance = GuidanceScale(omega * ones, low * ones, high * ones)
    if guidance is None and not inner:
        return values.get(LABEL)
    return Conditioning(values.get(LABEL), scale=guidance, **inner)
